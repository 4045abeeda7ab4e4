//! The cache on disk, in the Hub's layout, which Python's `huggingface_hub` reads and writes too:
//!
//! ```text
//! models--org--name/
//!     blobs/<etag>                  contents; <etag>.incomplete while one is on its way
//!     refs/<revision>               the commit that a branch or tag stood for when it was last asked for
//!     snapshots/<commit>/<file>     links to blobs
//! .locks/models--org--name/<etag>.lock
//! ```
//!
//! A blob gets its name once it is complete and checked, and a reference is written after all files that it leads to.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::id::is_commit;
use super::problem::{Outcome, Problem};

/// The part of the cache that belongs to one repository.
pub(super) struct Cache {
    base: PathBuf,
    locks: PathBuf,
}

/// Who may write a blob.
pub(super) enum Lock {
    /// This process alone, while the file is open.
    Held(#[expect(dead_code, reason = "dropping it unlocks")] File),
    /// Nobody knows: the file system has no locks.
    Unknown,
}

impl Cache {
    pub fn new(folder: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Cache { base: folder.join(&name), locks: folder.join(".locks").join(name) }
    }

    /// The folder of this repository.
    pub fn folder(&self) -> &Path {
        &self.base
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.base.join("blobs").join(etag)
    }

    /// Where a blob grows. Without a lock, nobody else may meet the caller there.
    pub fn partial(&self, etag: &str, lock: &Lock) -> PathBuf {
        self.base.join("blobs").join(match lock {
            Lock::Held(_) => format!("{etag}.incomplete"),
            Lock::Unknown => format!("{etag}.{}.incomplete", unique()),
        })
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.base.join("snapshots").join(commit)
    }

    /// Where a file of a commit is. Its name has been checked to stay inside.
    pub fn pointer(&self, commit: &str, file: &str) -> PathBuf {
        self.snapshot(commit).join(file.split('/').collect::<PathBuf>())
    }

    /// The commit that a revision stood for when it was last asked for.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        let mut text = String::new();
        File::open(self.reference(revision)).ok()?.take(64).read_to_string(&mut text).ok()?;
        Some(text.trim().to_string()).filter(|text| is_commit(text))
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.base.join("refs").join(revision.split('/').collect::<PathBuf>())
    }

    /// Writes down which commit a revision stands for.
    pub fn remember(&self, revision: &str, commit: &str) -> Outcome<()> {
        if self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.reference(revision);
        match write_whole(&path, commit) {
            // All files are there: a cache that can only be read is no reason to fail.
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => Ok(()),
            Err(error) => Err(Problem::storage("write", &path, &error)),
            Ok(()) => Ok(()),
        }
    }

    /// Waits until no other process or thread fetches this blob; calls `waiting` first if one does.
    pub fn lock(&self, etag: &str, waiting: &dyn Fn()) -> Outcome<Lock> {
        let path = self.locks.join(format!("{etag}.lock"));
        let problem = |error: &io::Error| Problem::storage("lock", &path, error);
        fs::create_dir_all(&self.locks).map_err(|error| Problem::storage("create", &self.locks, &error))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(|error| problem(&error))?;
        let locked = match file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
        };
        match locked {
            Ok(()) => Ok(Lock::Held(file)),
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Lock::Unknown),
            Err(error) => Err(problem(&error)),
        }
    }

    /// Makes a file of a commit out of a blob.
    pub fn link(&self, etag: &str, commit: &str, file: &str) -> Outcome<()> {
        let (blob, pointer) = (self.blob(etag), self.pointer(commit, file));
        let problem = |error: io::Error| Problem::storage("write", &pointer, &error);
        create_parent(&pointer).map_err(problem)?;
        if pointer.exists() {
            return Ok(());
        }
        match fs::remove_file(&pointer) {
            Ok(()) => {} // a link to a blob that somebody removed
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(problem(error)),
        }
        // From the file's folder up to the repository's: the snapshot, `snapshots`, and each folder in the name.
        let up = "../".repeat(2 + file.matches('/').count());
        let linked = symlink(Path::new(&format!("{up}blobs/{etag}")), &pointer)
            // Where links need rights that the user lacks, or the file system has none.
            .or_else(|_| fs::hard_link(&blob, &pointer))
            .or_else(|_| fs::rename(&blob, &pointer));
        match linked {
            Err(_) if pointer.exists() => Ok(()), // another process was faster
            other => other.map_err(problem),
        }
    }
}

#[cfg(unix)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(windows)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(to, at)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_to: &Path, _at: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Part of a file name that no other process and no other thread of this one has.
fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(super) fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Writes a short text that readers meet whole or not at all.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    create_parent(path)?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", unique()));
    let temporary = path.with_file_name(name);
    let done = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn references_are_whole_or_absent() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path(), "org/name");
        assert_eq!(cache.commit("main"), None);
        cache.remember("main", COMMIT).unwrap();
        cache.remember("refs/pr/1", COMMIT).unwrap();
        let refs = folder.path().join("models--org--name/refs");
        assert_eq!(fs::read_to_string(refs.join("refs/pr/1")).unwrap(), COMMIT);
        assert_eq!(cache.commit("main").as_deref(), Some(COMMIT));
        assert_eq!(fs::read_dir(&refs).unwrap().count(), 2, "no temporary file is left");
        for text in ["", "main", "../../../../etc", &COMMIT[..39], &format!("{COMMIT}0")] {
            fs::write(refs.join("main"), text).unwrap();
            assert_eq!(cache.commit("main"), None, "{text:?}");
        }
        assert_eq!(cache.commit(COMMIT).as_deref(), Some(COMMIT));
    }

    #[test]
    fn files_are_links_to_blobs() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path(), "org/name");
        create_parent(&cache.blob("e1")).unwrap();
        fs::write(cache.blob("e1"), "content").unwrap();
        for file in ["config.json", "a/b/c.txt"] {
            cache.link("e1", COMMIT, file).unwrap();
            assert_eq!(fs::read_to_string(cache.pointer(COMMIT, file)).unwrap(), "content");
            cache.link("e1", COMMIT, file).unwrap();
        }
        assert!(cache.blob("e1").exists());
        // A link whose blob is gone is made anew.
        fs::rename(cache.blob("e1"), cache.blob("e2")).unwrap();
        assert!(!cache.pointer(COMMIT, "config.json").exists());
        cache.link("e2", COMMIT, "config.json").unwrap();
        assert!(cache.pointer(COMMIT, "config.json").exists());
    }
}
