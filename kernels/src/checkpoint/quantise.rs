//! Writing a checkpoint once more with some of its tensors in blocks, tensor by tensor.

use std::io::Write;
use std::path::Path;

use candle_core::{DType, Result, Tensor};

use super::text::{error, one_line, refuse, shown};
use super::write::{Failed, header, in_order, write_values, write_whole};
use super::{Checkpoint, TensorInfo};
use crate::blocks::{BlockFormat, Blocks, MARK};

/// A tensor that is to be written.
struct Planned<'a> {
    name: &'a str,
    info: &'a TensorInfo,
    /// The blocks that it is written in; else it stays as it is.
    blocks: Option<BlockFormat>,
    dtype: DType,
    /// Of what stands in the file: bytes, for blocks.
    shape: Vec<usize>,
}

/// Writes the tensors of `checkpoint` to one safetensors file. `choose` gives the format of blocks for a float tensor by its
/// name and shape; where it gives none the tensor stays as it is stored, bit by bit, but for
/// FP8, of which the values are written in bf16.
///
/// The file is whole or not there, as of [`save`](super::save). Needs memory for one tensor at a time.
///
/// # Errors
/// Rows that do not fill the blocks that were chosen, values that are not finite (the message has the tensor), a tensor that
/// cannot be read, or a file that cannot be written.
pub fn save_in_blocks(
    checkpoint: &Checkpoint,
    path: &Path,
    mut choose: impl FnMut(&str, &[usize]) -> Option<BlockFormat>,
) -> Result<()> {
    let mut planned = Vec::new();
    for name in checkpoint.names() {
        let Some(info) = checkpoint.info(name) else { continue };
        let float = matches!(info.dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
        let chosen = if float { choose(name, &info.shape) } else { None };
        let (blocks, mut shape) = (chosen.or(info.blocks), info.shape.clone());
        if let Some(format) = blocks {
            let bytes = shape.last().copied().and_then(|k| format.row_bytes(k));
            let (Some(bytes), Some(last)) = (bytes, shape.last_mut()) else {
                refuse!("tensor {}: its rows do not fill blocks of {}", shown(name), format.name());
            };
            *last = bytes;
        }
        let dtype = if blocks.is_some() { DType::U8 } else { info.dtype };
        planned.push(Planned { name, info, blocks, dtype, shape });
    }
    planned.sort_by(|a, b| in_order((a.dtype, a.name), (b.dtype, b.name)));
    let marks: Vec<(String, &str)> =
        planned.iter().filter_map(|p| Some((format!("{MARK}{}", p.name), p.blocks?.name()))).collect();
    let metadata: Vec<(&str, &str)> =
        marks.iter().map(|(key, value)| (key.as_str(), *value)).chain([("format", "pt")]).collect();
    let header = header(path, planned.iter().map(|p| (p.name, p.dtype, p.shape.as_slice())), &metadata)?;
    write_whole(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for tensor in &planned {
            tensor.write(checkpoint, out)?;
        }
        Ok(())
    })
}

impl Planned<'_> {
    fn write(&self, checkpoint: &Checkpoint, out: &mut impl Write) -> std::result::Result<(), Failed> {
        let Some(format) = self.blocks else {
            return write_values(&checkpoint.read_any(self.name)?, out);
        };
        let blocks = match self.info.blocks == Some(format) {
            true => checkpoint.blocks(self.name, &self.info.shape)?,
            false => {
                let values: Tensor =
                    checkpoint.read(self.name, &self.info.shape, DType::F32, &candle_core::Device::Cpu)?;
                let named = |e: candle_core::Error| error(format!("tensor {}: {}", shown(self.name), one_line(e)));
                Some(Blocks::quantise(&values, format).map_err(named)?)
            }
        };
        match blocks {
            Some(blocks) => Ok(out.write_all(blocks.data())?),
            None => Err(error(format!("tensor {} is gone", shown(self.name))).into()),
        }
    }
}
