//! Where the Hub and the cache are, and how to talk to them.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};

/// What is known of a download while it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The model, `org/name`.
    pub repo: &'a str,
    /// The file, as the repository names it.
    pub file: &'a str,
    /// Which file this is, from 1, of those that are not in the cache.
    pub number: usize,
    /// How many of those there are, as far as is known: a model's configuration comes alone, and the index of its shards.
    pub files: usize,
    /// What happens to it.
    pub stage: Stage,
}

/// A stage of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Another process or thread fetches the same file: this one waits for it.
    Waiting,
    /// This many bytes of the file are there, those of an earlier, broken download included.
    Fetching {
        /// Bytes that are there.
        done: u64,
        /// Bytes of the whole file.
        size: u64,
    },
    /// The file is complete, checked, and in its place.
    Done,
}

pub(super) type Callback = Arc<dyn Fn(&Progress<'_>) + Send + Sync>;
pub(super) type Remark = Arc<dyn Fn(&str) + Send + Sync>;

/// Where the Hub and the cache are, and how to talk to them. [`HubOptions::from_env`] reads the variables that
/// `huggingface_hub` reads; [`HubOptions::new`] looks at nothing but its argument.
#[derive(Clone)]
#[non_exhaustive]
pub struct HubOptions {
    /// The Hub or a mirror of it. `https://huggingface.co` unless told otherwise.
    pub endpoint: String,
    /// Folder of the cache, in the Hub's layout, which Python's `huggingface_hub` shares.
    pub cache: PathBuf,
    /// Token for private and gated models. It is sent to the endpoint and to no other host.
    pub token: Option<String>,
    /// Use the cache alone.
    pub offline: bool,
    /// Longest time without an answer, or without data. 30 seconds unless told otherwise.
    pub timeout: Duration,
    /// How many times in a row a broken download may go on without getting further. 5 unless told otherwise.
    pub retries: u32,
    /// Do not report progress, even where [`HubOptions::on_progress`] asks for it.
    pub quiet: bool,
    /// File of PEM certificates to trust in place of the built-in ones, for networks that rewrite connections.
    pub certificates: Option<PathBuf>,
    pub(super) progress: Option<Callback>,
    pub(super) remark: Option<Remark>,
    pub(super) proxy: Option<ureq::Proxy>,
}

/// The Hub of Hugging Face.
pub const ENDPOINT: &str = "https://huggingface.co";

/// A token longer than this is none.
const LONGEST_TOKEN: u64 = 4096;

impl HubOptions {
    /// The public Hub, without a token, with its cache in this folder.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        HubOptions {
            endpoint: ENDPOINT.into(),
            cache: cache.into(),
            token: None,
            offline: false,
            timeout: Duration::from_secs(30),
            retries: 5,
            quiet: false,
            certificates: None,
            progress: None,
            remark: None,
            proxy: None,
        }
    }

    /// What the environment says:
    /// * `HF_ENDPOINT`: the Hub or a mirror.
    /// * `HF_HUB_CACHE` (also `HUGGINGFACE_HUB_CACHE`): the cache; else `hub` in `HF_HOME`; else in
    ///   `XDG_CACHE_HOME/huggingface`; else in `~/.cache/huggingface`.
    /// * `HF_TOKEN` (also `HUGGING_FACE_HUB_TOKEN`): the token; else the content of the file `HF_TOKEN_PATH`; else of
    ///   `token` in `HF_HOME`, which `hf auth login` writes. None of them where `HF_HUB_DISABLE_IMPLICIT_TOKEN` is true.
    /// * `HF_HUB_OFFLINE` (also `TRANSFORMERS_OFFLINE`): the cache alone.
    /// * `HF_HUB_DISABLE_PROGRESS_BARS`: no progress.
    /// * `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`: proxies. `SSL_CERT_FILE`: certificates to trust.
    ///
    /// True is `1`, `on`, `yes` or `true`. An empty variable counts as none.
    ///
    /// # Errors
    /// [`Error::Input`] where no variable says where the cache is, and there is no home folder either.
    pub fn from_env() -> Result<Self> {
        let mut options = Self::from_variables(&|name| std::env::var_os(name), std::env::home_dir())?;
        options.proxy = ureq::Proxy::try_from_env();
        Ok(options)
    }

    fn from_variables(get: &dyn Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Result<Self> {
        let home = home.filter(|home| !home.as_os_str().is_empty());
        let value = |names: &[&str]| names.iter().find_map(|name| get(name).filter(|value| !value.is_empty()));
        let text = |names: &[&str]| value(names).and_then(|value| value.into_string().ok());
        let yes = |names: &[&str]| {
            text(names).is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let path = |names: &[&str]| value(names).map(|value| expand(PathBuf::from(value), home.as_deref()));
        let base = path(&["HF_HOME"])
            .or_else(|| path(&["XDG_CACHE_HOME"]).map(|cache| cache.join("huggingface")))
            .or_else(|| home.as_ref().map(|home| home.join(".cache").join("huggingface")));
        let cache = path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).or_else(|| base.as_ref().map(|b| b.join("hub")));
        let Some(cache) = cache else {
            return Err(Error::option("there is no folder to keep models in: set HF_HOME to one"));
        };
        let mut options = HubOptions::new(cache);
        if let Some(endpoint) = text(&["HF_ENDPOINT"]) {
            options.endpoint = endpoint;
        }
        if !yes(&["HF_HUB_DISABLE_IMPLICIT_TOKEN"]) {
            let file = path(&["HF_TOKEN_PATH"]).or_else(|| base.map(|base| base.join("token")));
            let token =
                text(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| file.and_then(|file| read_token(&file)));
            options.token = token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty());
        }
        options.offline = yes(&["HF_HUB_OFFLINE"]) || yes(&["TRANSFORMERS_OFFLINE"]);
        options.quiet = yes(&["HF_HUB_DISABLE_PROGRESS_BARS"]);
        options.certificates = path(&["SSL_CERT_FILE"]);
        Ok(options)
    }

    /// Asks this Hub.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = endpoint.into();
        self
    }

    /// Shows this token to the endpoint.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Whether to use the cache alone.
    pub fn offline(mut self, yes: bool) -> Self {
        self.offline = yes;
        self
    }

    /// Gives up after this time without an answer, or without data.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Lets a broken download go on this many times in a row without getting further.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Calls this function often during a download, from the thread that downloads. The library itself prints nothing.
    pub fn on_progress(mut self, report: impl Fn(&Progress<'_>) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(report));
        self
    }

    /// Calls this function where a person should know something beside the result: that the Hub could not be asked, so that
    /// a copy in the cache is used.
    pub fn on_remark(mut self, tell: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.remark = Some(Arc::new(tell));
        self
    }

    /// Goes through this HTTP proxy, such as `http://proxy.example:3128`.
    ///
    /// # Errors
    /// [`Error::Input`] when this is not the address of an HTTP proxy.
    pub fn proxy(mut self, address: &str) -> Result<Self> {
        let proxy = ureq::Proxy::new(address).ok();
        let http =
            |proxy: &ureq::Proxy| matches!(proxy.protocol(), ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https);
        // Not repeated in the message: it may hold a password.
        let Some(proxy) = proxy.filter(http) else {
            return Err(Error::option("this is not the address of an HTTP proxy: give, for example, http://host:3128"));
        };
        self.proxy = Some(proxy);
        Ok(self)
    }
}

