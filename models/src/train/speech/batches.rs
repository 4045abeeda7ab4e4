//! Batches of clips that are about equally long, so that little of them is padding.

use candle_core::{Result, bail};
use moesaic_kernels::rng::Rng;

/// Which clips stand together. The batches are the same in every epoch, their order is drawn anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    batches: Vec<Vec<usize>>,
    /// Clips that are equally long, as they stand in the batches one after the other: how many.
    alike: Vec<usize>,
}

impl Buckets {
    /// Sorts clips of these `lengths` into `buckets` of equal width, and cuts each into batches of at most `most` steps, and at
    /// most `rows` clips, as Llama-AVSR does. The steps of a batch are counted without padding.
    ///
    /// # Errors
    /// There is no clip, or one is longer than a batch.
    pub fn new(lengths: &[usize], most: usize, buckets: usize, rows: Option<usize>) -> Result<Self> {
        let (Some(&shortest), Some(&longest)) = (lengths.iter().min(), lengths.iter().max()) else {
            bail!("there are no clips to train on");
        };
        if longest > most {
            let clip = lengths.iter().position(|l| *l == longest).unwrap_or(0);
            bail!("clip {clip} has {longest} frames, a batch takes {most}: cut it, leave it out or raise max_frames");
        }
        if buckets == 0 || rows == Some(0) {
            bail!("batches need at least one bucket and one row");
        }
        // Borders from the shortest to the longest; a length on a border belongs to the bucket below it.
        let width = (longest - shortest) as f64 / (buckets.max(2) - 1) as f64;
        let bucket = |length: usize| if width > 0.0 { ((length - shortest) as f64 / width).ceil() as usize } else { 0 };
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        let of = |clip: &usize| lengths.get(*clip).copied().unwrap_or(0);
        order.sort_by_key(|clip| (if buckets == 1 { 0 } else { bucket(of(clip)) }, std::cmp::Reverse(of(clip))));
        let (mut batches, mut current, mut steps) = (Vec::new(), Vec::new(), 0);
        for clip in order {
            let length = of(&clip);
            if !current.is_empty() && (steps + length > most || rows == Some(current.len())) {
                batches.push(std::mem::take(&mut current));
                steps = 0;
            }
            current.push(clip);
            steps += length;
        }
        batches.push(current);
        let all: Vec<usize> = batches.iter().flatten().map(&of).collect();
        let alike = all.chunk_by(|a, b| a == b).map(<[usize]>::len).collect();
        Ok(Self { batches, alike })
    }

    /// Batches of an epoch.
    pub fn count(&self) -> usize {
        self.batches.len()
    }

    /// As [`batch`](Self::batch), but clips that are equally long change places with each other in every epoch: those of a batch do
    /// not stay together.
    pub fn mixed(&self, seed: u64, index: u64) -> Vec<usize> {
        let epoch = index / (self.batches.len() as u64).max(1);
        let place = self.place(seed, index);
        let mut all: Vec<usize> = self.batches.iter().flatten().copied().collect();
        let (mut rng, mut rest) = (Rng::keyed(&[seed, epoch, 0x6d69_7865_6421]), all.as_mut_slice());
        for &count in &self.alike {
            let Some((these, others)) = rest.split_at_mut_checked(count) else { break };
            for i in (1..these.len()).rev() {
                these.swap(i, rng.below(i + 1));
            }
            rest = others;
        }
        let before: usize = self.batches.iter().take(place).map(Vec::len).sum();
        let count = self.batches.get(place).map_or(0, Vec::len);
        all.get(before..before + count).unwrap_or_default().to_vec()
    }

    /// The clips of batch `index` of a run, counted through its epochs; a pure function of its arguments.
    pub fn batch(&self, seed: u64, index: u64) -> &[usize] {
        self.batches.get(self.place(seed, index)).map_or(&[], Vec::as_slice)
    }

