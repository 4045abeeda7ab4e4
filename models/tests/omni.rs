//! Omni: four modalities in one sequence, answers and forecasts, gradients, causal inference.

use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Modality, Params};
use moesaic_models::moma::{Cache, Routing};
use moesaic_models::omni::{Answer, Config, Memory, Omni, Part, Row, Scale, Turn, Wanted};
use serde_json::{Value, json};

const CPU: &Device = &Device::Cpu;

fn json_config() -> Value {
    json!({
        "model_type": "omni", "context": 100, "bos_token": "<s>", "eos_token": "</s>",
        "backbone": {
            "model_type": "moma", "vocab_size": 20, "image_token_ids": [0, 0], "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 12, "text_experts": 2,
            "image_experts": 2, "audio_experts": 2, "series_experts": 1, "initializer_range": 0.3
        },
        "image": {"size": 8, "patch": 4},
        "audio": {"bands": 8, "frames": 4, "mean": -30.0, "std": 20.0, "longest": 2.0},
        "series": {"patch": 4, "levels": [0.1, 0.5, 0.9], "longest": 64, "forecast_token": "<f>"},
    })
}

fn with(changes: &[(&str, Value)]) -> Result<Config> {
    let mut config = json_config();
    for (path, value) in changes {
        *config.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value.clone();
    }
    Config::from_json(&config.to_string())
}

fn id(token: &str) -> Option<u32> {
    ["<s>", "</s>", "<f>"].iter().position(|known| *known == token).map(|at| at as u32)
}

fn model(config: Config, params: &Params) -> Result<Omni> {
    Omni::new(config, id, params, None, Routing::Choice)
}

fn causal(config: Config) -> Result<Omni> {
    Omni::new(config, id, &Params::init(1, CPU), Some(&Params::init(2, CPU)), Routing::Causal)
}

fn noise(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let mut rng = Rng::new(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_vec(values, shape, CPU)
}

/// A picture, a sound, a series.
struct Media(Tensor, Tensor, Vec<f32>);

impl Media {
    fn new() -> Result<Self> {
        let mut series: Vec<f32> = (0..14).map(|i| 100.0 + 5.0 * (i as f32 * 0.7).sin()).collect();
        series[3] = f32::NAN;
        Ok(Self(noise(1, &[3, 8, 8])?, ((noise(2, &[8, 10])? * 20.0)? - 30.0)?, series))
    }

    /// One of each, asked something.
    fn prompt(&self) -> Vec<Part<'_>> {
        vec![
            Part::Image(&self.0),
            Part::Text(&[5, 6]),
            Part::Audio(&self.1),
            Part::Text(&[7]),
            Part::Series(&self.2),
            Part::Text(&[8, 9]),
        ]
    }
}

#[test]
fn all_kinds_of_tokens_stand_in_one_sequence() -> Result<()> {
    let (media, model) = (Media::new()?, model(with(&[])?, &Params::init(1, CPU))?);
    let rows = [
        Row::one(media.prompt(), Answer::Text(&[10, 11])),
        Row::one(vec![Part::Series(&media.2)], Answer::Series(&[101.0, 102.0, 103.0, 104.0, 105.0])),
    ];
    let sequence = model.sequence(&rows)?;
    // bos, 4 patches, 2 words, 3 tokens of sound, a word, 4 patches, 2 words, 2 of the answer; bos, 4 patches, 2 of the forecast.
    let t = 1 + 4 + 2 + 3 + 1 + 4 + 2 + 2;
    assert_eq!((sequence.embeds.dims(), &sequence.padding[..]), (&[2, t, 16][..], &[0, t - 7][..]));
    let kinds = |from: usize, to: usize| &sequence.modality[from..to];
    assert!(kinds(1, 5).iter().all(|m| *m == Modality::Image) && kinds(7, 10).iter().all(|m| *m == Modality::Audio));
    assert!(kinds(11, 15).iter().all(|m| *m == Modality::Series) && kinds(15, t).iter().all(|m| *m == Modality::Text));
    // The last of the prompt predicts the first word, the last word the end.
    let last = t as u32;
    // A forecast is two patches, each of which is announced; the second is not whole, so that nothing ends with it.
    let words: Vec<_> = sequence.words.iter().map(|target| (target.place, target.turn, target.next)).collect();
    let first = [(last - 3, 0, 10), (last - 2, 0, 11), (last - 1, 0, 1)];
    assert_eq!(words, [first.to_vec(), [(2 * last - 3, 1, 2), (2 * last - 2, 1, 2)].to_vec()].concat());
    let places: Vec<_> = sequence.patches.iter().map(|target| target.place).collect();
    assert_eq!(places, [2 * last - 3, 2 * last - 2]);
    let (scale, patch) = (Scale::of(&media.2), &sequence.patches[1].next);
    assert!(
        (f64::from(patch[0]) - (105.0 - scale.mean) / scale.std).abs() < 1e-5 && patch[1..].iter().all(|v| v.is_nan())
    );
    let whole = Row::one(vec![Part::Series(&media.2)], Answer::Series(&[101.0, 102.0, 103.0, f32::NAN]));
    let ends: Vec<_> = model.sequence(&[whole])?.words.iter().map(|target| (target.place, target.next)).collect();
    assert_eq!(ends, [(4, 2), (5, 1)]);
    // A row is the same alone, with other numbers in the batch's words.
    let alone = model.sequence(&rows[1..])?;
    let (own, both) = (alone.embeds.squeeze(0)?, sequence.embeds.get(1)?.narrow(0, t - 7, 7)?);
    assert!((own - both)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-6);
    Ok(())
}

