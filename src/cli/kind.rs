//! What a file holds, by its first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A picture.
    Picture,
    /// Sound, or a video with or without any.
    Sound,
    /// A Parquet table.
    Parquet,
    /// Text: prose, or a table.
    Text,
}

impl Kind {
    /// Looks into the file.
    pub fn of(path: &Path) -> Result<Self> {
        if path.is_dir() {
            bail!("{} is a folder: give a file", path.display());
        }
        let mut start = Vec::new();
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        file.take(64).read_to_end(&mut start).with_context(|| format!("cannot read {}", path.display()))?;
        if start.is_empty() {
            bail!("{}: the file is empty", path.display());
        }
        Self::of_bytes(&start).with_context(|| {
            format!("{}: neither a picture, nor sound, nor a table, nor text that is known here", path.display())
        })
    }

    fn of_bytes(start: &[u8]) -> Option<Self> {
        let at = |from: usize, mark: &[u8]| start.get(from..from + mark.len()) == Some(mark);
        let riff = at(0, b"RIFF") || at(0, b"RIFX");
        Some(match () {
            () if at(0, b"\x89PNG") || at(0, b"\xff\xd8\xff") || at(0, b"GIF8") => Self::Picture,
            () if at(0, b"BM") && !start.iter().all(u8::is_ascii) => Self::Picture,
            () if at(0, b"II*\0") || at(0, b"MM\0*") || riff && at(8, b"WEBP") => Self::Picture,
            () if riff || at(0, b"fLaC") || at(0, b"OggS") || at(0, b"ID3") || at(4, b"ftyp") => Self::Sound,
            // A frame of MPEG audio or of AAC begins with eleven ones.
            () if start.first() == Some(&0xff)
                && start.get(1).is_some_and(|b| b & 0xe0 == 0xe0)
                && !at(0, b"\xff\xfe") =>
            {
                Self::Sound
            }
            () if at(0, b"PAR1") => Self::Parquet,
            () if start.contains(&0) && !at(0, b"\xff\xfe") && !at(0, b"\xfe\xff") => return None,
            () => Self::Text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_content() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
        for (name, kind) in [
            ("pictures/scene-2.png", Kind::Picture),
            ("speech/mouth.webp", Kind::Picture),
            ("speech/clip.wav", Kind::Sound),
            ("speech/clip.mp4", Kind::Sound),
            ("tones.wav", Kind::Sound),
            ("co2.csv", Kind::Text),
            ("text/sonnets.txt", Kind::Text),
        ] {
            assert_eq!(Kind::of(&root.join(name)).unwrap(), kind, "{name}");
        }
        assert_eq!(Kind::of_bytes(b"PAR1...."), Some(Kind::Parquet));
        assert_eq!(Kind::of_bytes(b"\xff\xfb\x90\x00"), Some(Kind::Sound));
        assert_eq!(Kind::of_bytes(b"BM6\x84\x03\x00"), Some(Kind::Picture));
        assert_eq!(Kind::of_bytes(b"BMI of patients"), Some(Kind::Text));
        assert_eq!(Kind::of_bytes("\u{feff}a,b".as_bytes()), Some(Kind::Text));
        assert_eq!(Kind::of_bytes(b"\x7fELF\x02\x01\x01\0\0"), None);
        assert!(Kind::of(&root).unwrap_err().to_string().contains("folder"));
        assert!(Kind::of(&root.join("none")).unwrap_err().to_string().contains("cannot read"));
    }
}
