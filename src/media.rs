//! What a file holds, by its content, and what of it a model is shown.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

#[cfg(feature = "audio")]
use moesaic_encoders::audio::{AudioOptions, AudioReader, Downmix, SAMPLE_RATE};
#[cfg(feature = "image")]
use moesaic_encoders::image::Picture;

use crate::error::{Error, Place, Result};
use crate::series::Series;
use crate::table::{Table, TableOptions, listed};

/// What a file holds, told by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A picture.
    Picture,
    /// Sound, or a video with or without any.
    Sound,
    /// A Parquet table.
    Parquet,
    /// Text: prose, or a table.
    Text,
}

/// Something that a model is shown.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Media {
    /// Text.
    Text(String),
    /// A picture.
    #[cfg(feature = "image")]
    Picture(Picture),
    /// Samples at 16 kHz, in -1 to 1.
    Sound(Vec<f32>),
    /// A time series, the newest value last; missing ones are NaN.
    Series(Series),
}

impl FileKind {
    /// Looks into a file.
    ///
    /// # Errors
    /// [`Error::Io`] for what cannot be read, [`Error::Input`] for a folder, an empty file and what is not known here.
    pub fn of(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let problem = |text: &str| Error::input(Place::file(path.display().to_string()), text);
        if path.is_dir() {
            return Err(problem("is a folder: give a file"));
        }
        let mut start = Vec::new();
        let file = File::open(path).map_err(|error| Error::io("read", path, error))?;
        file.take(64).read_to_end(&mut start).map_err(|error| Error::io("read", path, error))?;
        if start.is_empty() {
            return Err(problem("the file is empty"));
        }
        let kind = Self::of_bytes(&start);
        kind.ok_or_else(|| problem("neither a picture, nor sound, nor a table, nor text that is known here"))
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

impl Media {
    /// Reads a file by its content: a picture, the first channel of a sound, one series of a table, or text. Of a sound at most `seconds` are
    /// read, of a table the column that `options` name. The second value are remarks, one line each.
    ///
    /// A text file is text where it is named so (`.txt`, `.md`), a table where that is named so (`.csv`, `.tsv`) or `options` name
    /// columns, and else a table if it can be read as one.
    ///
    /// # Errors
    /// As [`FileKind::of`]; [`Error::Media`] for a damaged picture or sound, or one that this build does not read; [`Error::Input`] for a table
    /// with several series none of which is chosen by its column, or in a long table by its id.
    pub fn open(path: impl AsRef<Path>, seconds: f64, options: &TableOptions) -> Result<(Self, Vec<String>)> {
        let path = path.as_ref();
        match FileKind::of(path)? {
            FileKind::Picture => picture(path).map(|picture| (picture, Vec::new())),
            FileKind::Sound => sound(path, seconds),
            FileKind::Parquet => series(path, table(path, options)?),
            FileKind::Text => {
                let named = |end: &str| path.extension().is_some_and(|own| own.eq_ignore_ascii_case(end));
                let prose = || text(path).map(|text| (text, Vec::new()));
                if named("txt") || named("md") {
                    return prose();
                }
                // Who names columns means a table.
                let sure = named("csv") || named("tsv") || *options != TableOptions::default();
                match table(path, options) {
                    Err(Error::Input { .. }) if !sure => prose(),
                    read => series(path, read?),
                }
            }
        }
    }
}

/// Bytes of a text at most: more is no question.
const LONGEST_TEXT: u64 = 1 << 20;

fn text(path: &Path) -> Result<Media> {
    let problem = |text: String| Error::input(Place::file(path.display().to_string()), text);
    let size = fs::metadata(path).map_err(|error| Error::io("read", path, error))?.len();
    if size > LONGEST_TEXT {
        return Err(problem(format!("a text of {size} bytes: give up to {LONGEST_TEXT}")));
    }
    let bytes = fs::read(path).map_err(|error| Error::io("read", path, error))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Media::Text(text.trim_start_matches('\u{feff}').to_string())),
        Err(_) => Err(problem("is not UTF-8: save the text as UTF-8".to_string())),
    }
}

/// A table; `options` may name a series of a long one, which no column has as its name.
fn table(path: &Path, options: &TableOptions) -> Result<Table> {
    match Table::read(path, options) {
        Err(error @ Error::Input { .. }) if !options.columns.is_empty() => {
            let any = TableOptions { columns: Vec::new(), ..options.clone() };
            let Ok(mut table) = Table::read(path, &any) else { return Err(error) };
            table.series.retain(|series| options.columns.contains(&series.name));
            if table.series.is_empty() { Err(error) } else { Ok(table) }
        }
        read => read,
    }
}

fn series(path: &Path, table: Table) -> Result<(Media, Vec<String>)> {
    let mut all = table.series;
    match (all.pop(), all.is_empty()) {
        (Some(series), true) => Ok((Media::Series(series), table.notes)),
        (last, _) => {
            let names = all.iter().chain(&last).map(|series| series.name.as_str());
            let problem = format!("there are {} series: choose one of {}", all.len() + 1, listed(names));
            Err(Error::input(Place::file(path.display().to_string()), problem))
        }
    }
}

#[cfg(feature = "image")]
fn picture(path: &Path) -> Result<Media> {
    Ok(Media::Picture(Picture::open(path)?))
}

#[cfg(not(feature = "image"))]
fn picture(path: &Path) -> Result<Media> {
    Err(Error::Media(format!("{}: this build reads no pictures (feature image)", path.display())))
}

