//! Addresses: who a request goes to, and where a redirect leads.

use std::fmt;

use ureq::http::Uri;

/// Scheme, host and port: who it is that a request goes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Origin {
    scheme: &'static str,
    host: String,
    port: u16,
}

impl Origin {
    pub fn of(uri: &Uri) -> Option<Self> {
        let (scheme, port) = match uri.scheme_str()? {
            "https" => ("https", 443),
            "http" => ("http", 80),
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        // A port that is there but cannot be read must not pass for the usual one.
        let port = match uri.port() {
            Some(port) => port.as_u16(),
            None if uri.authority()?.as_str().rsplit('@').next() != uri.host() => return None,
            None => port,
        };
        Some(Origin { scheme, host, port })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Origin { scheme, host, port } = self;
        let usual = if *scheme == "https" { 443 } else { 80 };
        if *port == usual { write!(f, "{scheme}://{host}") } else { write!(f, "{scheme}://{host}:{port}") }
    }
}

/// Where a redirect from an address leads.
pub(super) fn resolve(from: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let is_scheme = |start: &str| {
        start.starts_with(|c: char| c.is_ascii_alphabetic())
            && start.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    };
    let whole = if location.split_once(':').is_some_and(|(start, _)| is_scheme(start)) {
        location.to_string()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    whole.parse().ok()
}

/// One part of a path, with everything but letters, digits and `-._~` as `%XX`.
pub(super) fn escaped(part: &str) -> String {
    let mut text = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sees_the_token() {
        let origin = |text: &str| Origin::of(&text.parse().unwrap());
        let hub = origin("https://huggingface.co/a/b").unwrap();
        for same in ["https://HuggingFace.co", "https://huggingface.co:443/x?y", "https://user@huggingface.co/"] {
            assert_eq!(origin(same).as_ref(), Some(&hub), "{same}");
        }
        for other in [
            "http://huggingface.co/",
            "https://huggingface.co:8443/",
            "https://huggingface.co.evil.example/",
            "https://huggingface.co@evil.example/",
            "https://cdn.huggingface.co/",
            "https://huggingface.co:/",
            "https://huggingface.co:99999/",
        ] {
            // Some of these are no addresses at all.
            assert_ne!(other.parse().ok().and_then(|uri| Origin::of(&uri)).as_ref(), Some(&hub), "{other}");
        }
        assert_eq!(hub.to_string(), "https://huggingface.co");
        assert_eq!(origin("http://[::1]:8080/x").unwrap().to_string(), "http://[::1]:8080");
    }

    #[test]
    fn redirects_lead_somewhere() {
        let from: Uri = "https://hub.example/org/name/resolve/main/a.bin".parse().unwrap();
        for (location, to) in [
            ("https://cdn.example/x?y=1", "https://cdn.example/x?y=1"),
            ("HTTPS://cdn.example/x", "https://cdn.example/x"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("/api/resolve-cache/x", "https://hub.example/api/resolve-cache/x"),
            ("b.bin", "https://hub.example/org/name/resolve/main/b.bin"),
        ] {
            assert_eq!(resolve(&from, location).map(|uri| uri.to_string()).as_deref(), Some(to));
        }
        for location in [
            "https://",
            "ftp://a/b",
            "file:///etc/passwd",
            "javascript:x",
            "http://a b/",
            "https://a:port/",
            "//",
            "\u{e9}\u{0}",
        ] {
            assert!(resolve(&from, location).is_none_or(|uri| Origin::of(&uri).is_none()), "{location}");
        }
    }

    #[test]
    fn parts_of_paths_are_escaped() {
        assert_eq!(escaped("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(escaped("a b\u{e9}%?#"), "a%20b%C3%A9%25%3F%23");
    }
}
