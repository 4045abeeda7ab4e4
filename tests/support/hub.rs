//! A server that speaks the Hub's routes for files, on the loopback interface.
//!
//! Small files are answered at once, with their ETag; those that end in `.safetensors` by a redirect to a second server on
//! another port, which stands for the storage that large files come from. A test can change any answer before it is sent.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const REPO: &str = "org/name";

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Whether it came to the second server.
    pub storage: bool,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn is(&self, method: &str, ending: &str) -> bool {
        self.method == method && self.path.ends_with(ending)
    }
}

#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Declares the whole body, sends this many bytes of it, and closes the connection.
    pub cut: Option<usize>,
    /// After the cut, keeps the connection open and silent, until the server is released.
    pub silent: bool,
    /// Sends these bytes in place of an answer, and closes the connection.
    pub raw: Option<Vec<u8>>,
    /// Sends the body again and again, without a declared length.
    pub endless: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Reply { status, body: body.into(), ..Reply::default() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.set(name, value);
        self
    }

    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.unset(name);
        self.headers.push((name.into(), value.to_string()));
    }

    pub fn unset(&mut self, name: &str) {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
    }
}

type Change = Box<dyn Fn(&Request, &mut Reply) + Send + Sync>;

struct Shared {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    commit: Mutex<String>,
    log: Mutex<Vec<Request>>,
    logged: Condvar,
    change: Mutex<Arc<Change>>,
    storage: Mutex<String>,
    released: Mutex<bool>,
    release: Condvar,
}

#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    pub endpoint: String,
}

impl Server {
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let shared = Arc::new(Shared {
            files: Mutex::new(files),
            commit: Mutex::new(COMMIT.into()),
            log: Mutex::default(),
            logged: Condvar::new(),
            change: Mutex::new(Arc::new(Box::new(|_, _| {}))),
            storage: Mutex::default(),
            released: Mutex::default(),
            release: Condvar::new(),
        });
        let endpoint = listen(&shared, false);
        *shared.storage.lock().unwrap() = listen(&shared, true);
        Server { shared, endpoint }
    }

    /// From now on, changes each answer in this way before it is sent.
    pub fn change(&self, change: impl Fn(&Request, &mut Reply) + Send + Sync + 'static) {
        *self.shared.change.lock().unwrap() = Arc::new(Box::new(change));
    }

    pub fn honest(&self) {
        self.change(|_, _| {});
    }

    /// The branch `main` gets another commit, with these files changed.
    pub fn commit(&self, commit: &str, name: &str, content: &[u8]) {
        *self.shared.commit.lock().unwrap() = commit.into();
        self.shared.files.lock().unwrap().insert(name.into(), content.to_vec());
    }

    /// The requests so far; forgets them.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.shared.log.lock().unwrap())
    }

    /// Waits until this many requests were of that kind, or for ten seconds.
    pub fn wait_for(&self, count: usize, is: impl Fn(&Request) -> bool) -> bool {
        let log = self.shared.log.lock().unwrap();
        let missing = |log: &mut Vec<Request>| log.iter().filter(|request| is(request)).count() < count;
        let (_log, ended) = self.shared.logged.wait_timeout_while(log, Duration::from_secs(10), missing).unwrap();
        !ended.timed_out()
    }

    /// Closes the connections that are kept silent.
    pub fn release(&self) {
        *self.shared.released.lock().unwrap() = true;
        self.shared.release.notify_all();
    }
}

/// The entity tag that the Hub gives a file: for large ones the SHA-256; for others some hash of 40 digits.
pub fn etag(name: &str, content: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, content);
    let hash: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if is_large(name) { hash } else { hash[..40].into() }
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn listen(shared: &Arc<Shared>, storage: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), shared) = (stream, Arc::clone(&shared)) else { continue };
            thread::spawn(move || serve(&shared, stream, storage));
        }
    });
    address
}

/// Answers requests on one connection, until either side closes it. Errors are the client's leaving.
fn serve(shared: &Shared, stream: TcpStream, storage: bool) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
        }
        let request = Request { method, path, headers, storage };
        shared.log.lock().unwrap().push(request.clone());
        shared.logged.notify_all();
        let mut reply = answer(shared, &request);
        let change = Arc::clone(&shared.change.lock().unwrap());
        change(&request, &mut reply);
        if !send(shared, &mut writer, &request, &reply)? {
            return None;
        }
    }
}

/// Sends an answer; tells whether the connection goes on.
fn send(shared: &Shared, writer: &mut TcpStream, request: &Request, reply: &Reply) -> Option<bool> {
    if let Some(raw) = &reply.raw {
        writer.write_all(raw).ok()?;
        return Some(false);
    }
    let mut head = format!("HTTP/1.1 {} -\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let declared = reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    if !declared && !reply.endless {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    writer.write_all(head.as_bytes()).ok()?;
    if request.method == "HEAD" {
        return Some(true);
    }
    if reply.endless {
        loop {
            writer.write_all(&reply.body).ok()?; // until the client has enough
        }
    }
    match reply.cut {
        None => writer.write_all(&reply.body).ok()?,
        Some(cut) => {
            writer.write_all(&reply.body[..cut.min(reply.body.len())]).ok()?;
            if reply.silent {
                let released = shared.released.lock().unwrap();
                drop(shared.release.wait_while(released, |released| !*released));
            }
            return Some(false);
        }
    }
    Some(true)
}

/// The answer that the Hub would give.
fn answer(shared: &Shared, request: &Request) -> Reply {
    let (files, commit) = (shared.files.lock().unwrap(), shared.commit.lock().unwrap().clone());
    let absent = |code: &str| Reply::new(404, "{}").with("X-Error-Code", code);
    // Another place on the same host, where redirects may lead.
    let path = request.path.strip_prefix("/moved").unwrap_or(&request.path);
    if request.storage {
        let Some(name) = path.strip_prefix("/store/") else { return absent("none") };
        return match files.get(name) {
            Some(content) => part(request, content).with("ETag", "\"another tag\""),
            None => absent("none"),
        };
    }
    if let Some(revision) = path.strip_prefix(&format!("/api/models/{REPO}/revision/")) {
        if ![commit.as_str(), COMMIT, "main", "v1%2Fx"].contains(&revision) {
            return absent("RevisionNotFound");
        }
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let listing = serde_json::json!({ "id": REPO, "sha": commit, "siblings": siblings, "likes": 3, "tags": ["x"] });
        return Reply::new(200, listing.to_string()).with("Content-Type", "application/json");
    }
    let Some(name) = path.strip_prefix(&format!("/{REPO}/resolve/{commit}/")) else {
        return absent("RepoNotFound");
    };
    let Some(content) = files.get(name) else { return absent("EntryNotFound") };
    let etag = etag(name, content);
    let reply = if is_large(name) {
        let place = format!("{}/store/{name}", shared.storage.lock().unwrap());
        Reply::new(302, "moved")
            .with("Location", place)
            .with("X-Linked-Etag", format!("\"{etag}\""))
            .with("X-Linked-Size", content.len())
            .with("ETag", "\"of the redirect\"")
    } else {
        part(request, content).with("ETag", format!("\"{etag}\""))
    };
    reply.with("X-Repo-Commit", commit)
}

fn part(request: &Request, content: &[u8]) -> Reply {
    let from = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        Some(from) if from >= content.len() => Reply::new(416, ""),
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
            Reply::new(206, &content[from..]).with("Content-Range", range)
        }
        None => Reply::new(200, content),
    }
}
