//! LLaVA-1.6: pictures in tiles, against a composition that is written to be obviously right, in all published layouts.
#![cfg(feature = "image")]

mod common;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use moesaic_encoders::image::{ImageProcessor, Picture};
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Params, Tokens};
use moesaic_models::decoder::Side;
use moesaic_models::vision::{Place, Row, VisionConfig, VisionModel};
use serde_json::{Value, json};

const MARK: u32 = 250;

fn tower() -> Value {
    json!({ "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 4, "hidden_act": "quick_gelu" })
}

/// As `transformers` has it; grids are pairs of height and width.
fn config() -> Value {
    json!({
        "model_type": "llava_next", "image_token_index": MARK, "vision_config": tower(),
        "text_config": serde_json::from_str::<Value>(common::LLAMA).unwrap(),
        "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
    })
}

/// As its authors have it; grids are pairs of width and height.
fn original() -> Value {
    let mut config: Value = serde_json::from_str(common::LLAMA).unwrap();
    for (key, value) in [
        ("model_type", json!("llava_llama")),
        ("mm_vision_tower", json!("openai/clip-vit-large-patch14-336")),
        ("mm_projector_type", json!("mlp2x_gelu")),
        ("mm_hidden_size", json!(16)),
        ("mm_vision_select_layer", json!(-2)),
        ("image_aspect_ratio", json!("anyres")),
        ("mm_patch_merge_type", json!("spatial_unpad")),
        ("image_grid_pinpoints", json!([[32, 16], [16, 32], [32, 32], [16, 48], [48, 16]])),
    ] {
        config[key] = value;
    }
    config
}

const PROCESSOR: &str = r#"{"image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 16},
    "crop_size": {"height": 16, "width": 16}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]}"#;

fn saved(dir: &Path) {
    let params = Params::init(7, &Device::Cpu);
    let model = VisionModel::new(VisionConfig::from_json(&config().to_string()).unwrap(), &params).unwrap();
    model.save(&params, dir, DType::F32).unwrap();
}

/// The same weights under other names.
fn renamed(from: &Path, dir: &Path, config: &Value, name: impl Fn(&str) -> String) -> Result<()> {
    let checkpoint = Checkpoint::open(from)?;
    let tensors = checkpoint.names().map(|old| Ok((name(old), checkpoint.read_any(old)?)));
    std::fs::create_dir_all(dir)?;
    save(&dir.join("model.safetensors"), &tensors.collect::<Result<Vec<_>>>()?, &[])?;
    std::fs::write(dir.join("vision_config.json"), tower().to_string())?;
    Ok(std::fs::write(dir.join("config.json"), config.to_string())?)
}

fn load(dir: &Path) -> VisionModel {
    VisionModel::load(dir, DType::F32, &Device::Cpu).unwrap()
}

fn picture(w: usize, h: usize) -> Picture {
    let mut rng = Rng::new((w * 1000 + h) as u64);
    Picture::from_rgb(w, h, (0..3 * w * h).map(|_| rng.below(256) as u8).collect()).unwrap()
}

/// Sizes of pictures, and the tokens that they have: by `_get_number_of_features` of the processor of transformers 4.57.6, less the
/// class token.
const SIZES: [((usize, usize), usize); 9] = [
    ((20, 12), 44),
    ((64, 64), 88),
    ((100, 30), 68),
    ((30, 100), 76),
    ((7, 90), 28),
    ((16, 16), 36),
    ((192, 128), 70),
    ((333, 500), 72),
    ((1, 1), 36),
];

fn tokens(model: &VisionModel, picture: &Picture) -> Result<Tokens> {
    let processor = ImageProcessor::from_json(PROCESSOR).unwrap();
    let (pixels, grid) = processor.tiles(picture, &processor.grids).unwrap();
    Ok(model.encode_tiles(&pixels, grid, (picture.width(), picture.height()), None)?.tokens)
}

