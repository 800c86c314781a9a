//! Names of images, as containerd, Docker and Kubernetes have them: `[HOST[:PORT]/]PATH[:TAG]`.
//!
//! Grammar: the reference format of the distribution project. What is left out is filled in as
//! Docker does: `python` is `docker.io/library/python:latest`.

use std::fmt;

/// The registry of names without a host.
const DEFAULT_DOMAIN: &str = "docker.io";
/// What stands in front of names of one word there.
const DEFAULT_NAMESPACE: &str = "library";
/// The tag of names without one.
const DEFAULT_TAG: &str = "latest";
/// Longest name without its tag, in bytes.
const MAX_NAME: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG: usize = 128;

/// The name of an image, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    domain: String,
    path: String,
    tag: String,
}

/// Why a text is no name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no name of an image: {why}")]
pub struct ReferenceError {
    text: String,
    why: String,
}

impl Reference {
    /// Reads a name.
    ///
    /// # Errors
    /// When containerd would refuse it; the rule that is broken is named.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        Self::parsed(text).map_err(|why| ReferenceError {
            text: text.into(),
            why,
        })
    }

    fn parsed(text: &str) -> Result<Self, String> {
        if text.contains('@') {
            return Err("it holds a digest, which is that of what is only being built".into());
        }
        let (domain, rest) = match text.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest),
            _ => (DEFAULT_DOMAIN, text),
        };
        check_domain(domain)?;
        let (path, tag) = rest.split_once(':').unwrap_or((rest, DEFAULT_TAG));
        path.split('/').try_for_each(check_component)?;
        check_tag(tag)?;
        let domain = match domain {
            // Its old name.
            "index.docker.io" => DEFAULT_DOMAIN,
            domain => domain,
        };
        let path = match domain == DEFAULT_DOMAIN && !path.contains('/') {
            true => format!("{DEFAULT_NAMESPACE}/{path}"),
            false => path.to_owned(),
        };
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(format!("it has more than {MAX_NAME} characters"));
        }
        Ok(Self {
            domain: domain.to_owned(),
            path,
            tag: tag.to_owned(),
        })
    }

    /// Its tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// As Docker shows it: without what is filled in, but with the tag.
    pub fn familiar(&self) -> String {
        let Self { domain, path, tag } = self;
        match domain == DEFAULT_DOMAIN {
            true => {
                let short = path.strip_prefix("library/").filter(|p| !p.contains('/'));
                format!("{}:{tag}", short.unwrap_or(path))
            }
            false => self.to_string(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.domain, self.path, self.tag)
    }
}

/// Whether what stands in front of the first slash is a host, and no part of a path.
fn is_host(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':', '['])
        || first.chars().any(|c| c.is_ascii_uppercase())
}

fn check_domain(domain: &str) -> Result<(), String> {
    let wrong = || Err(format!("{domain:?} is no host, with or without a port"));
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, after)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
                match after.strip_prefix(':') {
                    Some(port) => ("", Some(port)),
                    None if after.is_empty() => ("", None),
                    None => return wrong(),
                }
            }
            _ => return wrong(),
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit());
    let label = |label: &str| {
        let inner = label
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || c == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    match port.is_none_or(digits) && (domain.starts_with('[') || host.split('.').all(label)) {
        true => Ok(()),
        false => wrong(),
    }
}

/// Lower case letters and digits, with single separators between them: a dot, one or two
/// underscores, or any number of dashes.
fn check_component(component: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("{component:?} {why}"));
    if component.is_empty() {
        return Err("a part of it is empty".into());
    }
    if component.chars().any(|c| c.is_ascii_uppercase()) {
        return wrong("has capital letters; only its tag may have them");
    }
    let word = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = component.as_bytes();
    if let Some(other) = component
        .chars()
        .find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-'))
    {
        return wrong(&format!("has {other:?}, which cannot stand in a name"));
    }
    let separators = bytes.split(word).filter(|separator| !separator.is_empty());
    let ends = bytes.first().is_some_and(word) && bytes.last().is_some_and(word);
    let fine = |s: &[u8]| matches!(s, b"." | b"_" | b"__") || s.iter().all(|c| *c == b'-');
    match ends && separators.into_iter().all(fine) {
        true => Ok(()),
        false => wrong("has a dot, underscore or dash too many, or at an end"),
    }
}

fn check_tag(tag: &str) -> Result<(), String> {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"_.-".contains(&c);
    let fine = (1..=MAX_TAG).contains(&tag.len())
        && tag.bytes().all(allowed)
        && !tag.starts_with(['.', '-']);
    match fine {
        true => Ok(()),
        false => Err(format!(
            "the tag {tag:?} is not 1 to {MAX_TAG} letters, digits, underscores, dots and dashes, the first \
             of them no dot and no dash"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_in() {
        for (text, full, familiar) in [
            ("python", "docker.io/library/python:latest", "python:latest"),
            (
                "python:3.11",
                "docker.io/library/python:3.11",
                "python:3.11",
            ),
            (
                "me/python",
                "docker.io/me/python:latest",
                "me/python:latest",
            ),
            (
                "docker.io/python:1",
                "docker.io/library/python:1",
                "python:1",
            ),
            (
                "docker.io/library/a/b",
                "docker.io/library/a/b:latest",
                "library/a/b:latest",
            ),
            ("index.docker.io/me/x:1", "docker.io/me/x:1", "me/x:1"),
            (
                "ghcr.io/me/x:V_1.2-a",
                "ghcr.io/me/x:V_1.2-a",
                "ghcr.io/me/x:V_1.2-a",
            ),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            (
                "127.0.0.1:5000/x:1",
                "127.0.0.1:5000/x:1",
                "127.0.0.1:5000/x:1",
            ),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            ("Host/x", "Host/x:latest", "Host/x:latest"),
            (
                "nix:0/nix/store/x",
                "nix:0/nix/store/x:latest",
                "nix:0/nix/store/x:latest",
            ),
            (
                "a.b/a__b/c--d.e_f:1",
                "a.b/a__b/c--d.e_f:1",
                "a.b/a__b/c--d.e_f:1",
            ),
        ] {
            let name = Reference::parse(text).unwrap();
            assert_eq!(name.to_string(), full);
            assert_eq!(name.familiar(), familiar);
            assert_eq!(Reference::parse(full).unwrap(), name);
            assert_eq!(Reference::parse(familiar).unwrap(), name);
        }
    }

    #[test]
    fn the_rule_that_is_broken_is_named() {
        let digest = format!("x@sha256:{}", "0".repeat(64));
        let long = format!("a.b/{}", "x".repeat(252));
        let tag = format!("x:{}", "1".repeat(129));
        for (text, why) in [
            ("", "empty"),
            ("/x", "empty"),
            ("a//b", "empty"),
            ("a.b/", "empty"),
            ("Python", "capital letters"),
            ("a.b/Python:1", "capital letters"),
            ("a b", "' '"),
            ("x:", "tag"),
            ("x:.1", "tag"),
            ("x:a/b", "no host"),
            (&tag, "tag"),
            ("-x", "dash too many"),
            ("x-", "dash too many"),
            ("a..b", "dash too many"),
            ("a___b", "dash too many"),
            ("a.-b", "dash too many"),
            ("a.b:x/y", "no host"),
            ("-a.b/y", "no host"),
            ("[::x]/y", "no host"),
            (&digest, "digest"),
            (&long, "255"),
        ] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
