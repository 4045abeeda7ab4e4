//! The manifest of the speech trainer: video from all that can be read, with its length.
#![cfg(feature = "video")]

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use moesaic_models::train::speech::{Clips, Manifest};

fn tokens(text: &str) -> Result<Vec<u32>> {
    Ok(text.bytes().map(u32::from).collect())
}

#[test]
fn video_of_every_kind() {
    let dir = tempfile::tempdir().expect("a folder");
    let webp = Path::new(env!("CARGO_MANIFEST_DIR")).join("../encoders/tests/data/video/grey.webp");
    // The name of a file says nothing, unless it is that of safetensors.
    std::fs::copy(&webp, dir.path().join("a.mp4")).expect("a copy");
    let video = Tensor::full(7u8, (4, 88, 90, 3), &Device::Cpu).expect("a tensor");
    for name in ["b.safetensors", "c"] {
        candle_core::safetensors::save(&[("video", video.clone())].into(), dir.path().join(name)).expect("a file");
    }
    let csv = dir.path().join("clips.csv");
    std::fs::write(&csv, "video,text,frames\na.mp4,one,\nb.safetensors,two,\nc,three,\na.mp4,four,5\n")
        .expect("a file");
    let manifest = Manifest::load(&csv, false, true, &tokens).expect("a manifest");
    assert_eq!(manifest.lengths(), [9, 4, 4, 5]);
    let lips = |i| manifest.clip(i, true, true).expect("a clip").lips.expect("lips");
    assert_eq!((lips(0).size, lips(0).rgb.len()), ((9, 96, 96), 9 * 96 * 96 * 3));
    assert!(lips(0).rgb[..3].iter().all(|v| v.abs_diff(20) <= 3));
    for i in [1, 2] {
        assert_eq!((lips(i).size, lips(i).rgb[0]), ((4, 88, 90), 7));
    }
    assert_eq!(video.dtype(), DType::U8);
    // What cannot be read names its file, and the line that asks for it.
    std::fs::write(dir.path().join("d.webp"), "no video").expect("a file");
    std::fs::write(&csv, "video,text\na.mp4,one\nd.webp,two\n").expect("a file");
    let error = Manifest::load(&csv, false, true, &tokens).expect_err("an error").to_string();
    assert!(error.contains("line 3") && error.contains("d.webp: is not a video"), "{error}");
}
