//! Video as users have it, good and bad: which frames come out, or which error.
//!
//! Files that this project's own dependencies cannot write lie in `tests/data/video`. The two WebP files were made by Pillow 13:
//!
//! ```python
//! from PIL import Image, ImageDraw
//! frames = [Image.new("RGB", (96, 96), (g, g, g)) for g in [20, 60, 100, 140, 180, 220]]
//! frames[0].save("grey.webp", save_all=True, append_images=frames[1:], duration=[40, 120, 40, 80, 40, 40], quality=80)
//! def square(i):  # of half opacity, wandering beside a red one that stays
//!     f = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
//!     d = ImageDraw.Draw(f)
//!     d.rectangle((0, 0, 9, 9), (200, 0, 0, 255))
//!     d.rectangle((10 + 6 * i, 10, 17 + 6 * i, 17), (0, 100, 200, 128))
//!     return f
//! frames = [square(i) for i in range(4)]
//! frames[0].save("square.webp", save_all=True, append_images=frames[1:], duration=40, lossless=True, kmin=3, kmax=5)
//! ```
#![cfg(feature = "video")]

use std::path::{Path, PathBuf};

use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use moesaic_encoders::image::ImageError;
use moesaic_encoders::video::{Frame, MouthClip, MouthOptions, Roi, VideoError, VideoOptions, VideoReader};
use moesaic_kernels::rng::Rng;

const LENIENT: VideoOptions =
    VideoOptions { fps: 25.0, frame_rate: 25.0, max_seconds: 60.0, max_pixels: 1 << 20, lenient: true };

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/video").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).expect("a file of this crate")
}

/// A GIF of flat greys, each with its milliseconds.
fn gif(width: u32, height: u32, greys: &[(u8, u32)]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = GifEncoder::new(&mut file);
    encoder.set_repeat(Repeat::Infinite).expect("a head");
    for &(grey, ms) in greys {
        let picture = RgbaImage::from_pixel(width, height, Rgba([grey, grey, grey, 255]));
        let frame = image::Frame::from_parts(picture, 0, 0, Delay::from_numer_denom_ms(ms, 1));
        encoder.encode_frame(frame).expect("a frame");
    }
    drop(encoder);
    file
}

fn save(path: &Path, side: (u32, u32), grey: u8) {
    RgbImage::from_pixel(side.0, side.1, Rgb([grey; 3])).save_with_format(path, ImageFormat::Png).expect("a picture");
}

/// Greys of frames, each of which must be flat within 3.
fn greys(reader: VideoReader) -> Result<Vec<u8>, VideoError> {
    let announced = reader.info().frames;
    let mut greys = Vec::new();
    for frame in reader {
        let Frame { width, height, rgb } = frame?;
        assert_eq!(rgb.len(), 3 * width * height);
        let middle = rgb[rgb.len() / 2];
        assert!(rgb.iter().all(|v| v.abs_diff(middle) <= 3), "frame {} is not flat", greys.len());
        greys.push(middle);
    }
    assert_eq!(greys.len() as u64, announced);
    Ok(greys)
}

fn read(bytes: Vec<u8>, options: VideoOptions) -> Result<Vec<u8>, VideoError> {
    greys(VideoReader::from_bytes("clip", bytes, options)?)
}

fn open(path: &Path, options: VideoOptions) -> Result<Vec<u8>, VideoError> {
    greys(VideoReader::open(path, options)?)
}

fn near(found: &[u8], expected: &[u8]) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= 3)
}

