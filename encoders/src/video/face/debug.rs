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
        picture(&path, (PATCH, PATCH), crop).map_err(|why| failed(&path, why))
    }

    pub fn finish(&mut self) -> FaceResult<()> {
        self.lines.flush().map_err(|e| failed(&self.folder.join("landmarks.jsonl"), e))
    }
}

/// Writes a crop of so many columns and rows that was not found in a face.
pub(crate) fn write_crop(folder: &Path, frame: usize, size: (usize, usize), crop: &[u8]) -> FaceResult<()> {
    if frame == 0 {
        fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
    }
    let path = folder.join(format!("crop-{frame:06}.png"));
    picture(&path, size, crop).map_err(|why| failed(&path, why))
}

fn picture(path: &Path, (width, height): (usize, usize), rgb: &[u8]) -> Result<(), String> {
    let format = image::ExtendedColorType::Rgb8;
    image::save_buffer(path, rgb, width as u32, height as u32, format).map_err(|e| e.to_string())
}
