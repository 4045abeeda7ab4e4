//! Generation on a small Llama with random weights: rows of a batch and rows alone, cached and uncached, beams as the
//! reference finds them, ends, streams, and bad options.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use moesaic_models::decoder::{Cache, Context, Decoder, Input, Segment, pad_ids};
use moesaic_models::generate::{
    Backbone, BeamOptions, EarlyStopping, Finish, Generated, Generation, Memory, Options, Prompts, beam_search,
    generate,
};
use serde::Deserialize;

fn load(case: &str) -> Decoder {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(case);
    Decoder::load(&dir, DType::F32, &Device::Cpu).unwrap()
}

fn model() -> Decoder {
    load("llama/tiny_gqa")
}

const PROMPTS: [&[u32]; 4] = [&[5, 9, 77, 4, 12, 31], &[1], &[100, 3, 8], &[1, 17, 60, 61, 62, 63, 64, 65, 66]];

fn run(model: &Decoder, prompts: &[&[u32]], options: &Options) -> Vec<Generated> {
    generate(model, Prompts::Ids(prompts), options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn sampled() -> Options {
    Options {
        max_new_tokens: 20,
        temperature: 1.3,
        top_k: 40,
        top_p: 0.95,
        repetition_penalty: 1.1,
        seed: 7,
        log_probs: true,
        ..Options::default()
    }
}

#[test]
fn rows_of_a_batch_are_rows_alone() {
    let model = model();
    let greedy = Options { max_new_tokens: 20, log_probs: true, ..Options::default() };
    // Ends that rows meet at different times, so that the batch shrinks.
    let free = run(&model, &PROMPTS, &greedy);
    let eos = vec![free[0].tokens[3], free[2].tokens[9]];
    for options in [greedy.clone(), sampled(), Options { eos: eos.clone(), ..greedy }, Options { eos, ..sampled() }] {
        let together = run(&model, &PROMPTS, &options);
        for (row, (prompt, together)) in PROMPTS.iter().zip(&together).enumerate() {
            let alone = run(&model, &[prompt], &options);
            assert_eq!(&alone[0], together, "row {row} of {options:?}");
        }
        let lengths: Vec<usize> = together.iter().map(|row| row.tokens.len()).collect();
        assert_eq!(options.eos.is_empty(), lengths.iter().all(|&n| n == 20), "{lengths:?}");
    }
}

#[test]
fn a_memory_changes_only_what_is_computed() {
    for case in ["llama/tiny_gqa", "olmoe/tiny_8e_top4", "deepseek_v2/lite_yarn"] {
        let model = load(case);
        for options in [Options { max_new_tokens: 9, ..Options::default() }, Options { max_new_tokens: 9, ..sampled() }]
        {
            let mut memory = Memory::default();
            // A text that grows by answer and question, one that goes back, the same again, and another one.
            let mut prompt = PROMPTS[0].to_vec();
            let mut reused = Vec::new();
            for turn in 0..6 {
                let mut generation = Generation::resume(&model, &prompt, &options, memory).unwrap();
                let tokens: Vec<u32> = generation.by_ref().map(|token| token.unwrap().id).collect();
                reused.push(generation.reused());
                assert_eq!(tokens, run(&model, &[&prompt], &options)[0].tokens, "{case}, turn {turn}");
                memory = generation.remember();
                assert_eq!(memory.len(), prompt.len() + tokens.len() - 1);
                match turn {
                    0 | 1 => prompt.extend(tokens.iter().copied().chain([3, 8, 77])),
                    2 => prompt.truncate(8),
                    3 => {}
                    _ => prompt = vec![100, 3, 8],
                }
            }
            // Of the last token of a prompt the scores are wanted, so it is always computed.
            assert_eq!(reused, [0, 14, 26, 7, 7, 0], "{case}");
        }
    }
}

#[test]
fn rows_of_a_batch_are_rows_alone_in_sparse_models() {
    for case in ["olmoe/tiny_8e_top4", "deepseek_v2/lite_yarn", "jetmoe/tiny_moa_8e"] {
        let model = load(case);
        for options in
            [Options { max_new_tokens: 12, ..sampled() }, Options { max_new_tokens: 12, ..Options::default() }]
        {
            let together = run(&model, &PROMPTS, &options);
            for (prompt, together) in PROMPTS.iter().zip(&together) {
                assert_eq!(&run(&model, &[prompt], &options)[0], together, "{case}");
            }
        }
    }
}

#[test]
fn a_cache_changes_nothing() -> Result<()> {
    let model = model();
    let answers = run(&model, &PROMPTS, &Options { max_new_tokens: 16, ..Options::default() });
    for (prompt, answer) in PROMPTS.iter().zip(answers) {
        let mut ids = prompt.to_vec();
        for expected in answer.tokens {
            let (tensor, context) = pad_ids(&[&ids], 0, &Device::Cpu)?;
            let logits = model.last_logits(&model.forward(Input::Ids(&tensor), &context, None, None)?)?;
            let next = logits.squeeze(0)?.argmax(0)?.to_scalar::<u32>()?;
            assert_eq!(next, expected, "after {ids:?}");
            ids.push(next);
        }
    }
    Ok(())
}

#[test]
fn embedded_prompts_go_on_as_ids_do() -> Result<()> {
    let model = model();
    let options = Options { max_new_tokens: 12, log_probs: true, ..Options::default() };
    let rows: Vec<Vec<Segment<'_>>> = PROMPTS.iter().map(|ids| ids.chunks(2).map(Segment::Ids).collect()).collect();
    let (embeds, context) = model.embed_rows(&rows)?;
    let answers = generate(&model, Prompts::Embeds(&embeds, &context), &options, &mut |_| ControlFlow::Continue(()))?;
    assert_eq!(answers, run(&model, &PROMPTS, &options));
    Ok(())
}

#[test]
fn seeds_and_streams_choose_the_text() {
    let model = model();
    let prompts = [PROMPTS[0]; 3];
    let same = run(&model, &prompts, &sampled());
    assert!(same[0] == same[1] && same[1] == same[2]);
    let apart = run(&model, &prompts, &Options { streams: vec![0, 1, 2], ..sampled() });
    assert_eq!(apart[0], same[0]);
    assert!(apart[0] != apart[1] && apart[1] != apart[2]);
    assert_ne!(run(&model, &prompts, &Options { seed: 8, ..sampled() })[0], same[0]);
    // A penalty is felt without sampling.
    let greedy = Options { max_new_tokens: 20, ..Options::default() };
    let tokens = |penalty| run(&model, &prompts[..1], &Options { repetition_penalty: penalty, ..greedy.clone() });
    let repeats = |tokens: &[u32]| tokens.len() - tokens.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(repeats(&tokens(1e6)[0].tokens) == 0 && repeats(&tokens(1e-3)[0].tokens) > 10);
}

#[test]
fn log_probabilities_are_the_models_own() -> Result<()> {
    let model = model();
    let answer = &run(&model, &PROMPTS[..1], &sampled())[0];
    let ids = [PROMPTS[0], &answer.tokens].concat();
    let (tensor, context) = pad_ids(&[&ids], 0, &Device::Cpu)?;
    let logits = model.logits(&model.forward(Input::Ids(&tensor), &context, None, None)?.hidden)?.squeeze(0)?;
    for (at, (&id, found)) in answer.tokens.iter().zip(&answer.log_probs).enumerate() {
        let row = logits.get(PROMPTS[0].len() - 1 + at)?.to_vec1::<f32>()?;
        let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
        let expected = f64::from(row[id as usize]) - sum.ln();
        assert!((f64::from(*found) - expected).abs() < 1e-4, "token {at}: {found}, expected {expected}");
    }
    assert_eq!(answer.log_probs.len(), 20);
    Ok(())
}

#[test]
fn rows_end_where_they_should() {
    let model = model();
    let options = Options { max_new_tokens: 10, ..Options::default() };
    let free = run(&model, &PROMPTS[..1], &options)[0].tokens.clone();
    let eos = run(&model, &PROMPTS[..1], &Options { eos: vec![999, free[4]], ..options.clone() });
    let first = free.iter().position(|id| *id == free[4]).unwrap();
    assert_eq!((&eos[0].tokens[..], eos[0].finish), (&free[..=first], Finish::Eos));
    assert_eq!(run(&model, &PROMPTS[..1], &options)[0].finish, Finish::Length);
    // 128 positions, 120 of them taken.
    let long: Vec<u32> = (0..120).map(|i| i % 200).collect();
    let full = run(&model, &[&long], &Options { max_new_tokens: 50, ..options.clone() });
    assert_eq!((full[0].tokens.len(), full[0].finish), (8, Finish::Context));
    // The callback breaks in the middle of a step.
    let mut count = 0;
    let cut = generate(&model, Prompts::Ids(&PROMPTS), &options, &mut |token| {
        count += 1;
        if count == 6 && token.row == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let cut = cut.unwrap();
    assert_eq!(cut.iter().map(|row| row.tokens.len()).collect::<Vec<_>>(), [2, 2, 1, 1]);
    assert!(cut.iter().all(|row| row.finish == Finish::Stopped));
}

#[test]
fn a_stopped_row_gets_no_more_tokens_and_others_go_on() {
    let model = model();
    let options = Options { max_new_tokens: 10, ..Options::default() };
    let expected = run(&model, &PROMPTS, &options);
    let mut generation = Generation::new(&model, Prompts::Ids(&PROMPTS), &options).unwrap();
    let mut tokens = vec![Vec::new(); PROMPTS.len()];
    while let Some(token) = generation.next() {
        let token = token.unwrap();
        tokens[token.row].push(token.id);
        // Row 2 is told while its own token of this step still waits.
        if token.row == 1 && tokens[1].len() == 4 {
            generation.stop(2);
        }
    }
    for row in [0, 1, 3] {
        assert_eq!(tokens[row], expected[row].tokens, "row {row}");
    }
    assert_eq!(tokens[2], expected[2].tokens[..3]);
    assert_eq!((generation.finish(2), generation.finish(0)), (Some(Finish::Stopped), Some(Finish::Length)));
    assert!(generation.next().is_none());
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompts: Vec<Vec<u32>>,
    beams: usize,
    length_penalty: f64,
    early_stopping: serde_json::Value,
    sequences: usize,
    max_new_tokens: usize,
    eos: Vec<u32>,
    repetition_penalty: f64,
    ids: Vec<Vec<u32>>,
    scores: Vec<f32>,
}

#[test]
fn beams_are_those_of_the_reference() {
    let model = model();
    let cases: Cases = serde_json::from_str(include_str!("data/beams.json")).unwrap();
    let mut ended_early = 0;
    for (i, case) in cases.cases.iter().enumerate() {
        let options = BeamOptions {
            beams: case.beams,
            sequences: case.sequences,
            length_penalty: case.length_penalty,
            early_stopping: match &case.early_stopping {
                serde_json::Value::Bool(true) => EarlyStopping::FirstFinished,
                serde_json::Value::Bool(false) => EarlyStopping::Heuristic,
                _ => EarlyStopping::Never,
            },
            max_new_tokens: case.max_new_tokens,
            min_new_tokens: 0,
            repetition_penalty: case.repetition_penalty,
            eos: case.eos.clone(),
        };
        let prompts: Vec<&[u32]> = case.prompts.iter().map(Vec::as_slice).collect();
        let search = |prompts: &[&[u32]]| {
            beam_search(&model, Prompts::Ids(prompts), &options, &mut |_| ControlFlow::Continue(())).unwrap()
        };
        let found = search(&prompts);
        for (row, prompt) in prompts.iter().enumerate() {
            assert_eq!(search(&[prompt])[0], found[row], "case {i}, row {row} alone");
        }
        let flat: Vec<_> = found.into_iter().flatten().collect();
        assert_eq!(flat.len(), case.ids.len(), "case {i}");
        for (at, (beam, (ids, score))) in flat.iter().zip(case.ids.iter().zip(&case.scores)).enumerate() {
            assert_eq!(&beam.tokens, ids, "case {i}, sequence {at}");
            assert!((beam.score - score).abs() <= 1e-4 * score.abs().max(1.0), "case {i}: {}, {score}", beam.score);
            ended_early += usize::from(beam.finish == Finish::Eos && ids.len() < case.max_new_tokens);
        }
    }
    assert!(cases.cases.len() >= 15 && ended_early > 20, "{ended_early}");
}

#[test]
fn one_beam_is_greedy_and_a_broken_off_search_gives_what_it_has() {
    let model = model();
    let greedy = run(&model, &PROMPTS, &Options { max_new_tokens: 9, ..Options::default() });
    let options = BeamOptions { beams: 1, max_new_tokens: 9, ..BeamOptions::default() };
    let one = beam_search(&model, Prompts::Ids(&PROMPTS), &options, &mut |_| ControlFlow::Continue(())).unwrap();
    for (greedy, beams) in greedy.iter().zip(&one) {
        assert_eq!((&beams[0].tokens, beams[0].finish), (&greedy.tokens, Finish::Length));
    }
    let stop = &mut |steps| if steps == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let cut = beam_search(&model, Prompts::Ids(&PROMPTS), &options, stop).unwrap();
    for (cut, whole) in cut.iter().zip(&one) {
        assert_eq!((&cut[0].tokens[..], cut[0].finish), (&whole[0].tokens[..3], Finish::Stopped));
    }
}

#[test]
fn bad_options_and_prompts_are_refused() {
    let model = model();
    let good = Options { max_new_tokens: 2, ..Options::default() };
    let cases: [(Options, &str); 12] = [
        (Options { max_new_tokens: 0, ..good.clone() }, "new tokens are 0"),
        (Options { temperature: -0.5, ..good.clone() }, "temperature is -0.5"),
        (Options { temperature: f64::NAN, ..good.clone() }, "temperature is NaN"),
        (Options { temperature: f64::INFINITY, ..good.clone() }, "temperature is inf"),
        (Options { top_p: 0.0, ..good.clone() }, "top-p is 0"),
        (Options { top_p: 1.5, ..good.clone() }, "top-p is 1.5"),
        (Options { top_p: f64::NAN, ..good.clone() }, "top-p is NaN"),
        (Options { min_p: -0.1, ..good.clone() }, "min-p is -0.1"),
        (Options { min_p: f64::NAN, ..good.clone() }, "min-p is NaN"),
        (Options { repetition_penalty: 0.0, ..good.clone() }, "penalty is 0"),
        (Options { repetition_penalty: f64::NAN, ..good.clone() }, "penalty is NaN"),
        (Options { streams: vec![1, 2], ..good.clone() }, "2 random streams for 1 prompts"),
    ];
    for (options, part) in cases {
        let error = Generation::new(&model, Prompts::Ids(&PROMPTS[..1]), &options).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let long = vec![3; 128];
    let prompts: [(&[&[u32]], &str); 4] = [
        (&[], "no prompt"),
        (&[&[4], &[]], "prompt 1 is empty"),
        (&[&[4], &long], "prompt 1 has 128 tokens and leaves no room for an answer in this model's context of 128"),
        (&[&[211]], "211 is not in the vocabulary"),
    ];
    for (prompts, part) in prompts {
        let error = Generation::new(&model, Prompts::Ids(prompts), &good).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let beams = BeamOptions::default();
    for (options, part) in [
        (BeamOptions { beams: 0, ..beams.clone() }, "0 beams"),
        (BeamOptions { beams: 1 << 40, ..beams.clone() }, "beams: give 1 to 1024"),
        (BeamOptions { sequences: 0, ..beams.clone() }, "0 sequences"),
        (BeamOptions { sequences: 5, ..beams.clone() }, "5 sequences of 4 beams"),
        (BeamOptions { length_penalty: f64::NAN, ..beams.clone() }, "length penalty is NaN"),
        (BeamOptions { max_new_tokens: 0, ..beams }, "new tokens are 0"),
    ] {
        let found = beam_search(&model, Prompts::Ids(&PROMPTS), &options, &mut |_| ControlFlow::Continue(()));
        let error = found.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// Gives scores that a model with broken weights gives.
struct Broken(f32);

impl Backbone for Broken {
    fn next_logits(&self, input: Input<'_>, _: &Context, _: &mut Cache) -> Result<Tensor> {
        let (Input::Ids(x) | Input::Embeds(x)) = input;
        Tensor::full(self.0, (x.dim(0)?, 8), &Device::Cpu)
    }

    fn max_positions(&self) -> usize {
        64
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}

#[test]
fn scores_that_are_not_numbers_end_with_an_error() {
    for options in [Options::default(), sampled()] {
        let mut generation = Generation::new(&Broken(f32::NAN), Prompts::Ids(&PROMPTS), &options).unwrap();
        let error = generation.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("prompt 0 are not finite"), "{error}");
        assert!(generation.next().is_none());
    }
    let found = beam_search(&Broken(f32::NAN), Prompts::Ids(&PROMPTS), &BeamOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    });
    assert!(found.unwrap_err().to_string().contains("not finite"));
    // More beams than the vocabulary has continuations at first.
    let options = BeamOptions { beams: 30, max_new_tokens: 1, ..BeamOptions::default() };
    let found = beam_search(&Broken(0.0), Prompts::Ids(&PROMPTS[..1]), &options, &mut |_| ControlFlow::Continue(()));
    assert_eq!(found.unwrap()[0][0].tokens, [0]);
}