#[test]
fn durations_of_animations_are_kept() {
    let options = VideoOptions::default();
    let webp = open(&path("grey.webp"), options).expect("WebP");
    assert!(near(&webp, &[20, 60, 60, 60, 100, 140, 140, 180, 220]), "{webp:?}");
    let times = [(10, 40), (50, 120), (90, 40), (130, 20), (170, 20)];
    let found = read(gif(20, 10, &times), options).expect("GIF");
    assert!(near(&found, &[10, 50, 50, 50, 90, 130]), "{found:?}");
    // What has no duration is shown for 100 ms, as browsers do.
    let found = read(gif(20, 10, &[(10, 0), (200, 0)]), options).expect("GIF");
    assert!(near(&found, &[10, 10, 10, 200, 200]), "{found:?}");
    let at_50 = VideoOptions { fps: 50.0, ..options };
    assert_eq!(read(gif(20, 10, &times), at_50).expect("GIF").len(), 12);
}

#[test]
fn parts_of_frames_are_painted() {
    let frames: Vec<Frame> = VideoReader::open(&path("square.webp"), VideoOptions::default())
        .expect("WebP")
        .collect::<Result<_, _>>()
        .expect("frames");
    assert_eq!(frames.len(), 4);
    for (i, frame) in frames.iter().enumerate() {
        assert_eq!((frame.width, frame.height), (40, 30));
        for (x, y) in (0..30).flat_map(|y| (0..40).map(move |x| (x, y))) {
            let wanted = match (x, y) {
                (0..10, 0..10) => [200, 0, 0],
                // Half over black.
                (x, 10..18) if (10 + 6 * i..18 + 6 * i).contains(&x) => [0, 50, 100],
                _ => [0; 3],
            };
            let at = 3 * (40 * y + x);
            let found = &frame.rgb[at..at + 3];
            assert!(found.iter().zip(wanted).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 1), "{i} {x} {y}: {found:?}");
        }
    }
}

#[test]
fn folders_and_patterns_in_natural_order() {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, grey) in [("f10.png", 100), ("f2.png", 20), ("f1.png", 10), ("f0003", 30), (".hidden.png", 250)] {
        save(&dir.path().join(name), (24, 16), grey);
    }
    std::fs::write(dir.path().join("notes.txt"), "of a recording").expect("a file");
    std::fs::create_dir(dir.path().join("more.png")).expect("a folder");
    let options = VideoOptions::default();
    // A picture without an ending is one as well.
    assert_eq!(open(dir.path(), options).expect("a folder"), [10, 20, 30, 100]);
    assert_eq!(open(&dir.path().join("f*.png"), options).expect("a pattern"), [10, 20, 100]);
    let slow = VideoOptions { frame_rate: 12.5, ..options };
    assert_eq!(open(&dir.path().join("f[12].png"), slow).expect("a pattern"), [10, 10, 20, 20]);
    let ntsc = VideoOptions { frame_rate: 29.97, ..options };
    let reader = VideoReader::open(dir.path(), ntsc).expect("a folder");
    assert!((reader.info().seconds - 4.0 / 29.97).abs() < 1e-9 && reader.info().format == "pictures");
}

#[test]
fn the_name_of_a_file_says_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let named = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        VideoReader::open(&path, VideoOptions::default())
    };
    assert_eq!(named("a.mp4", &gif(8, 8, &[(1, 40)])).expect("GIF").info().format, "gif");
    assert_eq!(named("b.gif", &bytes("grey.webp")).expect("WebP").info().format, "webp");
    save(&dir.path().join("still.png"), (9, 9), 9);
    let still = std::fs::read(dir.path().join("still.png")).expect("a picture");
    assert!(matches!(named("c.mp4", &still), Err(VideoError::Still { format: "PNG", .. })));
    let mut webp = std::io::Cursor::new(Vec::new());
    RgbImage::new(5, 5).write_to(&mut webp, ImageFormat::WebP).expect("a picture");
    assert!(matches!(named("d.webp", webp.get_ref()), Err(VideoError::Still { format: "WebP", .. })));
    assert!(matches!(named("e.mp4", b""), Err(VideoError::Empty { .. })));
    assert!(matches!(named("f.mp4", b"#!/bin/sh"), Err(VideoError::Format { .. })));
    assert!(matches!(named("g.mp4", b"\x1a\x45\xdf\xa3 webm"), Err(VideoError::Format { .. })));
    assert!(matches!(named("h.mp4", b"RIFF....WAVEfmt "), Err(VideoError::NoVideo { .. })));
}