#[test]
fn tokens_are_those_of_an_obvious_composition() -> Result<()> {
    let root = tempfile::tempdir()?;
    saved(root.path());
    let model = load(root.path());
    let newline = Checkpoint::open(root.path())?.read_any("image_newline")?.to_vec1::<f32>()?;
    let processor = ImageProcessor::from_json(PROCESSOR).unwrap();
    for ((w, h), count) in SIZES {
        let picture = picture(w, h);
        let (pixels, (wide, high)) = processor.tiles(&picture, &processor.grids).unwrap();
        // Each tile by itself, token by token.
        let tile = |i: usize| -> Result<Vec<Vec<f32>>> {
            Ok(model.encode(&pixels.narrow(0, i, 1)?, None)?.tokens.embeds.to_vec3::<f32>()?.remove(0))
        };
        let tiles = (0..pixels.dim(0)?).map(tile).collect::<Result<Vec<_>>>()?;
        let (columns, rows) = (4 * wide / 16, 4 * high / 16);
        assert_eq!(tiles.len(), 1 + columns * rows / 16);
        // What is not padding: a picture that is wider than its grid has some above and below, another at the sides.
        let exact = |x: f64| (x * 1e7).round() / 1e7;
        let (mut left, mut top) = (0, 0);
        if w as f64 / h as f64 > columns as f64 / rows as f64 {
            top = (rows - exact(h as f64 * columns as f64 / w as f64) as usize) / 2;
        } else {
            left = (columns - exact(w as f64 * rows as f64 / h as f64) as usize) / 2;
        }
        let mut want = tiles[0].clone();
        for y in top..rows - top {
            for x in left..columns - left {
                let tile = &tiles[1 + (y / 4) * (columns / 4) + x / 4];
                want.push(tile[(y % 4) * 4 + x % 4].clone());
            }
            want.push(newline.clone());
        }
        let got = tokens(&model, &picture)?.embeds.to_vec3::<f32>()?.remove(0);
        assert_eq!((got.len(), model.config().tokens_of((w, h))?), (count, count), "{w} x {h}");
        assert_eq!(got, want, "{w} x {h}");
    }
    assert!(model.config().tokens_of((0, 4)).is_err());
    Ok(())
}

#[test]
fn every_layout_gives_the_same() -> Result<()> {
    let root = tempfile::tempdir()?;
    let (root, hf) = (root.path(), root.path().join("hf"));
    saved(&hf);
    renamed(&hf, &root.join("original"), &original(), |name| match name {
        "image_newline" => "model.image_newline".into(),
        _ => name
            .replace("vision_tower.vision_model", "model.vision_tower.vision_tower.vision_model")
            .replace("multi_modal_projector.linear_1", "model.mm_projector.0")
            .replace("multi_modal_projector.linear_2", "model.mm_projector.2")
            .replace("language_model.", ""),
    })?;
    // As transformers has it in memory from 4.52 on.
    renamed(&hf, &root.join("inside"), &config(), |name| match name {
        "language_model.lm_head.weight" => "lm_head.weight".into(),
        _ => format!("model.{}", name.replace("language_model.model", "language_model")),
    })?;
    let picture = picture(50, 20);
    let scores = |dir: &str| -> Result<Vec<f32>> {
        let model = load(&root.join(dir));
        let newline =
            model.config().layouts[0].projector.replace("multi_modal_projector", "").replace("mm_projector", "");
        assert_eq!(model.config().place(&format!("{newline}image_newline")), Place::Projector);
        let pictures = [tokens(&model, &picture)?];
        let ids = [3, model.picture_token(), 5, 7];
        let row = Row { ids: &ids, labels: &[], pictures: &pictures };
        let spliced = model.splice(&[row], Side::Left, None)?;
        assert_eq!(spliced.embeds.dim(1)?, 3 + model.config().tokens_of((50, 20))?);
        model.logits(&model.forward(&spliced, None, None)?.hidden)?.flatten_all()?.to_vec1()
    };
    let first = scores("hf")?;
    assert_eq!(scores("original")?, first);
    assert_eq!(scores("inside")?, first);
    Ok(())
}

#[test]
fn what_makes_no_tiles_is_refused() -> Result<()> {
    let refused = |base: Value, key: &str, value: Value, words: &str| {
        let mut config = base;
        config["vision_config"] = tower();
        config[key] = value;
        let error = VisionConfig::from_json(&config.to_string()).unwrap_err().to_string();
        assert!(error.contains(words), "{key}: {error}");
    };
    refused(config(), "image_grid_pinpoints", json!([[16, 20]]), "does not hold tiles of 16 x 16");
    refused(config(), "image_grid_pinpoints", json!([]), "names no grid");
    refused(config(), "image_grid_pinpoints", json!([[16]]), "pairs");
    refused(config(), "image_grid_pinpoints", json!([[16, 16 << 10]]), "at most 64");
    refused(config(), "vision_feature_select_strategy", json!("full"), "square of features");
    refused(original(), "mm_patch_merge_type", json!("spatial"), "not supported");
    refused(original(), "image_aspect_ratio", json!("anyres_max_9"), "not supported");
    refused(original(), "image_aspect_ratio", json!("pad"), "not supported");
    refused(original(), "image_grid_pinpoints", Value::Null, "no image_grid_pinpoints");
    // Another model has no tiles.
    let mut llava = config();
    llava["model_type"] = json!("llava");
    let model = VisionModel::new(VisionConfig::from_json(&llava.to_string()).unwrap(), &Params::init(1, &Device::Cpu))?;
    let pixels = Tensor::zeros((3, 3, 16, 16), DType::F32, &Device::Cpu)?;
    assert!(model.encode_tiles(&pixels, (32, 16), (9, 9), None).is_err());
    // Tiles that are not those of the grid.
    let root = tempfile::tempdir()?;
    saved(root.path());
    assert!(load(root.path()).encode_tiles(&pixels, (32, 32), (9, 9), None).is_err());
    Ok(())
}
