//! MP4 with H.264, good and bad. The files were made by FFmpeg 9 (`imageio-ffmpeg`) from 60 flat greys, 20, 23, 26, ...:
//!
//! ```python
//! from PIL import Image
//! with open("list.txt", "w") as f:
//!     f.write("ffconcat version 1.0\n")
//!     for i in range(60):
//!         Image.new("RGB", (64, 48), (20 + 3 * i,) * 3).save(f"fr/{i:03d}.png")
//!         f.write(f"file 'fr/{i:03d}.png'\noption framerate 1000\nduration {[40, 80, 40, 20, 20, 120, 40][i % 7]}ms\n")
//! ```
//! ```sh
//! ffmpeg -safe 0 -f concat -i list.txt -fps_mode vfr -c:v libx264 -pix_fmt yuv420p -bf 3 -b_strategy 0 \
//!     -x264-params scenecut=0:keyint=250 -crf 23 -map_metadata -1 grey.mp4
//! ffmpeg -i grey.mp4 -c copy -movflags frag_keyframe+empty_moov+default_base_moof -frag_duration 500000 \
//!     -map_metadata -1 fragments.mp4
//! ffmpeg -safe 0 -f concat -i list.txt -frames:v 3 -c:v libx265 -map_metadata -1 hevc.mp4
//! ffmpeg -f lavfi -i sine=d=0.2 -c:a aac -map_metadata -1 sound.mp4
//! ffmpeg -f lavfi -i color=gray:s=3840x2160:r=25:d=0.08 -c:v libx264 -pix_fmt yuv420p -map_metadata -1 large.mp4
//! ```
#![cfg(feature = "h264")]

use std::path::Path;

use moesaic_encoders::video::{Frame, VideoError, VideoOptions, VideoReader};
use moesaic_kernels::rng::Rng;

const LENIENT: VideoOptions =
    VideoOptions { fps: 25.0, frame_rate: 25.0, max_seconds: 60.0, max_pixels: 1 << 20, lenient: true };
const STRICT: VideoOptions = VideoOptions { lenient: false, ..LENIENT };

fn bytes(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/video").join(name);
    std::fs::read(path).expect("a file of this crate")
}

fn frames(bytes: Vec<u8>, options: VideoOptions) -> Result<Vec<Frame>, VideoError> {
    let reader = VideoReader::from_bytes("clip", bytes, options)?;
    let announced = reader.info().frames as usize;
    let frames = reader.collect::<Result<Vec<_>, _>>()?;
    assert_eq!(frames.len(), announced);
    Ok(frames)
}

/// Greys of frames, each of which must be flat within 3.
fn greys(frames: &[Frame]) -> Vec<u8> {
    let grey = |frame: &Frame| {
        let middle = frame.rgb[frame.rgb.len() / 2];
        assert!(frame.rgb.iter().all(|v| v.abs_diff(middle) <= 3), "a frame is not flat");
        middle
    };
    frames.iter().map(grey).collect()
}

/// The greys of the file by its durations: a frame goes to the nearest place of 25 a second.
fn expected() -> Vec<u8> {
    let times: Vec<u32> = (0..60)
        .scan(0, |time, i| {
            *time += [40, 80, 40, 20, 20, 120, 40][i % 7];
            Some(*time)
        })
        .collect();
    let place = |time: u32| (time * 25 + 500) / 1000;
    let shown = |at| times[..59].iter().filter(|&&time| place(time) <= at).count();
    // To the last frame, whose duration it does not know, FFmpeg gave a millisecond: too short for a place.
    (0..place(times[58] + 1)).map(|at| 20 + 3 * shown(at) as u8).collect()
}

/// Those of a file without an edit list, whose frames are shown 120 ms later than they are decoded, and the last one longer.
fn late() -> Vec<u8> {
    [&[20; 3][..], &expected(), &[197]].concat()
}

fn near(found: &[u8], expected: &[u8]) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= 2)
}

/// Where a box of a kind begins, behind its kind.
fn place(file: &[u8], kind: &[u8; 4]) -> usize {
    file.windows(4).position(|name| name == kind).expect("a box") + 4
}

#[test]
fn frames_come_in_order_at_a_constant_rate() {
    for (name, expected) in [("grey.mp4", expected()), ("fragments.mp4", late())] {
        let frames = frames(bytes(name), STRICT).expect(name);
        assert!(frames.iter().all(|frame| (frame.width, frame.height) == (64, 48)));
        let found = greys(&frames);
        assert!(near(&found, &expected), "{name}: {found:?}\n{expected:?}");
    }
}

