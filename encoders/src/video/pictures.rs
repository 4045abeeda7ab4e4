//! Folders and patterns of picture files as video.

use std::cmp::Ordering;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::{VideoError, VideoResult};
use super::reader::{Frame, Source};
use crate::image::{DecodeOptions, Limits, Picture};

/// Endings of names that make a file a frame, whatever it holds: a damaged frame is an error and does not just vanish.
const ENDINGS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"];

/// Whether a path stands for several files.
pub(super) fn is_pattern(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.contains(['*', '?', '[']))
}

/// The files of a pattern, in natural order.
pub(super) fn matching(pattern: &Path) -> VideoResult<Vec<PathBuf>> {
    let label = pattern.display().to_string();
    let bad = |e: glob::PatternError| VideoError::Pattern { label: label.clone(), why: e.to_string() };
    let mut files = Vec::new();
    for file in glob::glob(&label).map_err(bad)? {
        let file = file.map_err(|e| VideoError::Io { label: e.path().display().to_string(), source: e.into() })?;
        if !file.is_dir() {
            files.push(file);
        }
    }
    Ok(sorted(files))
}

/// The picture files of a folder, in natural order. A file is a picture by the ending of its name, or by its first bytes.
pub(super) fn inside(folder: &Path) -> VideoResult<Vec<PathBuf>> {
    let io = |source| VideoError::Io { label: folder.display().to_string(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && is_picture(&path) {
            files.push(path);
        }
    }
    Ok(sorted(files))
}

fn is_picture(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    if ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())) {
        return !path.is_dir();
    }
    let mut head = [0; 16];
    let read = File::open(path).and_then(|mut file| file.read(&mut head));
    use image::ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    let format = read.ok().and_then(|n| image::guess_format(head.get(..n)?).ok());
    matches!(format, Some(Bmp | Gif | Jpeg | Png | Tiff | WebP))
}

fn sorted(files: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut named: Vec<(String, PathBuf)> =
        files.into_iter().map(|path| (path.to_string_lossy().into_owned(), path)).collect();
    named.sort_by(|(a, p), (b, q)| natural(a, b).then_with(|| p.cmp(q)));
    named.into_iter().map(|(_, path)| path).collect()
}

/// Runs of digits compare as numbers, so that `frame2` stands before `frame10`; all else as bytes.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    let digits = |s: &[u8]| s.iter().take_while(|c| c.is_ascii_digit()).count();
    while let (Some(&x), Some(&y)) = (a.first(), b.first()) {
        let (m, n) = (digits(a), digits(b));
        let order = if m > 0 && n > 0 {
            let ((left, rest_a), (right, rest_b)) = (a.split_at(m), b.split_at(n));
            (a, b) = (rest_a, rest_b);
            let value = |s: &[u8]| s.iter().position(|c| *c != b'0').unwrap_or(s.len());
            let (left, right) = (&left[value(left)..], &right[value(right)..]);
            left.len().cmp(&right.len()).then_with(|| left.cmp(right))
        } else {
            (a, b) = (&a[1..], &b[1..]);
            x.cmp(&y)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

/// Frames from picture files, one each.
pub(super) struct Pictures {
    files: Vec<PathBuf>,
    options: DecodeOptions,
}

impl Pictures {
    pub fn new(files: Vec<PathBuf>, max_pixels: usize) -> Self {
        let limits = Limits { pixels: max_pixels, ..Limits::default() };
        Self { files, options: DecodeOptions { limits, background: None } }
    }
}

impl Source for Pictures {
    fn next(&mut self, index: usize, shown: bool) -> VideoResult<Option<Frame>> {
        match self.files.get(index) {
            Some(file) if shown => {
                let picture = Picture::open_with(file, &self.options)?;
                let (width, height) = (picture.width(), picture.height());
                Ok(Some(Frame { width, height, rgb: picture.into_rgb() }))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_compare_as_numbers() {
        let names = ["a/1.png", "a/2.png", "a/02b.png", "a/10.png", "a/x1y2", "a/x1y10", "a/x01z", "b"];
        for (i, a) in names.iter().enumerate() {
            for (j, b) in names.iter().enumerate() {
                assert_eq!(natural(a, b), i.cmp(&j), "{a} {b}");
            }
        }
        // As numbers they are one; the paths decide.
        assert_eq!(natural("frame001", "frame1"), Ordering::Equal);
        let long = |digit: &str| format!("f{}.png", digit.repeat(50));
        assert_eq!(natural(&long("8"), &long("9")), Ordering::Less);
    }
}
