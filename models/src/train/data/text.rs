//! Training text: files of documents, as one stream of tokens that is cut into rows of one length.
//!
//! Documents stand one after the other, each ended by the model's end-of-text token where it has one; a row may hold the end
//! of one and the start of the next. Rows share their border token, so every token but the very first is predicted once an
//! epoch. The order of rows is drawn anew for each epoch from the seed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, bail};
use moesaic_kernels::rng::Rng;

use super::super::at;

/// Token ids of a text.
pub type Tokenise<'a> = dyn Fn(&str) -> Result<Vec<u32>> + 'a;

/// Files of documents.
#[derive(Clone, Debug)]
pub struct Documents<'a> {
    /// Text files in UTF-8, or folders of `.txt` files, taken by name.
    pub paths: &'a [PathBuf],
    /// The line between documents; without one, each file is one document.
    pub separator: Option<&'a str>,
}

impl Documents<'_> {
    /// The tokens of all documents. `end` follows each document that does not end in it.
    ///
    /// # Errors
    /// A file cannot be read, is not UTF-8 or has no text, or a token is not below `vocabulary`.
    pub fn tokens(&self, tokenise: &Tokenise<'_>, end: Option<u32>, vocabulary: usize) -> Result<Vec<u32>> {
        let mut stream = Vec::new();
        for path in self.files()? {
            let bytes = std::fs::read(&path).map_err(|e| at(&path, e))?;
            let text = std::str::from_utf8(&bytes).map_err(|e| {
                let line = bytes.iter().take(e.valid_up_to()).filter(|b| **b == b'\n').count() + 1;
                at(&path, format!("line {line} is not UTF-8; convert the file, for example with iconv"))
            })?;
            // A byte-order mark is no text.
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            let before = stream.len();
            for document in self.split(text).iter().filter(|d| !d.trim().is_empty()) {
                let tokens = tokenise(document).map_err(|e| at(&path, e))?;
                if let Some(id) = tokens.iter().find(|id| **id as usize >= vocabulary) {
                    let message = format!("token id {id} is not in the model's vocabulary of {vocabulary} tokens");
                    return Err(at(&path, message + ": the tokenizer belongs to another model"));
                }
                let last = tokens.last().copied();
                stream.extend(tokens);
                stream.extend(end.filter(|end| last != Some(*end)));
            }
            if stream.len() == before {
                return Err(at(&path, "there is no text in it"));
            }
        }
        Ok(stream)
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for path in self.paths {
            if !path.is_dir() {
                files.push(path.clone());
                continue;
            }
            let entries = std::fs::read_dir(path).map_err(|e| at(path, e))?;
            let mut inside =
                entries.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>().map_err(|e| at(path, e))?;
            inside.retain(|f| f.is_file() && f.extension().is_some_and(|e| e == "txt"));
            if inside.is_empty() {
                return Err(at(path, "there is no .txt file in this folder"));
            }
            inside.sort();
            files.append(&mut inside);
        }
        Ok(files)
    }

    fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let Some(separator) = self.separator else { return vec![text] };
        let (mut documents, mut start, mut at) = (Vec::new(), 0, 0);
        for line in text.split_inclusive('\n') {
            let end = at + line.len();
            if line.trim_end_matches(['\n', '\r']) == separator {
                documents.extend(text.get(start..at));
                start = end;
            }
            at = end;
        }
        documents.extend(text.get(start..));
        documents
    }
}

/// A stream of tokens in rows of one length.
#[derive(Debug)]
pub struct Rows {
    tokens: Vec<u32>,
    length: usize,
    /// The order of the epoch that was last asked for.
    order: Mutex<(u64, Arc<[u32]>)>,
}

impl Rows {
    /// Rows of `length` tokens.
    ///
    /// # Errors
    /// Fewer tokens than one row takes.
    pub fn new(tokens: Vec<u32>, length: usize) -> Result<Self> {
        if length < 2 {
            bail!("rows of {length} tokens have nothing to predict; data.length must be at least 2");
        }
        if tokens.len() < length {
            bail!("the text has {} tokens, one row takes {length}; give more text or lower data.length", tokens.len());
        }
        if tokens.len() / (length - 1) > u32::MAX as usize {
            bail!("the text has {} tokens, too many for rows of {length}; raise data.length", tokens.len());
        }
        Ok(Self { tokens, length, order: Mutex::new((u64::MAX, Arc::from([]))) })
    }

    /// Tokens in all.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whole rows.
    pub fn count(&self) -> usize {
        (self.tokens.len() - 1) / (self.length - 1)
    }

