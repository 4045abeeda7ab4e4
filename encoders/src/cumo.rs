//! CuMo's tower (arXiv 2405.05949, section 3.2, and `multimodal_encoder/clip_smoe.py`): CLIP whose networks are mixtures,
//! over a picture at several scales (S2, arXiv 2403.13043).
//!
//! ```text
//! p = softmax(G x);  y = sum over the 2 best of p_e / (p_1 + p_2) E_e(x)
//! scale s: the picture s times as large, cut into s x s tiles; features stitched together and averaged back to the grid
//! ```

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::losses::{first_choice_balance, router_z};
use moesaic_kernels::routers::SoftmaxTopK;
use moesaic_kernels::{ExpertBank, Init, Modality, MoeLayer, Params, Probe, RouteInput, Routes, Tokens};
use serde_json::Value;

use crate::clip::{ClipConfig, ClipVision, Head, Pass};
use crate::config::{self, Object};
use crate::interpolate::{bicubic, mean_pool};
use crate::tower::{Features, Select, Tower};

/// The mixture in place of a layer's network.
#[derive(Debug)]
pub(crate) struct SparseMlp(MoeLayer);

impl SparseMlp {
    /// `gate.weight [E, h]` and `experts.{e}.fc1`, `experts.{e}.fc2` of a layer.
    pub fn load(cfg: &ClipConfig, (experts, k): (usize, usize), p: &Params) -> Result<Self> {
        let (h, i, init) = (cfg.hidden_size, cfg.intermediate_size, Init::Normal(0.02));
        let parts = |what: &str, shape: &[usize]| -> Vec<(String, Vec<usize>)> {
            (0..experts).map(|e| (format!("experts.{e}.{what}"), shape.to_vec())).collect()
        };
        let up = p.storage(&[experts, i, h], &parts("fc1.weight", &[i, h]), init, false)?;
        let down = p.storage(&[experts, h, i], &parts("fc2.weight", &[h, i]), init, false)?;
        let up_bias = p.stack(&[experts, i], &parts("fc1.bias", &[i]), Init::Zeros)?;
        let down_bias = p.stack(&[experts, h], &parts("fc2.bias", &[h]), Init::Zeros)?;
        let bank = ExpertBank::mlp(up, down, cfg.activation)?.with_biases(Some(up_bias), Some(down_bias))?;
        let bank = if p.packs() { bank.pack()? } else { bank };
        let weight = p.tensor("gate.weight", [experts, h], init)?.to_dtype(DType::F32)?;
        let router = Box::new(SoftmaxTopK { weight, k, renormalise: true, scale: 1.0, groups: None });
        Ok(Self(MoeLayer { router, experts: bank, shared: None }))
    }

    /// `x [b * t, h]` to the same.
    pub fn forward(&self, x: &Tensor, name: &str) -> Result<(Tensor, Routes)> {
        self.0.forward(&RouteInput::new(x), name, None)
    }
}

/// Sizes of CuMo's tower.
#[derive(Clone, Debug, PartialEq)]
pub struct CumoConfig {
    /// The CLIP tower; its networks are mixtures where `clip_smoe` is set.
    pub clip: ClipConfig,
    /// How many times as large the picture is seen, each time; `[1, 3]` as published.
    pub scales: Vec<usize>,
    /// Which tokens of the input of the last layer.
    pub select: Select,
}

impl CumoConfig {
    /// Translates the `config.json` of CuMo with the tower's sizes under `vision_config`.
    pub fn from_json(text: &str) -> Result<Self> {
        let map = config::parse(text)?;
        let mut clip = ClipConfig::of(&config::vision(&map))?;
        let object = Object(&map);
        if object.flag("clip_smoe", false)? {
            let (e, k) = (object.size("num_experts", Some(4))?, object.size("num_selected", Some(2))?);
            if k > e {
                bail!("config.json: num_selected is {k} of {e} experts");
            }
            clip.experts = Some((e, k));
        }
        let scales = match map.get("scales") {
            None => vec![1],
            Some(value) => {
                let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
                let scale = |v: &Value| v.as_u64().filter(|s| (1..=16).contains(s)).map(|s| s as usize);
                match all.iter().map(scale).collect::<Option<Vec<_>>>() {
                    Some(scales) if !scales.is_empty() => scales,
                    _ => bail!("config.json: scales is {value}, expected numbers from 1 to 16"),
                }
            }
        };
        let layer = map.get("mm_vision_select_layer").map_or(Some(-2), Value::as_i64);
        if layer != Some(-2) {
            bail!("config.json: mm_vision_select_layer is not -2, the only one that this tower has");
        }
        let select = Select::from_name(&object.name("mm_vision_select_feature", "patch")?)?;
        Ok(Self { clip, scales, select })
    }
}

/// The losses of the tower's routers, without coefficients.
#[derive(Clone, Debug)]
pub struct CumoLosses {
    /// Load balance within each picture or tile, the mean over layers and scales.
    pub balance: Tensor,
    /// The z-loss, the mean over layers and scales.
    pub z: Tensor,
}

/// What the tower gives.
#[derive(Clone, Debug)]
pub struct CumoOutput {
    /// Features `[b, patches, width * scales]`.
    pub tokens: Tokens,
    /// Where the networks are mixtures.
    pub losses: Option<CumoLosses>,
}

