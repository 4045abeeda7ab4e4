//! LLaVA-1.6 (LLaVA-NeXT) as `transformers` publishes it (`llava-hf/llava-v1.6-mistral-7b-hf`): LLaVA-1.5 with pictures cut into
//! tiles.
//!
//! Liu et al., "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge" (2024). Reference:
//! [`configuration_llava_next.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/llava_next/configuration_llava_next.py).
//! `image_grid_pinpoints` are pairs of height and width.

use serde_json::{Map, Value};

use super::keys::Keys;
use super::llava;
use crate::vision::{Result, TilesConfig, VisionConfig};

pub(super) fn translate(published: Map<String, Value>, tower: Option<Map<String, Value>>) -> Result<VisionConfig> {
    // What the class has by default.
    let usual = || vec![(672, 336), (336, 672), (672, 672), (336, 1008), (1008, 336)];
    let pairs = Keys(&published).pairs("image_grid_pinpoints")?;
    let grids = pairs.map_or_else(usual, |pairs| pairs.into_iter().map(|(h, w)| (w, h)).collect());
    let config = llava::translate(published, tower)?;
    Ok(VisionConfig { model_type: "llava_next".into(), tiles: Some(TilesConfig { grids }), ..config })
}
