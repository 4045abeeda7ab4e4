//! The sequence that the language model reads:
//! `bos <audio> A </audio> <video> V </video> prompt text eos`, the tags only around what is there.

use candle_core::{Result, Tensor, bail};
use moesaic_kernels::{Modality, Tokens};

use super::AvsrConfig;
use crate::decoder::Decoder;

/// Label of what is not predicted.
pub const IGNORED: i64 = -100;

/// Ids of what stands around media and text. The tags and `<pad>` are appended to the language model's own vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// First token.
    pub bos: u32,
    /// Last token of an answer.
    pub eos: u32,
    /// Fills shorter rows at the right.
    pub pad: u32,
    /// Before and behind sound.
    pub audio: [u32; 2],
    /// Before and behind lips.
    pub video: [u32; 2],
    /// The prompt.
    pub prompt: Vec<u32>,
}

impl Vocabulary {
    /// The ids that the model's tokenizer gives: `id` of a special token, `encode` of text, with or without the tokens that the
    /// tokenizer may put around it.
    ///
    /// # Errors
    /// The config has no first or last token, or the tokenizer does not know one: it is of another model then.
    pub fn new(
        config: &AvsrConfig,
        id: impl Fn(&str) -> Option<u32>,
        encode: impl Fn(&str) -> Result<Vec<u32>>,
    ) -> Result<Self> {
        let (Some(bos), Some(&eos)) = (config.llm.bos_token_id, config.llm.eos_token_ids.first()) else {
            bail!("config.json names no bos_token_id or no eos_token_id of the language model");
        };
        let known = |token: &str| match id(token) {
            Some(id) if (id as usize) < config.llm.vocab_size => Ok(id),
            Some(id) => bail!(
                "the tokenizer gives {token} the id {id}, the language model has {} tokens: is it this model's own?",
                config.llm.vocab_size
            ),
            None => bail!("the tokenizer does not know {token}: take the one that was saved with the speech model"),
        };
        let mut vocabulary = Self {
            bos,
            eos,
            pad: known("<pad>")?,
            audio: [known("<audio>")?, known("</audio>")?],
            video: [known("<video>")?, known("</video>")?],
            prompt: Vec::new(),
        };
        vocabulary.prompt = vocabulary.bare(encode(&config.prompt)?);
        Ok(vocabulary)
    }

    /// Ids of a text without the first and the last token that a tokenizer may have put around it.
    pub fn bare(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if ids.first() == Some(&self.bos) {
            ids.remove(0);
        }
        if ids.last() == Some(&self.eos) {
            ids.pop();
        }
        ids
    }

    /// Targets of texts, `bos text eos` filled up at the right, and their labels.
    ///
    /// # Shapes
    /// both `[b][longest + 2]`
    pub fn targets(&self, texts: &[Vec<u32>]) -> (Vec<Vec<u32>>, Vec<Vec<i64>>) {
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0) + 2;
        let row = |text: &Vec<u32>| {
            let mut ids = Vec::with_capacity(longest);
            ids.push(self.bos);
            ids.extend_from_slice(text);
            ids.push(self.eos);
            ids.resize(longest, self.pad);
            ids
        };
        let ids: Vec<Vec<u32>> = texts.iter().map(row).collect();
        let label = |&id: &u32| if id == self.pad { IGNORED } else { i64::from(id) };
        let labels = ids.iter().map(|row| row.iter().map(label).collect()).collect();
        (ids, labels)
    }

    fn tags(&self, modality: Modality) -> Result<[u32; 2]> {
        match modality {
            Modality::Audio => Ok(self.audio),
            Modality::Video => Ok(self.video),
            other => bail!("there are no tags for {other:?} tokens"),
        }
    }
}

/// A sequence ready for the language model.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// `[b, s, h]`
    pub embeds: Tensor,
    /// `[b * s]`: of targets in their own places, the first token's among them; [`IGNORED`] elsewhere.
    pub labels: Vec<i64>,
    /// Tokens between the first and the text: media, tags and prompt.
    pub prefix: usize,
    /// `[s]`: where the tokens of a row come from.
    pub origins: Vec<Modality>,
}

/// Lays media tokens of the language model's width and texts out. Without texts it ends with the prompt.
pub(super) fn lay_out(
    decoder: &Decoder,
    vocabulary: &Vocabulary,
    media: &[Tokens],
    tagged: bool,
    texts: Option<&[Vec<u32>]>,
) -> Result<Sequence> {
    let Some(first) = media.first() else { bail!("there is nothing to transcribe") };
    let b = first.embeds.dim(0)?;
    if let Some(texts) = texts
        && texts.len() != b
    {
        bail!("{} texts for {b} clips", texts.len());
    }
    let ids = |ids: &[u32]| {
        let all: Vec<u32> = std::iter::repeat_n(ids, b).flatten().copied().collect();
        decoder.embed(&Tensor::from_vec(all, (b, ids.len()), decoder.device())?)
    };
    let (mut pieces, mut prefix) = (Vec::new(), vocabulary.prompt.len());
    let (mut between, mut origins) = (vec![vocabulary.bos], Vec::new());
    for tokens in media {
        let (rows, t, _) = tokens.embeds.dims3()?;
        if rows != b {
            bail!("{rows} clips of {:?} beside {b}", tokens.modality);
        }
        let [open, close] = vocabulary.tags(tokens.modality)?;
        prefix += t + if tagged { 2 } else { 0 };
        between.extend(tagged.then_some(open));
        origins.extend(std::iter::repeat_n(Modality::Text, between.len()));
        origins.extend(std::iter::repeat_n(tokens.modality, t));
        pieces.push(ids(&between)?);
        pieces.push(tokens.embeds.to_dtype(pieces.first().map_or(tokens.embeds.dtype(), Tensor::dtype))?);
        between = if tagged { vec![close] } else { Vec::new() };
    }
    between.extend_from_slice(&vocabulary.prompt);
    if !between.is_empty() {
        pieces.push(ids(&between)?);
    }
    let mut labels = Vec::new();
    if let Some(texts) = texts {
        let (targets, own) = vocabulary.targets(texts);
        let n = targets.first().map_or(0, Vec::len);
        let all: Vec<u32> = targets.into_iter().flat_map(|row| row.into_iter().skip(1)).collect();
        pieces.push(decoder.embed(&Tensor::from_vec(all, (b, n.saturating_sub(1)), decoder.device())?)?);
        for row in own {
            labels.extend(row.first().copied());
            labels.extend(std::iter::repeat_n(IGNORED, prefix));
            labels.extend(row.into_iter().skip(1));
        }
    }
    let embeds = Tensor::cat(&pieces, 1)?; // (b, s, h)
    origins.resize(embeds.dim(1)?, Modality::Text);
    Ok(Sequence { embeds, labels, prefix, origins })
}
