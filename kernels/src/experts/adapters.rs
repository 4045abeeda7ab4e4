//! Low-rank adapters of the experts of a bank.

use candle_core::{Result, bail};

use super::bank::{ExpertBank, Storage};
use crate::host::tracked;
use crate::lora::{self, LowRank};

/// A layer of every expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The first: gate above up where experts are gated, or the only one.
    Up,
    /// The second.
    Down,
}

impl ExpertBank {
    /// `(out, in)` of a layer of every expert; of the second, `None` where there is none.
    pub fn layer(&self, half: Half) -> Option<(usize, usize)> {
        let storage = match half {
            Half::Up => Some(&self.up),
            Half::Down => self.down.as_ref(),
        };
        storage.and_then(|s| s.dims().ok()).map(|(_, out, inputs)| (out, inputs))
    }

    /// The live adapters of a layer, in the order in which they were attached.
    pub fn adapters(&self, half: Half) -> &[LowRank] {
        match half {
            Half::Up => &self.extras.adapters[0],
            Half::Down => &self.extras.adapters[1],
        }
    }

    /// Attaches an adapter, for each expert its own, beside those that are there.
    ///
    /// # Errors
    /// Its shapes do not fit the layer, or there is no such layer.
    pub fn attach(&mut self, half: Half, adapter: LowRank) -> Result<()> {
        let Some((out, inputs)) = self.layer(half) else { bail!("experts of one layer have no second to adapt") };
        adapter.check(self.networks(), out, inputs)?;
        let [up, down] = &mut self.extras.adapters;
        match half {
            Half::Up => up.push(adapter),
            Half::Down => down.push(adapter),
        }
        Ok(())
    }

    /// Gives every adapter the strength that `weight` says; `None` takes it off.
    pub fn adjust(&mut self, weight: impl Fn(&LowRank) -> Option<f64>) {
        for adapters in self.extras.adapters.iter_mut() {
            *adapters =
                std::mem::take(adapters).into_iter().filter_map(|a| weight(&a).map(|w| a.with_weight(w))).collect();
        }
    }

    /// Adds the adapters to the weights for good, rounding once.
    ///
    /// # Errors
    /// The weights are in tiles for the CPU or in blocks, or are being trained: neither can take anything in.
    pub fn merge(&mut self) -> Result<()> {
        let [up, down] = &mut self.extras.adapters;
        for (storage, adapters) in [(Some(&mut self.up), up), (self.down.as_mut(), down)] {
            match storage {
                _ if adapters.is_empty() => {}
                Some(Storage::Dense(weights)) if !tracked(weights) => {
                    *weights = lora::merged(adapters, weights)?;
                    adapters.clear();
                }
                Some(Storage::Dense(_)) => bail!("experts that are being trained take no adapter in"),
                _ => bail!(
                    "experts in tiles for the CPU or in blocks take no adapter in: leave it live, or merge it while the model is loaded"
                ),
            }
        }
        Ok(())
    }
}
