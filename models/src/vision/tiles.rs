//! Pictures cut into tiles ("anyres" of LLaVA-1.6, LLaVA-NeXT): a picture is seen small as a whole, and large in tiles of the
//! tower's size, whose features are laid out as rows of the large picture.
//!
//! Reference: `pack_image_features` in
//! [`modeling_llava_next.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/llava_next/modeling_llava_next.py),
//! `prepare_inputs_labels_for_multimodal` in `llava/model/llava_arch.py` of haotian-liu/LLaVA.

use candle_core::{Error, Result, Tensor, bail};
use moesaic_encoders::image::best_grid;
use moesaic_kernels::{Init, Modality, Params, Probe, Tokens};
use moesaic_projectors::{spatial_unpad, unpadded};

use super::config::VisionConfig;
use super::{Encoded, Layout, VisionModel};

/// How pictures are cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TilesConfig {
    /// Grids of tiles, `(width, height)` in pixels, in the order of `image_grid_pinpoints`, which decides between equals.
    pub grids: Vec<(usize, usize)>,
}

impl TilesConfig {
    /// Whether these grids are made of tiles of the tower's size.
    pub(super) fn check(&self, side: usize) -> Result<()> {
        /// Tiles along a side that no published grid comes near.
        const MOST: usize = 64;
        let fits = |n: usize| n > 0 && n.is_multiple_of(side.max(1)) && n / side.max(1) <= MOST;
        match self.grids.iter().find(|(w, h)| !fits(*w) || !fits(*h)) {
            _ if self.grids.is_empty() => bail!("image_grid_pinpoints names no grid"),
            None => Ok(()),
            Some((w, h)) => bail!(
                "image_grid_pinpoints has a grid of {w} x {h} pixels, which does not hold tiles of {side} x {side}, at most {MOST} a \
                 side"
            ),
        }
    }
}

impl Layout {
    /// The name of what stands behind each row of a large picture: beside the projector.
    pub(super) fn newline(&self) -> String {
        match self.projector.rsplit_once('.') {
            Some((parent, _)) => format!("{parent}.image_newline"),
            None => "image_newline".into(),
        }
    }
}

impl VisionConfig {
    /// `image_newline [H]`, where the model has it.
    pub(super) fn build_newline(&self, params: &Params) -> Result<Option<Tensor>> {
        if self.tiles.is_none() {
            return Ok(None);
        }
        let h = self.decoder.hidden_size;
        let init = Init::Normal((h.max(1) as f64).powf(-0.5));
        params.tensor(&self.layout()?.newline(), [h], init).map(Some)
    }

    /// Tokens that a picture of `(width, height)` pixels becomes.
    ///
    /// # Errors
    /// The picture has no pixel.
    pub fn tokens_of(&self, picture: (usize, usize)) -> Result<usize> {
        let (Some(tiles), whole) = (&self.tiles, self.picture_tokens()) else { return Ok(self.picture_tokens()) };
        let side = self.tower.image_size().max(1);
        let Some((w, h)) = best_grid(picture, &tiles.grids).filter(|_| picture.0 > 0 && picture.1 > 0) else {
            bail!("a picture of {} x {} pixels has no tokens", picture.0, picture.1)
        };
        let patches = whole.isqrt();
        let grid = (w / side * patches, h / side * patches);
        let (axis, _, kept) = unpadded(grid, picture);
        let (wide, high) = if axis == 0 { (grid.0, kept) } else { (kept, grid.1) };
        Ok(whole + (wide + 1) * high)
    }
}

impl VisionModel {
    /// One picture in tiles as backbone tokens, in one row. A probe gets what the tower records.
    ///
    /// # Shapes
    /// normalised `pixels [1 + tiles, 3, S, S]`, the whole picture and then the tiles of `grid`, `(width, height)` in pixels, row
    /// by row ([`ImageProcessor::tiles`](moesaic_encoders::image::ImageProcessor::tiles)), to tokens `[1, n, H]`. `picture` is
    /// `(width, height)` in pixels before anything was done to it.
    ///
    /// # Errors
    /// The model does not cut pictures, or there are more or fewer tiles than the grid has.
    pub fn encode_tiles(
        &self,
        pixels: &Tensor,
        grid: (usize, usize),
        picture: (usize, usize),
        probe: Option<&Probe>,
    ) -> Result<Encoded> {
        let Some(newline) = &self.newline else {
            return Err(Error::msg(format!("a {} does not cut pictures into tiles", self.config.model_type)));
        };
        let side = self.config.tower.image_size().max(1);
        let encoded = self.encode(pixels, probe)?;
        let line = newline.to_dtype(encoded.tokens.embeds.dtype())?;
        let embeds = spatial_unpad(&encoded.tokens.embeds, (grid.0 / side, grid.1 / side), picture, Some(&line))?;
        Ok(Encoded { tokens: Tokens::new(embeds, Modality::Image), ..encoded })
    }
}
