//! Whom to believe: signatures, keys, content addresses.
//!
//! The cryptography is the crates `ed25519-dalek` and `nix-narinfo`; what is decided here is what
//! their answers are worth. Source of the formats: `libutil/signature/local-keys.cc` and
//! `libstore/content-address.cc` in Nix.

use std::{fmt, io, io::Read as _, str::FromStr as _};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::Signer as _;

use super::{NarHash, NarInfo};

/// A signature as narinfos carry it: the key's name and 64 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature {
    key: String,
    bytes: [u8; 64],
}

impl Signature {
    /// Reads `name:base64`; `None` if that is no ed25519 signature.
    pub fn parse(text: &str) -> Option<Self> {
        let (key, encoded) = text.split_once(':')?;
        let bytes = BASE64.decode(encoded).ok()?.try_into().ok()?;
        (!key.is_empty()).then(|| Self {
            key: key.into(),
            bytes,
        })
    }

    /// The name of the key that is said to have made it.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key, BASE64.encode(self.bytes))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a narinfo's word about a path is taken, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// One of the trusted keys signed path, hash, size and references.
    Signed {
        /// That key's name.
        key: String,
    },
    /// The path's own name proves the NAR's hash, so no signature is needed.
    ContentAddressed,
    /// Neither: only a substituter that is trusted by itself may be believed.
    Untrusted,
}

impl NarInfo {
    /// Whether this narinfo can be believed, given the keys that the user trusts.
    ///
    /// A content address counts only where it proves the hash of the NAR before a byte of it has
    /// come: one over the whole NAR with SHA-256, of a path that does not refer to itself, that
    /// recomputes to the path's name and equals `NarHash`. The other kinds (over a file's bytes,
    /// by another algorithm, with the path's own digest masked) say nothing about the NAR's hash;
    /// a cache could pair an honest address with the hash of anything. Such paths need a signature.
    pub fn trust(&self, keys: &TrustedKeys) -> Trust {
        let fingerprint = self.fingerprint();
        let good = |s: &&Signature| keys.verify(fingerprint.as_bytes(), s);
        if let Some(signature) = self.signatures.iter().find(good) {
            Trust::Signed {
                key: signature.key.clone(),
            }
        } else if self.content_address_proves_hash() {
            Trust::ContentAddressed
        } else {
            Trust::Untrusted
        }
    }

    fn content_address_proves_hash(&self) -> bool {
        let Some(hash) = self
            .ca
            .as_deref()
            .and_then(|ca| ca.strip_prefix("fixed:r:"))
        else {
            return false;
        };
        if NarHash::parse(hash) != Ok(self.nar_hash) || self.references.contains(&self.store_path) {
            return false;
        }
        // The crate computes the path from the text, so give it only what that depends on.
        let plain = Self {
            url: "nar".into(),
            compression: super::Compression::None,
            file_hash: None,
            file_size: None,
            deriver: None,
            signatures: Vec::new(),
            ..self.clone()
        };
        nix_narinfo::NarInfo::from_str(&plain.to_text())
            .is_ok_and(|info| info.is_content_addressed(info.store_dir()))
    }
}

/// The keys that a user trusts (`trusted-public-keys`).
#[derive(Clone, Default)]
pub struct TrustedKeys(Vec<nix_narinfo::TrustedPublicKey>);

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A public key that cannot be read.
    #[error(
        "{key:?} is no public key ({why}); expected NAME:BASE64, as in cache.example.org-1:mDlJ…="
    )]
    Public {
        /// As given.
        key: String,
        /// What the `nix-narinfo` crate says.
        why: String,
    },
    /// A secret key that cannot be read; not repeated, since it is secret.
    #[error("the secret key named {name:?} is not NAME:BASE64 of 64 bytes that belong together")]
    Secret {
        /// The part before the colon.
        name: String,
    },
    /// A name that cannot stand in a signature.
    #[error("{0:?} is no name for a key: it has to be one word without a colon")]
    Name(String),
    /// The kernel gave no random bytes.
    #[error("cannot make a key, /dev/urandom says: {0}")]
    Random(String),
}

impl TrustedKeys {
    /// Reads keys of the form `name:base64`; of several with one name each is trusted.
    pub fn parse<I>(keys: I) -> Result<Self, KeyError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let one = |key: I::Item| {
            let key = key.as_ref().trim();
            nix_narinfo::TrustedPublicKey::parse(key).map_err(|why| KeyError::Public {
                key: key.into(),
                why: why.to_string(),
            })
        };
        Ok(Self(keys.into_iter().map(one).collect::<Result<_, _>>()?))
    }

    /// The names of the keys, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|key| key.name.as_str())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn verify(&self, fingerprint: &[u8], signature: &Signature) -> bool {
        nix_narinfo::NixSignature::from_bytes(signature.key.as_str(), &signature.bytes)
            .and_then(|s| s.verify(fingerprint, &self.0))
            .unwrap_or(false)
    }
}

impl fmt::Debug for TrustedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// A secret key that signs narinfos, as `nix-store --generate-binary-cache-key` writes it.
///
/// narfs signs only what it serves itself: the cache of its demonstration.
pub struct SigningKey {
    name: String,
    key: ed25519_dalek::SigningKey,
}

impl SigningKey {
    /// Reads `name:base64` of the 64 bytes of secret and public half.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, encoded) = text.trim().split_once(':').unwrap_or_default();
        let wrong = || KeyError::Secret { name: name.into() };
        let bytes = BASE64
            .decode(encoded)
            .ok()
            .and_then(|b| <[u8; 64]>::try_from(b).ok());
        let key = bytes.and_then(|b| ed25519_dalek::SigningKey::from_keypair_bytes(&b).ok());
        Self::named(name, key.ok_or_else(wrong)?)
    }

    /// Makes a new one from the kernel's random bytes.
    pub fn generate(name: &str) -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        let read = |seed: &mut [u8]| std::fs::File::open("/dev/urandom")?.read_exact(seed);
        read(&mut seed).map_err(|e: io::Error| KeyError::Random(e.to_string()))?;
        Self::named(name, ed25519_dalek::SigningKey::from_bytes(&seed))
    }

    fn named(name: &str, key: ed25519_dalek::SigningKey) -> Result<Self, KeyError> {
        if name.is_empty() || name.contains(|c: char| c == ':' || c.is_whitespace()) {
            return Err(KeyError::Name(name.into()));
        }
        Ok(Self {
            name: name.into(),
            key,
        })
    }

    /// Adds this key's signature, in place of an earlier one by the same name.
    pub fn sign(&self, info: &mut NarInfo) {
        let bytes = self.key.sign(info.fingerprint().as_bytes()).to_bytes();
        info.signatures.retain(|s| s.key != self.name);
        info.signatures.push(Signature {
            key: self.name.clone(),
            bytes,
        });
    }

    /// The public half, `name:base64`, for [`TrustedKeys::parse`].
    pub fn public(&self) -> String {
        format!(
            "{}:{}",
            self.name,
            BASE64.encode(self.key.verifying_key().to_bytes())
        )
    }

    /// The secret itself, `name:base64`, for [`SigningKey::parse`] and for Nix.
    pub fn secret(&self) -> String {
        format!(
            "{}:{}",
            self.name,
            BASE64.encode(self.key.to_keypair_bytes())
        )
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.name)
    }
}
