//! U-SAM's task-aware mixture of projectors (arXiv 2505.13880, section 2.3): every token of sound goes through all projectors, and
//! what is asked for weighs them.
//!
//! ```text
//! c = fc(prompt embeddings), cut or filled up with zeros to the number of tokens
//! w = softmax(W [q_t; c_t]);   y_t = sum_e w_te E_e(q_t)                 the paper's: a token for each token
//!                              y_e = sum_t w_te E_e(q_t)                 the released code's: a token for each expert
//! ```
//!
//! `E_e` is one linear map. The released code sums over the wrong axis, so that its language model reads as many tokens as there
//! are experts whatever the sound's length, and its experts are one shared map.

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::routers::SoftmaxMixing;
use moesaic_kernels::{ExpertBank, Init, Linear, Modality, Params, Probe, RouteInput, Router, Routes, Tokens};

use crate::{Projected, Projector, ProjectorInput, checked};

/// What weighted outputs are summed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MixtureSum {
    /// The experts of each token: the paper's equation.
    #[default]
    Experts,
    /// The tokens of each expert: what the released code computes.
    Time,
}

/// Sizes of the mixture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskMixtureConfig {
    /// Width of the tokens.
    pub inputs: usize,
    /// Width of the language model, and of the prompt's embeddings.
    pub outputs: usize,
    /// Projectors.
    pub experts: usize,
    /// All experts are one map, of which the checkpoint may hold copies; only the first is read and trained.
    pub tied: bool,
    /// What is summed over.
    pub sum: MixtureSum,
}

impl TaskMixtureConfig {
    fn validate(&self) -> Result<()> {
        const MOST: usize = 1 << 20;
        for (name, value, most) in
            [("widths", self.inputs, MOST), ("widths", self.outputs, MOST), ("experts", self.experts, 1 << 12)]
        {
            if !(1..=most).contains(&value) {
                bail!("{name} of the mixture of projectors: {value}, expected 1 to {most}");
            }
        }
        Ok(())
    }
}

/// A task-aware mixture of projectors.
#[derive(Debug)]
pub struct TaskMixture {
    config: TaskMixtureConfig,
    /// Embeddings of the prompt to the width of the tokens.
    fc: Linear,
    router: SoftmaxMixing,
    experts: ExpertBank,
}

impl TaskMixture {
    /// `enc_to_dec_proj.{e}.0`, `fc` and `router.weight` of `p`.
    ///
    /// # Errors
    /// The config makes no sense, or a tensor is missing or has another shape.
    pub fn load(config: TaskMixtureConfig, p: &Params) -> Result<Self> {
        config.validate()?;
        let TaskMixtureConfig { inputs, outputs, experts, tied, .. } = config;
        let uniform = |width: usize| Init::Uniform(1.0 / (width as f64).sqrt()); // as torch makes linear maps
        let stored = if tied { 1 } else { experts };
        let stack = |what: &str, part: &[usize]| -> Result<Tensor> {
            let parts: Vec<_> = (0..stored).map(|e| (format!("enc_to_dec_proj.{e}.0.{what}"), part.to_vec())).collect();
            let all = p.stack(&[&[stored], part].concat(), &parts, uniform(inputs))?;
            // Gradients of the copies meet in the one that is trained.
            if tied { Tensor::cat(&vec![&all; experts], 0) } else { Ok(all) }
        };
        let (weight, bias) = (stack("weight", &[outputs, inputs])?, stack("bias", &[outputs])?);
        let bank = ExpertBank::linear(weight)?.with_biases(Some(bias), None)?;
        let router = p.tensor_f32("router.weight", [experts, 2 * inputs], uniform(2 * inputs))?;
        Ok(Self {
            fc: Linear::load(p, "fc", (inputs, outputs), true, uniform(outputs))?,
            router: SoftmaxMixing { weight: router },
            experts: if p.packs() { bank.pack()? } else { bank },
            config,
        })
    }

    /// The sizes.
    pub fn config(&self) -> &TaskMixtureConfig {
        &self.config
    }

    /// What the router looks at beside the sound: the prompt, token by token.
    ///
    /// # Shapes
    /// parts `[b, n, outputs]` to `[b, tokens, inputs]`
    ///
    /// # Errors
    /// Parts of other shapes, or nothing in them.
    pub fn condition(&self, prompt: &[Tensor], b: usize, tokens: usize) -> Result<Tensor> {
        let TaskMixtureConfig { inputs, outputs, .. } = self.config;
        for part in prompt {
            match *part.dims() {
                [rows, _, width] if rows == b && width == outputs => {}
                _ => bail!("a prompt of shape {:?}, expected [{b}, tokens, {outputs}]", part.dims()),
            }
        }
        let parts: Vec<&Tensor> = prompt.iter().filter(|part| part.elem_count() > 0).collect();
        if parts.is_empty() {
            bail!("the projector weighs its experts by the prompt: give one");
        }
        let prompt = Tensor::cat(&parts, 1)?; // (b, n, outputs)
        let n = prompt.dim(1)?.min(tokens);
        let c = self.fc.forward(&prompt.narrow(1, 0, n)?.contiguous()?)?;
        let c = c.to_dtype(DType::F32)?.reshape((b, n, inputs))?;
        if n < tokens { c.pad_with_zeros(1, 0, tokens - n) } else { Ok(c) }
    }