/// Never shows the token, which would otherwise end up in logs.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("offline", &self.offline)
            .field("timeout", &self.timeout)
            .field("retries", &self.retries)
            .field("quiet", &self.quiet)
            .field("certificates", &self.certificates)
            .field("progress", &self.progress.is_some())
            .field("remark", &self.remark.is_some())
            .field("proxy", &self.proxy.is_some())
            .finish()
    }
}

/// `~` at the start is the home folder: shells expand it, files of variables do not.
fn expand(path: PathBuf, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

/// The token in a file. A file that is not there or cannot be read is no token; the Hub's answer then says what is missing.
fn read_token(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(LONGEST_TOKEN).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> HubOptions {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
        HubOptions::from_variables(&get, Some("/home/me".into())).unwrap()
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        let cache = |variables: &[(&str, &str)]| read(variables).cache;
        assert_eq!(cache(&[]), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")]), Path::new("/home/me/hf/hub"));
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/old"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/new"));
        assert_eq!(cache(&[("HF_HOME", "")]), Path::new("/home/me/.cache/huggingface/hub"));
        let error = HubOptions::from_variables(&|_| None, None).unwrap_err().to_string();
        assert!(error.contains("set HF_HOME"), "{error}");
    }

    #[test]
    fn the_token_is_found_and_hidden() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        std::fs::write(folder.path().join("other"), "hf_other\r\n").unwrap();
        let other = folder.path().join("other");
        let other = ("HF_TOKEN_PATH", other.to_str().unwrap());
        assert_eq!(read(&[("HF_HOME", home)]).token.as_deref(), Some("hf_file"));
        assert_eq!(read(&[("HF_HOME", home), other]).token.as_deref(), Some("hf_other"));
        assert_eq!(read(&[("HF_HOME", home), ("HF_TOKEN", " hf_variable ")]).token.as_deref(), Some("hf_variable"));
        assert_eq!(read(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
        assert_eq!(read(&[("HF_HOME", "/nowhere")]).token, None);
        let shown = format!("{:?}", HubOptions::new("/c").token("hf_secret"));
        assert!(!shown.contains("secret") && shown.contains("hidden"), "{shown}");
    }

    #[test]
    fn switches_are_read() {
        let options = read(&[("HF_ENDPOINT", "https://mirror"), ("HF_HUB_OFFLINE", "yes")]);
        assert_eq!((options.endpoint.as_str(), options.offline, options.quiet), ("https://mirror", true, false));
        let options = read(&[("TRANSFORMERS_OFFLINE", "1"), ("HF_HUB_DISABLE_PROGRESS_BARS", "True")]);
        assert_eq!((options.endpoint.as_str(), options.offline, options.quiet), (ENDPOINT, true, true));
        assert!(!read(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert_eq!(read(&[("SSL_CERT_FILE", "/c.pem")]).certificates.as_deref(), Some(Path::new("/c.pem")));
        let options = HubOptions::new("/c");
        assert!(options.clone().proxy("http://proxy:3128").is_ok());
        for address in ["socks5://proxy:1", "", "http://"] {
            assert!(options.clone().proxy(address).unwrap_err().to_string().contains("HTTP proxy"), "{address}");
        }
    }
}
