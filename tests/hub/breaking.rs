//! Connections that break, content that is wrong, disks that are full.

use super::*;

#[test]
fn a_broken_download_goes_on() {
    let (server, cache) = (Server::start(files()), folder());
    let whole = files()[WEIGHTS].len();
    // Each connection to the storage breaks after 50,000 bytes.
    server.change(|request, reply| reply.cut = request.storage.then_some(50_000).filter(|cut| *cut < reply.body.len()));
    let snapshot = Hub::new(options(&server, cache.path()).retries(1)).unwrap().model(REPO).unwrap();
    assert_eq!(fs::read(snapshot.folder.join(WEIGHTS)).unwrap(), files()[WEIGHTS]);
    let ranges: Vec<Option<String>> = server
        .requests()
        .into_iter()
        .filter(|request| request.storage)
        .map(|request| request.header("range").map(str::to_string))
        .collect();
    assert_eq!(ranges.len(), whole.div_ceil(50_000), "{ranges:?}");
    assert_eq!(ranges[0], None);
    assert_eq!(ranges[1].as_deref(), Some("bytes=50000-"));
}

#[test]
fn a_later_call_goes_on_where_an_earlier_one_broke() {
    let (server, cache) = (Server::start(files()), folder());
    let hub = hub(&server, cache.path());
    server.change(|request, reply| reply.cut = request.storage.then_some(70_000));
    let error = hub.model(REPO).unwrap_err();
    check(
        "broken",
        &error,
        HubErrorKind::Network,
        "70000 of 153320 bytes of model.safetensors came, then no connection",
    );
    let partial = storage(cache.path()).join(format!("blobs/{}.incomplete", etag(WEIGHTS, &files()[WEIGHTS])));
    assert_eq!(fs::metadata(&partial).unwrap().len(), 70_000);
    assert!(!tree(cache.path()).iter().any(|path| path.contains("refs/") || path.ends_with(WEIGHTS)));
    server.honest();
    server.requests();
    let snapshot = hub.model(REPO).unwrap();
    let ranges: Vec<_> = server.requests().into_iter().filter(|request| request.storage).collect();
    assert_eq!((ranges.len(), ranges[0].header("range")), (1, Some("bytes=70000-")));
    assert_eq!(fs::read(snapshot.folder.join(WEIGHTS)).unwrap(), files()[WEIGHTS]);
    assert!(!partial.exists());
}

#[test]
fn what_an_earlier_call_left_is_not_trusted() {
    let content = &files()[WEIGHTS];
    let name = format!("{}.incomplete", etag(WEIGHTS, content));
    let longer = [&content[..], b"more"].concat();
    for (what, left) in
        [("garbage", &b"garbage"[..]), ("too long", &longer), ("wrong to the end", &vec![7; content.len()])]
    {
        let (server, cache) = (Server::start(files()), folder());
        let blobs = storage(cache.path()).join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(&name), left).unwrap();
        let snapshot = hub(&server, cache.path()).model(REPO).unwrap();
        assert_eq!(&fs::read(snapshot.folder.join(WEIGHTS)).unwrap(), content, "{what}");
    }
    // A server that cannot start in the middle sends the whole file.
    let (server, cache) = (Server::start(files()), folder());
    let blobs = storage(cache.path()).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(&name), &content[..1000]).unwrap();
    let whole = content.clone();
    server.change(move |request, reply| {
        if request.storage {
            *reply = Reply::new(200, whole.clone());
        }
    });
    let snapshot = hub(&server, cache.path()).model(REPO).unwrap();
    assert_eq!(&fs::read(snapshot.folder.join(WEIGHTS)).unwrap(), content);
}

#[test]
fn damaged_files_do_not_count() {
    use HubErrorKind::Damaged;
    type Change = fn(&server::Request, &mut Reply);
    let cases: [(&str, Change, &str); 5] = [
        (
            "declared too long",
            |request, reply| {
                if request.method == "HEAD" && reply.status == 302 {
                    reply.set("X-Linked-Size", 153_321);
                }
            },
            "should have 153321 bytes, and 153320 came",
        ),
        (
            "declared too short",
            |request, reply| {
                if request.method == "HEAD" && reply.status == 302 {
                    reply.set("X-Linked-Size", 1000);
                }
            },
            "should have 1000 bytes",
        ),
        (
            "another content",
            |request, reply| {
                if request.storage {
                    reply.body[100_000] ^= 1;
                }
            },
            "model.safetensors came damaged (its SHA-256 starts with ",
        ),
        (
            "no end",
            |request, reply| {
                if request.storage {
                    reply.endless = true;
                }
            },
            "should have 153320 bytes",
        ),
        (
            "a small file of another size",
            |request, reply| {
                if request.is("GET", "tokenizer.json") {
                    reply.body.push(b'x');
                }
            },
            "'tokenizer.json' should have 25 bytes, and 26 came",
        ),
    ];
    for (what, change, part) in cases {
        let (server, cache) = (Server::start(files()), folder());
        server.change(change);
        let error = hub(&server, cache.path()).model(REPO).unwrap_err();
        check(what, &error, Damaged, part);
        nothing_of(cache.path(), WEIGHTS);
        server.honest();
        assert!(hub(&server, cache.path()).model(REPO).is_ok(), "{what}");
    }
}

#[test]
fn a_silent_server_is_given_up() {
    for storage in [false, true] {
        let (server, cache) = (Server::start(files()), folder());
        server.change(move |request, reply| {
            if request.storage || !storage {
                (reply.cut, reply.silent) = (Some(10), true);
            }
        });
        let options = options(&server, cache.path()).timeout(Duration::from_millis(300));
        let error = Hub::new(options).unwrap().model(REPO).unwrap_err();
        check("silent", &error, HubErrorKind::Network, "does not answer within 0.3 s");
        server.release();
    }
}

/// `/dev/full` is a disk without space; as the place where the weights grow, it makes writing them fail as a full disk does.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_of_one_line() {
    let (server, cache) = (Server::start(files()), folder());
    let blobs = storage(cache.path()).join("blobs");
    let blob = etag(WEIGHTS, &files()[WEIGHTS]);
    fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{blob}.incomplete"));
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let error = hub(&server, cache.path()).model(REPO).unwrap_err();
    check("full", &error, HubErrorKind::Storage, "No space left on device");
    assert!(error.to_string().contains("free some space there, or set HF_HOME"), "{error}");
    assert!(!blobs.join(&blob).exists());
    assert!(!tree(cache.path()).iter().any(|path| path.contains("refs/") || path.ends_with(WEIGHTS)));
    assert!(!partial.exists(), "nothing was written, so nothing is kept");
    assert!(hub(&server, cache.path()).model(REPO).is_ok());
}

#[cfg(unix)]
#[test]
fn a_cache_that_cannot_be_written_is_an_error_of_one_line() {
    let (server, cache) = (Server::start(files()), folder());
    fs::write(cache.path().join("file"), "not a folder").unwrap();
    let error = hub(&server, &cache.path().join("file")).model(REPO).unwrap_err();
    check("no folder", &error, HubErrorKind::Storage, "set HF_HOME to another folder");
}
