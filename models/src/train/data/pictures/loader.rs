//! Batches: rows of a corpus, and the pixels of their pictures, each picture once.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Tensor;
use moesaic_encoders::image::{DecodeOptions, ImageProcessor, Picture};

use super::{Corpus, CorpusError, Row, Shuffle};

/// Makes batches. Pictures that were prepared are kept as bytes while there is room, so that later epochs neither read nor
/// resize them again. Shared between threads.
#[derive(Debug)]
pub struct Loader {
    corpus: Corpus,
    processor: ImageProcessor,
    shuffle: Shuffle,
    kept: Vec<OnceLock<Picture>>,
    /// Bytes that may still be kept.
    room: AtomicUsize,
}

/// Rows and their pictures.
#[derive(Clone, Debug)]
pub struct Batch<'c> {
    /// The rows.
    pub rows: Vec<BatchRow<'c>>,
    /// The pictures of all rows, each once, `[n, 3, h, w]` f32 on the CPU; absent for text alone.
    pub pixels: Option<Tensor>,
}

/// A row of a batch.
#[derive(Clone, Debug)]
pub struct BatchRow<'c> {
    /// Its number in the corpus.
    pub number: usize,
    /// What it says.
    pub row: &'c Row,
    /// Which of the batch's pictures are its own, in the order of its marks.
    pub pictures: Vec<usize>,
}

impl Loader {
    /// A loader that prepares pictures by `processor` and keeps at most `room` bytes of them.
    pub fn new(corpus: Corpus, processor: ImageProcessor, shuffle: Shuffle, room: usize) -> Self {
        let kept = corpus.pictures().iter().map(|_| OnceLock::new()).collect();
        Self { corpus, processor, shuffle, kept, room: AtomicUsize::new(room) }
    }

    /// The corpus.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// Bytes that may still be kept.
    pub fn room(&self) -> usize {
        self.room.load(Ordering::Relaxed)
    }

    /// `rows` rows from place `first` of the stream of all epochs ([`Corpus::stream`]).
    ///
    /// # Errors
    /// A picture cannot be decoded; the error names file, line and picture.
    pub fn batch(&self, first: u64, rows: usize) -> Result<Batch<'_>, CorpusError> {
        self.of_rows(&self.corpus.stream(self.shuffle, first, rows))
    }

    /// These rows of the corpus; numbers beyond its end are passed over.
    ///
    /// # Errors
    /// As [`batch`](Self::batch).
    pub fn of_rows(&self, numbers: &[usize]) -> Result<Batch<'_>, CorpusError> {
        let (mut pictures, mut places) = (Vec::new(), HashMap::new());
        let mut rows = Vec::with_capacity(numbers.len());
        for &number in numbers {
            let Some(row) = self.corpus.rows.get(number) else { continue };
            let own = row.pictures.iter().map(|&picture| {
                *places.entry(picture).or_insert_with(|| {
                    pictures.push(picture as usize);
                    pictures.len() - 1
                })
            });
            rows.push(BatchRow { number, row, pictures: own.collect() });
        }
        Ok(Batch { rows, pixels: self.pixels(&pictures)? })
    }

    /// Pixels of pictures of the corpus, `[n, 3, h, w]`; absent for none.
    fn pixels(&self, numbers: &[usize]) -> Result<Option<Tensor>, CorpusError> {
        if numbers.is_empty() {
            return Ok(None);
        }
        let mut crops: Vec<Option<Result<Picture, CorpusError>>> = Vec::new();
        crops.resize_with(numbers.len(), || None);
        // Those that are kept are only copied.
        let worth = numbers.iter().any(|&n| self.kept.get(n).is_none_or(|kept| kept.get().is_none()));
        moesaic_kernels::cpu::chunks(&mut crops, 1, worth, |i, crop| {
            if let (Some(&number), Some(crop)) = (numbers.get(i), crop.first_mut()) {
                *crop = Some(self.prepared(number));
            }
        });
        let crops = crops.into_iter().flatten().collect::<Result<Vec<_>, _>>()?;
        let pixels = self.processor.normalised(&crops).map_err(candle_core::Error::from)?;
        Ok(Some(pixels))
    }

    /// A picture of the corpus, resized and cut.
    fn prepared(&self, number: usize) -> Result<Picture, CorpusError> {
        let kept = self.kept.get(number);
        if let Some(picture) = kept.and_then(OnceLock::get) {
            return Ok(picture.clone());
        }
        let picture = self.decoded(number)?;
        let bytes = picture.rgb().len();
        // Two threads may prepare one picture at the same time; then one of them takes its room back.
        let taken = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(bytes));
        if taken.is_ok() && kept.is_none_or(|kept| kept.set(picture.clone()).is_err()) {
            self.room.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(picture)
    }

    fn decoded(&self, number: usize) -> Result<Picture, CorpusError> {
        let wrong = |problem: String| {
            let row = self.corpus.named_by.get(number).copied().unwrap_or(0);
            let at = self.corpus.place(row as usize).unwrap_or(super::Place {
                file: Default::default(),
                number: 0,
                lines: false,
            });
            CorpusError::Picture { at, problem }
        };
        let path = self.corpus.pictures.get(number).ok_or_else(|| wrong(format!("there is no picture {number}")))?;
        let options = DecodeOptions { limits: self.processor.limits, ..DecodeOptions::default() };
        let picture = Picture::open_with(path, &options).map_err(|e| wrong(e.to_string()))?;
        self.processor.crop(&picture).map_err(|e| wrong(format!("{}: {e}", path.display())))
    }
}
