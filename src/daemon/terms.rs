//! What a daemon serves and whom it trusts: a command shares a running one only if it wants the same.

use serde::{Deserialize, Serialize};

use super::protocol::Info;
use crate::{
    config::{Config, mask_url},
    failure::{Exit, Failure},
};

/// The settings that decide which bytes a reader gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The caches in order, without credentials; those that need no signature say so.
    pub caches: Vec<String>,
    /// Keys whose signatures count, in alphabetical order.
    pub trusted_keys: Vec<String>,
    /// Whether paths that nobody signed are refused.
    pub require_signatures: bool,
    /// When readers get bytes, as it is written in the configuration.
    pub verify: String,
}

impl Terms {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Self {
        let caches = config.caches.iter().map(|cache| {
            let trusted = if cache.trusted { " (trusted)" } else { "" };
            format!("{}{trusted}", mask_url(cache.url.as_str()))
        });
        let mut trusted_keys = config.trusted_keys.0.clone();
        trusted_keys.sort();
        trusted_keys.dedup();
        Self {
            caches: caches.collect(),
            trusted_keys,
            require_signatures: config.require_signatures,
            verify: config.verify.to_string(),
        }
    }

    /// What differs first: its name, what we have, what the other has.
    fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let list = |items: &[String]| {
            if items.is_empty() {
                "none".into()
            } else {
                items.join(", ")
            }
        };
        let rows = [
            ("caches", list(&self.caches), list(&other.caches)),
            (
                "trusted keys",
                list(&self.trusted_keys),
                list(&other.trusted_keys),
            ),
            (
                "require-signatures",
                self.require_signatures.to_string(),
                other.require_signatures.to_string(),
            ),
            ("verify", self.verify.clone(), other.verify.clone()),
        ];
        rows.into_iter().find(|(_, ours, theirs)| ours != theirs)
    }
}

/// Whether the daemon that says this of itself is the one that `config` wants.
///
/// # Errors
/// With both sides of what differs, and the ways out.
pub(super) fn agree(config: &Config, daemon: &Info) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let (what, ours, theirs) = if daemon.version != version {
        ("version", version.to_owned(), daemon.version.clone())
    } else {
        match Terms::of(config).difference(&daemon.terms) {
            None => return Ok(()),
            Some(difference) => difference,
        }
    };
    let (pid, dir) = (daemon.pid, config.state_dir.display());
    let mut failure = Failure::new(
        Exit::Unavailable,
        format!("the daemon of {dir} (process {pid}) runs with another setting: {what}"),
    );
    failure.causes = vec![format!("it has: {theirs}"), format!("wanted here: {ours}")];
    Err(failure.hint(format!(
        "use another directory (--state-dir), or, if no program uses the daemon any more, end it: kill {pid}; \
         the next run starts one with these settings"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms {
            caches: vec!["https://a/".into()],
            trusted_keys: vec!["a-1:AAAA".into()],
            require_signatures: true,
            verify: "stream".into(),
        }
    }

    #[test]
    fn every_term_counts() {
        assert_eq!(terms().difference(&terms()), None);
        for (other, name) in [
            (
                Terms {
                    caches: vec![],
                    ..terms()
                },
                "caches",
            ),
            (
                Terms {
                    trusted_keys: vec![],
                    ..terms()
                },
                "trusted keys",
            ),
            (
                Terms {
                    require_signatures: false,
                    ..terms()
                },
                "require-signatures",
            ),
            (
                Terms {
                    verify: "before-read".into(),
                    ..terms()
                },
                "verify",
            ),
        ] {
            assert_eq!(terms().difference(&other).unwrap().0, name);
        }
        let (_, ours, theirs) = terms()
            .difference(&Terms {
                caches: vec![],
                ..terms()
            })
            .unwrap();
        assert_eq!((ours.as_str(), theirs.as_str()), ("https://a/", "none"));
    }
}