#[test]
fn gradients_agree_with_differences() -> Result<()> {
    let (media, params) = (Media::new()?, Params::init(4, CPU));
    let model = model(with(&[])?, &params)?;
    let rows = [
        Row::one(media.prompt(), Answer::Text(&[10, 11])),
        Row::one(media.prompt(), Answer::Series(&[101.0, f32::NAN, 103.0, 104.0, 90.0])),
    ];
    let loss = || -> Result<f64> { Ok(f64::from(model.loss(&rows)?.0.total.to_scalar::<f32>()?)) };
    let (losses, output) = model.loss(&rows)?;
    assert!(losses.words.is_some() && losses.series.is_some() && output.routes.len() == 2);
    let grads = losses.total.backward()?;
    for (name, var) in params.variables() {
        let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient")).copy()?;
        let square = f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
        assert!(square > 0.0, "{name}: the gradient is zero");
        let (step, start) = (5e-4 / square.sqrt(), var.as_tensor().copy()?);
        let moved = |by: f64| -> Result<f64> {
            var.set(&(&start + (&grad * by)?)?)?;
            loss()
        };
        let rise = (moved(step)? - moved(-step)?) / (2.0 * step);
        var.set(&start)?;
        assert!((rise - square).abs() < 0.03 * square + 2e-3 * square.sqrt(), "{name}: {rise} {square}");
    }
    Ok(())
}

#[test]
fn the_pinball_loss_by_hand() -> Result<()> {
    let (media, model) = (Media::new()?, model(with(&[])?, &Params::init(4, CPU))?);
    let rows = [Row::one(vec![Part::Series(&media.2)], Answer::Series(&[101.0, f32::NAN, 103.0]))];
    let (losses, output) = model.loss(&rows)?;
    let last = output.hidden.narrow(1, output.hidden.dim(1)? - 2, 1)?.squeeze(0)?.contiguous()?;
    let quantiles = model.quantiles(&last)?.squeeze(0)?.to_vec2::<f32>()?;
    let scale = Scale::of(&media.2);
    let mut sum = 0.0;
    for (at, value) in [(0, 101.0), (2, 103.0)] {
        for (quantile, q) in quantiles[at].iter().zip([0.1, 0.5, 0.9]) {
            let above = (value - scale.mean) / scale.std - f64::from(*quantile);
            sum += if above > 0.0 { q * above } else { (q - 1.0) * above };
        }
    }
    let loss = losses.series.map(|loss| loss.to_scalar::<f32>()).transpose()?;
    assert!(loss.is_some_and(|loss| (f64::from(loss) - sum / 6.0).abs() < 1e-5), "{loss:?} {}", sum / 6.0);
    Ok(())
}

