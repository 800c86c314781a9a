//! Small documents as web servers deliver them: listings and narinfos.

use std::io::Read;

use super::{Bound, Checkpoint, CodecError, open};
use crate::nix::Compression;

/// Unpacks a document of at most `limit` bytes, packed as the `Content-Encoding` header says.
///
/// Without a header the first bytes tell: caches are known to serve packed listings without one.
/// What starts like no packed data is returned as it is; so is brotli, which has no magic number.
///
/// # Errors
///
/// [`CodecError::Encoding`] for an unknown encoding, [`CodecError::TooLarge`] beyond `limit`, and
/// what [`stream`](super::stream) finds wrong with the data.
pub fn decode_small(
    encoding: Option<&str>,
    bytes: &[u8],
    limit: usize,
) -> Result<Vec<u8>, CodecError> {
    let format = match encoding {
        Some(name) => named(name)?,
        None => sniffed(bytes),
    };
    let limit = limit as u64;
    let mut reader = open(
        format,
        Box::new(bytes),
        Checkpoint::START,
        Bound::AtMost(limit),
    )?;
    let mut document = Vec::new();
    match reader.read_to_end(&mut document) {
        Ok(_) => Ok(document),
        Err(error) => Err(CodecError::from_read(error)),
    }
}

/// The format behind a `Content-Encoding`. Nix writes the names of its compression methods there,
/// HTTP has its own (RFC 9110, 8.4.1).
fn named(encoding: &str) -> Result<Compression, CodecError> {
    let name = encoding.trim().to_ascii_lowercase();
    match name.as_str() {
        "" | "identity" => Ok(Compression::None),
        "x-gzip" => Ok(Compression::Gzip),
        other => Compression::parse(other).ok_or_else(|| CodecError::Encoding {
            name: encoding.chars().take(64).collect(),
        }),
    }
}

/// The format that the first bytes speak for.
fn sniffed(bytes: &[u8]) -> Compression {
    /// Magic numbers, from the formats' specifications. That of bzip2 is spelt with letters that
    /// could start a text, so the block's own magic number (the digits of pi) is asked for too.
    const XZ: &[u8] = b"\xFD7zXZ\0";
    const ZSTD: &[u8] = b"\x28\xB5\x2F\xFD";
    const GZIP: &[u8] = b"\x1F\x8B\x08";
    const LZ4: &[u8] = b"\x04\x22\x4D\x18";
    const BZIP2_BLOCK: &[u8] = b"\x31\x41\x59\x26\x53\x59";
    match bytes {
        _ if bytes.starts_with(XZ) => Compression::Xz,
        _ if bytes.starts_with(ZSTD) => Compression::Zstd,
        _ if bytes.starts_with(GZIP) => Compression::Gzip,
        _ if bytes.starts_with(LZ4) => Compression::Lz4,
        [b'B', b'Z', b'h', b'1'..=b'9', block @ ..] if block.starts_with(BZIP2_BLOCK) => {
            Compression::Bzip2
        }
        _ => Compression::None,
    }
}
