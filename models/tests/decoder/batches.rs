//! Batches and caches: a row is the same alone, padded, cached, cut and chosen.

use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::cpu::with_threads;
use moesaic_kernels::{Modality, Tokens};
use moesaic_models::decoder::{Cache, Context, Input, Segment};

use crate::families::*;

#[test]
fn a_padded_batch_gives_each_row_what_it_gives_alone() {
    let rows = [prompt(1, 3), prompt(2, 11), prompt(3, 1), prompt(4, 8)];
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    for saved in all() {
        let model = saved.load(DType::F32);
        let together = logits(&model, &rows);
        let (tokens, cached) = greedy(&model, &rows, 9);
        for (i, row) in rows.iter().enumerate() {
            let of_row = |t: &Tensor| t.narrow(0, i, 1).unwrap();
            let real = of_row(&together).narrow(1, 11 - row.len(), row.len()).unwrap();
            assert_eq!(values(&real), values(&logits(&model, &[row])), "{} row {i}", saved.label);
            let (alone, logits) = greedy(&model, &[row], 9);
            assert_eq!(alone[0], tokens[i], "{} row {i}", saved.label);
            assert_eq!(values(&of_row(&cached)), values(&logits), "{} row {i}", saved.label);
        }
        let one = with_threads(1, || logits(&model, &rows));
        assert_eq!(values(&together), values(&one), "{}: the number of threads shows", saved.label);
    }
}

#[test]
fn cached_and_uncached_agree_however_the_text_is_cut() {
    for (i, saved) in all().into_iter().enumerate() {
        let model = saved.load(DType::F32);
        // Frequencies that follow the length would differ between what was cached and what is recomputed.
        let length_dependent = saved.config.max_positions == 8 || saved.label.contains("phimoe");
        let n = if length_dependent { 8 } else { 30 };
        let (long, short) = (prompt(6, n), prompt(7, n - 3));
        let whole = logits(&model, &[&long, &short]);
        let padded: Vec<u32> = [&[0; 3], &short[..]].concat();
        let cuts: [&[usize]; 4] = [&[n], &[4, 1, 1, 1, n - 7], &[n - 1, 1], &[5, n - 5]];
        for cut in cuts {
            let mut cache = Cache::default();
            let mut at = 0;
            let context = Context { padding: vec![0, 3], ..Context::default() };
            for &t in cut {
                let part = [&long[at..at + t], &padded[at..at + t]].concat();
                let part = Tensor::from_vec(part, (2, t), &Device::Cpu).unwrap();
                let output = model.forward(Input::Ids(&part), &context, Some(&mut cache), None).unwrap();
                let got = model.logits(&output.hidden).unwrap();
                for row in 0..2 {
                    let first = if row == 1 { 3usize.saturating_sub(at).min(t) } else { 0 };
                    let of = |x: &Tensor, from: usize| x.narrow(0, row, 1).unwrap().narrow(1, from, t - first).unwrap();
                    if first < t {
                        let difference = worst(&of(&got, first), &of(&whole, at + first));
                        assert!(difference < 3e-5, "{} {i} row {row} cut {cut:?} at {at}: {difference}", saved.label);
                    }
                }
                at += t;
            }
            assert_eq!(cache.tokens(), n);
        }
    }
}

