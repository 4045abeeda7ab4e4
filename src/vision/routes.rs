//! Which experts get which tokens.

use moesaic_encoders::image::Picture;
use moesaic_kernels::{Modality, Probe};

use super::VisionChat;
use crate::atlas::{Atlas, RouteMap};
use crate::error::{Error, Result};
use crate::prompts::Turn;

pub(super) fn map(chat: &VisionChat, pictures: &[Picture], turns: &[Turn<'_>], segment: usize) -> Result<RouteMap> {
    let compute = |error: candle_core::Error| Error::compute(&error);
    // Tower and decoder record under the same names.
    let (seeing, reading) = (Probe::new(), Probe::new());
    let asked = chat.look(pictures, turns, Some(&seeing))?;
    chat.model.forward(&asked.spliced, Some(&reading)).map_err(compute)?;
    let mut atlas = Atlas::default();
    atlas.add_probe(&seeing, &|_| Modality::Image).map_err(compute)?;
    let n = asked.spliced.embeds.dim(1).map_err(compute)?;
    let of = asked.spliced.context.modality.as_deref();
    let modality = |token: usize| of.and_then(|all| all.get(token)).copied().unwrap_or(Modality::Text);
    atlas.add_probe(&reading, &modality).map_err(compute)?;
    let image = (0..n).filter(|&token| modality(token) == Modality::Image).count();
    atlas.count(Modality::Image, image);
    atlas.count(Modality::Text, n - image);
    atlas.finish(segment)
}
