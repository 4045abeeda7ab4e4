//! What comes, where it goes, and what does not come again.

use super::*;

#[test]
fn a_model_is_fetched_and_used() {
    let (server, cache) = (Server::start(files()), folder());
    let forecaster = Forecaster::from_hub_with(REPO, &hub(&server, cache.path())).unwrap();
    assert_eq!(forecaster.info().source, format!("{REPO}@{COMMIT}"));
    let series = [Series::new("y", [1.0, 5.0, 2.0, 4.0, 3.0, 3.5])];
    let own = Forecaster::from_dir(model()).unwrap();
    let forecast = |model: &Forecaster| model.forecast(&series, 5, &ForecastOptions::default()).unwrap();
    assert_eq!(forecast(&forecaster), forecast(&own));

    // The cache is as huggingface_hub lays it out; what does not belong to the model stayed where it is.
    let (base, snapshot) = (storage(cache.path()), format!("snapshots/{COMMIT}"));
    let names: Vec<String> = tree(&base.join(&snapshot));
    let expected = [
        "additional_chat_templates/a.jinja",
        "chat_template.jinja",
        "config.json",
        WEIGHTS,
        "preprocessor_config.json",
        "tokenizer.json",
    ];
    assert_eq!(names, expected);
    assert_eq!(fs::read_to_string(base.join("refs/main")).unwrap(), COMMIT);
    for name in &expected {
        let (file, content) = (base.join(&snapshot).join(name), &files()[*name]);
        assert_eq!(&fs::read(&file).unwrap(), content, "{name}");
        assert_eq!(&fs::read(base.join("blobs").join(etag(name, content))).unwrap(), content, "{name}");
        #[cfg(unix)]
        assert!(fs::read_link(&file).unwrap().is_relative(), "{name}");
    }
    assert_eq!(fs::read_dir(base.join("blobs")).unwrap().count(), expected.len());
}

#[test]
fn what_is_in_the_cache_is_not_fetched_again() {
    let (server, cache) = (Server::start(files()), folder());
    let hub = hub(&server, cache.path());
    let first = hub.model(REPO).unwrap();
    server.requests();
    assert_eq!(hub.model(REPO).unwrap(), first);
    assert_eq!(server.requests().len(), 1, "one question: whether main is still this commit");
    ModelInfo::of_hub(REPO, &hub).unwrap();
    assert_eq!(server.requests().len(), 1);
    let pinned = hub.model(&first.to_string()).unwrap();
    assert_eq!((pinned.folder, pinned.unasked), (first.folder.clone(), None));
    assert_eq!(server.requests().len(), 0, "a commit never changes");

    let offline = Hub::new(options(&server, cache.path()).offline(true)).unwrap();
    assert_eq!(offline.model(REPO).unwrap(), first);
    assert!(Forecaster::from_hub_with(REPO, &offline).is_ok());
    assert_eq!(server.requests().len(), 0);

    // Nobody listens there any more: the copy answers, and says so.
    let gone = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let gone = Hub::new(options(&server, cache.path()).endpoint(&gone)).unwrap();
    let copy = gone.model(REPO).unwrap();
    assert_eq!(copy.folder, first.folder);
    assert!(copy.unasked.unwrap().contains("no connection to http://127.0.0.1:"));
    let error = Hub::new(gone.options().clone().endpoint("http://127.0.0.1:1")).unwrap().snapshot(REPO, &["none.json"]);
    check("no network, no copy", &error.unwrap_err(), HubErrorKind::Network, "check the network");
    // A Hub that cannot answer now is no different; one that refuses is.
    server.change(|_, reply| reply.status = 503);
    assert!(hub.model(REPO).unwrap().unasked.unwrap().contains("status 503"));
    server.change(|_, reply| reply.status = 403);
    check(
        "refused",
        &hub.model(REPO).unwrap_err(),
        HubErrorKind::Access,
        "HF_HUB_OFFLINE=1 uses the copy in the cache",
    );
}