#[test]
fn answers_and_forecasts_are_those_of_whole_passes() -> Result<()> {
    let (media, model) = (Media::new()?, causal(with(&[])?)?);
    let prompt = media.prompt();
    // Greedy search by whole passes.
    let mut words: Vec<u32> = Vec::new();
    for _ in 0..6 {
        let sequence = model.sequence(&[Row::one(prompt.clone(), Answer::Text(&words))])?;
        let hidden = model.forward(&sequence, None)?.hidden;
        let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.contiguous()?;
        // All but the word that announces patches.
        let scores = model.logits(&last)?.flatten_all()?.to_vec1::<f32>()?;
        let best = |a: &u32, b: &u32| scores[*a as usize].total_cmp(&scores[*b as usize]);
        let word = (0..20).filter(|&id| id != 2).max_by(best).unwrap();
        if word == 1 {
            break;
        }
        words.push(word);
    }
    assert_eq!(model.answer(&prompt, 6)?, words);
    assert!(model.answer(&prompt, 0)?.is_empty());

    let quantiles = model.forecast(&prompt, 10)?;
    assert_eq!(quantiles.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10, 10]);
    assert!((0..10).all(|i| quantiles[0][i] <= quantiles[1][i] && quantiles[1][i] <= quantiles[2][i]));
    // The second patch follows the medians of the first.
    let sequence = model.sequence(&[Row::one(prompt.clone(), Answer::Series(&quantiles[1][..8]))])?;
    let hidden = model.forward(&sequence, None)?.hidden;
    let last = hidden.narrow(1, hidden.dim(1)? - 2, 1)?.squeeze(0)?.contiguous()?;
    let mut second: Vec<f32> = model.quantiles(&last)?.flatten_all()?.to_vec1::<f32>()?[..3].to_vec();
    second.sort_by(f32::total_cmp);
    let scale = Scale::of(&media.2);
    for (quantile, scaled) in quantiles.iter().zip(second) {
        let value = f64::from(scaled) * scale.std + scale.mean;
        assert!((f64::from(quantile[4]) - value).abs() < 1e-3 * scale.std, "{} {value}", quantile[4]);
    }
    // Another unit is the same forecast in that unit.
    let other: Vec<f32> = media.2.iter().map(|v| 8.0 * v - 500.0).collect();
    let moved = model.forecast(&[Part::Series(&other)], 8)?;
    let plain = model.forecast(&[Part::Series(&media.2)], 8)?;
    for (moved, plain) in moved.iter().flatten().zip(plain.iter().flatten()) {
        assert!((moved - (8.0 * plain - 500.0)).abs() < 0.05, "{moved} {plain}");
    }
    Ok(())
}

#[test]
fn a_conversation_is_the_sequence_of_its_turns() -> Result<()> {
    let (media, model) = (Media::new()?, causal(with(&[])?)?);
    let prompts: [Vec<Part<'_>>; 4] = [
        vec![Part::Image(&media.0), Part::Text(&[5, 6])],
        vec![Part::Text(&[7])],
        vec![Part::Series(&media.2), Part::Audio(&media.1), Part::Text(&[8])],
        vec![Part::Text(&[9, 10])],
    ];
    let (mut memory, mut replies) = (Memory::default(), Vec::new());
    for (prompt, wanted) in prompts.iter().zip([Wanted::Words, Wanted::Any, Wanted::Values(8), Wanted::Any]) {
        replies.push(model.reply(prompt, wanted, 5, &mut memory)?);
    }
    assert!(memory.has_series() && replies[2].steps() == 8 && replies[2].finished);
    // What is predicted last does not depend on how it was read: whole, or turn by turn.
    let median: Vec<f32> = replies[2].quantiles[1].clone();
    let answers = [Answer::Text(&replies[0].words), Answer::Text(&replies[1].words), Answer::Series(&median)];
    let turns = prompts.iter().zip(answers.into_iter().chain([Answer::Open]));
    let turns: Vec<Turn<'_>> = turns.map(|(prompt, answer)| Turn { prompt: prompt.clone(), answer }).collect();
    let tokens: usize = turns.iter().map(|turn| turn.tokens(model.config())).sum();
    let sequence = model.sequence(&[Row { turns }])?;
    assert_eq!(sequence.embeds.dim(1)?, 1 + tokens);
    let hidden = model.forward(&sequence, None)?.hidden;
    let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.contiguous()?;
    let scores = model.logits(&last)?.flatten_all()?.to_vec1::<f32>()?;
    let best = (0..20u32).max_by(|a, b| scores[*a as usize].total_cmp(&scores[*b as usize])).unwrap();
    let first = match best {
        1 => None,
        2 => Some(2),
        word => Some(word),
    };
    let said =
        if replies[3].steps() > 0 && replies[3].words.is_empty() { Some(2) } else { replies[3].words.first().copied() };
    assert_eq!(said, first);
    // The same prompt without what was said before it is another one.
    let mut again = Memory::default();
    model.reply(&prompts[0], Wanted::Words, 5, &mut again)?;
    let seen = again.tokens();
    // What cannot be read leaves the conversation as it was.
    let error = model.reply(&[Part::Text(&[77])], Wanted::Any, 5, &mut again).unwrap_err().to_string();
    assert!(error.contains("77") && again.tokens() == seen, "{error}");
    let error = model.reply(&prompts[1], Wanted::Values(3), 5, &mut again).unwrap_err().to_string();
    assert!(error.contains("none before it") && again.tokens() == seen, "{error}");
    let long = [3u32; 100];
    let error = model.reply(&[Part::Text(&long)], Wanted::Any, 5, &mut again).unwrap_err().to_string();
    assert!(error.contains("context of 100") && again.tokens() == seen, "{error}");
    // At the end of the context an answer is cut.
    let cut = model.reply(&[Part::Text(&long[..100 - seen - 3])], Wanted::Any, usize::MAX, &mut again)?;
    assert!(cut.finished || again.tokens() < 100, "{cut:?}");
    Ok(())
}

