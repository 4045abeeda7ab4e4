//! Writing a trained model as a folder that [`VisionModel::load`] reads.

use std::path::Path;

use candle_core::{DType, Error, Result, Tensor};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::save;

use super::VisionModel;

impl VisionModel {
    /// The text of `config.json`.
    pub fn config_json(&self) -> Result<String> {
        let json = serde_json::to_string_pretty(&self.config().published).map_err(|e| Error::Msg(e.to_string()))?;
        Ok(json + "\n")
    }

    /// Writes `config.json` and `model.safetensors` into a folder, which is made if need be. `params` are those that the
    /// model was made of: its variables, and what stays as it is beside them.
    ///
    /// # Errors
    /// The folder cannot be made, or a file cannot be written.
    pub fn save(&self, params: &Params, dir: &Path, dtype: DType) -> Result<()> {
        let file = |e: std::io::Error| Error::msg(format!("{}: {e}", dir.display()));
        std::fs::create_dir_all(dir).map_err(file)?;
        let mut tensors: Vec<(String, Tensor)> = params.published(|v| v.as_tensor().to_dtype(dtype).ok())?;
        tensors.extend(params.kept(dtype)?);
        save(&dir.join("model.safetensors"), &tensors, &[("format", "pt")])?;
        std::fs::write(dir.join("config.json"), self.config_json()?).map_err(file)
    }
}
