//! Adapters of a vision model: low-rank changes of the language model's maps, and modules that were trained whole beside them
//! (`modules_to_save`), such as the projector.

use candle_core::{DType, Result};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::Checkpoint;

use super::{Language, Place, VisionModel};
use crate::decoder::{Decoder, Site};
use crate::lora::Adapter;

/// Which parts of a vision model something is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Concerned {
    /// The vision tower.
    pub tower: bool,
    /// The projector.
    pub projector: bool,
    /// The language model.
    pub language: bool,
}

impl Concerned {
    /// Whether there is any.
    pub fn any(self) -> bool {
        self.tower || self.projector || self.language
    }
}

impl VisionModel {
    /// The maps of the language model, for adapters, under the names that its weights have in the whole model's checkpoint.
    pub fn sites(&mut self) -> Vec<Site<'_>> {
        let language = self.config.layouts.first().map_or(Language::Own, |layout| layout.language);
        self.sites_as(language)
    }

    fn sites_as(&mut self, language: Language) -> Vec<Site<'_>> {
        self.decoder.sites().into_iter().map(|site| site.renamed(|name| language.published(name))).collect()
    }

    /// Attaches the low-rank part of an adapter to the language model, beside those that are there ([`Adapter::attach`]). The
    /// adapter may be of the whole model, or of the language model alone, as it was before it became a part. Gives the number of
    /// maps that it changes.
    ///
    /// # Errors
    /// As [`Adapter::attach`].
    pub fn attach(&mut self, adapter: &Adapter, name: &str, strength: f64) -> Result<usize> {
        let own = self.config.layouts.first().map_or(Language::Own, |layout| layout.language);
        // As this checkpoint, the language model alone, or either release of transformers names its layers.
        let ways = [own, Language::Own, Language::Under("language_model"), Language::Inside];
        let layers = self.config.decoder.names.layers;
        let inside = |language: &&Language| {
            let layers = language.published(layers);
            adapter.maps().any(|map| map.strip_prefix(layers.as_str()).is_some_and(|rest| rest.starts_with('.')))
        };
        let language = ways.iter().find(inside).copied().unwrap_or(own);
        let device = self.device().clone();
        adapter.attach_maps(self.sites_as(language), name, strength, DType::F32, &device)
    }

    /// The parts of this model that an adapter brings whole tensors of.
    pub fn concerned(&self, adapter: &Adapter) -> Concerned {
        let mut parts = Concerned::default();
        for name in adapter.whole() {
            match self.config.place(name) {
                Place::Tower => parts.tower = true,
                Place::Projector => parts.projector = true,
                Place::Language(_) => parts.language = true,
            }
        }
        parts
    }

    /// Reads these parts anew from a checkpoint of this model: its own, or one that an adapter brings modules to
    /// ([`Adapter::over`]). A language model that is read anew has no adapters.
    ///
    /// # Errors
    /// A tensor is missing or has another shape. The model is as before then.
    pub fn reload(&mut self, checkpoint: &Checkpoint, parts: Concerned, dtype: DType) -> Result<()> {
        let params = Params::load(checkpoint, dtype, self.device());
        let config = &self.config;
        let layout = config.layout()?;
        let tower = parts.tower.then(|| config.tower.build(&params.pp(&layout.tower))).transpose()?;
        let projector = parts.projector.then(|| config.build_projector(&params.pp(&layout.projector))).transpose()?;
        let newline = parts.projector.then(|| config.build_newline(&params)).transpose()?;
        let decoder = || Decoder::new(config.decoder.clone(), &layout.language.params(&params));
        let decoder = parts.language.then(decoder).transpose()?;
        if let Some(tower) = tower {
            self.tower = tower;
        }
        if let Some(projector) = projector {
            self.projector = projector;
        }
        if let Some(newline) = newline {
            self.newline = newline;
        }
        if let Some(decoder) = decoder {
            self.decoder = decoder;
        }
        Ok(())
    }
}
