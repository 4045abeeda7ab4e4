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
    let lengths: Vec<usize> =
        prompts.iter().zip(texts).map(|(p, text)| 1 + p.left.len() + t + p.right.len() + text.len() + 1).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let longest_text = texts.iter().map(Vec::len).max().unwrap_or(0) + 1;
    // Rows of a table that has all sound and behind it all words: one gather makes the sequence, one the texts.
    let (mut words, mut places) = (Vec::new(), Vec::with_capacity(b * longest));
    let (mut labels, mut targets) = (Vec::with_capacity(b * longest), Vec::with_capacity(b * longest_text));
    for (i, ((prompt, text), length)) in prompts.iter().zip(texts).zip(&lengths).enumerate() {
        let mut say = |ids: &[u32], to: &mut Vec<u32>| {
            to.extend((0u32..).take(ids.len()).map(|at| (b * t + words.len()) as u32 + at));
            words.extend_from_slice(ids);
        };
        say(&[vocabulary.bos], &mut places);
        say(&prompt.left, &mut places);
        places.extend((i * t..(i + 1) * t).map(|at| at as u32));
        say(&prompt.right, &mut places);
        // The text with its last token, and padding, once for the sequence and once for the contrastive loss.
        let target = [text.as_slice(), &[vocabulary.eos]].concat();
        let mut filled = target.clone();
        filled.resize(target.len() + longest - length, vocabulary.pad);
        say(&filled, &mut places);
        filled.resize(longest_text, vocabulary.pad);
        say(&filled, &mut targets);
        labels.extend(std::iter::repeat_n(IGNORED, length - target.len()));
        labels.extend(target.iter().map(|&id| i64::from(id)));
        labels.extend(std::iter::repeat_n(IGNORED, longest - length));
    }
    let count = words.len();
    let words = decoder.embed(&Tensor::from_vec(words, (1, count), decoder.device())?)?.squeeze(0)?; // (words, h)
    let table = Tensor::cat(&[sound.embeds.to_dtype(words.dtype())?.reshape((b * t, h))?, words], 0)?;
    let gather = |rows: Vec<u32>, n: usize| {
        table.index_select(&Tensor::from_vec(rows, b * n, table.device())?, 0)?.reshape((b, n, h))
    };
    Ok(Sequence { embeds: gather(places, longest)?, labels, lengths, text: gather(targets, longest_text)? })
}
