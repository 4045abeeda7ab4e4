use super::*;

const MAP: &str = "model.layers.1.mlp.experts.3.gate_proj";

fn config(extra: &str) -> Result<AdapterConfig> {
    AdapterConfig::from_json(&format!(r#"{{"peft_type": "LORA", "target_modules": ["gate_proj"]{extra}}}"#))
}

#[test]
fn targets_are_matched_as_peft_does() -> Result<()> {
    let hit = |extra: &str| config(extra)?.matcher()?.module(MAP, false);
    assert!(hit("")?);
    assert!(hit(r#", "layers_to_transform": 1"#)?, "the first number of a name is the layer");
    assert!(!hit(r#", "layers_to_transform": [0, 3]"#)?);
    assert!(hit(r#", "layers_to_transform": [3], "layers_pattern": "experts""#)?);
    assert!(!hit(r#", "exclude_modules": ["experts.3.gate_proj"]"#)?);
    assert!(!hit(r#", "exclude_modules": ".*experts.*""#)?);
    let named = |targets: &str, module: &str| {
        let text = format!(r#"{{"peft_type": "LORA", "target_modules": {targets}}}"#);
        AdapterConfig::from_json(&text)?.matcher()?.module(module, module == "lm_head")
    };
    assert!(!named(r#"["ate_proj"]"#, MAP)?, "parts of a name are whole");
    assert!(named(r#""model\\.(?!vision).*_proj""#, MAP)?);
    assert!(!named(r#""layers.*_proj""#, MAP)?, "a pattern is for the whole name");
    assert!(named(r#""all-linear""#, MAP)? && !named(r#""all-linear""#, "lm_head")?);
    Ok(())
}

#[test]
fn ranks_and_scales() -> Result<()> {
    let c = config(
        r#", "r": 4, "lora_alpha": 6, "rank_pattern": {"up": 1, "experts.\\d+.gate_proj": 16}, "alpha_pattern": {"gate_proj": 32}"#,
    )?;
    let numbers = |c: &AdapterConfig, map| Ok::<_, Error>((c.matcher()?.rank(map)?, c.matcher()?.scale(map)?));
    assert_eq!(numbers(&c, MAP)?, (16, 2.0));
    assert_eq!(numbers(&c, "a.up_proj")?, (4, 1.5));
    let c = AdapterConfig { use_rslora: true, ..c };
    assert_eq!(numbers(&c, MAP)?.1, 8.0);
    assert_eq!(AdapterConfig::from_json(&c.to_json()?)?, c);
    Ok(())
}

#[test]
fn twenty_thousand_mutated_configs() {
    let good = r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ".*\\.(q|v)_proj", "bias": "none",
        "rank_pattern": {"v_proj": 4}, "layers_to_transform": [1], "lora_dropout": 0.1, "use_rslora": true}"#;
    let mut rng = moesaic_kernels::rng::Rng::new(11);
    let mut read = 0;
    for _ in 0..20_000 {
        let mut text = good.as_bytes().to_vec();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(text.len());
            match rng.below(4) {
                0 => text[at] = b"0123456789\"{}[],:.-+*?()|\\ae"[rng.below(28)],
                1 => drop(text.remove(at)),
                2 => text.insert(at, rng.next_u64() as u8),
                _ => {
                    let end = (at + 1 + rng.below(12)).min(text.len());
                    let part = text[at..end].to_vec();
                    let to = rng.below(text.len());
                    text.splice(to..to, part);
                }
            }
        }
        let Ok(config) = AdapterConfig::from_json(&String::from_utf8_lossy(&text)) else { continue };
        read += 1;
        let matcher = config.matcher().unwrap();
        let _ = (matcher.module(MAP, false), matcher.scale(MAP));
        // What was read can be written and read again.
        AdapterConfig::from_json(&config.to_json().unwrap()).unwrap();
    }
    assert!(read > 1000, "{read}");
}

#[test]
fn what_cannot_be_run_is_refused() {
    for (extra, word) in [
        (r#", "use_dora": true"#, "DoRA"),
        (r#", "modules_to_save": "lm_head""#, "invalid type"),
        (r#", "fan_in_fan_out": true"#, "Conv1D"),
        (r#", "bias": "all""#, "bias"),
        (r#", "init_lora_weights": "pissa_niter_4""#, "pissa"),
        (r#", "r": 0"#, "rank of 0"),
        (r#", "r": 99999999"#, "rank"),
        (r#", "r": -1"#, "invalid value"),
        (r#", "rank_pattern": {"q_proj": 0}"#, "q_proj"),
        (r#", "rank_pattern": {"(": 4}"#, "pattern"),
        (r#", "lora_alpha": 1e300"#, "lora_alpha"),
        (r#", "lora_dropout": 1.0"#, "lora_dropout"),
        (r#", "layer_replication": [[0, 1]]"#, "layer_replication"),
        (r#", "r": 4, "r": 8"#, "duplicate"),
    ] {
        let error = config(extra).unwrap_err().to_string();
        assert!(error.contains(word), "{extra}: {error}");
    }
    for (text, word) in [
        ("", "EOF"),
        ("[]", "invalid type"),
        ("{}", "peft_type"),
        (r#"{"peft_type": "IA3"}"#, "IA3"),
        (r#"{"peft_type": "LORA"}"#, "target_modules"),
        (r#"{"peft_type": "LORA", "target_modules": 3}"#, "target_modules"),
        (r#"{"peft_type": "LORA", "target_modules": "(a"}"#, "pattern"),
    ] {
        let error = AdapterConfig::from_json(text).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
    // A pattern that would try for ever stops.
    let slow = r#"{"peft_type": "LORA", "target_modules": "(?=(a+)+$)(a+)+\\1b"}"#;
    let config = AdapterConfig::from_json(slow).unwrap();
    assert!(config.matcher().unwrap().module(&"a".repeat(200), false).is_err());
}
