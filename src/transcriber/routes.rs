//! Which experts get which tokens of a recording.

use moesaic_kernels::{Modality, Probe};
use moesaic_models::avsr::Rates;
use moesaic_models::decoder::{Context, Input};

use super::{Recording, TranscribeOptions, Transcriber};
use crate::atlas::{Atlas, RouteMap};
use crate::error::{Error, Result};

pub(super) fn map(
    transcriber: &Transcriber,
    mut recording: Recording,
    options: &TranscribeOptions,
    segment: usize,
) -> Result<RouteMap> {
    let model = &transcriber.model;
    let window = options.window.unwrap_or(model.config().window);
    let Some(part) = recording.next(window, 0.0)? else {
        return Err(Error::Media("the recording is empty: there is nothing to route".into()));
    };
    let encoded = transcriber.encode(part.sound.as_deref(), part.lips.as_ref())?;
    let (hearing, reading, mut atlas) = (Probe::new(), Probe::new(), Atlas::default());
    let mut pass = || -> candle_core::Result<()> {
        let scale = model.scale(Rates::default())?;
        let (tokens, _) = model.project(&encoded, scale, Some(&hearing))?;
        // A mixture of projectors routes the tokens of each sense by themselves, under its name.
        for (name, routes) in hearing.all_routes() {
            let modality = [Modality::Audio, Modality::Video].into_iter().find(|modality| modality.name() == name);
            atlas.add("projector", &routes, 1, &|_| modality.unwrap_or(Modality::Audio))?;
        }
        let sequence = model.sequence(&tokens, None)?;
        for modality in [Modality::Text, Modality::Audio, Modality::Video] {
            atlas.count(modality, sequence.origins.iter().filter(|origin| **origin == modality).count());
        }
        model.llm().at(scale)?.forward(Input::Embeds(&sequence.embeds), &Context::default(), None, Some(&reading))?;
        atlas.add_probe(&reading, &|token| sequence.origins.get(token).copied().unwrap_or(Modality::Text))
    };
    pass().map_err(|error| Error::compute(&error))?;
    atlas.finish(segment)
}
