//! One file from the Hub into the cache: resumed where an earlier attempt broke off, checked, and only then in its place.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ring::digest::{Context, SHA256};

use super::cache::{Cache, Lock, create_parent};
use super::http::{Client, Metadata};
use super::id::{RepoId, is_sha256};
use super::options::Stage;
use super::problem::{HubErrorKind, Outcome, Problem};
use crate::error::quoted;

/// Bytes that are received, written and reported at once.
const CHUNK: usize = 128 << 10;
/// The wait before the first repetition; it doubles with each in a row.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// One file of one commit.
pub(super) struct Wanted<'a> {
    pub client: &'a Client,
    pub cache: &'a Cache,
    pub id: &'a RepoId,
    pub commit: &'a str,
    pub file: &'a str,
    pub retries: u32,
    pub report: &'a dyn Fn(Stage),
}

impl Wanted<'_> {
    /// Puts the file into the snapshot of its commit.
    pub fn fetch(&self) -> Outcome<()> {
        let declared = self.patiently(|| self.client.metadata(self.id, self.commit, self.file))?;
        let lock = self.cache.lock(&declared.etag, &|| (self.report)(Stage::Waiting))?;
        let blob = self.cache.blob(&declared.etag);
        // Whoever held the lock may have fetched it meanwhile.
        if !blob.exists() {
            create_parent(&blob).map_err(|error| Problem::storage("create", &blob, &error))?;
            let partial = self.cache.partial(&declared.etag, &lock);
            self.download(&declared, &partial, &blob).inspect_err(|_| {
                let empty = fs::metadata(&partial).is_ok_and(|file| file.len() == 0);
                // Kept only where a later call finds it and can tell whether it is right.
                if empty || matches!(lock, Lock::Unknown) || !is_sha256(&declared.etag) {
                    let _ = fs::remove_file(&partial);
                }
            })?;
        }
        self.cache.link(&declared.etag, self.commit, self.file)?;
        (self.report)(Stage::Done);
        Ok(())
    }

    /// Repeats what may succeed later.
    fn patiently<T>(&self, attempt: impl Fn() -> Outcome<T>) -> Outcome<T> {
        let mut failures = 0;
        loop {
            match attempt() {
                Err(problem) if problem.passes() && failures < self.retries => wait(&mut failures),
                other => return other,
            }
        }
    }

    fn download(&self, declared: &Metadata, path: &Path, blob: &Path) -> Outcome<()> {
        let mut partial = Partial::open(path, &declared.etag)?;
        let mut size = declared.size;
        let mut resumed = partial.length > 0;
        let mut failures = 0;
        loop {
            let before = partial.length;
            match self.receive(&mut partial, &mut size) {
                Ok(()) => {}
                Err(problem) if problem.passes() => {
                    if partial.length > before {
                        failures = 0;
                    }
                    if failures >= self.retries {
                        return Err(problem);
                    }
                    wait(&mut failures);
                    continue;
                }
                Err(problem) => {
                    if problem.kind == HubErrorKind::Damaged {
                        partial.remove();
                    }
                    return Err(problem);
                }
            }
            match partial.mismatch(&declared.etag) {
                None => return partial.finish(blob),
                // The part that an earlier process left may be what is wrong: once more, from the start.
                Some(_) if resumed => {
                    resumed = false;
                    partial.restart()?;
                }
                Some(found) => {
                    partial.remove();
                    let wanted = declared.etag.get(..12).unwrap_or_default();
                    let found = found.get(..12).unwrap_or_default();
                    return Err(Problem::damaged(format!(
                        "{} came damaged (its SHA-256 starts with {found}, not {wanted}): try again, and check \
                         HF_ENDPOINT if it stays so",
                        self.file
                    )));
                }
            }
        }
    }

    /// Appends what is missing of the file. `size` is what the Hub declares; where it has not yet, this request may.
    fn receive(&self, partial: &mut Partial, size: &mut Option<u64>) -> Outcome<()> {
        if size.is_some_and(|size| partial.length > size) {
            partial.restart()?;
        }
        if size.is_some_and(|size| partial.length == size) {
            return Ok(());
        }
        let content = self.client.content(self.id, self.commit, self.file, partial.length)?;
        if content.from != partial.length {
            partial.restart()?; // the server cannot go on where the last one stopped
        }
        let size = match (*size, content.size) {
            (Some(declared), Some(found)) if declared != found => return Err(self.wrong_size(declared, found)),
            (None, None) => {
                let problem = format!("{} does not say how long {} is: check HF_ENDPOINT", content.host, self.file);
                return Err(Problem::server(problem));
            }
            (Some(known), _) | (None, Some(known)) => *size.insert(known),
        };
        let mut body = content.body.into_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            (self.report)(Stage::Fetching { done: partial.length, size });
            let count = body.read(&mut chunk).map_err(|error| {
                let Problem { kind, text } = self.client.broken(error, &content.host);
                Problem::new(kind, format!("{} of {size} bytes of {} came, then {text}", partial.length, self.file))
            })?;
            let Some(bytes) = chunk.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
            let length = partial.length.saturating_add(count as u64);
            if length > size {
                return Err(self.wrong_size(size, length));
            }
            partial.append(bytes)?;
        }
        if partial.length < size {
            let (file, host, done) = (self.file, &content.host, partial.length);
            return Err(Problem::network(format!(
                "the connection to {host} ended after {done} of {size} bytes of {file}: start again to go on from there"
            )));
        }
        Ok(())
    }

    fn wrong_size(&self, declared: u64, found: u64) -> Problem {
        Problem::damaged(format!(
            "{} should have {declared} bytes, and {found} came: try again, and check HF_ENDPOINT if it stays so",
            quoted(self.file)
        ))
    }
}