#[test]
fn tracks_of_mp4() {
    let error = VideoReader::open(&path("sound.mp4"), VideoOptions::default()).err().expect("an error");
    assert!(matches!(error, VideoError::NoVideo { .. }) && error.to_string().contains("only sound"), "{error}");
    let error = VideoReader::open(&path("hevc.mp4"), VideoOptions::default()).err().expect("an error");
    assert!(matches!(error, VideoError::Codec { .. }) && error.to_string().contains("is H.265 (HEVC)"), "{error}");
    let error = VideoReader::open(&path("grey.mp4"), VideoOptions::default()).err();
    if cfg!(feature = "h264") {
        assert!(error.is_none(), "{error:?}");
    } else {
        assert!(matches!(error, Some(VideoError::NeedsH264 { .. })), "{error:?}");
    }
}

#[test]
fn what_is_not_there() {
    let options = VideoOptions::default();
    let dir = tempfile::tempdir().expect("a folder");
    let missing = VideoReader::open(&dir.path().join("none.mp4"), options).err().expect("an error");
    assert!(matches!(missing, VideoError::Io { .. }) && missing.to_string().contains("none.mp4"), "{missing}");
    for path in [dir.path().to_path_buf(), dir.path().join("*.png")] {
        let none = VideoReader::open(&path, options).err();
        assert!(matches!(none, Some(VideoError::NoPictures { .. })), "{none:?}");
    }
    let pattern = VideoReader::open(&dir.path().join("a***b"), options).err();
    assert!(matches!(pattern, Some(VideoError::Pattern { .. })), "{pattern:?}");
    for bad in [f64::NAN, 0.0, -25.0, f64::INFINITY] {
        let error = VideoReader::open(dir.path(), VideoOptions { fps: bad, ..options }).err();
        assert!(matches!(error, Some(VideoError::Input(_))), "{error:?}");
    }
}

#[test]
fn cut_off_files() {
    for (name, file) in [("gif", gif(30, 20, &[(10, 40), (80, 40), (160, 40)])), ("webp", bytes("grey.webp"))] {
        // Of WebP a chunk's byte of padding may be missing.
        for n in 1..file.len() - 1 {
            let strict = read(file[..n].to_vec(), VideoOptions::default());
            assert!(strict.is_err(), "{name} cut at {n}");
            if let Ok(greys) = read(file[..n].to_vec(), LENIENT) {
                assert!(greys.first().is_some_and(|g| g.abs_diff(10) <= 13), "{name} cut at {n}: {greys:?}");
            }
        }
        let error = read(file[..file.len() * 2 / 3].to_vec(), VideoOptions::default()).unwrap_err();
        assert!(matches!(error, VideoError::Truncated { .. }), "{error}");
        assert!(error.to_string().starts_with("clip: is cut off"), "{error}");
        let mut reader = VideoReader::from_bytes("clip", &file[..file.len() * 2 / 3], LENIENT).expect("a part");
        assert!(reader.by_ref().all(|frame| frame.is_ok()) && reader.damaged() == 1, "{}", reader.damaged());
    }
}