#[test]
fn rows_of_a_cache_can_be_chosen_and_cut_off() -> Result<()> {
    let (a, b) = (prompt(1, 6), prompt(2, 4));
    for saved in all() {
        let model = saved.load(DType::F32);
        let (first, context) = ids(&[&a, &b]);
        let mut cache = Cache::default();
        model.forward(Input::Ids(&first), &context, Some(&mut cache), None)?;
        let mut fork = cache.fork()?;
        fork.select(&[1, 1, 0])?;
        let next = Tensor::new(&[[3u32], [5], [7]], &Device::Cpu)?;
        let got =
            model.last_logits(&model.forward(Input::Ids(&next), &Context::default(), Some(&mut fork), None)?)?;
        for (row, (prompt, id)) in [(&b, 3), (&b, 5), (&a, 7)].into_iter().enumerate() {
            let text = [&prompt[..], &[id]].concat();
            let mut alone = Cache::default();
            let (whole, context) = ids(&[&text[..text.len() - 1]]);
            model.forward(Input::Ids(&whole), &context, Some(&mut alone), None)?;
            let step = Tensor::new(&[[id]], &Device::Cpu)?;
            let output = model.forward(Input::Ids(&step), &Context::default(), Some(&mut alone), None)?;
            let expected = model.last_logits(&output)?;
            assert_eq!(values(&got.narrow(0, row, 1)?), values(&expected), "{} row {row}", saved.label);
        }
        // Going back and forward again gives the same; the fork left the original alone.
        let step = Tensor::new(&[[9u32], [9]], &Device::Cpu)?;
        let mut again = || -> Result<Vec<f32>> {
            let output = model.forward(Input::Ids(&step), &Context::default(), Some(&mut cache), None)?;
            cache.truncate(6)?;
            Ok(values(&model.last_logits(&output)?))
        };
        assert_eq!(again()?, again()?, "{}", saved.label);
        // What does not fit the cache is refused, and the cache still works.
        let three = Tensor::zeros((3, 1), DType::U32, &Device::Cpu)?;
        assert!(model.forward(Input::Ids(&three), &Context::default(), Some(&mut cache), None).is_err());
        assert_eq!(cache.tokens(), 6);
    }
    Ok(())
}

#[test]
fn embeddings_and_segments_are_what_ids_are() -> Result<()> {
    let (a, b) = (prompt(1, 7), prompt(2, 4));
    for saved in all() {
        let model = saved.load(DType::F32);
        let (both, context) = ids(&[&a, &b]);
        let expected = model.forward(Input::Ids(&both), &context, None, None)?.hidden;
        let embeds = model.embed(&both)?;
        let got = model.forward(Input::Embeds(&embeds), &context, None, None)?.hidden;
        assert_eq!(values(&got), values(&expected), "{}", saved.label);
        // Part of row 0 comes as tokens of another modality, one of them masked.
        let image = model.embed(&Tensor::new(&[[a[2], 0, a[3], a[4]]], &Device::Cpu)?)?;
        let mask = Some(Tensor::new(&[[1u8, 0, 1, 1]], &Device::Cpu)?);
        let image = Tokens { mask, ..Tokens::new(image, Modality::Image) };
        let rows = [
            vec![Segment::Ids(&a[..2]), Segment::Tokens(&image), Segment::Ids(&[]), Segment::Ids(&a[5..])],
            vec![Segment::Ids(&b)],
        ];
        let (embeds, context) = model.embed_rows(&rows)?;
        assert_eq!(context.padding, [0, 3]);
        let modality = context.modality.clone().unwrap();
        assert_eq!(modality.iter().filter(|m| **m == Modality::Image).count(), 3);
        assert!(modality[2..5].iter().all(|m| *m == Modality::Image));
        let got = model.forward(Input::Embeds(&embeds), &context, None, None)?.hidden;
        let real = |x: &Tensor| -> Result<Vec<f32>> {
            Ok([values(&x.narrow(0, 0, 1)?), values(&x.narrow(0, 1, 1)?.narrow(1, 3, 4)?)].concat())
        };
        assert_eq!(real(&got)?, real(&expected)?, "{}", saved.label);
        assert!(model.embed_rows(&[vec![Segment::Ids(&[])]]).is_err());
        assert!(model.embed_rows(&[]).is_err());
        let wide = Tokens::new(Tensor::zeros((1, 2, 25), DType::F32, &Device::Cpu)?, Modality::Image);
        assert!(model.embed_rows(&[vec![Segment::Tokens(&wide)]]).is_err());
    }
    Ok(())
}
