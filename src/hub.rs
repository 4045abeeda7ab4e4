//! Models from the Hugging Face Hub, or from a mirror of it, by their id.
//!
//! ```no_run
//! use moesaic::hub::{Hub, HubOptions};
//!
//! # fn main() -> moesaic::Result<()> {
//! let hub = Hub::from_env()?; // HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT, ...
//! let snapshot = hub.model("Maple728/TimeMoE-50M")?;
//! println!("{snapshot} is in {}", snapshot.folder.display());
//!
//! let hub = Hub::new(HubOptions::new("/var/cache/models").endpoint("https://hub.example"))?; // no variable is read
//! let configs = hub.snapshot("org/name@v1.0", &["config.json", "tokenizer*"])?;
//! # Ok(())
//! # }
//! ```
//!
//! The network is used by these calls and by nothing else. All files come from one commit: the one that the revision stands
//! for when the call starts. They go into the cache that Python's `huggingface_hub` uses, so what one of the two has
//! fetched, the other does not fetch again. A call whose files are in the cache asks the Hub once, whether the revision
//! still stands for the same commit, and not at all for a full commit or where [`HubOptions::offline`] is set. Where the
//! Hub cannot be reached, a complete copy in the cache answers, and [`Snapshot::unasked`] says so.
//!
//! A file counts once it has the size that the Hub declares and, for large files, its SHA-256. What an interrupted download
//! has received is kept and gone on from. Two processes that want the same file fetch it once. The token goes to
//! [`HubOptions::endpoint`] and to no host that it redirects to. Calls block; from asynchronous code, call them in a
//! thread where that is allowed, such as tokio's `spawn_blocking`.
//!
//! # Why no ready-made client
//! `hf-hub` 1.0 brings 235 crates (an asynchronous runtime among them) and 0.5, on the same HTTP client as here, 57, where
//! that client alone brings 25 (`cargo tree -e normal,build`, Linux). Neither reads `HF_HUB_OFFLINE`, which services in
//! closed networks rely on, and 0.5 checks no size and no hash. The routes are few; all of them are in `src/hub/http.rs`.
//! TLS is rustls with its own root certificates, which needs no system package; `SSL_CERT_FILE` replaces the certificates.

mod address;
mod cache;
mod fetch;
mod http;
mod id;
mod options;
mod problem;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use moesaic_kernels::checkpoint::{INDEX_FILE, SINGLE_FILE, shard_files};

use crate::error::{Error, Result, candle_message, quoted};
use cache::Cache;
use fetch::Wanted;
use http::Client;
pub use id::RepoId;
use id::{fits, is_commit, is_inside};
pub use options::{ENDPOINT, HubOptions, Progress, Stage};
pub use problem::HubErrorKind;
use problem::{Outcome, Problem};

const CONFIG: &str = "config.json";

/// What belongs to a model beside its weights: configurations, tokenizers, preprocessors, chat templates.
const COMPANIONS: [&str; 11] = [
    "*config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
];

/// A call brings at most this many files: a hostile listing must not keep it busy for days.
const MOST_FILES: usize = 10_000;

/// Weights that are Python pickles, which can run code and therefore are not loaded.
const PICKLES: [&str; 4] = ["*.bin", "*.pt", "*.pth", "*.ckpt"];

/// The Hub, with a cache. It holds no state but its connections: one behind an `Arc` serves any number of threads.
pub struct Hub {
    options: HubOptions,
    /// None where the options forbid the network.
    client: Option<Client>,
}

/// The files of one commit of a model, on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The folder that holds them, in the Hugging Face layout.
    pub folder: PathBuf,
    /// The model, `org/name`.
    pub repo: String,
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
    /// Why the Hub could not be asked whether the revision still stands for this commit, so that the newest commit in the
    /// cache was taken. `None` where it was asked, and where there was nothing to ask.
    pub unasked: Option<String>,
}

/// `org/name@commit`, the id that gives exactly these files again.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repo, self.commit)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hub").field(&self.options).finish()
    }
}

/// Which files of a repository are asked for.
#[derive(Clone, Copy)]
enum Files<'a> {
    /// A model, if this function accepts the folder with its configuration.
    Model(&'a dyn Fn(&Path) -> Result<()>),
    Fitting(&'a [&'a str]),
}

/// Why a call ends early.
enum Stop {
    Problem(Problem),
    /// The caller does not want this model.
    Refused(Error),
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Stop::Problem(problem)
    }
}

impl Hub {
    /// The Hub that these options describe. Does not use the network yet.
    ///
    /// # Errors
    /// [`Error::Input`] for an endpoint that is no address or a token that cannot be one, and for
    /// certificates that cannot be used; [`Error::Io`] where these cannot be read.
    pub fn new(options: HubOptions) -> Result<Self> {
        let client = if options.offline { None } else { Some(Client::new(&options)?) };
        Ok(Hub { options, client })
    }