    /// [`project`](Projector::project) of one modality's tokens with what the router looks at beside them
    /// ([`condition`](Self::condition)), which may be another prompt for each row.
    ///
    /// # Shapes
    /// `condition [b, t, inputs]`
    ///
    /// # Errors
    /// As there, or a condition of another shape.
    pub fn project_conditioned(
        &self,
        tokens: &Tokens,
        condition: &Tensor,
        probe: Option<&Probe>,
    ) -> Result<(Tokens, Routes)> {
        let (b, t, h) = checked(self, tokens)?;
        if b == 0 || t == 0 {
            bail!("there are no {:?} tokens to project", tokens.modality);
        }
        if condition.dims() != [b, t, h] {
            bail!("a condition of shape {:?} for tokens of shape [{b}, {t}, {h}]", condition.dims());
        }
        let rows = condition.reshape((b * t, h))?;
        let x = tokens.embeds.reshape((b * t, h))?;
        let mask = tokens.mask.as_ref().map(Tensor::flatten_all).transpose()?;
        let route = RouteInput { condition: Some(&rows), ..RouteInput::new(&x) };
        let routes = self.router.route(&route.with_mask(mask.as_ref()))?;
        if let Some(probe) = probe {
            probe.tensor("prompt_features", condition);
            if let Some(logits) = routes.logits() {
                probe.tensor("router_logits", &logits.reshape((b, t, ()))?);
            }
            probe.tensor("router_weights", &routes.scores().reshape((b, t, ()))?);
            probe.routes("projector", &routes);
        }
        let embeds = self.mix(&tokens.embeds, &routes, self.config.sum)?;
        let mask = if self.config.sum == MixtureSum::Experts { tokens.mask.clone() } else { None };
        Ok((Tokens { mask, ..Tokens::new(embeds, tokens.modality) }, routes))
    }

    /// Outputs of all experts before they are weighted, for routes of all tokens to all experts.
    ///
    /// # Shapes
    /// `q [b, t, inputs]` to `[b, t, experts, outputs]`
    ///
    /// # Errors
    /// Other routes.
    pub fn expert_outputs(&self, q: &Tensor, routes: &Routes) -> Result<Tensor> {
        let ((b, t, h), e) = (q.dims3()?, self.config.experts);
        if routes.len() != e * b * t {
            bail!("{} routes of {b} x {t} tokens do not go to all {e} experts", routes.len());
        }
        let y = self.experts.forward_each(&q.reshape((b * t, h))?, routes)?; // (e * b * t, outputs): by expert, then token
        y.reshape((e, b * t, self.config.outputs))?.transpose(0, 1)?.contiguous()?.reshape((b, t, e, ()))
    }

    /// The weighted sums of the experts' outputs, over one axis or the other.
    ///
    /// # Shapes
    /// `q [b, t, inputs]` to `[b, t, outputs]`, or `[b, experts, outputs]` where it is summed over time
    ///
    /// # Errors
    /// Routes of other tokens, or, for a sum over time, not to all experts.
    pub fn mix(&self, q: &Tensor, routes: &Routes, sum: MixtureSum) -> Result<Tensor> {
        let (b, t, h) = q.dims3()?;
        match sum {
            MixtureSum::Experts => {
                self.experts.forward(&q.reshape((b * t, h))?, routes)?.reshape((b, t, self.config.outputs))
            }
            MixtureSum::Time => {
                let y = self.expert_outputs(q, routes)?; // (b, t, e, outputs)
                let w = routes.weight().reshape((self.config.experts, b * t))?.t()?.contiguous()?;
                let w = w.reshape((b, t, self.config.experts, 1))?.to_dtype(y.dtype())?;
                y.broadcast_mul(&w)?.sum(1) // (b, e, outputs)
            }
        }
    }
}

impl Projector for TaskMixture {
    fn input_width(&self, modality: Modality) -> Option<usize> {
        (modality == Modality::Audio).then_some(self.config.inputs)
    }

    fn output_width(&self) -> usize {
        self.config.outputs
    }

