//! Which families there are. A new family is one entry in [`families`] and one file beside this one.

use anyhow::Result;

use crate::case::{Case, Got};
use crate::{
    audio_features, av_hubert, avsr, decoder, moirai_moe, pictured, speech, time_moe, usam, vision, vision_models,
};

/// Computes everything that the case wants, by the library's own loader and forward path.
pub type Runner = fn(&Case, &mut Got) -> Result<()>;

/// One value for each position of a tensor's leading axes, false where the reference's value means nothing; `None` where
/// all of it counts. It rests on the case alone, never on what was computed.
pub type Meaningful = fn(&Case, &str) -> Result<Option<Vec<bool>>>;

/// One family of cases.
pub struct Family {
    pub name: &'static str,
    pub run: Runner,
    pub meaningful: Meaningful,
}

/// The families that run.
pub fn families() -> &'static [Family] {
    const fn language(name: &'static str) -> Family {
        Family { name, run: decoder::run, meaningful: decoder::meaningful }
    }
    const fn plain(name: &'static str, run: Runner) -> Family {
        Family { name, run, meaningful: Case::attended }
    }
    const fn speech_encoder(name: &'static str) -> Family {
        Family { name, run: speech::run, meaningful: speech::meaningful }
    }
    const fn whole(name: &'static str, run: Runner) -> Family {
        Family { name, run, meaningful: decoder::meaningful }
    }
    const FAMILIES: &[Family] = &[
        whole("aria", pictured::aria),
        plain("aria_vision", vision::aria),
        plain("audio_features", audio_features::run),
        Family { name: "av_hubert", run: av_hubert::run, meaningful: av_hubert::meaningful },
        plain("ced", speech::ced),
        plain("clip_vision", vision::clip),
        plain("cumo", vision::cumo),
        speech_encoder("hubert"),
        speech_encoder("wav2vec2"),
        speech_encoder("wavlm"),
        speech_encoder("whisper_encoder"),
        language("deepseek_v2"),
        language("deepseek_v3"),
        plain("deepspeed_gate", vision::gate),
        plain("dinov2_vision", vision::dino),
        language("granitemoe"),
        plain("image_preprocess", vision::preprocess),
        language("jetmoe"),
        language("llama"),
        plain("llama_avsr", avsr::model),
        plain("llama_mtsk", avsr::matryoshka),
        plain("llama_smop", avsr::model),
        Family { name: "llava", run: vision_models::llava, meaningful: decoder::meaningful },
        Family { name: "llava_next", run: vision_models::llava_next, meaningful: decoder::meaningful },
        language("mistral"),
        language("mixtral"),
        Family { name: "moe_llava", run: vision_models::moe_llava, meaningful: |_, _| Ok(None) },
        Family { name: "moirai_moe", run: moirai_moe::run, meaningful: moirai_moe::meaningful },
        language("olmoe"),
        language("phi"),
        language("phimoe"),
        plain("prompts", vision::prompts),
        language("qwen2"),
        language("qwen2_moe"),
        language("qwen3_moe"),
        whole("qwen3_vl", pictured::qwen3_vl),
        whole("qwen3_vl_moe", pictured::qwen3_vl),
        plain("qwen3_vl_vision", vision::qwen3_vl),
        plain("siglip_vision", vision::siglip),
        plain("smop", avsr::smop),
        language("stablelm"),
        Family { name: "time_moe", run: time_moe::run, meaningful: Case::attended },
        plain("usam", usam::model),
        plain("usam_moe_projector", usam::projector),
        plain("usam_qformer", usam::qformer),
        plain("usam_saclm", usam::saclm),
        plain("video_preprocess", av_hubert::video),
    ];
    FAMILIES
}

/// The families whose cases cannot run yet, each with what is missing; none at present.
pub fn not_supported() -> &'static [(&'static str, &'static str)] {
    &[]
}

#[test]
fn each_family_stands_in_one_place() {
    let mut names: Vec<&str> = families().iter().map(|f| f.name).collect();
    names.extend(not_supported().iter().map(|(name, _)| *name));
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "a family stands in two places: {names:?}");
}
