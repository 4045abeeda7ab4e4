//! A Hub that refuses, and servers that mean harm.

use super::*;

#[test]
fn refusals_say_what_to_do() {
    use HubErrorKind::{Access, NotFound, Server as Unable};
    let cases = [
        (
            401,
            "",
            None,
            Access,
            "does not exist or is private (the Hub says no more without a token): check the id, or set",
        ),
        (401, "RepoNotFound", None, Access, "set HF_TOKEN"),
        (401, "GatedRepo", None, Access, "is gated: accept its terms on http://127.0.0.1:"),
        (403, "GatedRepo", Some("hf_x"), Access, "with the account of HF_TOKEN"),
        (403, "", Some("hf_x"), Access, "is refused to this token (status 403): check HF_TOKEN"),
        (404, "RevisionNotFound", None, NotFound, "there is no revision 'main' of it"),
        (404, "RepoNotFound", None, NotFound, "id or revision does not exist on http://127.0.0.1:"),
        (404, "", None, NotFound, "check them"),
        (410, "", None, Access, "refuses it (status 410)"),
        (429, "", None, Unable, "is asked too often (status 429): try again later"),
        (500, "", None, Unable, "cannot answer now (status 500)"),
        (503, "", None, Unable, "cannot answer now (status 503)"),
    ];
    for (status, code, token, kind, part) in cases {
        let (server, cache) = (Server::start(files()), folder());
        let mut options = options(&server, cache.path());
        options.token = token.map(str::to_string);
        server.change(move |_, reply| *reply = Reply::new(status, "<html>").with("X-Error-Code", code));
        let error = Hub::new(options.clone()).unwrap().model(REPO).unwrap_err();
        check(&format!("{status} {code}"), &error, kind, part);
        assert_eq!(tree(cache.path()), [""; 0], "nothing is written");
        // The same for a file, after the listing.
        server.change(move |request, reply| {
            if request.method == "HEAD" {
                *reply = Reply::new(status, "<html>").with("X-Error-Code", code);
            }
        });
        let error = Hub::new(options).unwrap().model(REPO).unwrap_err();
        assert_eq!(self::kind(&error), kind, "{status} {code}: {error}");
        nothing_of(cache.path(), "blobs");
    }
    // The storage's refusals say nothing about the model.
    let (server, cache) = (Server::start(files()), folder());
    server.change(|request, reply| {
        if request.storage {
            *reply = Reply::new(403, "<Error>expired</Error>");
        }
    });
    let error = hub(&server, cache.path()).model(REPO).unwrap_err();
    check("storage", &error, Unable, "does not give model.safetensors (status 403): try again later");
    let (server, cache) = (Server::start(files()), folder());
    let hub = hub(&server, cache.path());
    for id in ["org", "org/name/x", "../name", "org/name@", "https://huggingface.co/org/name"] {
        assert!(matches!(hub.model(id), Err(Error::Input { .. })), "{id}");
    }
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let (server, cache) = (Server::start(files()), folder());
    // Renamed repositories and small files are redirected on the same host, by a path alone.
    server.change(|request, reply| {
        if !request.storage && !request.path.starts_with("/moved/") {
            *reply = Reply::new(307, "").with("Location", format!("/moved{}", request.path));
        }
    });
    let hub = Hub::new(options(&server, cache.path()).token("hf_secret")).unwrap();
    hub.model(REPO).unwrap();
    let requests = server.requests();
    let (storage, own): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.storage);
    assert!(!storage.is_empty() && own.len() > 10);
    assert!(own.iter().any(|request| request.path.starts_with("/moved/")));
    for request in own {
        assert_eq!(request.header("authorization"), Some("Bearer hf_secret"), "{}", request.path);
    }
    for request in storage {
        assert!(!request.headers.values().any(|value| value.contains("secret")), "{request:?}");
        assert!(!request.path.contains("secret"));
    }
}

#[test]
fn names_cannot_leave_the_folder() {
    let mut escaping = sharded();
    let index = r#"{"weight_map": {"a": "../../../../escaped.safetensors"}}"#;
    escaping.insert("model.safetensors.index.json".into(), index.into());
    escaping.insert("../../../../escaped.safetensors".into(), b"x".to_vec());
    let (server, cache) = (Server::start(escaping), folder());
    let inner = cache.path().join("inner");
    let error = hub(&server, &inner).model(REPO).unwrap_err();
    check("an index", &error, HubErrorKind::Server, "a shard must be a .safetensors file beside the index");
    assert_eq!(support::names(cache.path()), ["inner"]);

    let mut unknown = sharded();
    unknown.remove("a-2.safetensors");
    let (server, cache) = (Server::start(unknown), folder());
    let error = hub(&server, cache.path()).model(REPO).unwrap_err();
    check("a shard that is not there", &error, HubErrorKind::Server, "names 'a-2.safetensors', which it does not have");

    for name in ["../evil", "a/../evil", "/evil", "a//evil", "a\\..\\evil", "C:evil", "a/./evil", "a\nb/evil"] {
        let mut files = files();
        files.insert(name.into(), b"x".to_vec());
        let (server, cache) = (Server::start(files), folder());
        let inner = cache.path().join("inner");
        let error = hub(&server, &inner).snapshot(REPO, &["*evil", "*/evil", "*/*/evil"]).unwrap_err();
        check(name, &error, HubErrorKind::Server, "which would leave its folder: do not use this model");
        assert_eq!(tree(cache.path()), [""; 0], "{name}");
    }
}