#[test]
fn the_previous_frame_stands_in_for_a_damaged_one() {
    // The third frame's size inside is another than outside.
    let mut file = bytes("grey.webp");
    let places: Vec<usize> = file.windows(4).enumerate().filter(|(_, w)| w == b"VP8 ").map(|(i, _)| i).collect();
    file[places[2] + 14] = 95;
    let error = read(file.clone(), VideoOptions::default()).unwrap_err();
    assert!(matches!(error, VideoError::Damaged { frame: 2, .. }), "{error}");
    let mut reader = VideoReader::from_bytes("clip", file.clone(), LENIENT).expect("WebP");
    let found: Vec<u8> = reader.by_ref().map(|frame| frame.expect("a frame").rgb[0]).collect();
    assert!(near(&found, &[20, 60, 60, 60, 60, 140, 140, 180, 220]), "{found:?}");
    assert_eq!(reader.damaged(), 1);
    // For the first one the next one that is whole.
    file[places[0] + 14] = 95;
    let found = read(file.clone(), LENIENT).expect("WebP");
    assert!(near(&found, &[60, 60, 60, 60, 60, 140, 140, 180, 220]), "{found:?}");
    for place in places {
        file[place + 14] = 95;
    }
    assert!(matches!(read(file, LENIENT), Err(VideoError::Damaged { .. })));
    // In a folder.
    let dir = tempfile::tempdir().expect("a folder");
    (1..=3).for_each(|i| save(&dir.path().join(format!("{i}.png")), (8, 8), 10 * i));
    std::fs::write(dir.path().join("2.png"), b"\x89PNG").expect("a file");
    let error = open(dir.path(), VideoOptions::default()).unwrap_err();
    assert!(matches!(error, VideoError::Picture(_)) && error.to_string().contains("2.png"), "{error}");
    assert_eq!(open(dir.path(), LENIENT).expect("a folder"), [10, 10, 30]);
}

#[test]
fn sizes() {
    let dir = tempfile::tempdir().expect("a folder");
    save(&dir.path().join("1.png"), (8, 8), 10);
    save(&dir.path().join("2.png"), (8, 9), 10);
    let error = open(dir.path(), VideoOptions::default()).unwrap_err();
    assert!(matches!(error, VideoError::Sizes { frame: 1, found: (8, 9), expected: (8, 8), .. }), "{error}");
    // Heads that announce much: nothing of the size is taken.
    let mut file = gif(16, 16, &[(10, 40), (20, 40)]);
    file[6..10].fill(0xff);
    let error = read(file, VideoOptions::default()).unwrap_err();
    assert!(matches!(error, VideoError::TooLarge { width: 65_535, height: 65_535, .. }), "{error}");
    let mut file = bytes("grey.webp");
    file[24..30].fill(0xff);
    assert!(matches!(read(file, VideoOptions::default()), Err(VideoError::TooLarge { .. })));
    let small = VideoOptions { max_pixels: 63, ..VideoOptions::default() };
    assert!(matches!(open(dir.path(), small), Err(VideoError::Picture(ImageError::TooLarge { .. }))));
    // 4K is no matter.
    let large = gif(3840, 2160, &[(10, 40)]);
    assert_eq!(read(large, VideoOptions::default()).expect("4K"), [10]);
}