/// CuMo's vision tower.
#[derive(Debug)]
pub struct CumoVision {
    clip: ClipVision,
    scales: Vec<usize>,
    select: Select,
}

impl CumoVision {
    /// A tower of tensors `vision_model.*` of `p` (`model.vision_tower` in a checkpoint).
    pub fn new(config: CumoConfig, p: &Params) -> Result<Self> {
        let CumoConfig { clip, scales, select } = config;
        if scales.iter().any(|s| *s > 1) && select == Select::ClsPatch {
            bail!("several scales have no common class token: select the patches");
        }
        Ok(Self { clip: ClipVision::new(clip, p, Head::None)?, scales, select })
    }

    /// The tower's features: the input of the last layer.
    fn fits(&self, features: &Features) -> Result<()> {
        let depth = self.clip.config().layers;
        if features.states(depth)? != Features::new(-2, self.select).states(depth)? || features.select != self.select {
            bail!("CuMo's tower gives the {:?} tokens of layer -2, not {features:?}", self.select);
        }
        Ok(())
    }

    /// Width of a feature.
    pub fn width(&self) -> usize {
        self.clip.width() * self.scales.len()
    }

    /// Features and, where `losses` is set, the losses of the routers: the last layer, whose output nobody sees, then runs
    /// for its losses. A probe gets `scale.{s}.hidden` `[b * s * s, 1 + patches, h]` and the routes `scale.{s}.layer.{i}`.
    ///
    /// # Shapes
    /// `pixels [b, 3, image_size, image_size]`
    pub fn forward(&self, pixels: &Tensor, losses: bool, probe: Option<&Probe>) -> Result<CumoOutput> {
        let (b, n) = (pixels.dim(0)?, self.clip.image_size().0);
        let states = Features::new(-2, self.select).states(self.clip.config().layers)?;
        let grid = n / self.clip.config().patch_size;
        let (mut features, mut balance, mut z) = (Vec::new(), Vec::new(), Vec::new());
        for &s in &self.scales {
            let Pass { states, routes } = self.clip.pass(&tiled(pixels, n, s)?, &states, losses, None)?;
            let Some(hidden) = states.first() else { bail!("the tower has no output") };
            if let Some(probe) = probe {
                probe.tensor(format!("scale.{s}.hidden"), hidden);
                routes.iter().enumerate().for_each(|(i, r)| probe.routes(format!("scale.{s}.layer.{i}"), r));
            }
            if losses && !routes.is_empty() {
                let mean = |all: Vec<Tensor>| Tensor::stack(&all, 0)?.mean_all();
                balance.push(mean(routes.iter().map(|r| first_choice_balance(r, b * s * s)).collect::<Result<_>>()?)?);
                z.push(mean(routes.iter().map(router_z).collect::<Result<_>>()?)?);
            }
            let tokens = Features::new(-2, self.select).join(std::slice::from_ref(hidden))?.embeds;
            let c = tokens.dim(2)?;
            features.push(if s == 1 {
                tokens
            } else {
                // (b, s, s, grid, grid, c) to rows and columns of the whole picture.
                let whole = tokens.reshape((b, s, s, grid, grid * c))?.transpose(2, 3)?.contiguous()?;
                let whole = whole.reshape((b, s * grid, s * grid, c))?;
                mean_pool(&whole, s)?.reshape((b, grid * grid, c))?
            });
        }
        let losses = match balance.is_empty() {
            true => None,
            false => Some(CumoLosses {
                balance: Tensor::stack(&balance, 0)?.mean_all()?,
                z: Tensor::stack(&z, 0)?.mean_all()?,
            }),
        };
        Ok(CumoOutput { tokens: Tokens::new(Tensor::cat(&features, 2)?, Modality::Image), losses })
    }
}

impl Tower for CumoVision {
    fn width(&self) -> usize {
        self.width()
    }

    fn image_size(&self) -> (usize, usize) {
        self.clip.image_size()
    }

    fn encode(&self, pixels: &Tensor, features: &Features, probe: Option<&Probe>) -> Result<Tokens> {
        self.fits(features)?;
        Ok(self.forward(pixels, false, probe)?.tokens)
    }

    fn encode_with_losses(
        &self,
        pixels: &Tensor,
        features: &Features,
        probe: Option<&Probe>,
    ) -> Result<(Tokens, Option<CumoLosses>)> {
        self.fits(features)?;
        let output = self.forward(pixels, true, probe)?;
        Ok((output.tokens, output.losses))
    }
}

/// `pixels [b, 3, n, n]`, `s` times as large, as tiles `[b * s * s, 3, n, n]`, those of a picture together and row by row.
fn tiled(pixels: &Tensor, n: usize, s: usize) -> Result<Tensor> {
    let (b, c, h, w) = pixels.dims4()?;
    if (h, w) != (n, n) {
        bail!("the tower takes pictures of {n} x {n} pixels, got {:?}", pixels.dims());
    }
    if s == 1 {
        return Ok(pixels.clone());
    }
    let large = bicubic(pixels, (s * n, s * n))?;
    let tiles = large.reshape((b, c, s, n, s, n))?.permute((0, 2, 4, 1, 3, 5))?; // (b, s, s, c, n, n)
    tiles.reshape((b * s * s, c, n, n))
}
