//! Tensors of one checkpoint in place of those of another.

use candle_core::Result;

use super::arrangement::Arrangement;
use super::text::{refuse, shape_text, shown};
use super::{Checkpoint, TensorInfo};

impl Checkpoint {
    /// This checkpoint with tensors of `other` in place of its own: those for whose names `place` gives that of one here.
    ///
    /// # Errors
    /// There is no tensor of that name here, or it has another shape.
    pub fn overlaid(&self, other: &Self, place: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let (base, over) = (&self.inner, &other.inner);
        let mut tensors = base.tensors.clone();
        for (theirs, info) in &over.tensors {
            let Some(name) = place(theirs) else { continue };
            let Some(own) = tensors.get_mut(&name) else {
                let near =
                    self.nearest(&name).map_or("none is like it".into(), |n| format!("nearest name: {}", shown(n)));
                refuse!(
                    "{}: tensor {} has no place in {} ({near}): it is of another model",
                    over.label,
                    shown(theirs),
                    base.label
                );
            };
            if own.shape != info.shape {
                let (found, expected) = (shape_text(&info.shape), shape_text(&own.shape));
                refuse!(
                    "{}: tensor {}: expected shape {expected} as in {}, found {found}: it is of another model",
                    over.label,
                    shown(theirs),
                    base.label
                );
            }
            *own = info.clone();
            own.shift(base.sources.len());
        }
        let sources = base.sources.iter().chain(&over.sources).cloned().collect();
        Ok(Self::assemble(base.label.clone(), sources, tensors, base.metadata.clone()))
    }
}

impl TensorInfo {
    /// Counts files from `by` on.
    fn shift(&mut self, by: usize) {
        self.file += by;
        match &mut self.arrangement {
            Arrangement::Woven(woven) => woven.parts.iter_mut().for_each(|part| part.info.shift(by)),
            Arrangement::Scaled(scales) => scales.shift(by),
            _ => {}
        }
    }
}
