//! What goes into a forward pass.

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::{Modality, Tokens};

/// The tokens of a forward pass.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Ids `[b, t]`, any integer type.
    Ids(&'a Tensor),
    /// Embedded tokens `[b, t, h]`, as [`Decoder::embed`](super::Decoder::embed) and
    /// [`Decoder::embed_rows`](super::Decoder::embed_rows) give them.
    Embeds(&'a Tensor),
}

/// A piece of one row: text, or tokens that an encoder and a projector made.
#[derive(Clone, Copy, Debug)]
pub enum Segment<'a> {
    /// Token ids.
    Ids(&'a [u32]),
    /// One batch row of tokens, `[1, n, h]`; masked tokens are left out.
    Tokens(&'a Tokens),
}

/// What a forward pass looks at besides the tokens.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Number of padding tokens at the left of each row; empty for none, and where a cache goes on: it knows them.
    pub padding: Vec<usize>,
    /// Number of padding tokens at the right of each row; empty for none. For passes without a cache, in training: what is
    /// generated stands at the right.
    pub trailing: Vec<usize>,
    /// Rotary position of every token, `[b * t]`, or `[streams * b * t]` for a model with several streams of positions
    /// ([`RopeConfig::sections`](super::RopeConfig::sections)); absent for 0, 1, 2, ... over the real tokens of each row, or,
    /// where a cache goes on, for what follows the highest position of the row so far.
    pub positions: Option<Vec<u32>>,
    /// Features `[b, t, h]` that are added to the tokens behind the first layers, from the lowest layer on, zero for tokens
    /// without any (deep-stack, arXiv 2406.04334); usually empty.
    pub taps: Vec<Tensor>,
    /// Where every token comes from, `[b * t]`, for routers that look at it; absent for text.
    pub modality: Option<Vec<Modality>>,
    /// The pass is one of training: routers that are dense there take all experts.
    pub training: bool,
    /// Compute a padded batch as `transformers` does, where a row then depends on the batch it is in: frequencies that depend
    /// on the length of the text (dynamic and long rotary scaling) follow the longest row, queries in the padding average all
    /// values, and padding is routed. What is computed there means nothing, but losses that count a row's first token, as
    /// predicted from the padding before it, come out as the reference's only so.
    pub reference_padding: bool,
}

impl Context {
    /// The context of a left-padded `mask [b, t]` (1 = real).
    ///
    /// # Errors
    /// A row has padding between or behind real tokens.
    pub fn left_padded(mask: &Tensor) -> Result<Self> {
        let rows = mask.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let padding = rows.iter().enumerate().map(|(row, mask)| {
            let padding = mask.iter().take_while(|&&m| m == 0.0).count();
            if mask.iter().skip(padding).any(|&m| m == 0.0) {
                bail!("row {row} of the mask has a gap; only padding at the left is supported");
            }
            Ok(padding)
        });
        Ok(Self { padding: padding.collect::<Result<_>>()?, ..Self::default() })
    }

    /// The context of rows that were padded at the left to the longest of these lengths.
    pub fn of_lengths(lengths: &[usize]) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Self { padding: lengths.iter().map(|n| longest - n).collect(), ..Self::default() }
    }

    /// The context of rows of these lengths that were padded to the longest at this side.
    pub fn padded(lengths: &[usize], side: Side) -> Self {
        let context = Self::of_lengths(lengths);
        match side {
            Side::Left => context,
            Side::Right => Self { trailing: context.padding, ..Self::default() },
        }
    }
}

/// Where a batch is padded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// In front of the rows: they go on behind, as generation wants it.
    #[default]
    Left,
    /// Behind the rows: for training alone.
    Right,
}

/// Ids of rows, padded at the left with `pad` to one tensor `[b, t]` of u32, and their context.
///
/// # Errors
/// There is no row, or an empty one.
pub fn pad_ids(rows: &[&[u32]], pad: u32, device: &candle_core::Device) -> Result<(Tensor, Context)> {
    if let Some(row) = rows.iter().position(|r| r.is_empty()) {
        bail!("row {row} has no token; a prompt needs at least one");
    }
    let longest = rows.iter().map(|r| r.len()).max().unwrap_or(0);
    if longest == 0 {
        bail!("there is no row to run");
    }
    let lengths: Vec<usize> = rows.iter().map(|r| r.len()).collect();
    let ids: Vec<u32> =
        rows.iter().flat_map(|r| std::iter::repeat_n(pad, longest - r.len()).chain(r.iter().copied())).collect();
    Ok((Tensor::from_vec(ids, (rows.len(), longest), device)?, Context::of_lengths(&lengths)))
}