#[test]
fn a_loss_is_that_of_some_turns() -> Result<()> {
    let (media, model) = (Media::new()?, model(with(&[])?, &Params::init(1, CPU))?);
    let turns = vec![
        Turn { prompt: vec![Part::Image(&media.0), Part::Text(&[5])], answer: Answer::Text(&[10]) },
        Turn { prompt: vec![Part::Series(&media.2)], answer: Answer::Series(&[101.0, 99.0, 98.0, 100.0]) },
        Turn { prompt: vec![Part::Text(&[6])], answer: Answer::Text(&[11, 12, 13]) },
    ];
    let rows = [Row { turns: turns.clone() }, Row { turns: turns[..1].to_vec() }];
    let sequence = model.sequence(&rows)?;
    let output = model.forward(&sequence, None)?;
    let words = |turns: &[usize]| -> Result<f32> {
        let losses = model.loss_of(&sequence, &output, Some(turns))?;
        assert_eq!(losses.series.is_some(), turns.contains(&1));
        losses.words.map_or(Ok(f32::NAN), |loss| loss.to_scalar())
    };
    // Two words, two, four and two.
    let counts = [2.0, 2.0, 4.0, 2.0];
    let parts = (0..4).map(|turn| words(&[turn])).collect::<Result<Vec<_>>>()?;
    let mean = parts.iter().zip(counts).map(|(loss, n)| loss * n).sum::<f32>() / 10.0;
    assert!((words(&[0, 1, 2, 3])? - mean).abs() < 1e-5);
    let all = model.loss_of(&sequence, &output, None)?.words.map(|loss| loss.to_scalar::<f32>()).transpose()?;
    assert!(all.is_some_and(|all| (all - mean).abs() < 1e-5));
    let open = Row { turns: vec![Turn { answer: Answer::Open, ..turns[0].clone() }, turns[2].clone()] };
    assert!(model.sequence(&[open]).unwrap_err().to_string().contains("turn 1 of 2"));
    Ok(())
}

#[test]
fn saved_and_loaded_is_the_same_model() -> Result<()> {
    let (media, dir) = (Media::new()?, tempfile::tempdir()?);
    let mixed = with(&[])?;
    let mixed =
        Config { backbone: moesaic_models::moma::Config { mixed_experts: Some(5), ..mixed.backbone.clone() }, ..mixed };
    for config in [with(&[])?, mixed] {
        let (params, auxiliary) = (Params::init(1, CPU), Params::init(2, CPU));
        let made = Omni::new(config.clone(), id, &params, Some(&auxiliary), Routing::Causal)?;
        let write = |p: &Params, name: &str| -> Result<Params> {
            let file = dir.path().join(name);
            save(&file, &p.published(|var| Some(var.as_tensor().clone()))?, &[])?;
            Ok(Params::load(&Checkpoint::open(&file)?, DType::F32, CPU))
        };
        let (params, auxiliary) = (write(&params, "a.safetensors")?, write(&auxiliary, "b.safetensors")?);
        let loaded = Omni::new(Config::from_json(&config.to_json()?)?, id, &params, Some(&auxiliary), Routing::Causal)?;
        assert_eq!(loaded.config(), &config);
        let prompt = media.prompt();
        let (a, b) = (made.forecast(&prompt, 5)?, loaded.forecast(&prompt, 5)?);
        assert!(a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-3), "{a:?} {b:?}");
        assert_eq!(made.answer(&prompt, 5)?, loaded.answer(&prompt, 5)?);
    }
    Ok(())
}

