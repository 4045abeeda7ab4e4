//! Processors of pictures beside those of `transformers` (tools/processor_cases.py), over pictures that a formula gives.

use candle_core::Tensor;
use moesaic_encoders::image::{AriaProcessor, ImageProcessor, PatchProcessor, Patches, Picture};
use serde_json::{Map, Value};

fn cases(name: &str) -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pictures.json");
    let mut all: Map<String, Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    match all.remove(name).unwrap() {
        Value::Array(cases) => cases,
        one => vec![one],
    }
}

fn numbers(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect()
}

fn pair(value: &Value) -> (usize, usize) {
    let numbers = numbers(value);
    (numbers[0] as usize, numbers[1] as usize)
}

fn picture((w, h): (usize, usize), turn: impl Fn(usize, usize) -> (usize, usize)) -> Picture {
    let value = |x: usize, y: usize, c: usize| ((x * 7 + y * 13 + c * 29 + (x * y) % 23 * 5) % 256) as u8;
    let at = |x: usize, y: usize| {
        let (x, y) = turn(x, y);
        [0, 1, 2].map(|c| value(x, y, c))
    };
    let rgb = (0..h).flat_map(|y| (0..w).flat_map(move |x| at(x, y))).collect();
    Picture::from_rgb(w, h, rgb).unwrap()
}

fn of(case: &Value) -> Picture {
    picture(pair(&case["size"]), |x, y| (x, y))
}

/// The sums of the file: of bytes, in blocks.
fn sums(values: &Tensor, block: usize) -> Vec<u64> {
    let values = values.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let byte = |v: &f32| ((f64::from(*v) * 0.5 + 0.5) * 255.0).round_ties_even() as u64;
    values.chunks(block).map(|b| b.iter().enumerate().map(|(i, v)| (i as u64 % 251 + 1) * byte(v)).sum()).collect()
}

#[test]
fn aria_scales_pads_and_splits() {
    for case in cases("aria") {
        let processor = AriaProcessor::from_json(&case["config"].to_string()).unwrap();
        let picture = of(&case);
        let real: Vec<_> = processor.crops(&picture).unwrap().iter().map(|(_, real)| *real).collect();
        let wanted: Vec<_> = case["real"].as_array().unwrap().iter().map(pair).collect();
        assert_eq!(real, wanted, "{}", case["size"]);
        let pixels = processor.process(&[picture]).unwrap();
        assert_eq!(pixels.crops, [real.len()]);
        assert_eq!(sums(&pixels.pixels, processor.side * 49), numbers(&case["sums"]), "{}", case["size"]);
        for (i, (w, h)) in real.into_iter().enumerate() {
            let mask = pixels.mask.get(i).unwrap().to_vec2::<u8>().unwrap();
            assert!(
                mask.iter().enumerate().all(|(y, m)| m.iter().enumerate().all(|(x, m)| (*m == 1) == (x < w && y < h)))
            );
        }
    }
}

#[test]
fn qwen_makes_cells_of_patches() {
    for case in cases("qwen") {
        let processor = PatchProcessor::from_json(&case["config"].to_string()).unwrap();
        let Patches { values, grids } = processor.process(&[of(&case)]).unwrap();
        let grid = numbers(&case["grid"]);
        assert_eq!(grids, [(grid[0] as usize, grid[1] as usize, grid[2] as usize)]);
        assert_eq!(sums(&values, 16 * values.dim(1).unwrap()), numbers(&case["sums"]), "{}", case["size"]);
    }
}

#[test]
fn frames_go_in_pairs_and_the_last_one_twice() {
    let case = cases("frames").remove(0);
    let (w, h) = pair(&case["size"]);
    let video = vec![
        picture((w, h), |x, y| (x, h - 1 - y)),
        picture((w, h), |x, y| (w - 1 - x, y)),
        picture((w, h), |x, y| (w - 1 - x, h - 1 - y)),
    ];
    let json = r#"{"patch_size": 8, "do_resize": false}"#;
    let Patches { values, grids } = PatchProcessor::video_from_json(json).unwrap().process_videos(&[video]).unwrap();
    assert_eq!(grids, [(2, 4, 6)]);
    assert_eq!(sums(&values, 4 * values.dim(1).unwrap()), numbers(&case["sums"]));
}

#[test]
fn sizes_are_those_of_the_reference() {
    for case in cases("sizes") {
        let processor =
            PatchProcessor { pixels: pair(&case["pixels"]), ..PatchProcessor::video_from_json("{}").unwrap() };
        let frames = case.get("frames").and_then(Value::as_u64).map(|n| n as usize);
        assert_eq!(processor.size(pair(&case["size"]), frames).unwrap(), pair(&case["to"]), "{case}");
    }
}

#[test]
fn frames_are_sampled_as_the_reference_does() {
    let processor = PatchProcessor::video_from_json("{}").unwrap();
    for case in cases("samples") {
        let frames = processor.sample(case["total"].as_u64().unwrap() as usize, case["fps"].as_f64().unwrap());
        let sum: usize = frames.iter().enumerate().map(|(i, frame)| (i % 251 + 1) * frame).sum();
        assert_eq!(
            (frames.len() as u64, sum as u64),
            (case["n"].as_u64().unwrap(), case["sum"].as_u64().unwrap()),
            "{case}"
        );
    }
}

#[test]
fn llava_next_cuts_the_tiles_of_the_best_grid() {
    for case in cases("tiles") {
        let mut config = case["config"].clone();
        config["image_processor_type"] = "LlavaNextImageProcessor".into();
        let processor = ImageProcessor::from_json(&config.to_string()).unwrap();
        let (pixels, grid) = processor.tiles(&of(&case), &processor.grids).unwrap();
        assert_eq!(grid, pair(&case["grid"]), "{}", case["size"]);
        assert_eq!(pixels.dim(0).unwrap() as u64, case["tiles"].as_u64().unwrap());
        assert_eq!(sums(&pixels, 24 * 24 * 3), numbers(&case["sums"]), "{}", case["size"]);
    }
}
