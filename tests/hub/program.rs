//! The program with a model on the Hub: a small server on the loopback interface stands for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::WEIGHTS;
use crate::server::{COMMIT, REPO, Reply, Server, etag};
use crate::support::{self, Run, model, program};

fn serve() -> Server {
    let file = |name: &str| (name.to_string(), fs::read(model().join(name)).unwrap());
    Server::start(BTreeMap::from([file("config.json"), file(WEIGHTS)]))
}

/// The program in this folder, whose cache is its folder `hf`, with this server as the Hub.
fn online(server: &Server, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = program(folder);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &server.endpoint).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(mut command: Command) -> Run {
    command.output().unwrap().into()
}

fn good(run: &Run) -> &str {
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    &run.stdout
}

#[test]
fn an_id_is_a_model() {
    let (server, folder) = (serve(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("t.csv"), "y\n1\n3\n2\n5\n").unwrap();
    let forecast = ["forecast", "t.csv", "--horizon", "3", "--csv", "--model"];
    let from_hub = run(online(&server, folder.path(), &[&forecast[..], &[REPO]].concat()));
    let path = model();
    let from_folder = run(online(&server, folder.path(), &[&forecast[..], &[path.to_str().unwrap()]].concat()));
    assert_eq!(good(&from_hub), good(&from_folder));
    assert!(folder.path().join("hf/hub/models--org--name/refs/main").exists());

    // Once it is there, no network is needed.
    server.requests();
    let mut offline = program(folder.path());
    offline.env("HF_ENDPOINT", &server.endpoint).args(["info", "--json", REPO]);
    let info: serde_json::Value = serde_json::from_str(good(&run(offline))).unwrap();
    assert_eq!(info["source"], format!("{REPO}@{COMMIT}"));
    assert_eq!(server.requests().len(), 0);
    // A Hub that cannot answer is no obstacle, but is no secret either.
    server.change(|_, reply| *reply = Reply::new(503, ""));
    let copy = run(online(&server, folder.path(), &["info", REPO]));
    assert_eq!((copy.code, copy.stderr.lines().count()), (Some(0), 1), "{}", copy.stderr);
    assert!(
        copy.stderr.starts_with("note: org/name: the newest copy in the cache is used, because"),
        "{}",
        copy.stderr
    );
}

#[test]
fn a_folder_that_exists_is_no_id() {
    let (server, folder) = (serve(), tempfile::tempdir().unwrap());
    fs::create_dir(folder.path().join("org")).unwrap();
    support::copy_of_model(&folder.path().join("org"));
    let info = run(online(&server, folder.path(), &["info", "org/model"]));
    assert!(good(&info).contains("org/model"), "{}", info.stdout);
    // Nor is a path that cannot be one.
    for path in ["./org/name", "none", "org/name/x", "/org/name"] {
        let info = run(online(&server, folder.path(), &["info", path]));
        assert_eq!(info.code, Some(1));
        assert!(info.stderr.contains("does not exist: give a folder"), "{}", info.stderr);
    }
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn errors_take_one_line() {
    let (server, folder) = (serve(), tempfile::tempdir().unwrap());
    for (id, part) in [
        ("org/other", "org/other: id or revision does not exist on http://127.0.0.1:"),
        ("org/name@v2", "org/name@v2: there is no revision 'v2' of it"),
        ("org/name@v2", "(there is no folder org/name@v2 either)"),
    ] {
        let failed = run(online(&server, folder.path(), &["info", id]));
        assert_eq!((failed.code, failed.stdout.as_str()), (Some(1), ""));
        assert!(failed.stderr.starts_with("error: ") && failed.stderr.lines().count() == 1, "{}", failed.stderr);
        assert!(failed.stderr.contains(part), "{}", failed.stderr);
    }
    let mut wrong = online(&server, folder.path(), &["info", REPO]);
    wrong.env("HF_ENDPOINT", "nowhere");
    assert!(run(wrong).stderr.contains("HF_ENDPOINT 'nowhere' is not the address of a Hub"));
    let mut secret = online(&server, folder.path(), &["info", "org/other"]);
    secret.env("HF_TOKEN", "hf_secret");
    assert!(!run(secret).stderr.contains("secret"));
    assert!(server.requests().iter().any(|request| request.header("authorization") == Some("Bearer hf_secret")));
}

#[test]
fn two_processes_at_once_fetch_a_file_once() {
    let (server, folder) = (serve(), tempfile::tempdir().unwrap());
    let waited = server.clone();
    server.change(move |request, _| {
        if request.storage {
            waited.wait_for(2, |request| request.is("HEAD", WEIGHTS));
        }
    });
    let processes: Vec<_> = (0..2).map(|_| online(&server, folder.path(), &["info", REPO]).spawn().unwrap()).collect();
    for process in processes {
        let run: Run = process.wait_with_output().unwrap().into();
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let waits = |line: &str| line == "note: model.safetensors is being fetched by another process: waiting";
        assert!(
            run.stderr.lines().all(|line| waits(line) || line.starts_with("note: config.json is being fetched")),
            "{}",
            run.stderr
        );
    }
    assert_eq!(server.requests().iter().filter(|request| request.storage).count(), 1);
}

#[cfg(unix)]
#[test]
fn an_interrupted_download_goes_on() {
    let (server, folder) = (serve(), tempfile::tempdir().unwrap());
    server.change(|request, reply| {
        if request.storage {
            (reply.cut, reply.silent) = (Some(1000), true);
        }
    });
    let mut child = online(&server, folder.path(), &["info", REPO]).spawn().unwrap();
    let content = fs::read(model().join(WEIGHTS)).unwrap();
    let blobs = folder.path().join("hf/hub/models--org--name/blobs");
    let partial = blobs.join(format!("{}.incomplete", etag(WEIGHTS, &content)));
    while !fs::metadata(&partial).is_ok_and(|file| file.len() == 1000) {
        assert!(child.try_wait().unwrap().is_none(), "ended early");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // Not SIGINT, which programs started in the background ignore.
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(fs::metadata(&partial).unwrap().len(), 1000);
    assert!(!blobs.join(etag(WEIGHTS, &content)).exists());

    server.honest();
    server.requests();
    let again = run(online(&server, folder.path(), &["info", REPO]));
    assert!(good(&again).contains("72.0 k in all"), "{}", again.stdout);
    let requests = server.requests();
    let storage: Vec<_> = requests.iter().filter(|request| request.storage).collect();
    assert_eq!((storage.len(), storage[0].header("range")), (1, Some("bytes=1000-")));
    server.release();
}