#[test]
fn what_is_refused() -> Result<()> {
    for (path, value, words) in [
        ("/model_type", json!("moma"), "omni"),
        ("/backbone/series_experts", json!(0), "series and backbone.series_experts"),
        ("/image", json!(null), "image and backbone.image_experts"),
        ("/backbone/image_token_ids", json!([3, 5]), "must be empty"),
        ("/backbone/hidden_size", json!(15), "backbone:"),
        ("/image/patch", json!(3), "patches must divide"),
        ("/audio/bands", json!(1), "bands"),
        ("/audio/std", json!(0.0), "deviation 0"),
        ("/series/patch", json!(0), "patches of 0"),
        ("/series/levels", json!([0.9, 0.5]), "rising"),
        ("/series/levels", json!([0.1, 0.9]), "0.5 among them"),
        ("/series/longest", json!(3), "at least one patch"),
        ("/series/forecast_token", json!("<s>"), "another meaning"),
        ("/audio/longest", json!(0.0), "seconds"),
        ("/context", json!(1), "context is 1"),
    ] {
        let error = with(&[(path, value)]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(words), "{path}: {error}");
    }
    let narrow = [("/backbone/hidden_size", json!(10)), ("/backbone/num_attention_heads", json!(1))];
    assert!(with(&narrow).unwrap_err().to_string().contains("four parts"));
    let none = |_: &str| None;
    let error = Omni::new(with(&[])?, none, &Params::init(1, CPU), None, Routing::Choice).unwrap_err();
    assert!(error.to_string().contains("<s>"), "{error}");

    let (media, model) = (Media::new()?, model(with(&[])?, &Params::init(1, CPU))?);
    let ask = |part: Part<'_>| model.sequence(&[Row::one(vec![part], Answer::Open)]).map(|_| ()).unwrap_err();
    let wide = noise(1, &[3, 8, 9])?;
    assert!(ask(Part::Image(&wide)).to_string().contains("[3, 8, 8]"));
    assert!(ask(Part::Audio(&wide)).to_string().contains("[8, frames]"));
    for series in [&[][..], &[f32::NAN], &[1.0, f32::INFINITY]] {
        assert!(ask(Part::Series(series)).to_string().contains("at least one number"));
    }
    assert!(ask(Part::Text(&[20])).to_string().contains("20"));
    let alone = Row::one(vec![Part::Text(&[3])], Answer::Series(&[1.0]));
    assert!(model.loss(&[alone]).unwrap_err().to_string().contains("follows a series"));
    let open = Row::one(media.prompt(), Answer::Open);
    assert!(model.loss(&[open]).unwrap_err().to_string().contains("no turn has an answer"));
    assert!(model.sequence(&[]).is_err());
    // Training looks ahead.
    assert!(model.answer(&media.prompt(), 3).unwrap_err().to_string().contains("ahead"));
    let text = with(&[])?;
    let backbone =
        moesaic_models::moma::Config { image_experts: 0, audio_experts: 0, series_experts: 0, ..text.backbone.clone() };
    let text = causal(Config { image: None, audio: None, series: None, backbone, ..text })?;
    assert!(text.answer(&[Part::Text(&[4])], 2).is_ok());
    assert!(text.forecast(&[Part::Text(&[4])], 2).unwrap_err().to_string().contains("follows a series"));
    assert!(text.answer(&media.prompt(), 2).unwrap_err().to_string().contains("takes no pictures"));
    assert!(text.forward(&text.sequence(&[Row::one(vec![], Answer::Open)])?, Some(&mut Cache::default())).is_ok());
    Ok(())
}