    /// The Hub that the environment describes ([`HubOptions::from_env`]).
    ///
    /// # Errors
    /// Those of [`Hub::new`] and [`HubOptions::from_env`].
    pub fn from_env() -> Result<Self> {
        Self::new(HubOptions::from_env()?)
    }

    /// What the Hub was made from.
    pub fn options(&self) -> &HubOptions {
        &self.options
    }

    /// A whole model, `org/name` or `org/name@revision`: `config.json`, `model.safetensors` or its shards and their index,
    /// and, as far as there are any, the files of its tokenizer and preprocessors and its chat templates.
    ///
    /// # Errors
    /// [`Error::Hub`]; [`Error::Input`] for what is no id.
    pub fn model(&self, id: &str) -> Result<Snapshot> {
        self.model_if(id, |_| Ok(()))
    }

    /// As [`Hub::model`], if `accept` agrees. It is called with the folder once `config.json` is there, so that a model of
    /// another kind is refused before its weights come; it is not called where nothing has to come.
    ///
    /// # Errors
    /// As [`Hub::model`], and the error of `accept`.
    pub fn model_if(&self, id: &str, accept: impl Fn(&Path) -> Result<()>) -> Result<Snapshot> {
        self.get(id, Files::Model(&accept))
    }

    /// Chosen files of a repository, `org/name` or `org/name@revision`. In a pattern, `*` stands for any characters but `/`.
    /// A pattern without `*` is the name of a file that must be there; one with `*` may fit none.
    ///
    /// The folder may hold further files of the same commit, from earlier calls. Without the Hub, a pattern with `*` gives
    /// what is in the cache.
    ///
    /// # Errors
    /// [`Error::Hub`]; [`Error::Input`] for what is no id.
    pub fn snapshot(&self, id: &str, patterns: &[&str]) -> Result<Snapshot> {
        self.get(id, Files::Fitting(patterns))
    }

    fn get(&self, id: &str, files: Files<'_>) -> Result<Snapshot> {
        let id: RepoId = id.parse()?;
        let cache = Cache::new(&self.options.cache, id.repo());
        let cached = cache.commit(id.revision()).filter(|commit| is_complete(&cache.snapshot(commit), files));
        let snapshot = |commit: String, unasked: Option<String>| {
            let (folder, repo) = (cache.snapshot(&commit), id.repo().to_string());
            Snapshot { folder, repo, commit, unasked }
        };
        let Some(client) = &self.client else {
            let missing = || {
                let problem = format!(
                    "is not {}in the cache {}, and offline mode (HF_HUB_OFFLINE) forbids to fetch it: unset that once, or \
                     copy the model there",
                    if cache.folder().is_dir() { "complete " } else { "" },
                    self.options.cache.display()
                );
                Problem::new(HubErrorKind::Offline, problem).of(&id)
            };
            return cached.map(|commit| snapshot(commit, None)).ok_or_else(missing);
        };
        // A commit never changes: nothing is left to ask.
        if let Some(commit) = cached.as_ref().filter(|_| is_commit(id.revision())) {
            return Ok(snapshot(commit.clone(), None));
        }
        match self.fetch(client, &cache, &id, files) {
            Ok(commit) => Ok(snapshot(commit, None)),
            Err(Stop::Refused(error)) => Err(error),
            Err(Stop::Problem(problem)) => match cached {
                Some(commit) if problem.passes() => {
                    if let Some(remark) = &self.options.remark {
                        remark(&format!("{id}: the newest copy in the cache is used, because {}", problem.text));
                    }
                    Ok(snapshot(commit, Some(problem.text)))
                }
                Some(_) => {
                    let text = format!("{}; HF_HUB_OFFLINE=1 uses the copy in the cache", problem.text);
                    Err(Problem { text, ..problem }.of(&id))
                }
                None => Err(problem.of(&id)),
            },
        }
    }

    /// Brings the files into the cache; the answer is their commit.
    fn fetch(
        &self,
        client: &Client,
        cache: &Cache,
        id: &RepoId,
        files: Files<'_>,
    ) -> std::result::Result<String, Stop> {
        let listing = client.listing(id)?;
        let commit = listing.commit.as_str();
        let listed: Vec<&str> = listing.files.iter().map(|file| file.name.as_str()).collect();
        let bring = |before: usize, names: &[&str]| self.bring(client, cache, id, commit, before, names);
        match files {
            Files::Fitting(patterns) => drop(bring(0, &fitting(&listed, patterns)?)?),
            Files::Model(accept) => {
                let start = weights(&listed)?;
                let mut brought = bring(0, &[CONFIG])?;
                accept(&cache.snapshot(commit)).map_err(Stop::Refused)?;
                let mut names: Vec<&str> =
                    listed.iter().copied().filter(|name| COMPANIONS.iter().any(|p| fits(p, name))).collect();
                // Weights last: where they are, the rest is.
                if start == INDEX_FILE {
                    brought += bring(brought, &[INDEX_FILE])?;
                    names.extend(shards(&cache.pointer(commit, INDEX_FILE), &listed)?);
                } else {
                    names.push(start);
                }
                bring(brought, &names)?;
            }
        }
        cache.remember(id.revision(), commit)?;
        Ok(listing.commit)
    }