#[test]
fn mouths() {
    let options = MouthOptions::default();
    let clip = MouthClip::open(&path("grey.webp"), &options).expect("a clip");
    assert_eq!((clip.size, clip.rgb.len(), clip.damaged), ((9, 96, 96), 9 * 96 * 96 * 3, 0));
    assert!(clip.rgb[4 * 96 * 96 * 3..5 * 96 * 96 * 3].iter().all(|v| v.abs_diff(100) <= 3));
    for (side, expected) in [((88, 88), 88), ((96, 96), 96), ((128, 120), 96), ((64, 64), 96), ((160, 160), 96)] {
        let clip = MouthClip::from_bytes("clip", gif(side.0, side.1, &[(77, 80)]), &options).expect("a clip");
        assert_eq!(clip.size, (2, expected, expected), "{side:?}");
        assert!(clip.rgb.iter().all(|v| *v == 77), "{side:?}");
    }
    for side in [(161, 161), (320, 240), (100, 120), (40, 40)] {
        let cropped = MouthOptions { roi: Roi::Cropped, ..options.clone() };
        let error = MouthClip::from_bytes("clip", gif(side.0, side.1, &[(77, 80)]), &cropped).unwrap_err();
        assert!(matches!(error, VideoError::Region { .. }) && error.to_string().contains("--roi x,y"), "{error}");
        // Unless it is said that they are mouths, a face is looked for in them.
        let error = MouthClip::from_bytes("clip", gif(side.0, side.1, &[(77, 80)]), &options).unwrap_err();
        assert!(matches!(error, VideoError::Face(_)) && error.to_string().contains("no face"), "{error}");
    }
    // A part: grey rises from left to right.
    let dir = tempfile::tempdir().expect("a folder");
    RgbImage::from_fn(300, 200, |x, y| Rgb([(x / 2) as u8, y as u8, 0]))
        .save(dir.path().join("1.png"))
        .expect("a file");
    let part = |x, y, width, height| {
        MouthClip::open(dir.path(), &MouthOptions { roi: Roi::Box { x, y, width, height }, ..options.clone() })
    };
    let same = part(100, 50, 96, 96).expect("a part");
    assert_eq!((same.size, &same.rgb[..3]), ((1, 96, 96), &[50, 50, 0][..]));
    let half = part(100, 4, 192, 192).expect("a part");
    assert_eq!(half.size, (1, 96, 96));
    let middle = 3 * (96 * 48 + 48);
    assert!(
        half.rgb[middle].abs_diff(98) <= 1 && half.rgb[middle + 1].abs_diff(100) <= 1,
        "{:?}",
        &half.rgb[middle..middle + 3]
    );
    for (x, y, width, height) in [(250, 0, 96, 96), (0, 150, 96, 96), (0, 0, 0, 96), (usize::MAX, 0, 96, 96)] {
        assert!(matches!(part(x, y, width, height), Err(VideoError::Region { .. })));
    }
}

#[test]
fn long_videos_stream_and_do_not_fit_at_once() {
    // Ten minutes and a second in ten frames.
    let file = gif(96, 96, &[(50, 60_100); 10]);
    let reader = VideoReader::from_bytes("long", file.clone(), VideoOptions::default()).expect("GIF");
    assert_eq!((reader.info().frames, reader.info().seconds), (15_025, 601.0));
    assert_eq!(reader.map(|frame| frame.expect("a frame").rgb.len()).sum::<usize>(), 15_025 * 96 * 96 * 3);
    let error = MouthClip::from_bytes("long", file, &MouthOptions::default()).unwrap_err();
    assert!(matches!(error, VideoError::TooLong { .. }), "{error}");
    assert!(error.to_string().starts_with("long: is 601 s long, where 600 s are held at once"), "{error}");
}

/// Whatever stands in a file: an error or frames, no panic that leaves the library, and no memory without bound.
#[test]
fn mutated_files_do_no_harm() {
    let files = [gif(32, 24, &[(10, 40), (80, 80), (160, 40)]), bytes("grey.webp"), bytes("square.webp")];
    let mut read = [0; 2];
    for (kind, file) in files.iter().enumerate() {
        for seed in 0..1000 {
            let mut rng = Rng::keyed(&[kind as u64, seed]);
            let mut mutated = file.clone();
            let most = if rng.chance(0.5) { mutated.len() } else { mutated.len().min(60) };
            for _ in 0..1 + rng.below(6) {
                let at = rng.below(most);
                mutated[at] = [0, 0xff, 0x7f, rng.below(256) as u8][rng.below(4)];
            }
            if rng.chance(0.2) {
                mutated.truncate(1 + rng.below(mutated.len()));
            }
            for options in [VideoOptions { lenient: false, ..LENIENT }, LENIENT] {
                if let Ok(reader) = VideoReader::from_bytes("mutated", mutated.clone(), options) {
                    // Frames of long duration repeat.
                    for frame in reader.take(500).map_while(Result::ok) {
                        assert_eq!(frame.rgb.len(), 3 * frame.width * frame.height);
                        read[usize::from(options.lenient)] += 1;
                    }
                }
            }
        }
    }
    // The mutations are not so coarse that nothing is decoded, and being lenient helps.
    assert!(read[0] > 1000 && read[1] > read[0], "{read:?}");
}
