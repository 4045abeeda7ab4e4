//! The Hub's routes over HTTP. Everything that a server sends is bounded here: redirects, headers, listings, waiting.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LOCATION, RANGE};
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::address::{Origin, escaped, resolve};
use super::id::{RepoId, is_commit, is_etag};
use super::options::HubOptions;
use super::problem::{HubErrorKind, Outcome, Problem};
use crate::error::{Error, Result, one_line, quoted};

/// A listing of a repository is read up to this length.
const LONGEST_LISTING: u64 = 16 << 20;
/// Redirects that one request follows.
const MOST_REDIRECTS: usize = 10;
/// Certificates are read up to this length; the bundles of operating systems have a quarter of it.
const LONGEST_CERTIFICATES: u64 = 1 << 20;

pub(super) struct Client {
    /// For answers that are small, with a limit on the whole of each.
    brief: Agent,
    /// For files, with a limit on each wait for more.
    long: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<String>,
    timeout: Duration,
}

/// A repository at one commit.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    #[serde(rename = "sha")]
    pub commit: String,
    #[serde(rename = "siblings", default)]
    pub files: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Sibling {
    #[serde(rename = "rfilename")]
    pub name: String,
}

/// What the Hub declares of a file.
#[derive(Debug)]
pub(super) struct Metadata {
    /// The name of its blob: the SHA-256 of a large file, the git hash of a small one.
    pub etag: String,
    /// Bytes; not every mirror says.
    pub size: Option<u64>,
}

/// The body of a file, or the rest of it.
pub(super) struct Content {
    /// Where in the file the body starts.
    pub from: u64,
    /// Bytes of the whole file, where the answer says.
    pub size: Option<u64>,
    pub body: Body,
    /// The host it comes from, for messages.
    pub host: String,
}

