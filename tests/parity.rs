//! Parity with the reference implementations: golden inputs, weights and outputs of small models in the published format.
//!
//! Walks `tests/fixtures/*/*` and, where `MOESAIC_PARITY_DIR` is set, the cases of that folder too: a folder of families,
//! a folder of one family's cases, or one case. Each case goes through the family's own loader and forward path, and every
//! tensor of `expected.safetensors` is compared. Lines go straight to stderr, so that they show without `--nocapture`:
//!
//! ```text
//! family/case tensors N worst NAME err/tol
//! parity: P passed, F failed, S not supported
//! ```
//!
//! `MOESAIC_PARITY_ONLY=family[,family]` narrows it, `MOESAIC_DEVICE=cuda` runs it on the first GPU. Behind a `+` stands the number type of weights
//! (`cuda+bf16`); in halves all must be there and numbers, and values are not compared. A new family is one
//! entry in `parity/families.rs`.

#[path = "parity/audio_features.rs"]
mod audio_features;
#[path = "parity/av_hubert.rs"]
mod av_hubert;
#[path = "parity/avsr.rs"]
mod avsr;
#[path = "parity/case.rs"]
mod case;
#[path = "parity/compare.rs"]
mod compare;
#[path = "parity/decoder.rs"]
mod decoder;
#[path = "parity/families.rs"]
mod families;
#[path = "parity/moirai_moe.rs"]
mod moirai_moe;
#[path = "parity/pictured.rs"]
mod pictured;
#[path = "parity/run.rs"]
mod run;
#[path = "parity/speech.rs"]
mod speech;
#[path = "parity/time_moe.rs"]
mod time_moe;
#[path = "parity/usam.rs"]
mod usam;
#[path = "parity/vision.rs"]
mod vision;
#[path = "parity/vision_models.rs"]
mod vision_models;

use std::path::{Path, PathBuf};

#[test]
fn every_case_matches_its_reference() {
    let mut roots = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")];
    roots.extend(std::env::var_os("MOESAIC_PARITY_DIR").map(PathBuf::from));
    let only = std::env::var("MOESAIC_PARITY_ONLY").ok();
    let device = std::env::var("MOESAIC_DEVICE").ok();
    let total = run::run(&roots, only.as_deref(), device.as_deref(), &mut |line| {
        use std::io::Write;
        // Not eprintln!, which the test harness would keep to itself.
        writeln!(std::io::stderr(), "{line}").expect("stderr takes a line");
    });
    let total = total.unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!(total.failed, 0, "parity failed, see the lines above");
    assert!(total.passed + total.not_supported > 0, "there were no cases to run");
}
