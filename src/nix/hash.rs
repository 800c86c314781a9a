//! SHA-256 of a NAR, in the spellings that narinfos and signatures use.

use std::fmt;

use sha2::{Digest, Sha256};

use super::base32;

/// SHA-256 of an uncompressed NAR: what a narinfo's `NarHash` holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NarHash([u8; 32]);

/// Why a text is no SHA-256 hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// Another algorithm than SHA-256, or none named.
    #[error("{0:?} is no sha256 hash")]
    Algorithm(String),
    /// The right algorithm, but digits that do not decode to 32 bytes.
    #[error("{0:?} does not hold the 32 bytes of a sha256 hash")]
    Digits(String),
}

impl NarHash {
    /// The hash with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads `sha256:<nix32 | hex | base64>` and the SRI form `sha256-<base64>`.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        let digits = text
            .strip_prefix("sha256:")
            .or_else(|| text.strip_prefix("sha256-"))
            .ok_or_else(|| HashError::Algorithm(text.into()))?;
        Self::parse_digits(digits).ok_or_else(|| HashError::Digits(text.into()))
    }

    fn parse_digits(digits: &str) -> Option<Self> {
        let bytes = digits.as_bytes();
        match bytes.len() {
            52 => base32::decode(bytes),
            64 => data_encoding::HEXLOWER_PERMISSIVE
                .decode(bytes)
                .ok()?
                .try_into()
                .ok(),
            44 => data_encoding::BASE64.decode(bytes).ok()?.try_into().ok(),
            _ => None,
        }
        .map(Self)
    }

    /// The 52 digits in Nix's base 32, without the algorithm: also the stem of file names.
    pub fn nix32(&self) -> String {
        base32::encode(&self.0)
    }
}

impl fmt::Display for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.nix32())
    }
}

impl fmt::Debug for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes a NAR piece by piece.
#[derive(Clone, Default)]
pub struct NarHasher(Sha256);

impl NarHasher {
    /// Nothing hashed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next bytes of the NAR.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all that was given.
    pub fn finish(self) -> NarHash {
        NarHash(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_spelling() {
        let want = NarHasher::new().finish();
        for text in [
            "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        ] {
            assert_eq!(NarHash::parse(text), Ok(want), "{text}");
        }
        assert!(matches!(
            NarHash::parse("sha1:abc"),
            Err(HashError::Algorithm(_))
        ));
        assert!(matches!(
            NarHash::parse("sha256:abc"),
            Err(HashError::Digits(_))
        ));
    }
}