impl Client {
    /// # Errors
    /// [`Error::Input`] for options that cannot be used.
    pub fn new(options: &HubOptions) -> Result<Self> {
        let endpoint = options.endpoint.trim().trim_end_matches('/').to_string();
        let wrong = || {
            // Not repeated where it may hold a password.
            let shown = if endpoint.contains('@') { String::new() } else { format!(" {}", quoted(&endpoint)) };
            Error::option(format!(
                "HF_ENDPOINT{shown} is not the address of a Hub: give, for example, {}",
                super::ENDPOINT
            ))
        };
        let uri: Uri = endpoint.parse().map_err(|_| wrong())?;
        let plain = uri.query().is_none() && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        let origin = Origin::of(&uri).filter(|_| plain).ok_or_else(wrong)?;
        let token = options.token.clone();
        if token.as_ref().is_some_and(|token| token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::option("the Hub's token holds characters that no token has: check HF_TOKEN"));
        }
        let roots = match &options.certificates {
            None => RootCerts::WebPki,
            Some(path) => certificates(path)?,
        };
        let agent = |whole: Option<Duration>| -> Agent {
            Agent::config_builder()
                .http_status_as_error(false)
                // Redirects are followed here, where it is known who may see the token.
                .max_redirects(0)
                .max_redirects_will_error(false)
                .user_agent(concat!("moesaic/", env!("CARGO_PKG_VERSION")))
                .accept_encoding("identity")
                .proxy(options.proxy.clone())
                .tls_config(TlsConfig::builder().root_certs(roots.clone()).build())
                .timeout_resolve(Some(options.timeout))
                .timeout_connect(Some(options.timeout))
                .timeout_recv_response(Some(options.timeout))
                .timeout_per_read(Some(options.timeout))
                .timeout_global(whole)
                .build()
                .into()
        };
        let brief = agent(Some(options.timeout.saturating_mul(2)));
        Ok(Client { brief, long: agent(None), endpoint, origin, token, timeout: options.timeout })
    }

    /// The commit that a revision stands for now, and the files in it.
    pub fn listing(&self, id: &RepoId) -> Outcome<Listing> {
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, id.repo(), escaped(id.revision()));
        let reply = self.request(&self.brief, false, &url, 0, &|_| false)?;
        self.check(&reply, id, None)?;
        let mut text = Vec::new();
        let body = reply.response.into_body().into_reader();
        body.take(LONGEST_LISTING + 1).read_to_end(&mut text).map_err(|error| self.broken(error, &reply.host))?;
        if text.len() as u64 > LONGEST_LISTING {
            return Err(Problem::server(format!(
                "{} lists more than {LONGEST_LISTING} bytes of file names, which no model has: check HF_ENDPOINT",
                reply.host
            )));
        }
        let listing: Listing = serde_json::from_slice(&text).map_err(|error| {
            let reason = quoted(&error.to_string());
            Problem::server(format!(
                "{} does not answer as a Hub does ({reason}): check HF_ENDPOINT and the network",
                reply.host
            ))
        })?;
        if !is_commit(&listing.commit) {
            let problem =
                format!("{} names {}, which is no commit: check HF_ENDPOINT", reply.host, quoted(&listing.commit));
            return Err(Problem::server(problem));
        }
        Ok(listing)
    }

    /// What the Hub declares of a file at a commit.
    pub fn metadata(&self, id: &RepoId, commit: &str, file: &str) -> Outcome<Metadata> {
        // Headers of the Hub: a large file is kept elsewhere, and the redirect to it says what it is.
        let linked = |headers: &HeaderMap| headers.contains_key("x-linked-etag");
        let reply = self.request(&self.brief, true, &self.file_url(id, commit, file), 0, &linked)?;
        self.check(&reply, id, Some(file))?;
        let headers = reply.response.headers();
        match reply.commit.as_deref() {
            Some(found) if found == commit => {}
            Some(other) => {
                let other = quoted(other);
                let problem = format!("{} gives {file} of commit {other} where {commit} was asked for", reply.host);
                return Err(Problem::server(problem));
            }
            None => {
                let problem =
                    format!("{} does not say of which commit {file} is (X-Repo-Commit): check HF_ENDPOINT", reply.host);
                return Err(Problem::server(problem));
            }
        }
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, ETAG.as_str()));
        let etag =
            etag.map(|etag| etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"')).filter(|etag| is_etag(etag));
        let Some(etag) = etag.map(str::to_string) else {
            return Err(Problem::server(format!("{} gives no usable ETag for {file}: check HF_ENDPOINT", reply.host)));
        };
        let size = match text(headers, "x-linked-size") {
            Some(size) => Some(size),
            None if reply.response.status().is_redirection() => None,
            None => text(headers, CONTENT_LENGTH.as_str()),
        };
        Ok(Metadata { etag, size: size.and_then(|size| size.parse().ok()) })
    }

    /// The content of a file from a byte on. Where the server cannot start there, it starts at 0.
    pub fn content(&self, id: &RepoId, commit: &str, file: &str, from: u64) -> Outcome<Content> {
        let reply = self.request(&self.long, false, &self.file_url(id, commit, file), from, &|_| false)?;
        let (headers, host) = (reply.response.headers(), reply.host.clone());
        let status = reply.response.status();
        if status == StatusCode::RANGE_NOT_SATISFIABLE && from > 0 {
            return self.content(id, commit, file, 0); // what is here is no part of what is there
        }
        self.check(&reply, id, Some(file))?;
        if text(headers, CONTENT_ENCODING.as_str()).is_some_and(|encoding| encoding != "identity") {
            return Err(Problem::server(format!(
                "{host} compresses {file}, which it was not asked to: check HF_ENDPOINT"
            )));
        }
        let (from, size) = match status {
            StatusCode::OK => (0, text(headers, CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok())),
            StatusCode::PARTIAL_CONTENT => {
                let range = text(headers, CONTENT_RANGE.as_str()).and_then(range);
                let Some((start, size)) = range.filter(|(start, _)| *start == from) else {
                    return Err(Problem::server(format!(
                        "{host} gives another part of {file} than was asked for: check HF_ENDPOINT"
                    )));
                };
                (start, size)
            }
            other => return Err(Problem::server(format!("{host} answers {file} with status {}", other.as_u16()))),
        };
        Ok(Content { from, size, body: reply.response.into_body(), host })
    }

    fn file_url(&self, id: &RepoId, commit: &str, file: &str) -> String {
        let file: Vec<String> = file.split('/').map(escaped).collect();
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, id.repo(), file.join("/"))
    }

    /// Sends a request and follows redirects, until an answer is none or `enough` is true of its headers.
    fn request(
        &self,
        agent: &Agent,
        head: bool,
        url: &str,
        from: u64,
        enough: &dyn Fn(&HeaderMap) -> bool,
    ) -> Outcome<Reply> {
        let bad = |url: &str| Problem::server(format!("{} is not an address: check HF_ENDPOINT", quoted(url)));
        let mut uri: Uri = url.parse().map_err(|_| bad(url))?;
        let mut commit = None;
        for _ in 0..=MOST_REDIRECTS {
            let origin = Origin::of(&uri).ok_or_else(|| bad(&uri.to_string()))?;
            let host = origin.to_string();
            let mut request = if head { agent.head(&uri) } else { agent.get(&uri) };
            // To nobody else: large files come from other hosts, by addresses that are signed.
            if let Some(token) = self.token.as_ref().filter(|_| origin == self.origin) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request.call().map_err(|error| self.failed(error, &host))?;
            let headers = response.headers();
            commit = text(headers, "x-repo-commit").map(str::to_string).or(commit);
            if !response.status().is_redirection() || enough(headers) {
                return Ok(Reply { response, commit, host });
            }
            let next = text(headers, LOCATION.as_str()).and_then(|location| resolve(&uri, location));
            let Some(next) = next else {
                return Err(Problem::server(format!("{host} redirects to no address: check HF_ENDPOINT")));
            };
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(Problem::server(format!(
                    "{host} redirects to an address that is not https: check HF_ENDPOINT"
                )));
            }
            uri = next;
        }
        Err(Problem::server(format!("{} redirects more than {MOST_REDIRECTS} times: check HF_ENDPOINT", self.endpoint)))
    }

    /// Turns a status that is no success into what to do about it.
    fn check(&self, reply: &Reply, id: &RepoId, file: Option<&str>) -> Outcome<()> {
        let (status, headers, host) = (reply.response.status(), reply.response.headers(), &reply.host);
        let (code, page) = (text(headers, "x-error-code"), format!("{}/{}", self.endpoint, id.repo()));
        let (kind, problem) = match (status.as_u16(), code) {
            // A redirect that was not followed says what was asked.
            (200..=399, _) => return Ok(()),
            // The storage of large files: its signed addresses end after a while, and a repetition gets a new one.
            (status, _) if *host != self.origin.to_string() => {
                let what = file.unwrap_or("the listing");
                (HubErrorKind::Server, format!("{host} does not give {what} (status {status}): try again later"))
            }
            (401 | 403, Some("GatedRepo")) => {
                let token = if self.token.is_some() { "with the account of HF_TOKEN" } else { "and set HF_TOKEN" };
                (HubErrorKind::Access, format!("is gated: accept its terms on {page} {token}"))
            }
            (401 | 403, _) if self.token.is_none() => {
                let what = "does not exist or is private (the Hub says no more without a token)";
                (HubErrorKind::Access, format!("{what}: check the id, or set HF_TOKEN"))
            }
            (401 | 403, _) => {
                let status = status.as_u16();
                (
                    HubErrorKind::Access,
                    format!("is refused to this token (status {status}): check HF_TOKEN, and {page}"),
                )
            }
            (404, Some("RevisionNotFound")) => (
                HubErrorKind::NotFound,
                format!("there is no revision {} of it: look at {page}", quoted(id.revision())),
            ),
            (404, _) => match file {
                Some(file) => {
                    (HubErrorKind::NotFound, format!("{host} does not have its file {file}: try again later"))
                }
                None => {
                    (HubErrorKind::NotFound, format!("id or revision does not exist on {}: check them", self.endpoint))
                }
            },
            (status @ (408 | 425 | 429 | 500..), _) => {
                let why = if status == 429 { "is asked too often" } else { "cannot answer now" };
                (HubErrorKind::Server, format!("{host} {why} (status {status}): try again later"))
            }
            (status, _) => (HubErrorKind::Access, format!("{host} refuses it (status {status}): look at {page}")),
        };
        Err(Problem::new(kind, problem))
    }

    /// A body that breaks off.
    pub fn broken(&self, error: io::Error, host: &str) -> Problem {
        self.failed(ureq::Error::from(error), host)
    }

    fn failed(&self, error: ureq::Error, host: &str) -> Problem {
        use ureq::Error as E;
        let reason = one_line(&error.to_string());
        let reason = reason.strip_prefix("io: ").unwrap_or(&reason);
        let secure = || {
            Problem::network(format!(
                "the secure connection to {host} fails ({reason}): where the network rewrites connections, name its \
                 certificates in SSL_CERT_FILE"
            ))
        };
        match error {
            E::HostNotFound => Problem::network(format!("{host} is not found: check the network and HF_ENDPOINT")),
            E::Timeout(_) => {
                let seconds = self.timeout.as_secs_f64();
                Problem::network(format!(
                    "{host} does not answer within {seconds} s: check the network, or try again later"
                ))
            }
            E::Tls(_) | E::Rustls(_) => secure(),
            E::Io(error) if error.kind() == ErrorKind::InvalidData => secure(),
            E::Io(_) | E::ConnectionFailed | E::ConnectProxyFailed(_) => {
                Problem::network(format!("no connection to {host} ({reason}): check the network, or try again later"))
            }
            _ => Problem::server(format!("{host} does not answer as a Hub does ({reason}): check HF_ENDPOINT")),
        }
    }
}

