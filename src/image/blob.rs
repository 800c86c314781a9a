//! What an image is made of: blobs named by their SHA-256, and JSON that is always the same.

use std::{fmt, io};

use oci_spec::image::{Descriptor, MediaType};
use sha2::Sha256;

use super::ImageError;

/// The SHA-256 of a blob.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Its 64 digits: the name of the blob's file.
    pub fn hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// Reads `sha256:<64 digits>`; `None` for every other algorithm too.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?;
        let bytes = data_encoding::HEXLOWER.decode(digits.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// Where a blob is in an OCI archive.
    pub fn file(&self) -> String {
        format!("blobs/sha256/{}", self.hex())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// Hashes a blob piece by piece; also what is written through it.
#[derive(Clone, Default)]
pub(super) struct Hasher(Sha256);

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        sha2::Digest::update(&mut self.0, bytes);
    }

    pub(super) fn finish(self) -> Digest {
        Digest(sha2::Digest::finalize(self.0).into())
    }
}

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The descriptor of a blob.
pub(super) fn descriptor(
    kind: MediaType,
    digest: Digest,
    size: u64,
) -> Result<Descriptor, ImageError> {
    let digest: oci_spec::image::Digest = digest.to_string().parse()?;
    Ok(Descriptor::new(kind, size, digest))
}

/// `value` as JSON on one line, every object sorted by its keys: the crate's types hold maps whose
/// order differs from run to run.
pub(super) fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, ImageError> {
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    Ok(serde_json::to_vec(&value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_have_one_spelling() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(Digest::parse(empty), Some(Digest::of(b"")));
        let upper = format!("sha256:{}", empty[7..].to_uppercase());
        for other in [&empty[7..], &empty[..70], &upper, "sha512:00"] {
            assert_eq!(Digest::parse(other), None, "{other}");
        }
    }

    #[test]
    fn json_is_sorted_all_the_way_down() {
        let map = |n: u32| {
            (0..50)
                .map(|i| ((i * n % 50).to_string(), i))
                .collect::<std::collections::HashMap<_, _>>()
        };
        let text = json(&[map(7), map(3)]).unwrap();
        let pairs = |n: u32| {
            let mut all: Vec<_> = map(n)
                .into_iter()
                .map(|(k, v)| format!("\"{k}\":{v}"))
                .collect();
            all.sort();
            format!("{{{}}}", all.join(","))
        };
        assert_eq!(
            String::from_utf8(text).unwrap(),
            format!("[{},{}]", pairs(7), pairs(3))
        );
    }
}