    /// The prompt's parts, `[b, n, outputs]` each, are taken one after the other. A probe gets `prompt_features [b, t, inputs]`,
    /// `router_logits` and `router_weights [b, t, experts]`, and the routes of `projector`.
    fn project(&self, input: &ProjectorInput<'_>, probe: Option<&Probe>) -> Result<Projected> {
        let mut all = Projected { tokens: Vec::new(), routes: Vec::new() };
        for tokens in input.tokens {
            let (b, t, _) = checked(self, tokens)?;
            let condition = self.condition(input.prompt, b, t)?;
            let (projected, routes) = self.project_conditioned(tokens, &condition, probe)?;
            all.tokens.push(projected);
            all.routes.push(routes);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn config(tied: bool, sum: MixtureSum) -> TaskMixtureConfig {
        TaskMixtureConfig { inputs: 4, outputs: 6, experts: 3, tied, sum }
    }

    fn normal(p: &Params, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(p.tensor(name, shape, Init::Normal(1.0))?.detach())
    }

    fn near(a: &Tensor, b: &Tensor) -> Result<bool> {
        Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5)
    }

    #[test]
    fn both_sums_are_of_the_same_weighted_outputs() -> Result<()> {
        let p = Params::init(1, &Device::Cpu);
        let q = normal(&p, "q", &[2, 5, 4])?;
        let prompt = [normal(&p, "left", &[2, 2, 6])?, normal(&p, "right", &[2, 1, 6])?];
        let tokens = [Tokens::new(q.clone(), Modality::Audio)];
        let input = ProjectorInput { tokens: &tokens, prompt: &prompt };
        for tied in [false, true] {
            let paper = TaskMixture::load(config(tied, MixtureSum::Experts), &p)?;
            let released = TaskMixture::load(config(tied, MixtureSum::Time), &p)?;
            let (y, z) = (paper.project(&input, None)?, released.project(&input, None)?);
            assert_eq!((y.tokens[0].embeds.dims(), z.tokens[0].embeds.dims()), (&[2, 5, 6][..], &[2, 3, 6][..]));
            let each = paper.expert_outputs(&q, &y.routes[0])?;
            let weighted = each.broadcast_mul(&y.routes[0].scores().reshape((2, 5, 3, 1))?)?;
            assert!(near(&weighted.sum(2)?, &y.tokens[0].embeds)? && near(&weighted.sum(1)?, &z.tokens[0].embeds)?);
            let (first, last) = (each.narrow(2, 0, 1)?, each.narrow(2, 2, 1)?);
            assert_eq!(near(&first, &last)?, tied);
        }
        Ok(())
    }

    #[test]
    fn the_prompt_is_cut_or_filled_up_with_zeros() -> Result<()> {
        let p = Params::init(2, &Device::Cpu);
        let model = TaskMixture::load(config(false, MixtureSum::Experts), &p)?;
        let prompt = normal(&p, "prompt", &[1, 4, 6])?;
        let long = model.condition(std::slice::from_ref(&prompt), 1, 9)?;
        assert!(near(&long.narrow(1, 0, 4)?, &model.fc.forward(&prompt)?)?);
        assert_eq!(long.narrow(1, 4, 5)?.abs()?.max_all()?.to_scalar::<f32>()?, 0.0);
        assert!(near(&model.condition(std::slice::from_ref(&prompt), 1, 3)?, &long.narrow(1, 0, 3)?)?);
        // Two parts are one after the other.
        let parts = [prompt.narrow(1, 0, 1)?, prompt.narrow(1, 1, 3)?];
        assert!(near(&model.condition(&parts, 1, 9)?, &long)?);
        let tokens = [Tokens::new(normal(&p, "q", &[1, 3, 4])?, Modality::Audio)];
        assert!(model.project(&ProjectorInput::new(&tokens), None).is_err(), "there is no prompt");
        assert!(model.condition(&[prompt.narrow(2, 0, 4)?], 1, 3).is_err());
        Ok(())
    }

    #[test]
    fn packed_weights_give_the_same_and_configs_are_checked() -> Result<()> {
        let p = Params::init(3, &Device::Cpu);
        let sums = [MixtureSum::Experts, MixtureSum::Time];
        let tokens = [Tokens::new(normal(&p, "q", &[2, 5, 4])?, Modality::Audio)];
        let prompt = [normal(&p, "prompt", &[2, 3, 6])?];
        let input = ProjectorInput { tokens: &tokens, prompt: &prompt };
        let trained = TaskMixture::load(config(false, sums[0]), &p)?;
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("p.safetensors");
        moesaic_kernels::checkpoint::save(&file, &p.published(|v| Some(v.as_tensor().clone()))?, &[])?;
        let checkpoint = moesaic_kernels::checkpoint::Checkpoint::open(&file)?;
        let loaded = Params::load(&checkpoint, DType::F32, &Device::Cpu);
        let routes = trained.project(&input, None)?.routes;
        for sum in sums {
            let packed = TaskMixture::load(config(false, sum), &loaded)?.project(&input, None)?;
            assert!(near(&packed.tokens[0].embeds, &trained.mix(&tokens[0].embeds, &routes[0], sum)?)?);
        }
        for wrong in [
            TaskMixtureConfig { experts: 0, ..config(false, sums[0]) },
            TaskMixtureConfig { outputs: usize::MAX, ..config(false, sums[0]) },
        ] {
            assert!(TaskMixture::load(wrong, &loaded).is_err());
        }
        let more = TaskMixtureConfig { experts: 4, ..config(false, sums[0]) };
        assert!(TaskMixture::load(more, &loaded).unwrap_err().to_string().contains("enc_to_dec_proj.3"));
        Ok(())
    }
}