#[test]
fn a_new_commit_brings_only_what_changed() {
    let (server, cache) = (Server::start(files()), folder());
    let hub = hub(&server, cache.path());
    let old = hub.model(REPO).unwrap();
    let commit = "f".repeat(40);
    server.commit(&commit, "tokenizer.json", b"another tokenizer");
    server.requests();
    let new = hub.model(REPO).unwrap();
    assert_eq!(new.commit, commit);
    assert_eq!(fs::read(new.folder.join("tokenizer.json")).unwrap(), b"another tokenizer");
    assert_eq!(fs::read(old.folder.join("tokenizer.json")).unwrap(), files()["tokenizer.json"]);
    assert_eq!(fs::read_to_string(storage(cache.path()).join("refs/main")).unwrap(), commit);
    let fetched: Vec<String> = server.requests().into_iter().filter(|r| r.method == "GET").map(|r| r.path).collect();
    assert_eq!(fetched.len(), 2, "the listing and one file: {fetched:?}");
}

#[test]
fn shards_are_those_of_the_index() {
    let (server, cache) = (Server::start(sharded()), folder());
    let hub = hub(&server, cache.path());
    let snapshot = hub.model(REPO).unwrap();
    let names = tree(&snapshot.folder);
    assert!(names.contains(&"a-1.safetensors".into()) && names.contains(&"a-2.safetensors".into()), "{names:?}");
    assert!(!names.contains(&"a-3.safetensors".into()), "{names:?}");
    let (info, whole) = (ModelInfo::of_hub(REPO, &hub).unwrap(), ModelInfo::of_dir(model()).unwrap());
    assert_eq!((info.parameters, info.dtypes), (whole.parameters, whole.dtypes));
    // Without one of its shards, a copy is not complete.
    let offline = Hub::new(options(&server, cache.path()).offline(true)).unwrap();
    assert!(offline.model(REPO).is_ok());
    fs::remove_file(snapshot.folder.join("a-2.safetensors")).unwrap();
    check(
        "a shard is missing",
        &offline.model(REPO).unwrap_err(),
        HubErrorKind::Offline,
        "is not complete in the cache",
    );
    assert!(hub.model(REPO).is_ok() && offline.model(REPO).is_ok());
}

#[test]
fn revisions_have_their_own_references() {
    let (server, cache) = (Server::start(files()), folder());
    let snapshot = hub(&server, cache.path()).snapshot("org/name@v1/x", &["config.json", "*.jinja"]).unwrap();
    assert_eq!(tree(&snapshot.folder), ["chat_template.jinja", "config.json"]);
    assert_eq!(fs::read_to_string(storage(cache.path()).join("refs/v1/x")).unwrap(), COMMIT);
    assert!(server.requests()[0].path.ends_with("/revision/v1%2Fx"));
    let error = hub(&server, cache.path()).snapshot(REPO, &["none.json"]).unwrap_err();
    check("no such file", &error, HubErrorKind::NotFound, "has no file 'none.json'");
}