/// An answer, and what the redirects before it said.
struct Reply {
    response: Response<Body>,
    commit: Option<String>,
    host: String,
}

/// A header that is there and is text.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// The start and the whole size from `bytes 7-9/10`, whose size may be `*`.
fn range(header: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = header.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    Some((start.parse().ok()?, size))
}

fn certificates(path: &Path) -> Result<RootCerts> {
    let wrong = |problem: &str| Error::option(format!("{}: {problem}: check SSL_CERT_FILE", path.display()));
    let mut pem = Vec::new();
    let file = fs::File::open(path).map_err(|error| Error::io("read", path, error))?;
    file.take(LONGEST_CERTIFICATES + 1).read_to_end(&mut pem).map_err(|error| Error::io("read", path, error))?;
    if pem.len() as u64 > LONGEST_CERTIFICATES {
        return Err(wrong("is too long for certificates"));
    }
    let items = ureq::tls::parse_pem(&pem).collect::<std::result::Result<Vec<_>, _>>();
    let items = items.map_err(|_| wrong("is not a file of PEM certificates"))?;
    let certificates: Vec<_> = items
        .into_iter()
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(wrong("holds no PEM certificate"));
    }
    Ok(RootCerts::from(certificates))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read() {
        assert_eq!(range("bytes 7-9/10"), Some((7, Some(10))));
        assert_eq!(range("bytes 7-9/*"), Some((7, None)));
        for wrong in ["", "bytes", "bytes 7", "bytes */10", "items 7-9/10", "bytes -1-9/10", "bytes 7-9/x"] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let wrong = |options: HubOptions| Client::new(&options).err().unwrap().to_string();
        for endpoint in
            ["", "hub.example", "ftp://hub.example", "https://", "https://user:secret@hub.example", "https://h/?x"]
        {
            let error = wrong(HubOptions::new("/c").endpoint(endpoint));
            assert!(error.contains("HF_ENDPOINT"), "{endpoint}: {error}");
        }
        for token in ["", "a b", "a\r\nHost: evil", "\u{e9}"] {
            let error = wrong(HubOptions::new("/c").token(token));
            assert!(error.contains("HF_TOKEN"), "{token:?}: {error}");
        }
        assert_eq!(Client::new(&HubOptions::new("/c").endpoint("https://h/hf/")).unwrap().endpoint, "https://h/hf");
        let folder = tempfile::tempdir().unwrap();
        let mut options = HubOptions::new("/c");
        options.certificates = Some(folder.path().join("none.pem"));
        assert!(wrong(options.clone()).contains("none.pem"));
        for text in ["", "not PEM", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            std::fs::write(folder.path().join("none.pem"), text).unwrap();
            assert!(wrong(options.clone()).contains("SSL_CERT_FILE"), "{text:?}");
        }
    }
}
