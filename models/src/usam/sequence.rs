//! The sequence that the language model is trained on: `bos left | sound | right | text eos`, filled up behind.

use candle_core::{Result, Tensor, bail};
use moesaic_kernels::Tokens;

use super::{Prompt, Vocabulary};
use crate::decoder::{Context, Decoder, Side};

/// Label of what is not predicted.
pub const IGNORED: i64 = -100;

/// A sequence ready for the language model.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// `[b, s, h]`
    pub embeds: Tensor,
    /// `[b * s]`: of texts and their last tokens in their own places; [`IGNORED`] elsewhere.
    pub labels: Vec<i64>,
    /// Tokens of each row that are not padding.
    pub lengths: Vec<usize>,
    /// Texts with their last tokens, filled up with `pad`, `[b, longest, h]`: what the contrastive loss holds sound against.
    pub text: Tensor,
}

impl Sequence {
    /// Where the padding is.
    pub fn context(&self) -> Context {
        let longest = self.lengths.iter().max();
        match self.lengths.iter().all(|n| Some(n) == longest) {
            true => Context::default(),
            false => Context::padded(&self.lengths, Side::Right),
        }
    }
}

/// Lays out sound `[b, t, h]` of the language model's width, prompts and texts.
pub(super) fn lay_out(
    decoder: &Decoder,
    vocabulary: &Vocabulary,
    sound: &Tokens,
    prompts: &[Prompt],
    texts: &[Vec<u32>],
) -> Result<Sequence> {
    let (b, t, h) = sound.embeds.dims3()?;
    if b == 0 || prompts.len() != b || texts.len() != b {
        bail!("{} prompts and {} texts for {b} clips", prompts.len(), texts.len());
    }
    let embed = |ids: Vec<u32>| {
        let n = ids.len();
        decoder.embed(&Tensor::from_vec(ids, (1, n), decoder.device())?)
    };
    let lengths: Vec<usize> =
        prompts.iter().zip(texts).map(|(p, text)| 1 + p.left.len() + t + p.right.len() + text.len() + 1).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let longest_text = texts.iter().map(Vec::len).max().unwrap_or(0) + 1;
    let (mut rows, mut labels, mut targets) = (Vec::with_capacity(b), Vec::new(), Vec::with_capacity(b));
    for (i, ((prompt, text), length)) in prompts.iter().zip(texts).zip(&lengths).enumerate() {
        let left = embed([&[vocabulary.bos], prompt.left.as_slice()].concat())?;
        let own = sound.embeds.narrow(0, i, 1)?.to_dtype(left.dtype())?;
        // The rest of the row, text and padding in one.
        let target = [text.as_slice(), &[vocabulary.eos]].concat();
        let mut behind = [prompt.right.as_slice(), &target].concat();
        behind.resize(behind.len() + longest - length, vocabulary.pad);
        rows.push(Tensor::cat(&[left, own, embed(behind)?], 1)?); // (1, longest, h)
        labels.extend(std::iter::repeat_n(IGNORED, length - target.len()));
        labels.extend(target.iter().map(|&id| i64::from(id)));
        labels.extend(std::iter::repeat_n(IGNORED, longest - length));
        let mut filled = target;
        filled.resize(longest_text, vocabulary.pad);
        targets.push(embed(filled)?);
    }
    let embeds = Tensor::cat(&rows, 0)?;
    debug_assert_eq!(embeds.dims(), [b, longest, h]);
    Ok(Sequence { embeds, labels, lengths, text: Tensor::cat(&targets, 0)? })
}
