//! U-SAM beyond parity: names, batches of several prompts, training, and configs and inputs that do not fit.

use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_kernels::{Init, Modality, Params, Probe, Tokens};
use moesaic_models::usam::{Layout, MixtureSum, Prompt, Saclm, Sources, Usam, UsamConfig, Vocabulary};
use serde_json::{Value, json};

const DEVICE: Device = Device::Cpu;

fn json() -> Value {
    json!({
        "model_type": "usam", "num_experts": 3, "score_hidden": 6, "num_aggregated": 4, "lora_r": 2, "lora_alpha": 4,
        "ced": {"embed_dim": 12, "depth": 1, "num_heads": 2, "mlp_ratio": 2, "target_length": 160},
        "whisper": {"d_model": 8, "encoder_layers": 1, "heads": 2, "ffn": 8, "num_mel_bins": 80, "max_source_positions": 100,
                    "chunk_length": 2},
        "mert": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
                 "conv_dim": [4, 4, 4, 4, 4, 4, 4], "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
                 "conv_stride": [5, 2, 2, 2, 2, 2, 2], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
        "qformer": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "num_hidden_layers": 2},
        "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                  "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": false, "vocab_size": 40},
    })
}

/// The config with other values at some places, such as `ced.depth`.
fn with(changes: &[(&str, Value)]) -> Result<UsamConfig> {
    let mut all = json();
    for (place, value) in changes {
        let pointer = format!("/{}", place.replace('.', "/"));
        match all.pointer_mut(&pointer) {
            Some(old) => *old = value.clone(),
            None => {
                all[*place] = value.clone();
            }
        }
    }
    UsamConfig::from_json(&all.to_string())
}

fn vocabulary() -> Vocabulary {
    Vocabulary { bos: 1, eos: 2, pad: 39 }
}

fn model(config: UsamConfig, params: &Params, layout: Layout) -> Result<Usam> {
    Usam::new(config, vocabulary(), Sources::one(params), layout, None)
}

/// Two clips of hum and hiss.
fn sound(n: usize) -> Result<Tensor> {
    let p = Params::init(9, &DEVICE);
    let noise = p.tensor("noise", [2, n], Init::Normal(0.1))?.detach();
    let hum: Vec<f32> = (0..n).map(|i| (i as f32 * 0.05).sin() * 0.3).collect();
    noise.broadcast_add(&Tensor::from_vec(hum, (1, n), &DEVICE)?)
}

fn prompts() -> Vec<Prompt> {
    let one = Prompt { left: vec![4, 5, 6], right: vec![7, 8] };
    vec![one.clone(), one]
}

fn worst(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.max_all()?.to_scalar()
}

#[test]
fn what_is_trained_is_saved_under_the_published_names() -> Result<()> {
    for layout in [Layout::default(), Layout { encoder: false, decoder: false, split: false }] {
        let params = Params::init(1, &DEVICE);
        let trained = model(with(&[])?, &params, layout)?;
        // Adapters start from zero; here they are to be seen.
        for (name, var) in params.variables().into_iter().filter(|(name, _)| name.contains("lora_B")) {
            assert!(layout.encoder, "{name}");
            var.set(&(var.as_tensor() + 0.3)?)?;
        }
        let dir = tempfile::tempdir()?;
        let mut tensors = params.published(|var| Some(var.as_tensor().clone()))?;
        let name = if layout.encoder {
            "encoder.base_model.model.blocks.0.attn.v_proj.lora_B.default.weight"
        } else {
            "encoder.blocks.0.attn.qkv.weight"
        };
        assert!(tensors.iter().any(|(n, _)| n == name), "{name} is missing");
        let wrapped = "decoder.base_model.model.model.layers.1.self_attn.q_proj.base_layer.weight";
        assert_eq!(tensors.iter().any(|(n, _)| n == wrapped), layout.decoder);
        // What published files hold beside the model.
        let nothing = || Tensor::zeros(3, DType::F32, &DEVICE);
        tensors.push(("whisper.model.decoder.layer_norm.weight".to_string(), nothing()?));
        tensors.push(("mert.masked_spec_embed".to_string(), nothing()?));
        std::fs::write(dir.path().join("config.json"), json().to_string())?;
        let file = dir.path().join("model.safetensors");
        save(&file, &tensors, &[])?;
        assert_eq!(Layout::of(&Checkpoint::open(dir.path())?), layout);
        let loaded = Usam::load(dir.path(), vocabulary(), DType::F32, &DEVICE)?;
        let samples = sound(20_000)?;
        let run = |model: &Usam| -> Result<Tensor> {
            let projected = model.project(&model.encode(&samples, None)?, &prompts(), None)?;
            let sequence = model.sequence(&projected.tokens[0], &prompts(), &[vec![9, 10], vec![11]])?;
            model.llm().logits(&model.forward(&sequence, None)?.hidden)
        };
        assert!(worst(&run(&trained)?, &run(&loaded)?)? < 1e-4);
        tensors.push(("decoder.extra".to_string(), nothing()?));
        save(&file, &tensors, &[])?;
        let error =
            Usam::load(dir.path(), vocabulary(), DType::F32, &DEVICE).expect_err("a surplus tensor").to_string();
        assert!(error.contains("decoder.extra"), "{error}");
    }
    Ok(())
}