#[test]
fn a_model_that_would_not_load_is_not_fetched() {
    let with = |change: &dyn Fn(&mut Files)| {
        let mut files = files();
        change(&mut files);
        (Server::start(files), folder())
    };
    let (server, cache) = with(&|files| drop(files.remove(WEIGHTS)));
    let error = hub(&server, cache.path()).model(REPO).unwrap_err();
    check("pickles", &error, HubErrorKind::NotFound, "but 'pytorch_model.bin', a Python pickle");
    let (server, cache) = with(&|files| files.retain(|name, _| name == "config.json"));
    let error = hub(&server, cache.path()).model(REPO).unwrap_err();
    check("no weights", &error, HubErrorKind::NotFound, "has no model.safetensors and no model.safetensors.index.json");
    let (server, cache) = with(&|files| drop(files.remove("config.json")));
    let error = hub(&server, cache.path()).model(REPO).unwrap_err();
    check("no configuration", &error, HubErrorKind::NotFound, "has no config.json");

    let other = br#"{"model_type": "llama"}"#;
    let (server, cache) = with(&|files| drop(files.insert("config.json".into(), other.to_vec())));
    let error = Forecaster::from_hub_with(REPO, &hub(&server, cache.path())).err().unwrap();
    assert!(error.to_string().contains("model_type is 'llama'"), "{error}");
    assert!(!server.requests().iter().any(|request| request.path.contains(WEIGHTS)), "the weights stay where they are");
    nothing_of(cache.path(), WEIGHTS);
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let (server, cache) = (Server::start(files()), folder());
    // The storage answers once both have asked what the file is: from then on one of them must wait for the other.
    let waited = server.clone();
    server.change(move |request, _| {
        if request.storage {
            waited.wait_for(2, |request| request.is("HEAD", &format!("/resolve/{COMMIT}/{WEIGHTS}")));
        }
    });
    let waiting = Arc::new(Mutex::new(0));
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (server, cache, waiting) = (server.clone(), cache.path(), Arc::clone(&waiting));
                scope.spawn(move || {
                    let options = options(&server, cache).on_progress(move |progress| {
                        if progress.stage == Stage::Waiting && progress.file == WEIGHTS {
                            *waiting.lock().unwrap() += 1;
                        }
                    });
                    Hub::new(options).unwrap().model(REPO)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for result in results {
        assert_eq!(fs::read(result.unwrap().folder.join(WEIGHTS)).unwrap(), files()[WEIGHTS]);
    }
    assert_eq!(server.requests().iter().filter(|request| request.storage).count(), 1);
    assert!(*waiting.lock().unwrap() <= 1);
}

#[test]
fn progress_is_reported_unless_it_is_not_wanted() {
    let (server, cache) = (Server::start(files()), folder());
    type Seen = Mutex<Vec<(String, usize, usize, Stage)>>;
    let seen: Arc<Seen> = Arc::default();
    let sink = Arc::clone(&seen);
    let options = options(&server, cache.path()).on_progress(move |progress| {
        assert_eq!(progress.repo, REPO);
        sink.lock().unwrap().push((progress.file.into(), progress.number, progress.files, progress.stage));
    });
    let mut quiet = options.clone();
    (quiet.quiet, quiet.cache) = (true, cache.path().join("quiet"));
    Hub::new(quiet).unwrap().model(REPO).unwrap();
    assert!(seen.lock().unwrap().is_empty());
    Hub::new(options).unwrap().model(REPO).unwrap();
    let seen = seen.lock().unwrap();
    let weights: Vec<_> = seen.iter().filter(|(file, ..)| file == WEIGHTS).collect();
    let size = files()[WEIGHTS].len() as u64;
    let mut last = 0;
    for (_, number, all, stage) in &weights {
        assert_eq!((*number, *all), (6, 6), "weights come last");
        if let Stage::Fetching { done, size: whole } = stage {
            assert!(*done >= last && *whole == size);
            last = *done;
        }
    }
    assert_eq!((last, weights.last().unwrap().3), (size, Stage::Done));
}

#[test]
fn offline_says_what_is_missing() {
    let (server, cache) = (Server::start(files()), folder());
    let offline = Hub::new(options(&server, cache.path()).offline(true)).unwrap();
    check("nothing", &offline.model(REPO).unwrap_err(), HubErrorKind::Offline, "is not in the cache");
    hub(&server, cache.path()).snapshot(REPO, &["config.json"]).unwrap();
    check("a part", &offline.model(REPO).unwrap_err(), HubErrorKind::Offline, "is not complete in the cache");
    let error = Forecaster::from_hub_with(REPO, &offline).err().unwrap();
    check("a part", &error, HubErrorKind::Offline, "unset that once, or copy the model there");
    assert!(offline.snapshot(REPO, &["config.json"]).is_ok());
    assert!(tree(cache.path()).iter().all(|path| !path.contains(WEIGHTS)));
}
