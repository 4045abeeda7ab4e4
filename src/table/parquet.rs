//! Parquet files, read batch by batch.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;
use parquet::errors::ParquetError;

use super::arrow::Batches;
use crate::error::{Error, Place, Result, one_line};

/// Rows decoded at a time.
const BATCH: usize = 4096;

/// Runs of equal values take no room in a file, so its size does not bound its rows.
const MOST_ROWS: u64 = 1 << 28;

/// The batches of a Parquet file.
pub(super) struct File<'a> {
    name: &'a str,
    bytes: Bytes,
    metadata: ArrowReaderMetadata,
}

impl<'a> File<'a> {
    pub fn open(name: &'a str, bytes: Vec<u8>) -> Result<Self> {
        let bytes = Bytes::from(bytes);
        let metadata = guarded(name, || ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()))?;
        let refuse = |problem: String| Err(Error::input(Place::file(name), problem));
        let rows = metadata.metadata().file_metadata().num_rows();
        if u64::try_from(rows).map_or(true, |rows| rows > MOST_ROWS) {
            return refuse(format!("says that it has {rows} rows; at most {MOST_ROWS} are read: split it"));
        }
        for column in metadata.metadata().row_groups().iter().flat_map(|group| group.columns()) {
            if let other @ (Compression::GZIP(_)
            | Compression::BROTLI(_)
            | Compression::LZ4
            | Compression::LZ4_RAW
            | Compression::LZO) = column.compression()
            {
                let method = other.to_string();
                let method = method.split('(').next().unwrap_or_default().to_string();
                return refuse(format!("is compressed with {method}: write it with Snappy, Zstandard or none"));
            }
        }
        Ok(File { name, bytes, metadata })
    }
}

impl Batches for File<'_> {
    fn schema(&self) -> SchemaRef {
        self.metadata.schema().clone()
    }

    fn each(&self, columns: &[usize], visit: &mut dyn FnMut(&RecordBatch) -> Result<()>) -> Result<()> {
        let mut reader = guarded(self.name, || {
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.bytes.clone(), self.metadata.clone());
            let columns = ProjectionMask::roots(builder.parquet_schema(), columns.iter().copied());
            builder.with_projection(columns).with_batch_size(BATCH).build()
        })?;
        let mut rows = 0_u64;
        while let Some(batch) = guarded(self.name, || reader.next().transpose().map_err(ParquetError::from))? {
            rows += batch.num_rows() as u64;
            if rows > MOST_ROWS {
                let problem = format!("has more than {MOST_ROWS} rows: split it");
                return Err(Error::input(Place::file(self.name), problem));
            }
            visit(&batch)?;
        }
        Ok(())
    }
}

thread_local! {
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a step of the reader, which breaks (panics) on some damaged files. That becomes an error; a
/// program's panic hook may keep quiet about it.
#[doc(hidden)]
pub fn reading() -> bool {
    READING.get()
}

/// Runs a step of the reader. What it says about a damaged file becomes one line; if it breaks on one, so does that.
fn guarded<T>(name: &str, step: impl FnOnce() -> std::result::Result<T, ParquetError>) -> Result<T> {
    READING.set(true);
    // What the step leaves half-done is the reader itself, which is dropped with the error.
    let result = catch_unwind(AssertUnwindSafe(step));
    READING.set(false);
    let problem = match result {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => format!(" ({})", one_line(&error.to_string())),
        Err(_) => String::new(),
    };
    let problem = format!("is not a whole Parquet file{problem}: write or copy it again");
    Err(Error::input(Place::file(name), problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_breaks_is_an_error() {
        let error = guarded::<()>("t.parquet", || {
            assert!(!reading(), "as a damaged file makes the reader do");
            Ok(())
        });
        assert_eq!(error.unwrap_err().to_string(), "t.parquet: is not a whole Parquet file: write or copy it again");
        assert!(!reading());
    }
}
