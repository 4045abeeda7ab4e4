//! What the model sees, as files.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::align::{Landmarks, PATCH};
use super::error::{FaceError, FaceResult};
use super::find::FaceBox;

/// Writes `crop-NNNNNN.png` for each crop and a line of `landmarks.jsonl` for each frame.
pub(crate) struct Debug {
    folder: PathBuf,
    lines: BufWriter<File>,
}

/// A line: the smoothed landmarks that a crop is cut by, in pixels of the frame.
#[derive(Serialize)]
struct Line<'a> {
    frame: usize,
    /// Whether a face was seen, rather than interpolated.
    seen: bool,
    #[serde(rename = "box")]
    place: Option<FaceBox>,
    points: &'a [(f32, f32)],
}

fn failed(path: &Path, why: impl ToString) -> FaceError {
    FaceError::Debug { path: path.display().to_string(), why: why.to_string() }
}

impl Debug {
    pub fn new(folder: PathBuf) -> FaceResult<Self> {
        fs::create_dir_all(&folder).map_err(|e| failed(&folder, e))?;
        let path = folder.join("landmarks.jsonl");
        let lines = BufWriter::new(File::create(&path).map_err(|e| failed(&path, e))?);
        Ok(Self { folder, lines })
    }

    pub fn write(&mut self, frame: usize, place: Option<FaceBox>, points: &Landmarks, crop: &[u8]) -> FaceResult<()> {
        let path = self.folder.join("landmarks.jsonl");
        let line = Line { frame, seen: place.is_some(), place, points };
        serde_json::to_writer(&mut self.lines, &line).map_err(|e| failed(&path, e))?;
        writeln!(self.lines).map_err(|e| failed(&path, e))?;
        let path = self.folder.join(format!("crop-{frame:06}.png"));
        picture(&path, crop).map_err(|why| failed(&path, why))
    }

    pub fn finish(&mut self) -> FaceResult<()> {
        self.lines.flush().map_err(|e| failed(&self.folder.join("landmarks.jsonl"), e))
    }
}

#[cfg(feature = "image")]
fn picture(path: &Path, rgb: &[u8]) -> Result<(), String> {
    let side = PATCH as u32;
    image::save_buffer(path, rgb, side, side, image::ExtendedColorType::Rgb8).map_err(|e| e.to_string())
}

#[cfg(not(feature = "image"))]
fn picture(_: &Path, rgb: &[u8]) -> Result<(), String> {
    Err(format!(
        "{} bytes of a picture, but this program was built without the feature `image`",
        rgb.len() / PATCH / PATCH
    ))
}