    /// A whole row, in the order of the text.
    pub fn row(&self, i: usize) -> &[u32] {
        let start = i.min(self.count().saturating_sub(1)) * (self.length - 1);
        self.tokens.get(start..start + self.length).unwrap_or_default()
    }

    /// What is left after the last whole row, with the token before it; empty if there is nothing to predict in it.
    pub fn rest(&self) -> &[u32] {
        let rest = self.tokens.get(self.count() * (self.length - 1)..).unwrap_or_default();
        if rest.len() > 1 { rest } else { &[] }
    }

    /// `rows` rows from place `first` of a stream that goes through all rows once an epoch, each time in another order.
    pub fn batch(&self, seed: u64, first: u64, rows: usize) -> Vec<u32> {
        let count = self.count() as u64;
        let mut batch = Vec::with_capacity(rows * self.length);
        for place in first..first + rows as u64 {
            let order = self.order(seed, place / count);
            let row = order.get((place % count) as usize).map_or(0, |row| *row as usize);
            batch.extend_from_slice(self.row(row));
        }
        batch
    }

    fn order(&self, seed: u64, epoch: u64) -> Arc<[u32]> {
        // A panic while the lock is held leaves an order that is still one.
        let mut kept = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.0 != epoch {
            let mut rng = Rng::keyed(&[seed, epoch, 0x7465_7874]);
            let mut order: Vec<u32> = (0..self.count() as u32).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, rng.below(i + 1));
            }
            *kept = (epoch, order.into());
        }
        kept.1.clone()
    }
}

/// Tokens as bytes: what a model without a tokenizer is trained on. Ids 0 to 255 are the bytes of UTF-8.
pub fn bytes(text: &str) -> Result<Vec<u32>> {
    Ok(text.bytes().map(u32::from).collect())
}

/// A number that tells streams of tokens apart (FNV-1a).
pub fn fingerprint(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0xcbf2_9ce4_8422_2325, |h: u64, t| (h ^ u64::from(*t)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_split_at_their_line_and_ended() -> Result<()> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("b.txt"), "\u{feff}one\r\n%\r\ntwo\n%% no\n%\n\n")?;
        std::fs::write(dir.path().join("a.txt"), "zero")?;
        std::fs::write(dir.path().join("c.md"), "not text")?;
        let paths = [dir.path().to_path_buf()];
        let read = |separator| -> Result<String> {
            let tokens = Documents { paths: &paths, separator }.tokens(&bytes, Some(256), 257)?;
            Ok(tokens.iter().map(|&t| char::from_u32(t).filter(|_| t < 256).unwrap_or('|')).collect())
        };
        assert_eq!(read(Some("%"))?, "zero|one\r\n|two\n%% no\n|");
        assert_eq!(read(None)?, "zero|one\r\n%\r\ntwo\n%% no\n%\n\n|");
        let error = Documents { paths: &paths, separator: None }.tokens(&bytes, None, 100).unwrap_err().to_string();
        assert!(error.contains("a.txt") && error.contains("vocabulary of 100"), "{error}");
        std::fs::write(dir.path().join("a.txt"), b"fine\nnot \xff\n")?;
        let error = read(None).unwrap_err().to_string();
        assert!(error.contains("a.txt") && error.contains("line 2"), "{error}");
        std::fs::write(dir.path().join("a.txt"), " \n")?;
        assert!(read(None).unwrap_err().to_string().contains("no text"));
        Ok(())
    }

    #[test]
    fn an_epoch_predicts_every_token_once() -> Result<()> {
        let rows = Rows::new((0..25).collect(), 5)?;
        assert_eq!((rows.count(), rows.row(0), rows.row(5)), (6, &[0, 1, 2, 3, 4][..], &[20, 21, 22, 23, 24][..]));
        assert!(rows.rest().is_empty());
        assert_eq!(Rows::new((0..24).collect(), 5)?.rest(), [20, 21, 22, 23]);
        let predicted = |epoch: u64| {
            let batch = [rows.batch(3, epoch * 6, 2), rows.batch(3, epoch * 6 + 2, 4)].concat();
            batch.chunks(5).flat_map(|row| row[1..].to_vec()).collect::<Vec<u32>>()
        };
        let (first, second) = (predicted(0), predicted(1));
        assert_ne!(first, second);
        for mut epoch in [first, second] {
            epoch.sort_unstable();
            assert_eq!(epoch, (1..25).collect::<Vec<u32>>());
        }
        // Any batch can be made again.
        assert_eq!(rows.batch(3, 4, 4), rows.batch(3, 4, 4));
        assert!(Rows::new(vec![1, 2], 3).unwrap_err().to_string().contains("data.length"));
        Ok(())
    }
}
