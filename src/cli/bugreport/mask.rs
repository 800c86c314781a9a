//! Secrets taken out of a text: those that the configuration leads to, wherever they stand, and
//! whatever looks like one.

use regex::{Captures, Regex};

use crate::{config::Config, substituter::netrc::Netrc};

/// What stands for a secret.
const MASKED: &str = "***";
/// Shorter ones would be found in the middle of words; what they are part of looks like a secret.
const SHORTEST: usize = 4;

/// Parameters of a cache's URL whose values everybody may see.
const PLAIN: [&str; 6] = [
    "region", "endpoint", "scheme", "profile", "priority", "trusted",
];

/// What must not be seen.
pub(super) struct Secrets {
    known: Vec<String>,
    patterns: Vec<Regex>,
}

/// What looks like a secret: in group 1 what may stay, behind it what may not.
const PATTERNS: [&str; 5] = [
    // User and password in a URL.
    r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@'\x22]+@",
    // In a header, or in what somebody wrote of one.
    r"(?i)((?:proxy-)?authorization\s*[:=]\s*['\x22]?(?:basic|bearer)?\s*)[^\s'\x22,}]+",
    r"(?i)(\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}",
    // Of nix.conf, netrc and key files, and in the query of a URL.
    r"(?i)(\b(?:password|passwd|secret|access-tokens?|access_token|token|secret[-_]?access[-_]?key|x-amz-(?:signature|credential|security-token))(?:\s*[=:]\s*|\s+)['\x22]?)[^\s'\x22&,}]+",
    // A secret key as Nix writes it: NAME:BASE64 of 64 bytes.
    r"(\b[A-Za-z0-9._-]+:)[A-Za-z0-9+/]{86}==",
];

impl Secrets {
    /// Those of this configuration. A file that can't be read has none that could be here.
    pub fn of(config: &Config) -> Self {
        let mut known = Vec::new();
        for cache in &config.caches {
            let url = &cache.url;
            // A user without a password is a token.
            let secret = url.password().unwrap_or(url.username());
            known.push(secret.to_owned());
            let query = url.query_pairs();
            let secret = query.filter(|(key, _)| !PLAIN.contains(&&**key));
            known.extend(secret.map(|(_, value)| value.into_owned()));
            let token = cache.token_file.as_ref().map(std::fs::read_to_string);
            known.extend(token.and_then(Result::ok).map(|t| t.trim().to_owned()));
        }
        let netrc = config.netrc_file.as_ref().map(std::fs::read);
        if let Some(Ok(netrc)) = netrc {
            let netrc = Netrc::parse(&netrc);
            known.extend(netrc.logins().map(|l| l.password.expose().to_owned()));
        }
        // As they stand in a URL, and as they are.
        let decoded: Vec<_> = known
            .iter()
            .filter_map(|text| {
                let plain = percent_encoding::percent_decode_str(text);
                Some(plain.decode_utf8().ok()?.into_owned())
            })
            .collect();
        known.extend(decoded);
        Self::new(known)
    }

    fn new(mut known: Vec<String>) -> Self {
        known.retain(|secret| secret.len() >= SHORTEST);
        // One that holds another is replaced before it.
        known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        known.dedup();
        Self {
            known,
            // Literals: a test compiles them all.
            patterns: PATTERNS.iter().filter_map(|p| Regex::new(p).ok()).collect(),
        }
    }

    /// `text` without them.
    pub fn mask(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.known {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), MASKED);
            }
        }
        for pattern in &self.patterns {
            let masked = pattern.replace_all(&text, |found: &Captures<'_>| {
                let kept = found.get(1).map_or("", |kept| kept.as_str());
                let at = if found[0].ends_with('@') { "@" } else { "" };
                format!("{kept}{MASKED}{at}")
            });
            text = masked.into_owned();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_is_one() {
        assert_eq!(Secrets::new(Vec::new()).patterns.len(), PATTERNS.len());
    }

    #[test]
    fn secrets_go_wherever_they_stand() {
        let secrets = Secrets::new(vec!["hunter2hunter2".into(), "ab".into()]);
        let key = "x-1:".to_owned() + &"A".repeat(86) + "==";
        for (text, masked) in [
            ("it is hunter2hunter2!", "it is ***!"),
            ("https://me:pw@example.org/x", "https://***@example.org/x"),
            ("Authorization: Basic bWU6cHc=", "Authorization: Basic ***"),
            ("authorization=Bearer abc", "authorization=Bearer ***"),
            ("access-tokens = github.com=ghp_x", "access-tokens = ***"),
            (
                "machine a login b password c",
                "machine a login b password ***",
            ),
            ("?token=abc&x=1", "?token=***&x=1"),
            (&key, "x-1:***"),
        ] {
            assert_eq!(secrets.mask(text), masked);
        }
        for harmless in [
            "a path /nix/store/00000000000000000000000000000000-tokenizer-1.0",
            "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
            "https://cache.example.org/ab",
            "about narfs",
        ] {
            assert_eq!(secrets.mask(harmless), harmless);
        }
    }
}
