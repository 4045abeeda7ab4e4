//! The maps of a model that an adapter can change, by published name.

use moesaic_kernels::Half;

use crate::decoder::Site;

/// A map of every expert, or of the one of a dense network.
pub(super) struct Map<'a> {
    pub half: Half,
    /// First output in the layer: gates stand above ups.
    pub first: usize,
    /// Number of outputs.
    pub out: usize,
    pub inputs: usize,
    /// Names by expert.
    pub modules: Vec<&'a str>,
}

/// A tensor that holds a layer of all experts.
pub(super) struct Stack {
    pub half: Half,
    /// The module that owns it.
    pub module: String,
    /// Its name there.
    pub parameter: &'static str,
    /// What PEFT wraps around the module for parameters that come after it, so that names differ.
    pub later: Option<&'static str>,
}

/// The maps of a site of experts that have names of their own.
pub(super) fn maps<'a>(names: &'a [[Option<String>; 3]], layers: [Option<(usize, usize)>; 2]) -> Vec<Map<'a>> {
    let [Some((up_out, up_in)), down] = layers else { return Vec::new() };
    let named = |i: usize| -> Vec<&'a str> { names.iter().filter_map(|n| n[i].as_deref()).collect() };
    let gates = named(0);
    let gated = !gates.is_empty();
    let inner = if gated { up_out / 2 } else { up_out };
    let mut maps = Vec::new();
    if gated {
        maps.push(Map { half: Half::Up, first: 0, out: inner, inputs: up_in, modules: gates });
    }
    maps.push(Map { half: Half::Up, first: up_out - inner, out: inner, inputs: up_in, modules: named(1) });
    if let Some((out, inputs)) = down {
        maps.push(Map { half: Half::Down, first: 0, out, inputs, modules: named(2) });
    }
    maps.retain(|m| !m.modules.is_empty() && m.modules.len() == names.len());
    maps
}

/// The stacked tensors of a site of several experts: of the checkpoint where it stacks them, else as transformers 5 holds
/// experts that are stored one by one.
pub(super) fn stacks(names: &[[Option<String>; 3]], prefix: &str, two_layers: bool) -> Vec<Stack> {
    if names.is_empty() {
        let one = |half, module: String| Stack { half, module, parameter: "weight", later: None };
        return if two_layers {
            vec![one(Half::Up, format!("{prefix}.input_linear")), one(Half::Down, format!("{prefix}.output_linear"))]
        } else {
            vec![one(Half::Up, prefix.to_string())]
        };
    }
    if names.len() < 2 {
        return Vec::new();
    }
    // Mixtral's part is called `mlp` there.
    let prefix = prefix.strip_suffix("block_sparse_moe").map_or(prefix.to_string(), |before| format!("{before}mlp"));
    let module = format!("{prefix}.experts");
    vec![
        Stack { half: Half::Up, module: module.clone(), parameter: "gate_up_proj", later: Some("down_proj") },
        Stack { half: Half::Down, module, parameter: "down_proj", later: None },
    ]
}

/// The names of all maps, for messages.
pub(super) fn modules(sites: &[Site<'_>]) -> Vec<String> {
    let mut all = Vec::new();
    for site in sites {
        match site {
            Site::Linear { parts, .. } => all.extend(parts.iter().map(|(name, _)| name.clone())),
            Site::Experts { names, prefix, bank } => {
                all.extend(names.iter().flatten().flatten().cloned());
                all.extend(stacks(names, prefix, bank.layer(Half::Down).is_some()).into_iter().map(|s| s.module));
            }
        }
    }
    all
}