#[test]
fn tied_experts_are_one_variable_and_their_copies_no_surplus() -> Result<()> {
    let params = Params::init(1, &DEVICE);
    let config = with(&[("compat", json!("released"))])?;
    assert_eq!((config.projector.tied, config.projector.sum), (true, MixtureSum::Time));
    model(config, &params, Layout::default())?;
    let mut tensors = params.published(|var| Some(var.as_tensor().clone()))?;
    let experts: Vec<_> = tensors.iter().filter(|(name, _)| name.starts_with("enc_to_dec_proj.")).cloned().collect();
    assert_eq!(experts.len(), 2);
    for (name, tensor) in &experts {
        tensors.push((name.replace("proj.0.", "proj.1."), tensor.clone()));
        tensors.push((name.replace("proj.0.", "proj.2."), tensor.clone()));
    }
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("model.safetensors");
    save(&file, &tensors, &[])?;
    let checkpoint = Checkpoint::open(&file)?;
    let load = |changes: &[(&str, Value)]| {
        Usam::from_checkpoint(with(changes)?, &checkpoint, vocabulary(), DType::F32, &DEVICE)
    };
    let released = load(&[("compat", json!("released"))])?;
    let paper = load(&[])?;
    for (n, windows) in [(16_000, 1), (30_000, 4)] {
        let encoded = released.encode(&sound(n)?, None)?;
        let tokens = |model: &Usam| model.project(&encoded, &prompts(), None)?.tokens[0].embeds.dim(1);
        // As many tokens as experts whatever the length, or as there are windows.
        assert_eq!((tokens(&released)?, tokens(&paper)?), (3, windows));
    }
    // Either half of the compatibility by itself.
    assert_eq!(load(&[("projector_reduction", json!("released"))])?.config().projector.sum, MixtureSum::Time);
    assert!(load(&[("tied_experts", json!(true))])?.config().projector.tied);
    Ok(())
}

#[test]
fn rows_with_prompts_of_their_own_are_as_alone() -> Result<()> {
    let model = model(with(&[])?, &Params::init(2, &DEVICE), Layout::default())?;
    let encoded = Params::init(3, &DEVICE).tensor("tokens", [2, 4, 8], Init::Normal(1.0))?.detach();
    let encoded = Tokens::new(encoded, Modality::Audio);
    let mixed = vec![Prompt { left: vec![4, 5, 6], right: vec![7, 8] }, Prompt { left: vec![], right: vec![9] }];
    let texts = [vec![10, 11, 12], vec![13]];
    let together = model.project(&encoded, &mixed, None)?;
    assert_eq!((together.tokens[0].embeds.dims(), together.routes.len()), (&[2, 4, 16][..], 1));
    let sequence = model.sequence(&together.tokens[0], &mixed, &texts)?;
    assert_eq!(sequence.lengths, [1 + 3 + 4 + 2 + 3 + 1, 1 + 4 + 1 + 1 + 1]);
    assert_eq!(sequence.text.dims(), [2, 4, 16]);
    let s = sequence.embeds.dim(1)?;
    assert_eq!((s, sequence.labels.len()), (14, 28));
    assert_eq!(&sequence.labels[14..], [-100, -100, -100, -100, -100, -100, 13, 2, -100, -100, -100, -100, -100, -100]);
    let hidden = model.forward(&sequence, None)?.hidden;
    for row in 0..2 {
        let one = Tokens::new(encoded.embeds.narrow(0, row, 1)?, Modality::Audio);
        let (prompt, text) = (mixed[row..=row].to_vec(), texts[row..=row].to_vec());
        let alone = model.project(&one, &prompt, None)?;
        assert!(worst(&alone.tokens[0].embeds, &together.tokens[0].embeds.narrow(0, row, 1)?)? < 1e-6);
        let sequence = model.sequence(&alone.tokens[0], &prompt, &text)?;
        let n = sequence.embeds.dim(1)?;
        let alone = model.forward(&sequence, None)?.hidden;
        assert!(worst(&alone, &hidden.narrow(0, row, 1)?.narrow(1, 0, n)?)? < 1e-4);
    }
    Ok(())
}

