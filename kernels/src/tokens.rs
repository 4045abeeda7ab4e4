//! What passes between encoders, projectors and models.

use candle_core::Tensor;

/// The kind of data that a token came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Modality {
    /// Words.
    Text,
    /// Pictures.
    Image,
    /// Speech, sound and music.
    Audio,
    /// Moving pictures, lips among them.
    Video,
    /// Time series.
    Series,
}

impl Modality {
    /// Its name in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Audio => "audio",
            Self::Video => "video",
            Self::Series => "series",
        }
    }
}

/// A batch of embedded tokens of one modality.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// `[b, t, h]`
    pub embeds: Tensor,
    /// `[b, t]`, 1 for real tokens and 0 for padding; absent if all are real.
    pub mask: Option<Tensor>,
    /// Where the tokens come from.
    pub modality: Modality,
    /// One `[b, t]` tensor per rotary stream (three for 3-D rotary); empty for 0, 1, 2, ...
    pub positions: Vec<Tensor>,
    /// Further features `[b, t, h]` for later layers of the backbone (deep-stack); usually empty.
    pub taps: Vec<Tensor>,
}

impl Tokens {
    /// Tokens without padding, with default positions and no taps.
    pub fn new(embeds: Tensor, modality: Modality) -> Self {
        Self { embeds, mask: None, modality, positions: Vec::new(), taps: Vec::new() }
    }
}