    /// Brings what is missing of these files, after as many others in this call; the answer is how many came.
    fn bring(
        &self,
        client: &Client,
        cache: &Cache,
        id: &RepoId,
        commit: &str,
        before: usize,
        names: &[&str],
    ) -> Outcome<usize> {
        if let Some(name) = names.iter().find(|name| !is_inside(name)) {
            let problem =
                format!("it holds a file {}, which would leave its folder: do not use this model", quoted(name));
            return Err(Problem::server(problem));
        }
        if names.len() > MOST_FILES {
            let problem = format!("it lists {} files, and {MOST_FILES} are the most: choose fewer", names.len());
            return Err(Problem::server(problem));
        }
        let missing: Vec<&str> = names.iter().copied().filter(|name| !cache.pointer(commit, name).exists()).collect();
        for (at, file) in missing.iter().enumerate() {
            let (number, files) = (before + at + 1, before + missing.len());
            let report = |stage: Stage| {
                if let Some(progress) = self.options.progress.as_ref().filter(|_| !self.options.quiet) {
                    progress(&Progress { repo: id.repo(), file, number, files, stage });
                }
            };
            Wanted { client, cache, id, commit, file, retries: self.options.retries, report: &report }.fetch()?;
        }
        Ok(missing.len())
    }
}

/// The files that a call asks for.
fn fitting<'a>(listed: &[&'a str], patterns: &[&str]) -> Outcome<Vec<&'a str>> {
    if let Some(absent) = patterns.iter().find(|pattern| !pattern.contains('*') && !listed.contains(pattern)) {
        return Err(Problem::new(HubErrorKind::NotFound, format!("has no file {}: check the name", quoted(absent))));
    }
    Ok(listed.iter().copied().filter(|name| patterns.iter().any(|pattern| fits(pattern, name))).collect())
}

/// The file that the weights of a model start from.
fn weights(listed: &[&str]) -> Outcome<&'static str> {
    let refuse = |problem: String| Err(Problem::new(HubErrorKind::NotFound, problem));
    if !listed.contains(&CONFIG) {
        return refuse(format!("has no {CONFIG}: it is no model in the Hugging Face layout, choose another one"));
    }
    if let Some(found) = [SINGLE_FILE, INDEX_FILE].into_iter().find(|name| listed.contains(name)) {
        return Ok(found);
    }
    match listed.iter().find(|name| PICKLES.iter().any(|pattern| fits(pattern, name))) {
        Some(pickle) => refuse(format!(
            "has no {SINGLE_FILE}, but {}, a Python pickle, which is not loaded because it can run code: choose a revision \
             or a copy of the model with safetensors",
            quoted(pickle)
        )),
        None => refuse(format!("has no {SINGLE_FILE} and no {INDEX_FILE}: choose a model with safetensors")),
    }
}

/// The shards of an index, which the repository must have.
fn shards<'a>(index: &Path, listed: &[&'a str]) -> Outcome<Vec<&'a str>> {
    let named = shard_files(index).map_err(|error| Problem::server(candle_message(&error)))?;
    let listed: BTreeSet<&str> = listed.iter().copied().collect();
    let find = |shard: &String| match listed.get(shard.as_str()) {
        Some(name) => Ok(*name),
        None => Err(Problem::server(format!(
            "its {INDEX_FILE} names {}, which it does not have: choose another revision",
            quoted(shard)
        ))),
    };
    named.iter().map(find).collect()
}

/// Whether a folder holds what is asked for, as far as a folder can tell.
fn is_complete(folder: &Path, files: Files<'_>) -> bool {
    let there = |name: &str| is_inside(name) && folder.join(name).exists();
    match files {
        Files::Fitting(patterns) => folder.is_dir() && patterns.iter().all(|name| name.contains('*') || there(name)),
        Files::Model(_) => {
            let index = folder.join(INDEX_FILE);
            let sharded = || shard_files(&index).is_ok_and(|shards| shards.iter().all(|shard| there(shard)));
            there(CONFIG) && (there(SINGLE_FILE) || index.exists() && sharded())
        }
    }
}
