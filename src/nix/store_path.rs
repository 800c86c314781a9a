//! Names of store paths: `<32 digits of base 32>-<name>`.

use std::{cmp::Ordering, fmt, sync::Arc};

use super::base32;

/// Where every Nix store that narfs shows is rooted; compiled into the programs in it.
pub const STORE_DIR: &str = "/nix/store";

/// Longest name behind the digest, in bytes (`checkName` in Nix's `libstore/path.cc`).
pub const MAX_NAME: usize = 211;

/// The digest part of a store path: what narinfos and listings are named after.
///
/// Ordered as the digits are, which begin with the last byte: signatures cover references in the
/// order of their texts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StorePathHash([u8; 20]);

/// A store path, without the store directory: digest and name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorePath {
    hash: StorePathHash,
    name: Arc<str>,
}

/// Why a text is no store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// No 32 digits of base 32 followed by `-`.
    #[error("{0:?} does not begin with the 32 digits of a store path and a dash")]
    Digest(String),
    /// A name that Nix refuses: empty, too long, or with a character it does not allow.
    #[error(
        "{0:?}: the name of a store path has 1 to 211 of the characters a-z A-Z 0-9 + - . _ ? ="
    )]
    Name(String),
    /// An absolute path outside `/nix/store`.
    #[error("{0:?} is not in {STORE_DIR}")]
    NotInStore(String),
}

impl StorePathHash {
    /// The digest with these bytes.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// Reads the 32 digits.
    pub fn parse(text: &[u8]) -> Option<Self> {
        base32::decode(text).map(Self)
    }
}

impl Ord for StorePathHash {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.iter().rev().cmp(other.0.iter().rev())
    }
}

impl PartialOrd for StorePathHash {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32::encode(&self.0))
    }
}

impl fmt::Debug for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StorePath {
    /// Reads a base name, `<digest>-<name>`.
    pub fn parse(base: &str) -> Result<Self, StorePathError> {
        Self::from_bytes(base.as_bytes())
    }

    /// As [`StorePath::parse`], from the bytes of a file name.
    pub fn from_bytes(base: &[u8]) -> Result<Self, StorePathError> {
        let lossy = || String::from_utf8_lossy(base).into_owned();
        let digest = || StorePathError::Digest(lossy());
        let (digits, rest) = base.split_at_checked(32).ok_or_else(digest)?;
        let hash = StorePathHash::parse(digits).ok_or_else(digest)?;
        let name = rest.strip_prefix(b"-").ok_or_else(digest)?;
        let allowed = |c: &u8| c.is_ascii_alphanumeric() || b"+-._?=".contains(c);
        match std::str::from_utf8(name) {
            Ok(name)
                if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|c| allowed(&c)) =>
            {
                Ok(Self {
                    hash,
                    name: name.into(),
                })
            }
            _ => Err(StorePathError::Name(lossy())),
        }
    }

    /// Reads an absolute path or a base name; what follows the store path, if anything, comes
    /// second, without its leading slash.
    pub fn parse_with_rest(text: &str) -> Result<(Self, &str), StorePathError> {
        let inside = match text
            .strip_prefix(STORE_DIR)
            .and_then(|t| t.strip_prefix('/'))
        {
            Some(inside) => inside,
            None if text.starts_with('/') => return Err(StorePathError::NotInStore(text.into())),
            None => text,
        };
        let (base, rest) = inside.split_once('/').unwrap_or((inside, ""));
        Ok((Self::parse(base)?, rest))
    }

    /// The digest.
    pub fn hash(&self) -> StorePathHash {
        self.hash
    }

    /// The name behind the digest.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `/nix/store/<digest>-<name>`.
    pub fn absolute(&self) -> String {
        format!("{STORE_DIR}/{self}")
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.hash, self.name)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for StorePath {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "2j8qw9i2q1p6cmli6976v4wi0sw9r4p5-python3-3.11";

    #[test]
    fn reads_base_names_and_absolute_paths() {
        let path = StorePath::parse(BASE).unwrap();
        assert_eq!(path.to_string(), BASE);
        assert_eq!(path.name(), "python3-3.11");
        assert_eq!(path.absolute(), format!("/nix/store/{BASE}"));
        let inside = format!("/nix/store/{BASE}/bin/python");
        assert_eq!(
            StorePath::parse_with_rest(&inside),
            Ok((path, "bin/python"))
        );
    }

    #[test]
    fn sorts_as_its_text_does() {
        let mut hashes: Vec<StorePathHash> = (0..200u8)
            .map(|n| {
                StorePathHash::from_bytes(std::array::from_fn(|i| n.wrapping_mul(i as u8 * 7 + 31)))
            })
            .collect();
        hashes.sort();
        let texts: Vec<String> = hashes.iter().map(StorePathHash::to_string).collect();
        assert!(texts.is_sorted(), "{texts:?}");
    }

    #[test]
    fn refuses_everything_else() {
        for bad in [
            "",
            ".",
            "..",
            ".nix-snapshotter",
            "lib",
            "2j8qw9i2q1p6cmli6976v4wi0sw9r4p5",
        ] {
            assert!(
                matches!(StorePath::parse(bad), Err(StorePathError::Digest(_))),
                "{bad}"
            );
        }
        for bad in ["", "a/b", "a b", "ä", &"x".repeat(212)] {
            let base = format!("2j8qw9i2q1p6cmli6976v4wi0sw9r4p5-{bad}");
            assert!(
                matches!(StorePath::parse(&base), Err(StorePathError::Name(_))),
                "{bad}"
            );
        }
        assert!(matches!(
            StorePath::parse_with_rest("/etc/passwd"),
            Err(StorePathError::NotInStore(_))
        ));
    }
}
