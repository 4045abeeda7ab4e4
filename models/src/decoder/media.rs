//! What tokens that were made of media bring along besides their embeddings: positions of their own, and features for the
//! first layers.

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::Tokens;

use super::input::{Context, Segment};

/// A row of segments behind its padding: `(first token, number of tokens, tokens)` of each, the last absent for text.
fn places<'a>(row: &[Segment<'a>], padding: usize) -> Result<Vec<(usize, usize, Option<&'a Tokens>)>> {
    let mut at = padding;
    let mut all = Vec::with_capacity(row.len());
    for segment in row {
        let (n, tokens) = match *segment {
            Segment::Ids(ids) => (ids.len(), None),
            Segment::Tokens(tokens) => match &tokens.mask {
                None => (tokens.embeds.dim(1)?, Some(tokens)),
                Some(_) if !tokens.positions.is_empty() || !tokens.taps.is_empty() => {
                    bail!("{:?} tokens with positions or taps of their own have no mask", tokens.modality)
                }
                Some(mask) => {
                    let mask = mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                    (mask.iter().filter(|m| **m != 0.0).count(), None)
                }
            },
        };
        all.push((at, n, tokens));
        at += n;
    }
    Ok(all)
}

impl Context {
    /// The context of rows of segments with what their tokens bring along, for a model with `streams` streams of positions
    /// and tokens of width `h`. Rows are `longest` tokens long with the padding that the context has, and cut behind that.
    pub(super) fn with_media(
        self,
        rows: &[Vec<Segment<'_>>],
        longest: usize,
        streams: usize,
        h: usize,
    ) -> Result<Self> {
        let padding = |row: usize| self.padding.get(row).copied().unwrap_or(0);
        let rows = rows.iter().enumerate().map(|(i, row)| places(row, padding(i))).collect::<Result<Vec<_>>>()?;
        let positions = if rows.iter().flatten().any(|(.., tokens)| tokens.is_some_and(|t| !t.positions.is_empty())) {
            Some(positions(&rows, longest, streams)?)
        } else {
            self.positions
        };
        let taps =
            rows.iter().flatten().filter_map(|(.., tokens)| Some(tokens.as_ref()?.taps.len())).max().unwrap_or(0);
        let taps = (0..taps).map(|j| tap(&rows, longest, h, j)).collect::<Result<_>>()?;
        Ok(Self { positions, taps, ..self })
    }
}

type Places<'a> = Vec<(usize, usize, Option<&'a Tokens>)>;

/// `[streams * b * longest]`. Text counts on in all streams; tokens with positions of their own start where the text before
/// them ends, and what follows begins behind their highest one (arXiv 2409.12191, section 2.1).
fn positions(rows: &[Places<'_>], longest: usize, streams: usize) -> Result<Vec<u32>> {
    let mut all = vec![1; streams * rows.len() * longest];
    for (row, places) in rows.iter().enumerate() {
        let mut next = 0u32;
        for &(at, n, tokens) in places {
            let own = tokens.map_or(&[][..], |t| &t.positions);
            if !own.is_empty() && own.len() != streams {
                bail!("tokens with {} streams of positions for a model with {streams}", own.len());
            }
            let mut end = next.saturating_add(if own.is_empty() { n as u32 } else { 0 });
            for stream in 0..streams {
                let relative = match own.get(stream) {
                    None => (0..n as u32).collect(),
                    Some(own) => own.to_dtype(DType::U32)?.flatten_all()?.to_vec1::<u32>()?,
                };
                if relative.len() != n {
                    bail!("{} positions for {n} tokens", relative.len());
                }
                let line = all.iter_mut().skip((stream * rows.len() + row) * longest).take(longest).skip(at);
                for (target, relative) in line.zip(&relative) {
                    *target = next.saturating_add(*relative);
                }
                let highest = relative.iter().max().map_or(0, |r| r.saturating_add(1));
                end = end.max(next.saturating_add(highest));
            }
            next = end;
        }
    }
    Ok(all)
}

/// `[b, longest, h]`: feature `j` of all tokens that have it, zeros elsewhere.
fn tap(rows: &[Places<'_>], longest: usize, h: usize, j: usize) -> Result<Tensor> {
    let Some(first) = rows.iter().flatten().find_map(|(.., tokens)| tokens.as_ref()?.taps.get(j)) else {
        bail!("no token has feature {j}");
    };
    let zeros = |n: usize| Tensor::zeros((1, n, h), first.dtype(), first.device());
    let rows = rows.iter().map(|places| {
        let (mut pieces, mut end) = (Vec::new(), 0);
        for &(at, n, tokens) in places {
            let Some(tap) = tokens.and_then(|t| t.taps.get(j)).filter(|_| at < longest) else { continue };
            if tap.dims() != [1, n, h] {
                bail!("a feature of shape {:?} for {n} tokens of width {h}", tap.dims());
            }
            if end < at {
                pieces.push(zeros(at - end)?);
            }
            let n = n.min(longest - at);
            pieces.push(tap.narrow(1, 0, n)?.to_dtype(first.dtype())?);
            end = at + n;
        }
        if end < longest {
            pieces.push(zeros(longest - end)?);
        }
        Tensor::cat(&pieces, 1)
    });
    Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
}