/// Padding and positions of one pass, checked.
pub(super) struct Placed {
    /// Padding at the left of each row, in all tokens that the rows have seen.
    pub padding: Vec<usize>,
    /// Real tokens of each row and the padding before them; empty where no row is padded at the right.
    pub end: Vec<usize>,
    /// `[b * t]`, or `[streams * b * t]`
    pub positions: Vec<u32>,
    /// What is to be added to the number of tokens that a row has seen for the position of its next one.
    pub shifts: Vec<i64>,
}

impl Context {
    /// Checks the context against `b` rows of `t` tokens behind `past` cached ones whose padding is `cached`; the positions of
    /// those go on by `shifts`.
    pub(super) fn place(&self, b: usize, t: usize, past: usize, cached: &[usize], shifts: &[i64]) -> Result<Placed> {
        let padding = match (self.padding.len(), past) {
            (0, 0) => vec![0; b],
            (n, 0) if n == b => self.padding.clone(),
            (n, 0) => bail!("padding of {n} rows for a batch of {b}"),
            _ => cached.to_vec(),
        };
        if let Some(row) = padding.iter().position(|&p| past == 0 && p >= t) {
            bail!("row {row} is all padding; a prompt needs at least one token");
        }
        let end = self.ends(b, t, past, &padding)?;
        if let Some(modality) = &self.modality
            && modality.len() != b * t
        {
            bail!("{} modalities for {b} rows of {t} tokens", modality.len());
        }
        let mut shifts = if past == 0 { padding.iter().map(|&p| -(p as i64)).collect() } else { shifts.to_vec() };
        let positions = match &self.positions {
            Some(positions) if !positions.is_empty() && positions.len().is_multiple_of(b * t) => {
                for (row, shift) in shifts.iter_mut().enumerate() {
                    let first = padding.get(row).map_or(0, |&p| p.saturating_sub(past));
                    let real = positions.chunks(t).skip(row).step_by(b).filter_map(|stream| stream.get(first..));
                    let highest = real.flatten().max().map_or(0, |&p| i64::from(p) + 1);
                    *shift = highest - (past + t) as i64;
                }
                positions.clone()
            }
            Some(positions) => bail!("{} positions for {b} rows of {t} tokens", positions.len()),
            None => {
                // Padding has position 1, as `transformers` gives it; nothing depends on it.
                let position = |p: usize, shift: i64, i: usize| match past + i < p {
                    true => Some(1),
                    false => u32::try_from((past + i) as i64 + shift).ok(),
                };
                let rows = padding.iter().zip(&shifts);
                let all = rows.flat_map(|(&p, &shift)| (0..t).map(move |i| position(p, shift, i)));
                match all.collect::<Option<Vec<u32>>>() {
                    Some(positions) => positions,
                    None => bail!("{} tokens in a row are more than positions count", past + t),
                }
            }
        };
        Ok(Placed { padding, end, positions, shifts })
    }

    /// Where the real tokens of each row end; empty without padding at the right.
    fn ends(&self, b: usize, t: usize, past: usize, padding: &[usize]) -> Result<Vec<usize>> {
        if self.trailing.iter().all(|&n| n == 0) {
            return Ok(Vec::new());
        }
        if past > 0 {
            bail!("rows that go on with a cache have no padding at the right");
        }
        if self.trailing.len() != b {
            bail!("padding at the right of {} rows for a batch of {b}", self.trailing.len());
        }
        let rows = self.trailing.iter().zip(padding).enumerate();
        let end = rows.map(|(row, (trailing, padding))| match t.checked_sub(*trailing) {
            Some(end) if end > *padding => Ok(end),
            _ => bail!("row {row} is all padding; a prompt needs at least one token"),
        });
        end.collect()
    }
}

/// The embeddings of one batch row without its padding, `[1, n, h]`.
pub(crate) fn real_tokens(tokens: &Tokens, h: usize) -> Result<Tensor> {
    let (b, n, width) = tokens.embeds.dims3()?;
    if b != 1 || width != h {
        bail!("{:?} tokens of shape {:?}, expected [1, n, {h}]", tokens.modality, tokens.embeds.dims());
    }
    let Some(mask) = &tokens.mask else { return Ok(tokens.embeds.clone()) };
    let mask = mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if mask.len() != n {
        bail!("a mask of {} for {n} tokens", mask.len());
    }
    let real: Vec<u32> = (0u32..).zip(&mask).filter(|(_, m)| **m != 0.0).map(|(i, _)| i).collect();
    tokens.embeds.index_select(&Tensor::from_vec(real.clone(), real.len(), tokens.embeds.device())?, 1)
}
