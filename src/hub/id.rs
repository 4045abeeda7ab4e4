//! Names that come from users and from servers: what they may look like, since they become parts of addresses and paths.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, quoted};

/// A model on the Hub at a revision: `org/name` (its branch `main`), or `org/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepoId {
    repo: String,
    revision: String,
}

/// The revision of an id that names none.
const MAIN: &str = "main";

impl RepoId {
    /// `org/name`
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// A branch, a tag, or a commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl FromStr for RepoId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let whole = repo.split_once('/').is_some_and(|(org, name)| is_part(org) && is_part(name));
        if !whole || repo.ends_with(".git") {
            return Err(Error::option(format!(
                "{} is not the id of a model on the Hub: give org/name or org/name@revision",
                quoted(text)
            )));
        }
        if !is_revision(revision) {
            return Err(Error::option(format!(
                "{} is not a revision: give a branch, a tag or a commit after the @",
                quoted(revision)
            )));
        }
        Ok(RepoId { repo: repo.into(), revision: revision.into() })
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision == MAIN { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

/// Half of an id, by the Hub's rules, which keep it a plain file name: letters, digits, `-`, `_`, `.`; no `-` or `.` at its
/// ends, no `--` (the cache has it for `/`), no `..`.
fn is_part(part: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    part.len() <= 96
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && end(part.chars().next())
        && end(part.chars().last())
        && !part.contains("--")
        && !part.contains("..")
}

/// A git reference that is a path of plain file names, too.
fn is_revision(text: &str) -> bool {
    text.len() <= 255
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+'))
        && text.split('/').all(|part| !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with(".lock"))
        && !text.contains("..")
}

/// A full commit, which names one state of a repository for ever.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// An entity tag that can name a file.
pub(super) fn is_etag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && !text.starts_with('.')
}

/// The SHA-256 of a large file, which is its entity tag.
pub(super) fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a file name of a repository, joined to a folder, stays in that folder.
pub(super) fn is_inside(name: &str) -> bool {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.len() <= 255
            && !part.chars().any(|c| c.is_control() || matches!(c, '\\' | ':'))
    };
    name.len() <= 1024 && name.split('/').all(plain)
}

/// Whether a file name fits a pattern, in which `*` stands for any characters but `/`.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut next) = (0, 0);
    // After the last star of the pattern that was met, and the first byte of the name that it does not stand for.
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = name.get(next) {
        match pattern.get(at) {
            Some(b'*') => {
                at += 1;
                star = Some((at, next));
            }
            Some(wanted) if wanted == byte => (at, next) = (at + 1, next + 1),
            _ => match star {
                Some((after, from)) if name.get(from) != Some(&b'/') => {
                    star = Some((after, from + 1));
                    (at, next) = (after, from + 1);
                }
                _ => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|rest| *rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_written() {
        let id: RepoId = "Maple728/TimeMoE-50M".parse().unwrap();
        assert_eq!((id.repo(), id.revision()), ("Maple728/TimeMoE-50M", "main"));
        assert_eq!(id.to_string(), "Maple728/TimeMoE-50M");
        let id: RepoId = "a_b/c.d-e@refs/pr/12".parse().unwrap();
        assert_eq!((id.repo(), id.revision()), ("a_b/c.d-e", "refs/pr/12"));
        assert_eq!(id.to_string(), "a_b/c.d-e@refs/pr/12");
    }

    #[test]
    fn what_could_leave_its_folder_is_no_id() {
        let long = "x".repeat(97);
        for text in [
            "",
            "a",
            "/",
            "a/",
            "/b",
            "./b",
            "../b",
            "a/..",
            "a/b/c",
            "~/b",
            "a/b.git",
            "a--b/c",
            "a/-b",
            "a/b.",
            "a b/c",
            "a/ü",
            "a\\b/c",
            "C:/b",
            "a/b@",
            "a/b@../c",
            "a/b@x//y",
            "a/b@/x",
            "a/b@x/",
            "a/b@.x",
            "a/b@x y",
            "a/b@x\0",
            "a/b@x?y",
            "a/b@x.lock",
            "https://huggingface.co/a/b",
            &format!("a/{long}"),
        ] {
            let error = text.parse::<RepoId>().unwrap_err().to_string();
            assert!(error.contains("give "), "{text:?}: {error}");
        }
    }

    #[test]
    fn file_names_stay_inside() {
        for name in ["config.json", "a/b/c.txt", "..a", "a..b", "a b", "ü"] {
            assert!(is_inside(name), "{name}");
        }
        let long = "x".repeat(256);
        for name in
            ["", "/", "/etc/passwd", "..", "../a", "a/../b", "a//b", "a/", "./a", "C:\\a", "a\\b", "a:b", "a\n", &long]
        {
            assert!(!is_inside(name), "{name}");
        }
        assert!(is_etag("d7edf6bd2a681fb0175f7735298831ee1b22b812") && is_etag("abc-1"));
        for etag in ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a b", &"a".repeat(129)] {
            assert!(!is_etag(etag), "{etag}");
        }
        assert!(is_commit(&"0a".repeat(20)) && !is_commit(&"0A".repeat(20)) && !is_commit("main") && !is_commit(".."));
    }

    #[test]
    fn stars_stop_at_folders() {
        for (pattern, name) in [
            ("config.json", "config.json"),
            ("*.json", "config.json"),
            ("*", "a"),
            ("a*b*c", "a-b-b-c"),
            ("*a", "aaa"),
            ("tokenizer*", "tokenizer"),
            ("x/*.jinja", "x/a.jinja"),
            ("*/*", "a/b"),
            ("**", "ab"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("config.json", "config.jso"),
            ("config.json", "x/config.json"),
            ("*.json", "x/config.json"),
            ("*", "a/b"),
            ("*a", "ab"),
            ("x/*", "x/y/z"),
            ("", "a"),
            ("a*b*c", "a-c-b"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        // Many stars cost no more than pattern times name.
        assert!(!fits(&"*a".repeat(500), &"a".repeat(499)));
    }
}