fn wait(failures: &mut u32) {
    thread::sleep(FIRST_WAIT.saturating_mul(1 << (*failures).min(6)));
    *failures += 1;
}

/// A blob on its way.
struct Partial {
    path: PathBuf,
    file: File,
    length: u64,
    /// The hash of what is there, for blobs that are named by it.
    hash: Option<Context>,
}

impl Partial {
    /// Goes on with what an earlier process left, where its hash will tell whether that is right; else starts anew.
    fn open(path: &Path, etag: &str) -> Outcome<Self> {
        let problem = |error: std::io::Error| Problem::storage("write", path, &error);
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(path).map_err(problem)?;
        let length = file.metadata().map_err(problem)?.len();
        let hash = is_sha256(etag).then(|| Context::new(&SHA256));
        let mut partial = Partial { path: path.to_path_buf(), file, length, hash };
        if partial.hash.is_none() {
            partial.restart()?;
        } else {
            partial.catch_up()?;
        }
        Ok(partial)
    }

    /// Takes what is there into the hash.
    fn catch_up(&mut self) -> Outcome<()> {
        let problem = |error: std::io::Error| Problem::storage("read", &self.path, &error);
        let Some(hash) = &mut self.hash else { return Ok(()) };
        let (mut chunk, mut left) = (vec![0; CHUNK], self.length);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let Some(space) = chunk.get_mut(..most) else { break };
            self.file.read_exact(space).map_err(problem)?;
            hash.update(space);
            left -= most as u64;
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.file.write_all(bytes).map_err(|error| Problem::storage("write", &self.path, &error))?;
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Outcome<()> {
        if self.length > 0 {
            self.file.set_len(0).map_err(|error| Problem::storage("write", &self.path, &error))?;
            self.length = 0;
        }
        if let Some(hash) = &mut self.hash {
            *hash = Context::new(&SHA256);
        }
        Ok(())
    }

    /// The hash, where it is not the one that the blob is named by.
    fn mismatch(&self, etag: &str) -> Option<String> {
        let digest = self.hash.clone()?.finish();
        let found: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        (found != etag).then_some(found)
    }

    /// Gives the blob its name, once it is on the disk.
    fn finish(self, blob: &Path) -> Outcome<()> {
        let Partial { path, file, .. } = self;
        let done = file.sync_all();
        drop(file); // some systems rename no open file
        done.and_then(|()| fs::rename(&path, blob)).map_err(|error| Problem::storage("write", blob, &error))
    }

    fn remove(self) {
        drop(self.file);
        let _ = fs::remove_file(&self.path);
    }
}
