//! How long neighbouring tokens stay with the same experts: what says whether a model suits an expert cache (Liang et al., "Not All
//! Models Suit Expert Offloading", arXiv 2505.16056).
//!
//! Both look at every segment of `m` neighbouring tokens and at `c_e`, how many of them use expert `e`. Sequences are looked at one by
//! one; those shorter than a segment do not count.

/// The counts of every segment of `m` tokens, in the order of experts.
fn segments(sequences: &[&[Vec<u32>]], experts: usize, m: usize, mut each: impl FnMut(&[u32])) {
    for tokens in sequences.iter().filter(|tokens| m > 0 && tokens.len() >= m) {
        let mut counts = vec![0u32; experts];
        for (i, token) in tokens.iter().enumerate() {
            let left = i.checked_sub(m).and_then(|i| tokens.get(i)).into_iter().flatten();
            for &e in token {
                if let Some(count) = counts.get_mut(e as usize) {
                    *count += 1;
                }
            }
            for &e in left {
                if let Some(count) = counts.get_mut(e as usize) {
                    *count -= 1;
                }
            }
            if i + 1 >= m {
                each(&counts);
            }
        }
    }
}

/// Segment routing best performance, 0 to 1: how well a router that chooses for whole segments could do what the router of tokens does.
/// It gives an expert to all tokens of a segment where at least `s` of them use it, and to none elsewhere; `F1` compares that with the
/// tokens' own experts, over all segments together, and the best `s` counts:
/// `max_s 2 sum_{c >= s} c / (m |{c >= s}| + sum c)`. 1 where all tokens of a segment use the same experts.
///
/// Each sequence lists the experts of its tokens. `None` without a segment, or without any expert in one.
pub fn segment_routing(sequences: &[&[Vec<u32>]], experts: usize, m: usize) -> Option<f64> {
    if m == 0 || sequences.iter().all(|sequence| sequence.len() < m) {
        return None;
    }
    // How many (segment, expert) have each count.
    let mut with = vec![0u64; m + 1];
    segments(sequences, experts, m, |counts| {
        for &c in counts {
            if let Some(n) = with.get_mut(c as usize) {
                *n += 1;
            }
        }
    });
    let used: u64 = with.iter().zip(0u64..).map(|(n, c)| n * c).sum();
    let (mut matches, mut given, mut best) = (0u64, 0u64, None::<f64>);
    for (c, n) in with.iter().enumerate().skip(1).rev() {
        let c = c as u64;
        (matches, given) = (matches + c * n, given + m as u64 * n);
        if used > 0 {
            let f1 = 2.0 * matches as f64 / (given + used) as f64;
            best = Some(best.map_or(f1, |best| best.max(f1)));
        }
    }
    best
}

/// Segment cache best hit rate, 0 to 1: the share of the routes of all segments that go to the `cache` experts which each segment uses
/// most, as the paper's first version defines it.
///
/// `None` as in [`segment_routing`].
pub fn segment_cache(sequences: &[&[Vec<u32>]], experts: usize, m: usize, cache: usize) -> Option<f64> {
    let (mut hits, mut all) = (0u64, 0u64);
    segments(sequences, experts, m, |counts| {
        let mut counts = counts.to_vec();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        hits += counts.iter().take(cache).map(|&c| u64::from(c)).sum::<u64>();
        all += counts.iter().map(|&c| u64::from(c)).sum::<u64>();
    });
    (all > 0).then(|| hits as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tokens: &[&[u32]]) -> Vec<Vec<u32>> {
        tokens.iter().map(|experts| experts.to_vec()).collect()
    }

    #[test]
    fn steady_tokens_are_consistent_and_scattered_ones_are_not() {
        let steady = of(&[&[0, 1][..]; 6]);
        assert_eq!(segment_routing(&[&steady], 4, 3), Some(1.0));
        assert_eq!(segment_cache(&[&steady], 4, 3, 2), Some(1.0));
        // Longer than any sequence, and than any memory.
        assert_eq!(segment_routing(&[&steady], 4, 1 << 60), None);
        assert_eq!(segment_cache(&[&steady], 4, 3, 1), Some(0.5));
        // Each of four tokens has an expert of its own: the best router of segments gives all four to all.
        let scattered = of(&[&[0], &[1], &[2], &[3]]);
        assert_eq!(segment_routing(&[&scattered], 4, 4), Some(2.0 * 4.0 / (16.0 + 4.0)));
        assert_eq!(segment_cache(&[&scattered], 4, 4, 2), Some(0.5));
    }

    #[test]
    fn by_hand() {
        // Segments of two: {0: 2, 1: 1, 2: 1}, {0: 1, 1: 1, 2: 2}.
        let tokens = of(&[&[0, 1], &[0, 2], &[1, 2]]);
        // s = 2: 4 of 8 uses, 4 given; s = 1: all 8, 12 given.
        assert_eq!(
            segment_routing(&[&tokens], 3, 2),
            Some(f64::max(2.0 * 4.0 / (4.0 + 8.0), 2.0 * 8.0 / (12.0 + 8.0)))
        );
        assert_eq!(segment_cache(&[&tokens], 3, 2, 1), Some(4.0 / 8.0));
        // A second sequence does not touch the first, and one that is too short does not count.
        let (other, short) = (of(&[&[2], &[2]]), of(&[&[1]]));
        assert_eq!(segment_cache(&[&tokens, &other, &short], 3, 2, 1), Some(6.0 / 10.0));
    }

    #[test]
    fn nothing_to_look_at() {
        let none = of(&[&[], &[]]);
        for m in [0, 2, 3] {
            assert_eq!((segment_routing(&[&none], 2, m), segment_cache(&[&none], 2, m, 1)), (None, None));
            assert_eq!(segment_routing(&[], 2, m), None);
        }
        // Padding has no experts and takes part as a token that uses none.
        let half = of(&[&[0], &[], &[0]]);
        assert_eq!(segment_cache(&[&half], 1, 2, 1), Some(1.0));
        assert_eq!(segment_routing(&[&half], 1, 2), Some(2.0 * 2.0 / (4.0 + 2.0)));
    }
}
