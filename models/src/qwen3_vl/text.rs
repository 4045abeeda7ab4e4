//! How Qwen3-VL's prompts say where pictures and videos stand, before they become ids.
//!
//! Reference: [`processing_qwen3_vl.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/qwen3_vl/processing_qwen3_vl.py).

use candle_core::{Result, bail};

/// Stands for a picture.
pub const IMAGE: &str = "<|image_pad|>";
/// Stands for a video, and for its pairs of frames.
pub const VIDEO: &str = "<|video_pad|>";
/// Before a picture or a pair of frames.
pub const START: &str = "<|vision_start|>";
/// Behind a picture or a pair of frames.
pub const END: &str = "<|vision_end|>";

/// The time of each group of frames, in seconds: the mean of its first and its last. `frames` are numbers of frames of a video
/// with `fps` frames a second; the last is repeated until groups of `group` are full.
pub fn times(frames: &[usize], fps: f64, group: usize) -> Vec<f64> {
    let last = frames.last().copied().unwrap_or(0);
    let time = |frame: &usize| *frame as f64 / fps;
    let groups = frames.chunks(group.max(1));
    groups
        .map(|frames| {
            let end = if frames.len() < group { last } else { frames.last().copied().unwrap_or(last) };
            (frames.first().map_or(0.0, time) + time(&end)) / 2.0
        })
        .collect()
}

/// A prompt in which each video is a row of times and marks, one mark for each pair of frames, as
/// [`Qwen3Vl::splice`](super::Qwen3Vl::splice) takes it once it is ids. `videos` are the times of each video's pairs of frames.
/// Pictures keep their marks.
///
/// # Errors
/// The prompt has more or fewer marks of videos than there are videos.
pub fn with_videos(prompt: &str, videos: &[Vec<f64>]) -> Result<String> {
    let whole = format!("{START}{VIDEO}{END}");
    let mut rest = prompt;
    let mut all = String::new();
    for (i, times) in videos.iter().enumerate() {
        let Some(at) = rest.find(VIDEO) else { bail!("{} videos for {i} marks {VIDEO}", videos.len()) };
        let (mut before, mut after) =
            (rest.get(..at).unwrap_or_default(), rest.get(at + VIDEO.len()..).unwrap_or_default());
        // The marks around it are those of its frames.
        if let (Some(b), Some(a)) = (before.strip_suffix(START), after.strip_prefix(END)) {
            (before, after) = (b, a);
        }
        all.push_str(before);
        all.extend(times.iter().map(|time| format!("<{time:.1} seconds>{whole}")));
        rest = after;
    }
    if rest.contains(VIDEO) {
        bail!("{} videos for more marks {VIDEO}", videos.len());
    }
    Ok(all + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_reference() {
        // By `_calculate_timestamps` of transformers 4.57.6.
        assert_eq!(times(&[0, 12, 24, 36], 24.0, 2), [0.25, 1.25]);
        assert_eq!(times(&[0, 7, 15], 10.0, 2), [0.35, 1.5]);
        assert_eq!(times(&[], 10.0, 2), [0.0; 0]);
    }

    #[test]
    fn each_pair_of_frames_has_its_time_and_its_mark() {
        let prompt = format!("{START}{IMAGE}{END}a{START}{VIDEO}{END}b{VIDEO}c");
        // Halves are rounded to even digits, as Python has it.
        let got = with_videos(&prompt, &[vec![0.25, 1.25], vec![10.0]]).unwrap();
        let frame = format!("{START}{VIDEO}{END}");
        let wanted = format!("{START}{IMAGE}{END}a<0.2 seconds>{frame}<1.2 seconds>{frame}b<10.0 seconds>{frame}c");
        assert_eq!(got, wanted);
        assert!(with_videos(&prompt, &[vec![0.0]]).is_err());
        assert!(with_videos(&prompt, &[vec![0.0], vec![0.0], vec![0.0]]).is_err());
    }
}
