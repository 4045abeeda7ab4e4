//! Which tensors become blocks: maps and experts of every family, and never a router.

use std::collections::BTreeMap;

use moesaic_kernels::BlockFormat;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::decoder::{DecoderConfig, MatrixKind, Quantisation};

use crate::gguf::fixtures;

/// By what stands in names, over all families, rather than by the family's own tables.
fn expected(name: &str, axes: usize, tied: bool) -> Option<MatrixKind> {
    let has = |part: &str| name.contains(part);
    // Routers: of experts, and of JetMoE's heads; the gate of a shared expert.
    let routes = [".router.", ".mlp.gate.weight", "block_sparse_moe.gate.weight", "shared_expert_gate"];
    if axes < 2 || has("norm") || has("bias") || has("inv_freq") || routes.iter().any(|part| has(part)) {
        return None;
    }
    Some(match name {
        "model.embed_tokens.weight" => return tied.then_some(MatrixKind::Head),
        "lm_head.weight" => return (!tied).then_some(MatrixKind::Head),
        _ if has(".self_attn.") || has(".self_attention.") => MatrixKind::Attention,
        _ if has(".experts.") || has(".shared_expert") || has("_linear.weight") => MatrixKind::Experts,
        _ => MatrixKind::Dense,
    })
}

#[test]
fn kinds_of_matrices() {
    let mut seen = BTreeMap::new();
    for dir in fixtures() {
        let (config, checkpoint) = (DecoderConfig::load(&dir).unwrap(), Checkpoint::open(&dir).unwrap());
        for name in checkpoint.names() {
            let shape = &checkpoint.info(name).unwrap().shape;
            let kind = config.matrix(name, shape);
            assert_eq!(kind, expected(name, shape.len(), config.tie_word_embeddings), "{}: {name}", dir.display());
            *seen.entry(kind).or_insert(0) += 1;
        }
    }
    assert_eq!(seen.len(), 5, "{seen:?}");
}

#[test]
fn formats_by_kind() {
    use BlockFormat::{Q4_1, Q4K, Q8_0};
    use MatrixKind::{Attention, Dense, Experts, Head};
    let of = |format, experts_only| Quantisation { format, experts_only };
    for kind in [Attention, Dense, Experts] {
        assert_eq!(of(Q4_1, false).format_of(kind, 96), Some(Q4_1));
        assert_eq!(of(Q4K, false).format_of(kind, 512), Some(Q4K));
        // Rows that fill no block of 256 take blocks of 32; others none.
        assert_eq!(of(Q4K, false).format_of(kind, 96), Some(Q8_0));
        assert_eq!(of(Q4_1, false).format_of(kind, 112), None);
        assert_eq!(of(Q4_1, true).format_of(kind, 96), (kind == Experts).then_some(Q4_1));
    }
    for format in [Q4_1, Q4K, Q8_0] {
        assert_eq!((of(format, false).format_of(Head, 512), of(format, true).format_of(Head, 512)), (Some(Q8_0), None));
    }
}