    /// Which of the batches is batch `index` of a run.
    fn place(&self, seed: u64, index: u64) -> usize {
        let count = self.batches.len() as u64;
        let mut order: Vec<usize> = (0..self.batches.len()).collect();
        let mut rng = Rng::keyed(&[seed, index / count.max(1), 0x6275_636b]);
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i + 1));
        }
        order.get((index % count.max(1)) as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(n: usize) -> Vec<usize> {
        let mut rng = Rng::new(5);
        (0..n).map(|_| 20 + rng.below(130)).collect()
    }

    #[test]
    fn every_clip_once_an_epoch_and_no_batch_too_large() -> Result<()> {
        let lengths = lengths(500);
        let buckets = Buckets::new(&lengths, 1000, 50, None)?;
        for epoch in 0..2 {
            let first = epoch * buckets.count() as u64;
            let mut seen: Vec<usize> =
                (0..buckets.count() as u64).flat_map(|i| buckets.batch(9, first + i).to_vec()).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..500).collect::<Vec<_>>());
        }
        let steps = |batch: &[usize]| batch.iter().map(|&i| lengths[i]).sum::<usize>();
        assert!(buckets.batches.iter().all(|b| steps(b) <= 1000 && !b.is_empty()));
        // About equally long: little is padding.
        let padded: usize =
            buckets.batches.iter().map(|b| b.len() * b.iter().map(|&i| lengths[i]).max().unwrap()).sum();
        let real: usize = lengths.iter().sum();
        assert!((padded as f64) < 1.06 * real as f64, "{padded} {real}");
        assert!(Buckets::new(&lengths, 1000, 50, Some(3))?.batches.iter().all(|b| b.len() <= 3));
        Ok(())
    }

    #[test]
    fn clips_of_one_length_change_places_between_epochs() -> Result<()> {
        let lengths: Vec<usize> = (0..200).map(|i| 50 + 10 * (i % 4)).collect();
        let buckets = Buckets::new(&lengths, 1000, 50, Some(8))?;
        let n = buckets.count() as u64;
        let epoch = |e: u64| -> Vec<Vec<usize>> { (0..n).map(|i| buckets.mixed(3, e * n + i)).collect() };
        for e in 0..2 {
            let mut seen: Vec<usize> = epoch(e).concat();
            seen.sort_unstable();
            assert_eq!(seen, (0..200).collect::<Vec<_>>());
            let of = |batch: &[usize]| batch.iter().map(|&i| lengths[i]).collect::<Vec<_>>();
            for i in e * n..(e + 1) * n {
                assert_eq!(of(&buckets.mixed(3, i)), of(buckets.batch(3, i)), "other lengths than before");
            }
        }
        let sorted = |e: u64| -> Vec<Vec<usize>> {
            let mut all = epoch(e);
            all.iter_mut().for_each(|b| b.sort_unstable());
            all.sort();
            all
        };
        assert_ne!(sorted(0), sorted(1), "the same clips stand together in every epoch");
        assert_eq!(epoch(1), epoch(1));
        Ok(())
    }

    #[test]
    fn the_order_depends_on_seed_and_epoch_alone() -> Result<()> {
        let lengths = lengths(300);
        let (one, two) = (Buckets::new(&lengths, 800, 20, None)?, Buckets::new(&lengths, 800, 20, None)?);
        assert_eq!(one, two);
        let n = one.count() as u64;
        let order = |seed: u64, epoch: u64| -> Vec<Vec<usize>> {
            (0..n).map(|i| one.batch(seed, epoch * n + i).to_vec()).collect()
        };
        assert_eq!(order(1, 3), order(1, 3));
        assert_ne!(order(1, 3), order(1, 4));
        assert_ne!(order(1, 3), order(2, 3));
        Ok(())
    }

    #[test]
    fn borders_belong_to_the_bucket_below() -> Result<()> {
        // Borders 10, 20, 30: lengths up to 10, up to 20, up to 30.
        let buckets = Buckets::new(&[30, 10, 21, 20, 11], 1000, 3, Some(2))?;
        assert_eq!(buckets.batches, [vec![1, 3], vec![4, 0], vec![2]]);
        assert_eq!(Buckets::new(&[7, 7, 7], 14, 50, None)?.batches, [vec![0, 1], vec![2]]);
        assert!(Buckets::new(&[], 10, 1, None).is_err());
        assert!(Buckets::new(&[5, 11], 10, 1, None).unwrap_err().to_string().contains("clip 1 has 11"));
        Ok(())
    }
}