#[test]
fn encoders_and_language_model_stay_as_they_are_in_training() -> Result<()> {
    let (frozen, trained) = (Params::init(4, &DEVICE), Params::init(5, &DEVICE));
    let sources = Sources { frozen: &frozen, trained: &trained };
    let model = Usam::new(with(&[])?, vocabulary(), sources, Layout::default(), None)?;
    let names: Vec<String> = trained.variables().into_iter().map(|(name, _)| name).collect();
    for part in ["conv.", "speech_former.", "speech_query_tokens", "enc_to_dec_proj.", "fc.", "router.", "lps_module."]
    {
        assert!(names.iter().any(|name| name.starts_with(part)), "{part} is not trained: {names:?}");
    }
    let adapters = |part: &str| names.iter().filter(|n| n.starts_with(part) && n.contains(".default.")).count();
    assert_eq!((adapters("encoder."), adapters("decoder.")), (4, 8));
    assert!(names.iter().all(|n| !n.starts_with("whisper.") && !n.starts_with("mert.") && !n.contains("base_layer")));
    let (samples, texts) = (sound(20_000)?, [vec![9, 10, 11], vec![12]]);
    let loss = || model.loss(&samples, &prompts(), &texts, &[1, 0], None);
    let first = loss()?;
    let sum = (first.cross_entropy.to_scalar::<f32>()? + first.contrastive.total.to_scalar::<f32>()?)
        - first.total.to_scalar::<f32>()?;
    assert!(sum.abs() < 1e-5);
    let grads = first.total.backward()?;
    for (name, var) in trained.variables() {
        assert!(grads.get(&var).is_some(), "{name} gets no gradient");
    }
    // Along its gradient the cross entropy grows as fast as the gradient is long; the contrastive loss would jump where a step of
    // sound begins to count, and has a test of its own.
    let grads = first.cross_entropy.backward()?;
    let moved: Vec<_> =
        trained.variables().into_iter().filter_map(|(_, v)| Some((grads.get(&v)?.clone(), v))).collect();
    let (mut square, mut start) = (0f32, Vec::new());
    for (grad, var) in &moved {
        square += grad.sqr()?.sum_all()?.to_scalar::<f32>()?;
        start.push(var.as_tensor().copy()?);
    }
    let (length, step) = (f64::from(square).sqrt(), 5e-3);
    let at = |step: f64| -> Result<f64> {
        for ((grad, var), start) in moved.iter().zip(&start) {
            var.set(&(start + (grad * (step / length))?)?)?;
        }
        Ok(f64::from(loss()?.cross_entropy.to_scalar::<f32>()?))
    };
    let slope = (at(step)? - at(-step)?) / (2.0 * step);
    assert!(length > 1e-3 && (slope - length).abs() < 0.05 * length, "{slope} along a gradient of length {length}");
    Ok(())
}

#[test]
fn answers_end_and_beams_have_their_least_length() -> Result<()> {
    let model = model(with(&[])?, &Params::init(6, &DEVICE), Layout::default())?;
    let samples = sound(20_000)?;
    let options = model.beam_options();
    assert_eq!((options.beams, options.min_new_tokens, options.max_new_tokens), (3, 2, 30));
    for (min_new_tokens, max_new_tokens) in [(2, 5), (5, 5)] {
        let options = moesaic_models::generate::BeamOptions {
            // All of them end an answer, so that only the least length keeps it going.
            eos: (0..39).collect(),
            min_new_tokens,
            max_new_tokens,
            ..options.clone()
        };
        for beams in model.search(&samples, &prompts(), &options)? {
            let tokens = &beams[0].tokens;
            // Before the least length the one token that ends nothing is all there is.
            assert!(
                tokens.len() >= min_new_tokens && tokens[..min_new_tokens].iter().all(|&id| id == 39),
                "{tokens:?}"
            );
        }
    }
    let wrong = moesaic_models::generate::BeamOptions { min_new_tokens: 31, ..options };
    assert!(model.search(&samples, &prompts(), &wrong).is_err());
    // Rows with prompts of several lengths are filled up at the left and answered as alone.
    let mixed = vec![prompts()[0].clone(), Prompt { left: vec![], right: vec![9] }];
    let options = moesaic_models::generate::Options { max_new_tokens: 4, ..model.options() };
    let answers = model.answer(&samples, &mixed, &options)?;
    // The loudest value of a batch limits CED's decibels, so that rows agree only where the loudest row is in it.
    assert_eq!(answers.len(), 2);
    let (embeds, context) = model.prompt(&samples, &mixed)?;
    assert_eq!((embeds.dim(1)?, context.padding.clone()), (7, vec![0, 4]));
    Ok(())
}