#[cfg(feature = "audio")]
fn sound(path: &Path, seconds: f64) -> Result<(Media, Vec<String>)> {
    let options = AudioOptions { downmix: Downmix::First, ..AudioOptions::default() };
    let most = (seconds.clamp(0.0, 1e5) * f64::from(SAMPLE_RATE)).round().max(1.0) as usize;
    let mut windows = AudioReader::open(path, options)?.windows(most);
    let Some(samples) = windows.next().transpose()? else {
        return Err(Error::Media(format!("{}: there is no sound in it", path.display())));
    };
    // The next window is read only as far as to know that there is one.
    let more = samples.len() == most && windows.next().transpose()?.is_some();
    let note = format!("{}: only the first {seconds} s are heard", path.display());
    Ok((Media::Sound(samples), more.then_some(note).into_iter().collect()))
}

#[cfg(not(feature = "audio"))]
fn sound(path: &Path, _: f64) -> Result<(Media, Vec<String>)> {
    Err(Error::Media(format!("{}: this build reads no sound (feature audio)", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data")
    }

    #[test]
    fn files_are_known_by_their_content() {
        for (name, kind) in [
            ("pictures/scene-2.png", FileKind::Picture),
            ("speech/mouth.webp", FileKind::Picture),
            ("speech/clip.wav", FileKind::Sound),
            ("speech/clip.mp4", FileKind::Sound),
            ("tones.wav", FileKind::Sound),
            ("co2.csv", FileKind::Text),
            ("text/sonnets.txt", FileKind::Text),
        ] {
            assert_eq!(FileKind::of(root().join(name)).unwrap(), kind, "{name}");
        }
        assert_eq!(FileKind::of_bytes(b"PAR1...."), Some(FileKind::Parquet));
        assert_eq!(FileKind::of_bytes(b"\xff\xfb\x90\x00"), Some(FileKind::Sound));
        assert_eq!(FileKind::of_bytes(b"BM6\x84\x03\x00"), Some(FileKind::Picture));
        assert_eq!(FileKind::of_bytes(b"BMI of patients"), Some(FileKind::Text));
        assert_eq!(FileKind::of_bytes("\u{feff}a,b".as_bytes()), Some(FileKind::Text));
        assert_eq!(FileKind::of_bytes(b"\x7fELF\x02\x01\x01\0\0"), None);
        assert!(FileKind::of(root()).unwrap_err().to_string().contains("folder"));
        assert!(FileKind::of(root().join("none")).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn text_is_a_table_or_prose() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str, text: &str, options: &TableOptions| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            Media::open(&path, 1.0, options)
        };
        let any = TableOptions::default();
        let two = "day,north,south\n2024-01-01,1,5\n2024-01-02,2,6\n2024-01-03,3,7\n";
        let error = open("two.csv", two, &any).unwrap_err().to_string();
        assert!(error.contains("two.csv: there are 2 series: choose one of 'north', 'south'"), "{error}");
        let chosen = open("two.csv", two, &TableOptions::default().columns(["south"])).unwrap();
        assert!(matches!(&chosen.0, Media::Series(series) if series.values == [5.0, 6.0, 7.0]), "{chosen:?}");
        let long = "day,shop,sold\n2024-01-01,a,1\n2024-01-02,a,2\n2024-01-01,b,5\n2024-01-02,b,6\n";
        let error = open("long", long, &any).unwrap_err().to_string();
        assert!(error.contains("choose one of 'a', 'b'"), "{error}");
        let chosen = open("long", long, &TableOptions::default().columns(["b"])).unwrap().0;
        assert!(matches!(&chosen, Media::Series(series) if series.values == [5.0, 6.0]), "{chosen:?}");
        let error = open("long", long, &TableOptions::default().columns(["c"])).unwrap_err().to_string();
        assert!(error.contains("'c'"), "{error}");
        let plain = open("plain", "1.5\n2.5\n4\n", &any).unwrap().0;
        assert!(matches!(&plain, Media::Series(series) if series.values == [1.5, 2.5, 4.0]), "{plain:?}");
        let prose = open("prose", "Shall I compare thee\nto a summer's day?\n", &any).unwrap().0;
        assert!(matches!(&prose, Media::Text(text) if text.starts_with("Shall")), "{prose:?}");
        let digits = open("digits.txt", "1\n2\n3\n", &any).unwrap().0;
        assert!(matches!(&digits, Media::Text(text) if text == "1\n2\n3\n"), "{digits:?}");
        assert!(open("empty.csv", "", &any).unwrap_err().to_string().contains("empty"));
        assert!(open("prose.csv", "Shall I\ncompare thee\n", &any).is_err());
    }

    #[cfg(all(feature = "audio", feature = "image"))]
    #[test]
    fn pictures_and_the_beginning_of_a_sound() {
        let any = TableOptions::default();
        let (picture, notes) = Media::open(root().join("pictures/digit.png"), 1.0, &any).unwrap();
        assert!(matches!(picture, Media::Picture(_)) && notes.is_empty());
        let samples = |seconds: f64| match Media::open(root().join("speech/clip.wav"), seconds, &any).unwrap() {
            (Media::Sound(samples), notes) => (samples.len(), notes),
            other => panic!("{other:?}"),
        };
        let (whole, notes) = samples(1000.0);
        assert!(notes.is_empty());
        let (part, notes) = samples(0.5);
        assert!(part == 8000 && whole > part, "{part} {whole}");
        assert!(notes.len() == 1 && notes[0].contains("only the first 0.5 s"), "{notes:?}");
        // A sound that ends with the window is whole.
        assert!(samples(whole as f64 / 16_000.0).1.is_empty());
    }
}
