//! Which tensors of a model become blocks, and what that costs.

use candle_core::{Result, bail};
use moesaic_kernels::BlockFormat;
use moesaic_kernels::checkpoint::Checkpoint;
use serde::Serialize;

use super::config::DecoderConfig;
use super::names::ExpertNames;

/// How a model is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantisation {
    /// The format of linear maps and experts. Rows that do not fill its blocks take `q8_0`, or else stay floats.
    pub format: BlockFormat,
    /// Leave all but the routed and shared experts as they are.
    pub experts_only: bool,
}

/// What a matrix is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MatrixKind {
    /// A projection of attention.
    Attention,
    /// A map of a dense feed-forward part.
    Dense,
    /// Routed and shared experts.
    Experts,
    /// The output head, or the table that serves as head and embedding.
    Head,
}

impl MatrixKind {
    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Dense => "dense",
            Self::Experts => "experts",
            Self::Head => "head",
        }
    }
}

/// A matrix before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantisedTensor {
    /// Its published name.
    pub name: String,
    /// What it is for.
    pub kind: MatrixKind,
    /// The format of its blocks; absent where it stays as it was.
    pub format: Option<&'static str>,
    /// True if its rows do not fill the blocks that were asked for.
    pub fallback: bool,
    /// Root of the mean squared error over that of the mean square.
    pub error: f64,
    /// Bytes before.
    pub before: usize,
    /// Bytes after.
    pub after: usize,
}

impl Quantisation {
    /// The blocks for a matrix of this kind with rows of `width` values; `None` where it stays as it is. The head takes `q8_0`
    /// whatever the format: its errors reach the result undamped.
    pub fn format_of(&self, kind: MatrixKind, width: usize) -> Option<BlockFormat> {
        if self.experts_only && kind != MatrixKind::Experts {
            return None;
        }
        let wanted = self.wanted(kind);
        [wanted, BlockFormat::Q8_0].into_iter().find(|format| width > 0 && width.is_multiple_of(format.values()))
    }

    fn wanted(&self, kind: MatrixKind) -> BlockFormat {
        if kind == MatrixKind::Head { BlockFormat::Q8_0 } else { self.format }
    }

    /// Checks that a model can be quantised so.
    ///
    /// # Errors
    /// A format that is only read, a model that is quantised already, or one without anything to quantise.
    pub fn check(&self, config: &DecoderConfig, checkpoint: &Checkpoint) -> Result<()> {
        if matches!(self.format, BlockFormat::Q5K | BlockFormat::Q6K) {
            bail!("{} is read, not written; choose q8_0, q4_0, q4_1 or q4_k", self.format.name());
        }
        let format = |name| checkpoint.info(name).and_then(|info| info.blocks);
        if let Some(format) = checkpoint.names().find_map(format) {
            bail!("{}: is quantised already ({}); start from the floats", checkpoint.label(), format.name());
        }
        if self.experts_only && config.sparse_layers().next().is_none() {
            bail!("this {} has no experts; leave the limit to experts out", config.model_type);
        }
        if !checkpoint.names().any(|name| self.choose(config, checkpoint, name).is_some()) {
            bail!("{}: no matrix has rows that are a multiple of 32 long: nothing to quantise", checkpoint.label());
        }
        Ok(())
    }

    fn choose(&self, config: &DecoderConfig, checkpoint: &Checkpoint, name: &str) -> Option<BlockFormat> {
        let shape = &checkpoint.info(name)?.shape;
        self.format_of(config.matrix(name, shape)?, *shape.last()?)
    }

    /// All matrices of a model before and after. Reads both, one tensor at a time.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub fn compare(
        &self,
        config: &DecoderConfig,
        before: &Checkpoint,
        after: &Checkpoint,
    ) -> Result<Vec<QuantisedTensor>> {
        let mut all = Vec::new();
        for name in before.names() {
            let (Some(old), Some(new)) = (before.info(name), after.info(name)) else { continue };
            let Some(kind) = config.matrix(name, &old.shape) else { continue };
            let (mut a, mut b) = (vec![0f32; old.values()], vec![0f32; old.values()]);
            before.read_f32_into(name, &old.shape, &mut a)?;
            after.read_f32_into(name, &old.shape, &mut b)?;
            let (mut wrong, mut whole) = (0f64, 0f64);
            for (&a, &b) in a.iter().zip(&b) {
                wrong += f64::from(a - b).powi(2);
                whole += f64::from(a).powi(2);
            }
            let asked = !self.experts_only || kind == MatrixKind::Experts;
            all.push(QuantisedTensor {
                name: name.to_string(),
                kind,
                format: new.blocks.map(|format| format.name()),
                fallback: asked && new.blocks != Some(self.wanted(kind)),
                error: if wrong == 0.0 { 0.0 } else { (wrong / whole).sqrt() },
                before: old.bytes,
                after: new.bytes,
            });
        }
        Ok(all)
    }
}

impl DecoderConfig {
    /// What a tensor is for, where it is the matrix of a linear map or of experts; `None` for norms, biases, routers, embeddings
    /// that are no head, and tensors outside the model.
    pub fn matrix(&self, name: &str, shape: &[usize]) -> Option<MatrixKind> {
        let names = &self.names;
        let name = name.strip_suffix(".weight").filter(|_| matches!(shape.len(), 2 | 3))?;
        if name == names.embed || name == names.head {
            let head = if self.tie_word_embeddings { names.embed } else { names.head };
            return (name == head).then_some(MatrixKind::Head);
        }
        let (layer, rest) = name.strip_prefix(names.layers)?.strip_prefix('.')?.split_once('.')?;
        let layer = self.layers.get(layer.parse::<usize>().ok()?)?;
        let is = |end: &str| {
            end.strip_suffix(".weight").is_some_and(|end| rest == end || rest.ends_with(&format!(".{end}")))
        };
        if is(names.router) || is(names.shared_gate) || rest.contains("norm") {
            return None;
        }
        if rest.strip_prefix(names.attention).is_some_and(|rest| rest.starts_with('.')) {
            return Some(MatrixKind::Attention);
        }
        if !layer.sparse {
            return rest.strip_prefix(names.dense)?.starts_with('.').then_some(MatrixKind::Dense);
        }
        let part = rest.strip_prefix(names.sparse)?.strip_prefix('.')?;
        let shared = part.strip_prefix(names.shared).is_some_and(|part| part.starts_with('.'));
        let routed = match &names.experts {
            ExpertNames::Each(_) => part.strip_prefix(names.expert).is_some_and(|part| part.starts_with('.')),
            ExpertNames::Stacked(stacks) => stacks.contains(&part),
            // Their rows are inputs, along which blocks would not lie.
            ExpertNames::InputMajor(_) => false,
        };
        (shared || routed).then_some(MatrixKind::Experts)
    }
}
