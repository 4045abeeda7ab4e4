//! The language models of MoE-LLaVA: a dense one whose networks became experts behind DeepSpeed's gate.
//!
//! Paper: Lin et al., arXiv 2401.15947. Reference: `moellava/model/language_model/llava_*_moe.py` of PKU-YuanGroup/MoE-LLaVA at
//! 6cb5f66, and `deepspeed/moe/{layer,sharded_moe}.py` of DeepSpeed 0.9.5, which is not needed here.

use candle_core::{Error, Result, bail};
use moesaic_kernels::shown;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{qwen, translate, translated};
use crate::decoder::config::{AuxLoss, DecoderConfig, RouterConfig, SharedConfig, SparseConfig};
use crate::decoder::names::{ExpertNames, Names};

/// `moe` of `config.json`. Absent keys have the defaults of the reference's classes.
#[derive(Deserialize)]
struct Moe {
    #[serde(default = "super::keys::yes")]
    moe_enable: bool,
    moe_mode: Option<String>,
    moe_layers_idx: Option<Vec<usize>>,
    num_experts: Option<Numbers>,
    top_k_experts: Option<usize>,
    capacity_factor: Option<f64>,
    eval_capacity_factor: Option<f64>,
    min_capacity: Option<usize>,
    #[serde(default)]
    use_residual: bool,
    router_aux_loss_coef: Option<f64>,
}

/// One number, or one for each sparse layer.
#[derive(Deserialize)]
#[serde(untagged)]
enum Numbers {
    One(usize),
    Many(Vec<usize>),
}

/// Translates the `config.json` of a dense or sparse MoE-LLaVA; `backbone` is the end of its `model_type`.
pub(crate) fn language_model(backbone: &str, mut map: Map<String, Value>) -> Result<DecoderConfig> {
    let moe: Option<Moe> = match map.get("moe").filter(|moe| moe.as_object().is_some_and(|moe| !moe.is_empty())) {
        None => None,
        Some(moe) => Some(
            serde_json::from_value(moe.clone()).map_err(|e| Error::msg(format!("moe has an impossible value: {e}")))?,
        ),
    };
    let mut rename = |from: &str, to: &str| {
        if let Some(value) = map.get(from).cloned() {
            map.insert(to.into(), value);
        }
    };
    let family = match backbone {
        "stablelm" => {
            rename("rope_pct", "partial_rotary_factor");
            rename("norm_eps", "layer_norm_eps");
            map.entry("use_qkv_bias").or_insert(json!(true));
            "stablelm"
        }
        "phi" => "phi",
        "qwen1_5" => "qwen2",
        "llama" => "llama",
        "mistral" => "mistral",
        "qwen" => "qwen",
        other => {
            let other = shown(other);
            bail!(
                "the language model {other} is not supported; supported are stablelm, phi, qwen, qwen1_5, mistral, llama"
            )
        }
    };
    map.insert("model_type".into(), json!(family));
    let mut config = match family {
        "qwen" => translated::<qwen::Config>(map)?,
        _ => translate(Value::Object(map))?,
    };
    // MoE-LLaVA's classes put a head without bias on every language model, Phi's too.
    config.head_bias = false;
    match moe {
        Some(moe) if moe.moe_enable => sparse(config, &moe)?.checked(),
        _ => config.checked(),
    }
}

fn sparse(mut config: DecoderConfig, moe: &Moe) -> Result<DecoderConfig> {
    let Some(dense) = config.dense else { bail!("the language model has no network to make experts of") };
    let n = config.layers.len();
    let layers: Vec<usize> = match (&moe.moe_layers_idx, moe.moe_mode.as_deref()) {
        (Some(layers), _) => layers.clone(),
        (None, None | Some("sparse")) => (0..n).step_by(2).collect(),
        (None, Some("dense")) => (0..n).collect(),
        (None, Some("first_half")) => (0..n / 2).collect(),
        (None, Some("second_half")) => (n / 2..n).collect(),
        (None, Some(other)) => {
            bail!("moe_mode is {} and moe_layers_idx does not say which layers are sparse", shown(other))
        }
    };
    let experts = match &moe.num_experts {
        None => vec![1; layers.len()],
        Some(Numbers::One(n)) => vec![*n; layers.len()],
        Some(Numbers::Many(all)) => match all.as_slice() {
            [one] => vec![*one; layers.len()],
            several if several.len() == layers.len() => several.to_vec(),
            several => bail!("num_experts has {} entries for {} sparse layers", several.len(), layers.len()),
        },
    };
    let Some(&most) = experts.iter().max() else { bail!("moe_enable is set, but no layer is sparse") };
    for (&i, &experts) in layers.iter().zip(&experts) {
        let Some(layer) = config.layers.get_mut(i) else { bail!("moe_layers_idx names layer {i} of {n}") };
        if layer.sparse {
            bail!("moe_layers_idx names layer {i} twice");
        }
        layer.sparse = true;
        layer.experts = (experts != most).then_some(experts);
    }
    config.sparse = Some(SparseConfig {
        experts: most,
        k: moe.top_k_experts.unwrap_or(2),
        intermediate_size: dense.intermediate_size,
        activation: dense.activation,
        gated: dense.gated,
        bias: dense.bias,
        router: RouterConfig::Capacity {
            factor: moe.eval_capacity_factor.unwrap_or(1.0),
            train_factor: moe.capacity_factor.unwrap_or(1.0),
            min_capacity: moe.min_capacity.unwrap_or(4),
            noise: None,
        },
        shared: moe.use_residual.then_some(SharedConfig {
            intermediate_size: dense.intermediate_size,
            gated: false,
            bias: dense.bias,
            blended: true,
        }),
        output_bias: false,
    });
    config.aux_loss = AuxLoss::FirstChoice(moe.router_aux_loss_coef.unwrap_or(0.01));
    config.names = Names {
        sparse: config.names.dense,
        router: "deepspeed_moe.gate.wg.weight",
        expert: "deepspeed_moe.experts.deepspeed_experts",
        experts: ExpertNames::Each(config.names.dense_maps),
        shared: "mlp",
        ..config.names
    };
    Ok(config)
}