#[test]
fn turns_delays_and_sizes() {
    // A quarter: 0, 1, -1 and 0 in the matrix of the track's head.
    let mut file = bytes("grey.mp4");
    let head = place(&file, b"tkhd") + 40;
    for (i, value) in [(0, 0i32), (1, 1 << 16), (3, -(1 << 16)), (4, 0)] {
        file[head + 4 * i..][..4].copy_from_slice(&value.to_be_bytes());
    }
    let turned = frames(file, STRICT).expect("a file");
    assert_eq!((turned[0].width, turned[0].height), (48, 64));
    let mut file = bytes("grey.mp4");
    let list = place(&file, b"edts") - 4;
    file[list..list + 4].copy_from_slice(b"free");
    let found = greys(&frames(file, STRICT).expect("a file"));
    assert!(near(&found, &late()), "{found:?}");
    // 4K is no matter, unless it is not wanted.
    let large = frames(bytes("large.mp4"), VideoOptions::default()).expect("4K");
    assert_eq!((large.len(), large[1].width, large[1].height), (2, 3840, 2160));
    assert!(greys(&large).iter().all(|g| g.abs_diff(128) <= 1));
    let error = frames(bytes("large.mp4"), STRICT).unwrap_err();
    assert!(matches!(error, VideoError::TooLarge { width: 3840, height: 2160, .. }), "{error}");
}

#[test]
fn cut_off_files() {
    for name in ["grey.mp4", "fragments.mp4"] {
        let file = bytes(name);
        let mut some = false;
        for n in (1..file.len()).step_by(17) {
            let strict = frames(file[..n].to_vec(), STRICT);
            assert!(strict.is_err() || name == "fragments.mp4", "{name} cut at {n}");
            if let Ok(frames) = frames(file[..n].to_vec(), LENIENT) {
                some = true;
                assert!(near(&greys(&frames[..1]), &[20]), "{name} cut at {n}");
            }
        }
        let error = frames(file[..file.len() * 2 / 3].to_vec(), STRICT).unwrap_err();
        assert!(matches!(error, VideoError::Truncated { .. }), "{name}: {error}");
        // Only a file in fragments has its tables before the end.
        assert_eq!(some, name == "fragments.mp4");
    }
}

#[test]
fn damaged_frames() {
    let mut file = bytes("grey.mp4");
    // A frame that no other builds upon, by the first byte of its unit: that unit's length becomes nonsense.
    let (data, sizes) = (place(&file, b"mdat"), place(&file, b"stsz"));
    let size = |i: usize| u32::from_be_bytes(file[sizes + 12 + 4 * i..][..4].try_into().expect("four bytes")) as usize;
    let starts = (20..60).map(|i| data + (0..i).map(size).sum::<usize>());
    let at = starts.into_iter().find(|&at| file[at + 4] >> 5 == 0).expect("such a frame");
    file[at..at + 4].fill(0xff);
    let error = frames(file.clone(), STRICT).unwrap_err();
    assert!(matches!(error, VideoError::Damaged { .. }), "{error}");
    let mut reader = VideoReader::from_bytes("clip", file, LENIENT).expect("a file");
    let found = greys(&reader.by_ref().collect::<Result<Vec<_>, _>>().expect("frames"));
    assert_eq!((found.len(), reader.damaged()), (expected().len(), 1));
    let wrong = found.iter().zip(expected()).filter(|(a, b)| a.abs_diff(*b) > 2).count();
    assert!((0..=3).contains(&wrong), "{found:?}\n{:?}", expected());
}

/// Whatever stands in a file: an error or frames, no panic, and no memory without bound.
#[test]
fn mutated_files_do_no_harm() {
    let mut read = [0; 2];
    for (kind, file) in [bytes("grey.mp4"), bytes("fragments.mp4")].iter().enumerate() {
        for seed in 0..1500 {
            let mut rng = Rng::keyed(&[kind as u64, seed]);
            let mut mutated = file.clone();
            for _ in 0..1 + rng.below(6) {
                let at = rng.below(mutated.len());
                mutated[at] = [0, 0xff, 0x7f, rng.below(256) as u8][rng.below(4)];
            }
            if rng.chance(0.1) {
                mutated.truncate(1 + rng.below(mutated.len()));
            }
            for options in [STRICT, LENIENT] {
                if let Ok(reader) = VideoReader::from_bytes("mutated", mutated.clone(), options) {
                    // Times may say that a frame is shown for years.
                    for frame in reader.take(200).map_while(Result::ok) {
                        assert_eq!(frame.rgb.len(), 3 * frame.width * frame.height);
                        read[usize::from(options.lenient)] += 1;
                    }
                }
            }
        }
    }
    assert!(read[0] > 1000 && read[1] > read[0], "{read:?}");
}
