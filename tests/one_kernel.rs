//! Connector, backbone and forecaster of all models that are shipped run through one expert bank: what their atlas says of each sparse
//! layer is what went through the bank.
#![cfg(all(feature = "audio", feature = "image"))]

use std::path::{Path, PathBuf};

use moesaic::prompts::Turn;
use moesaic::{
    AudioChat, ForecastOptions, Forecaster, Picture, RouteMap, SEGMENT, Table, TableOptions, TranscribeOptions,
    Transcriber, VisionChat,
};
use moesaic_kernels::{BankPass, watch};

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Every sparse layer of the map is a pass of the bank with the same experts, tokens and routes, in the order of the map, and there are
/// no other passes with a choice of experts.
fn proven(what: &str, (map, passes): (moesaic::Result<RouteMap>, Vec<BankPass>), layers: &[&str]) {
    let map = map.unwrap();
    let names: Vec<&str> = map.layers.iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!(names, layers, "{what}");
    let chosen: Vec<(usize, usize)> =
        map.layers.iter().map(|layer| (layer.experts, layer.choices.iter().map(Vec::len).sum())).collect();
    let passed: Vec<(usize, usize)> =
        passes.iter().filter(|pass| pass.experts > 1).map(|pass| (pass.experts, pass.routes)).collect();
    assert_eq!(passed, chosen, "{what}");
    assert!(passes.iter().filter(|pass| pass.experts > 1).all(|pass| pass.fused), "{what}: a slow path");
}

#[test]
fn all_models_share_one_expert_bank() {
    let options = ForecastOptions::default();
    let series = Table::read(at("examples/data/co2.csv"), &TableOptions::default()).unwrap().series;
    let forecaster = Forecaster::embedded().unwrap();
    let routed = watch(|| forecaster.routes(&series[..1], 24, &options, SEGMENT));
    proven("Time-MoE", routed, &["layer 0", "layer 1", "layer 2", "layer 3"]);

    let chat = VisionChat::embedded().unwrap();
    let picture = Picture::open(at("examples/data/pictures/scene-2.png")).unwrap();
    let turns = [Turn { question: "How many shapes are there?", answer: None }];
    proven("vision", watch(|| chat.routes(&[picture], &turns, SEGMENT)), &["projector", "layer 1", "layer 3"]);

    let transcriber = Transcriber::embedded().unwrap();
    let heard = TranscribeOptions::default();
    let recording = transcriber.open(&at("examples/data/speech/clip.wav"), None, &heard).unwrap();
    let routed = watch(|| transcriber.routes(recording, &heard, SEGMENT));
    proven("speech", routed, &["projector", "layer 0", "layer 1", "layer 2"]);

    // Those beside the crate are there in the repository alone.
    if at("assets/moirai").is_dir() {
        let forecaster = Forecaster::from_dir(at("assets/moirai")).unwrap();
        let routed = watch(|| forecaster.routes(&series[..1], 24, &options, SEGMENT));
        proven("Moirai-MoE", routed, &["layer 0", "layer 1", "layer 2", "layer 3"]);
    }
    if at("assets/sound").is_dir() {
        let chat = AudioChat::from_dir(at("assets/sound")).unwrap();
        let samples = chat.open(at("examples/data/speech/clip.wav")).unwrap().next().unwrap().unwrap();
        let routed = watch(|| chat.routes(&samples, "Is anyone speaking?", SEGMENT));
        proven("sound", routed, &["projector", "layer 0", "layer 1", "layer 2"]);
    }
}