#[test]
fn hostile_answers_are_errors() {
    use HubErrorKind::{Network, Server as Odd};
    type Change = Box<dyn Fn(&server::Request, &mut Reply) + Send + Sync>;
    fn on(method: &'static str, ending: &'static str, change: impl Fn(&mut Reply) + Send + Sync + 'static) -> Change {
        Box::new(move |request, reply| {
            if request.is(method, ending) {
                change(reply);
            }
        })
    }
    let listing = |body: &'static str| on("GET", "revision/main", move |reply| reply.body = body.into());
    let head = |name: &'static str, value: &'static str| {
        on(
            "HEAD",
            "config.json",
            move |reply| if value.is_empty() { reply.unset(name) } else { reply.set(name, value) },
        )
    };
    let raw = |bytes: Vec<u8>| on("HEAD", "config.json", move |reply| reply.raw = Some(bytes.clone()));
    let cases: Vec<(&str, Change, HubErrorKind, &str)> = vec![
        ("no JSON", listing("<html>log in</html>"), Odd, "does not answer as a Hub does"),
        ("no listing", listing("[]"), Odd, "does not answer as a Hub does"),
        ("a commit that is a path", listing(r#"{"sha": "../../../x", "siblings": []}"#), Odd, "which is no commit"),
        ("an empty commit", listing(r#"{"sha": "", "siblings": []}"#), Odd, "which is no commit"),
        (
            "nested without end",
            on("GET", "revision/main", |reply| {
                reply.body = br#"{"x": "#.iter().chain(&[b'['; 1 << 20]).copied().collect()
            }),
            Odd,
            "does not answer as a Hub does",
        ),
        (
            "a listing without end",
            on("GET", "revision/main", |reply| (reply.endless, reply.body) = (true, vec![b' '; 1 << 16])),
            Odd,
            "lists more than 16777216 bytes",
        ),
        (
            "a broken listing",
            on("GET", "revision/main", |reply| reply.cut = Some(10)),
            Network,
            "no connection to http://127.0.0.1:",
        ),
        ("no commit", head("X-Repo-Commit", ""), Odd, "does not say of which commit config.json is"),
        ("another commit", head("X-Repo-Commit", "../x"), Odd, "of commit '../x' where"),
        ("no ETag", head("ETag", ""), Odd, "no usable ETag"),
        ("an ETag that is a path", head("ETag", "\"../../x\""), Odd, "no usable ETag"),
        ("an ETag that is no text", head("ETag", "\u{e9}\u{fc}"), Odd, "no usable ETag"),
        ("an empty ETag", head("ETag", "\"\""), Odd, "no usable ETag"),
        (
            "compressed",
            on("GET", "/config.json", |reply| reply.set("Content-Encoding", "gzip")),
            Odd,
            "compresses config.json",
        ),
        (
            "no size",
            Box::new(|request, reply| {
                if request.path.ends_with("/config.json") {
                    reply.set("Transfer-Encoding", "chunked");
                    reply.set("Content-Length", "x");
                    reply.body = b"1\r\nx\r\n0\r\n\r\n".to_vec();
                }
            }),
            Odd,
            "",
        ),
        ("no redirect", on("HEAD", "config.json", |reply| reply.status = 302), Odd, "redirects to no address"),
        (
            "a redirect to another scheme",
            on("HEAD", "config.json", |reply| *reply = Reply::new(302, "").with("Location", "ftp://x/")),
            Odd,
            "is not an address",
        ),
        (
            "a redirect to itself",
            Box::new(|request, reply| *reply = Reply::new(302, "").with("Location", &request.path)),
            Odd,
            "redirects more than 10 times",
        ),
        ("no HTTP", raw(b"\0\x01\x02 garbage\r\n\r\n".to_vec()), Odd, ""),
        ("no answer", raw(Vec::new()), Network, "no connection"),
        ("half a header", raw(b"HTTP/1.1 200 OK\r\nETa".to_vec()), Network, ""),
        (
            "headers without end",
            raw([b"HTTP/1.1 200 OK\r\n".to_vec(), b"X-Y: z\r\n".repeat(100_000)].concat()),
            Odd,
            "does not answer as a Hub does",
        ),
    ];
    for (what, change, kind, part) in cases {
        let (server, cache) = (Server::start(files()), folder());
        server.change(change);
        let error = hub(&server, cache.path()).model(REPO).unwrap_err();
        check(what, &error, kind, part);
        nothing_of(cache.path(), WEIGHTS);
    }
}

#[test]
fn a_listing_of_too_many_files_is_refused() {
    let mut many = files();
    many.extend((0..10_001).map(|at| (format!("tokenizer{at}"), Vec::new())));
    let (server, cache) = (Server::start(many), folder());
    let error = hub(&server, cache.path()).model(REPO).unwrap_err();
    check("many", &error, HubErrorKind::Server, "it lists 10007 files, and 10000 are the most");
    assert!(server.requests().len() < 10);
}
