//! `config.json` of CED.

use std::path::Path;

use candle_core::{Result, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use serde::Deserialize;

use crate::speech::blocks::{MOST, WIDEST, read_config, size};

/// The keys of `config.json` that the encoder needs, under the names of the published class.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct CedConfig {
    /// Width of a token.
    pub embed_dim: usize,
    /// Layers.
    pub depth: usize,
    /// Heads of a layer's attention.
    pub num_heads: usize,
    /// Bands and frames of a patch.
    #[serde(default = "patch")]
    pub patch_size: usize,
    /// Width inside a feed-forward part over the width outside.
    #[serde(default = "ratio")]
    pub mlp_ratio: f64,
    /// Queries, keys and values have biases.
    #[serde(default = "yes")]
    pub qkv_bias: bool,
    /// Frames of a chunk; longer clips are cut.
    #[serde(default = "target")]
    pub target_length: usize,
    /// Bands of the spectrogram.
    #[serde(default = "mels")]
    pub n_mels: usize,
    /// What is left behind the last full chunk is filled up with zeros, not dropped.
    #[serde(default = "yes")]
    pub pad_last: bool,
    /// What the head looks at; `token` adds one, which is not supported.
    #[serde(default = "mean")]
    pub pooling: String,
    /// Samples of the Fourier transform.
    #[serde(default = "window")]
    pub n_fft: usize,
    /// Samples of a window.
    #[serde(default = "window")]
    pub win_size: usize,
    /// Samples from one frame to the next.
    #[serde(default = "hop")]
    pub hop_size: usize,
    /// Lowest edge of the bands, in Hz.
    #[serde(default)]
    pub f_min: f64,
    /// Highest edge of the bands, in Hz.
    #[serde(default = "top")]
    pub f_max: f64,
    /// Not in `config.json`: the checkpoint holds queries, keys and values apart.
    #[serde(skip)]
    pub split: bool,
}

fn patch() -> usize {
    16
}

fn ratio() -> f64 {
    4.0
}

fn yes() -> bool {
    true
}

fn target() -> usize {
    1012
}

fn mels() -> usize {
    64
}

fn mean() -> String {
    "mean".to_string()
}

fn window() -> usize {
    512
}

fn hop() -> usize {
    160
}

fn top() -> f64 {
    8000.0
}

impl CedConfig {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// The file cannot be read, a value makes no sense, or something is asked for that is not supported.
    pub fn load(dir: &Path) -> Result<Self> {
        let config: Self = read_config(dir)?;
        config.validate()?;
        Ok(config)
    }

    /// The same config for the names of a checkpoint, which stand behind `prefix`.
    pub fn named_as(mut self, checkpoint: &Checkpoint, prefix: &str) -> Self {
        self.split = checkpoint.info(&format!("{prefix}blocks.0.attn.k_proj.weight")).is_some();
        self
    }

    /// Rows and columns of the patches of a chunk.
    pub fn grid(&self) -> (usize, usize) {
        (self.n_mels / self.patch_size.max(1), self.target_length / self.patch_size.max(1))
    }

    /// Chunks of a clip of `t` frames. As in the published code, whose training the weights have seen, a clip of several whole
    /// chunks loses the last of them.
    pub fn chunks(&self, t: usize) -> usize {
        let length = self.target_length.max(1);
        match (t / length, t % length) {
            (0, _) | (1, 0) => 1,
            (whole, 0) => whole - 1,
            (whole, _) => whole + usize::from(self.pad_last),
        }
    }

    /// Tokens of a clip of `t` frames.
    pub fn tokens(&self, t: usize) -> usize {
        let rows = self.grid().0;
        if t <= self.target_length {
            return rows * (t / self.patch_size.max(1));
        }
        self.chunks(t) * rows * self.grid().1
    }

    /// Width inside a feed-forward part.
    pub(super) fn inner(&self) -> usize {
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }

    pub(super) fn validate(&self) -> Result<()> {
        size("embed_dim", self.embed_dim, WIDEST)?;
        size("depth", self.depth, MOST)?;
        size("num_heads", self.num_heads, MOST)?;
        size("patch_size", self.patch_size, MOST)?;
        size("target_length", self.target_length, WIDEST)?;
        size("n_mels", self.n_mels, MOST)?;
        if !(self.mlp_ratio > 0.0 && self.mlp_ratio <= 1024.0) {
            bail!("mlp_ratio is {}, expected a number above 0, at most 1024; check config.json", self.mlp_ratio);
        }
        size("embed_dim times mlp_ratio", self.inner(), WIDEST)?;
        let (rows, columns) = self.grid();
        if rows == 0 || columns == 0 {
            bail!(
                "patches of {} do not fit into n_mels {} and target_length {}; check config.json",
                self.patch_size,
                self.n_mels,
                self.target_length
            );
        }
        if !self.embed_dim.is_multiple_of(self.num_heads) {
            bail!("embed_dim {} is not a multiple of the {} heads; check config.json", self.embed_dim, self.num_heads);
        }
        if self.pooling == "token" {
            bail!("pooling by a token is not supported; the published models take means");
        }
        let front = (self.n_fft, self.win_size, self.hop_size, self.f_min, self.f_max);
        if front != (512, 512, 160, 0.0, 8000.0) {
            bail!(
                "CED's spectrogram is made with n_fft and win_size 512, hop_size 160, f_min 0 and f_max 8000, config.json \
                 has {front:?}"
            );
        }
        Ok(())
    }
}