#[test]
fn clips_are_filled_up_to_what_can_be_heard() -> Result<()> {
    let model = model(with(&[])?, &Params::init(7, &DEVICE), Layout::default())?;
    let shortest = model.shortest();
    // 17 tokens are five columns of four patches: 80 frames.
    assert_eq!(shortest, 79 * 160);
    let sound = model.sound(&[&[0.1; 3], &[0.2; 300]])?;
    assert_eq!(sound.dims(), [2, shortest]);
    let probe = Probe::new();
    assert_eq!(model.encode(&sound, Some(&probe))?.embeds.dims(), [2, 1, 8]);
    assert_eq!(probe.tensors()["mert_hidden"].dims()[..2], [2, 3]);
    assert!(model.encode(&sound.narrow(1, 0, shortest - 1)?, None).is_err());
    assert!(model.encode(&sound.narrow(1, 0, 100)?, None).is_err());
    assert!(model.encode(&sound.get(0)?, None).is_err());
    assert!(model.encode(&(sound * f64::NAN)?, None).is_err());
    assert!(model.sound(&[]).is_err() && model.sound(&[&[0.1], &[]]).is_err());
    let encoded = Tokens::new(Tensor::zeros((2, 4, 8), DType::F32, &DEVICE)?, Modality::Audio);
    assert!(model.project(&encoded, &prompts()[..1], None).is_err());
    let projected = model.project(&encoded, &prompts(), None)?;
    assert!(model.sequence(&projected.tokens[0], &prompts(), &[vec![3]]).is_err());
    assert!(model.sequence(&projected.tokens[0], &prompts(), &[vec![3], vec![40]]).is_err());
    assert!(model.project(&encoded, &[Prompt { left: vec![40], right: vec![] }, prompts()[0].clone()], None).is_err());
    Ok(())
}

#[test]
fn configs_that_make_no_sense_are_refused() -> Result<()> {
    let wrong = [
        ("ced.embed_dim", json!(0), "embed_dim"),
        ("ced.embed_dim", json!(1u64 << 60), "encoder_width"),
        ("ced.depth", json!(1u64 << 50), "depth"),
        ("ced", json!({}), "embed_dim"),
        ("ced", json!(3), "config.json"),
        ("whisper.heads", json!(3), "heads"),
        ("whisper.chunk_length", json!(30), "chunk_length"),
        ("whisper.num_mel_bins", json!(4000), "bands"),
        ("mert.conv_dim", json!([4]), "conv_dim"),
        ("mert.num_hidden_layers", json!(0), "num_hidden_layers"),
        ("mert.hidden_size", json!(u64::MAX), "wide"),
        ("qformer.num_attention_heads", json!(3), "heads"),
        ("qformer.hidden_size", json!(0), "hidden_size"),
        ("window_length", json!(0), "window_length"),
        ("window_length", json!(u64::MAX), "window_length"),
        ("num_experts", json!(0), "experts"),
        ("num_experts", json!(1u64 << 40), "experts"),
        ("compat", json!("both"), "compat"),
        ("projector_reduction", json!("time"), "projector_reduction"),
        ("num_aggregated", json!(0), "num_aggregated"),
        ("score_hidden", json!(-1), "config.json"),
        ("margin", json!("wide"), "config.json"),
        ("beta", json!(2), "beta"),
        ("lora_r", json!(0), "lora_r"),
        ("lora_r", json!(u64::MAX), "lora_r"),
        ("lora_dropout", json!(1.0), "lora_dropout"),
        ("num_beams", json!(0), "num_beams"),
        ("max_new_tokens", json!(1), "max_new_tokens"),
        ("llama.hidden_size", json!(17), ""),
        ("llama.vocab_size", json!(0), ""),
        ("llama", Value::Null, "llama"),
    ];
    for (place, value, words) in wrong {
        let params = Params::init(1, &DEVICE);
        let error = with(&[(place, value.clone())]).and_then(|config| model(config, &params, Layout::default()));
        let error = error.expect_err(&format!("{place} {value}")).to_string();
        assert!(error.contains(words), "{place} {value}: {error}");
    }
    assert!(UsamConfig::from_json("[]").is_err() && UsamConfig::from_json("{").is_err());
    // Names that the tokenizer does not know, or ids that the model does not have.
    let config = with(&[])?;
    let ids = |token: &str| (token != "[PAD]").then_some(3);
    assert!(Vocabulary::new(&config, ids).expect_err("no pad").to_string().contains("[PAD]"));
    assert!(Vocabulary::new(&config, |_| Some(40)).expect_err("no such id").to_string().contains("40 tokens"));
    assert!(Saclm::load(config.saclm, &Params::init(1, &DEVICE)).is_ok());
    Ok(())
}
