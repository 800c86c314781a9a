//! Whom to believe: signatures, keys, content addresses.
//!
//! The cryptography is the crates `ed25519-dalek` and `nix-narinfo`; what is decided here is what
//! their answers are worth. Source of the formats: `libutil/signature/local-keys.cc` and
//! `libstore/content-address.cc` in Nix.

use std::{fmt, io, io::Read as _, str::FromStr as _};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use data_encoding::HEXLOWER;
use ed25519_dalek::Signer as _;
use sha2::{Digest as _, Sha256};

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

    /// Of a key by this name; `None` if that is no name.
    pub fn new(key: &str, bytes: [u8; 64]) -> Option<Self> {
        (!key.is_empty() && !key.contains(':')).then(|| Self {
            key: key.into(),
            bytes,
        })
    }

    /// The name of the key that is said to have made it.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The signature without its key's name.
    pub fn bytes(&self) -> &[u8; 64] {
        &self.bytes
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

    /// What stands for the finding that a narinfo with this text is trusted under these keys: another
    /// text, or other keys, have another.
    pub fn judgement(&self, narinfo: &[u8]) -> String {
        let mut keys: Vec<_> = self
            .0
            .iter()
            .map(|key| (&key.name, key.key.as_bytes()))
            .collect();
        keys.sort();
        keys.dedup();
        let mut digest = Sha256::new();
        digest.update(b"narfs: trusted 1\n");
        for (name, key) in keys {
            digest.update(format!("{}:{name}\n", name.len()));
            digest.update(key);
        }
        digest.update(b"\n");
        digest.update(narinfo);
        HEXLOWER.encode(&digest.finalize())
    }

    /// Whether one of these keys made this signature of this text.
    pub fn verify(&self, fingerprint: &[u8], signature: &Signature) -> bool {
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
/// narfs signs what it publishes, and the cache of its demonstration.
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
        let signature = self.sign_text(info.fingerprint().as_bytes());
        info.signatures.retain(|s| s.key != self.name);
        info.signatures.push(signature);
    }

    /// This key's signature of any text.
    pub fn sign_text(&self, text: &[u8]) -> Signature {
        Signature {
            key: self.name.clone(),
            bytes: self.key.sign(text).to_bytes(),
        }
    }

    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::{StorePath, StorePathHash};

    /// `nix-store --print-fixed-path --recursive sha256 <hash> hello`
    const PATH: &str = "0z9wcv93z7bc9zqh1f5wwplw6rq7k925-hello";
    /// The same without `--recursive`: the hash of the file, not of its NAR.
    const FLAT: &str = "88y1nnsv6qjp9i138bqlpqsg259b0n96-hello";
    const NAR: &str = "sha256:04946xvw2ppgs144lqmc65kv3xqqfzjk37gdw4ca6afc7wnimz5w";

    fn info(path: &str, more: &str) -> NarInfo {
        let text =
            format!("StorePath: /nix/store/{path}\nURL: x\nNarHash: {NAR}\nNarSize: 120\n{more}");
        let hash = StorePathHash::parse(&path.as_bytes()[..32]).unwrap();
        NarInfo::parse(text.as_bytes(), &hash).unwrap()
    }

    fn keys(of: &[&SigningKey]) -> TrustedKeys {
        TrustedKeys::parse(of.iter().map(|key| key.public())).unwrap()
    }

    #[test]
    fn a_finding_is_of_one_text_and_of_one_set_of_keys() {
        let [a, b] = ["a-1", "b-1"].map(|name| SigningKey::generate(name).unwrap());
        let other_a = SigningKey::generate("a-1").unwrap();
        let of = |keys: &TrustedKeys, text: &str| keys.judgement(text.as_bytes());
        let found = of(&keys(&[&a, &b]), "text");
        assert_eq!(found, of(&keys(&[&b, &a, &b]), "text"));
        for (keys, text) in [
            (keys(&[&a, &b]), "other"),
            (keys(&[&a]), "text"),
            (keys(&[&other_a, &b]), "text"),
            (TrustedKeys::default(), "text"),
        ] {
            assert_ne!(found, of(&keys, text));
        }
    }

    #[test]
    fn a_signature_covers_path_hash_size_and_references() {
        let key = SigningKey::generate("cache-1").unwrap();
        let mut signed = info(PATH, &format!("References: {FLAT}\n"));
        key.sign(&mut signed);
        let trusted = keys(&[&key]);
        assert_eq!(
            signed.trust(&trusted),
            Trust::Signed {
                key: "cache-1".into()
            }
        );
        assert_eq!(signed.trust(&TrustedKeys::default()), Trust::Untrusted);

        let again = NarInfo::parse(signed.to_text().as_bytes(), &signed.store_path.hash());
        assert_eq!(again.as_ref(), Ok(&signed));

        let changes: [fn(&mut NarInfo); 5] = [
            |i| i.store_path = StorePath::parse(FLAT).unwrap(),
            |i| i.nar_hash = NarHash::from_bytes([1; 32]),
            |i| i.nar_size += 1,
            |i| i.references.clear(),
            |i| i.signatures.clear(),
        ];
        for change in changes {
            let mut forged = signed.clone();
            change(&mut forged);
            assert_eq!(forged.trust(&trusted), Trust::Untrusted);
        }
        // These are not signed: where the bytes are fetched from does not matter.
        let mut moved = signed.clone();
        moved.url = "elsewhere".into();
        moved.deriver = None;
        assert!(matches!(moved.trust(&trusted), Trust::Signed { .. }));
    }

    #[test]
    fn the_name_of_a_key_is_no_proof() {
        let (real, fake) = (
            SigningKey::generate("k").unwrap(),
            SigningKey::generate("k").unwrap(),
        );
        let mut forged = info(PATH, "");
        fake.sign(&mut forged);
        assert_eq!(forged.trust(&keys(&[&real])), Trust::Untrusted);
        // Several keys of one name are all trusted: that is how keys are replaced.
        assert_eq!(
            forged.trust(&keys(&[&real, &fake])),
            Trust::Signed { key: "k".into() }
        );
        // A broken or foreign signature does not hide a good one.
        let other = SigningKey::generate("other").unwrap();
        let mut several = info(PATH, "Sig: k:AAAA\n");
        other.sign(&mut several);
        real.sign(&mut several);
        assert_eq!(several.signatures.len(), 2);
        assert_eq!(
            several.trust(&keys(&[&real])),
            Trust::Signed { key: "k".into() }
        );
    }

    #[test]
    fn a_content_address_counts_if_it_proves_the_nar() {
        let none = TrustedKeys::default();
        let ca = |path: &str, more: &str| info(path, more).trust(&none);
        assert_eq!(
            ca(PATH, &format!("CA: fixed:r:{NAR}\n")),
            Trust::ContentAddressed
        );
        // The narinfo's other fields do not matter, whatever they hold.
        let odd =
            format!("CA: fixed:r:{NAR}\nDeriver: unknown-deriver\nFileSize: 9\nCompression: br\n");
        assert_eq!(ca(PATH, &odd), Trust::ContentAddressed);
        // Right for the path, but says nothing about the NAR.
        assert_eq!(ca(FLAT, &format!("CA: fixed:{NAR}\n")), Trust::Untrusted);
        // Of another path, of none, or of another kind.
        assert_eq!(ca(FLAT, &format!("CA: fixed:r:{NAR}\n")), Trust::Untrusted);
        assert_eq!(ca(PATH, &format!("CA: text:{NAR}\n")), Trust::Untrusted);
        assert_eq!(ca(PATH, "CA: fixed:r:sha256:abc\n"), Trust::Untrusted);
        assert_eq!(
            ca(PATH, &format!("CA: fixed:r:{NAR}\nReferences: {FLAT}\n")),
            Trust::Untrusted
        );
        assert_eq!(
            ca(PATH, &format!("CA: fixed:r:{NAR}\nReferences: {PATH}\n")),
            Trust::Untrusted
        );
        // An honest address with the hash of something else.
        let mut swapped = info(PATH, &format!("CA: fixed:r:{NAR}\n"));
        swapped.nar_hash = NarHash::from_bytes([1; 32]);
        assert_eq!(swapped.trust(&none), Trust::Untrusted);
    }

    #[test]
    fn keys_are_read_and_written_as_nix_does() {
        let key = SigningKey::generate("cache-1").unwrap();
        let again = SigningKey::parse(&format!("{}\n", key.secret())).unwrap();
        assert_eq!(again.public(), key.public());
        assert_ne!(
            SigningKey::generate("cache-1").unwrap().public(),
            key.public()
        );
        assert_eq!(
            format!("{key:?}"),
            "SigningKey(cache-1)",
            "the secret is not shown"
        );
        let known = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        let trusted = TrustedKeys::parse([known, ""].iter().take(1)).unwrap();
        assert_eq!(trusted.names().collect::<Vec<_>>(), ["cache.nixos.org-1"]);
        for bad in ["", "name", ":AAAA", "name:AAAA", "name:!", "name:"] {
            assert!(
                matches!(TrustedKeys::parse([bad]), Err(KeyError::Public { .. })),
                "{bad}"
            );
        }
        for bad in [
            "",
            "name",
            "name:AAAA",
            &format!("n:{}", BASE64.encode([1; 64])),
        ] {
            assert!(
                matches!(SigningKey::parse(bad), Err(KeyError::Secret { .. })),
                "{bad}"
            );
        }
        for bad in ["", "a b", "a:b"] {
            assert!(
                matches!(SigningKey::generate(bad), Err(KeyError::Name(_))),
                "{bad}"
            );
        }
    }
}
