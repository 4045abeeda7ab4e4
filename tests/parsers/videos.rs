//! Videos: animations and, where it is decoded, H.264 in MP4.

use moesaic_encoders::video::{MouthOptions, MouthReader, Roi, VideoOptions, VideoReader};

use super::{Bound, Layout, Parser};

/// Pixels of a frame that are admitted.
const PIXELS: usize = 1 << 16;
/// Frames that are decoded of each input.
const FRAMES: usize = 5;
/// Frames that are held at once, as 16 bytes a pixel: the canvas, what is drawn on it, what is shown, and the decoder's work. The
/// file is held once and read in pieces; a file may state as many frames as it has bytes, each with its place and time.
const VIDEO: Bound = Bound { base: 8 * 16 * PIXELS, per_byte: 160 };

fn parser(name: &'static str, seeds: fn() -> Vec<Vec<u8>>) -> Parser {
    Parser { name, seeds, parse, bound: VIDEO, layout: Layout::Plain }
}

/// Animated GIF as video.
pub fn video_gif() -> Parser {
    parser("video_gif", || vec![include_bytes!("../data/pictures/animated.gif").to_vec()])
}

/// Animated WebP as video.
pub fn video_webp() -> Parser {
    parser("video_webp", || {
        vec![
            include_bytes!("../data/pictures/animated.webp").to_vec(),
            include_bytes!("../../encoders/tests/data/video/square.webp").to_vec(),
        ]
    })
}

/// MP4 with H.264: its tables, fragments and parameter sets are ours.
#[cfg(feature = "h264")]
pub fn mp4() -> Parser {
    parser("mp4", || {
        vec![
            include_bytes!("../../encoders/tests/data/video/grey.mp4").to_vec(),
            include_bytes!("../../encoders/tests/data/video/fragments.mp4").to_vec(),
        ]
    })
}

/// Reads the first frames as they are, strictly, and again with what can be saved, cropped to a part.
fn parse(input: &[u8]) -> Result<(), String> {
    super::pictures::quietly();
    let options = VideoOptions { max_pixels: PIXELS, ..VideoOptions::default() };
    let saved = VideoReader::from_bytes("input", input, VideoOptions { lenient: true, ..options });
    if let Ok(reader) = saved {
        let roi = Roi::Box { x: 0, y: 0, width: 8, height: 8 };
        let mouths = MouthReader::new(reader, MouthOptions { roi, ..MouthOptions::default() });
        for mouth in mouths.take(FRAMES) {
            let Ok(mouth) = mouth else { break };
            assert_eq!(mouth.rgb.len(), mouth.width * mouth.height * 3);
        }
    }
    let reader = VideoReader::from_bytes("input", input, options).map_err(|error| error.to_string())?;
    let info = *reader.info();
    assert!(info.seconds.is_finite() && info.seconds >= 0.0);
    for frame in reader.take(FRAMES) {
        let frame = frame.map_err(|error| error.to_string())?;
        assert!(frame.width * frame.height <= PIXELS);
        assert_eq!(frame.rgb.len(), frame.width * frame.height * 3);
    }
    Ok(())
}
