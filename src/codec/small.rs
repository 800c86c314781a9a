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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::testing::{PACKING, pack};

    const LISTING: &[u8] = br#"{"version":1,"root":{"type":"directory","entries":{}}}"#;

    #[test]
    fn the_header_says_how_it_is_packed() {
        for format in Compression::ALL {
            let packed = pack(format, LISTING);
            let got = decode_small(Some(format.as_str()), &packed, 1000).unwrap();
            assert_eq!(got, LISTING, "{format}");
        }
        let gzip = pack(Compression::Gzip, LISTING);
        assert_eq!(
            decode_small(Some(" X-GZip "), &gzip, 1000).unwrap(),
            LISTING
        );
        for name in ["identity", ""] {
            assert_eq!(decode_small(Some(name), LISTING, 1000).unwrap(), LISTING);
        }
    }

    #[test]
    fn without_a_header_the_first_bytes_do() {
        for format in PACKING {
            let packed = pack(format, LISTING);
            let want = if format == Compression::Brotli {
                &packed[..]
            } else {
                LISTING
            };
            assert_eq!(decode_small(None, &packed, 1000).unwrap(), want, "{format}");
        }
        for text in [
            LISTING,
            b"StorePath: /nix/store/...",
            b"BZh9 is no bzip2",
            b"",
        ] {
            assert_eq!(decode_small(None, text, 1000).unwrap(), text);
        }
    }

    #[test]
    fn unknown_encodings_are_named() {
        for name in ["compress", "gzip, br", "deflate"] {
            match decode_small(Some(name), LISTING, 1000) {
                Err(CodecError::Encoding { name: told }) => assert_eq!(told, name),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn the_limit_holds_for_the_unpacked_bytes() {
        let zeros = vec![0; 10 << 20];
        for format in Compression::ALL {
            let packed = pack(format, &zeros);
            let name = Some(format.as_str());
            assert_eq!(
                decode_small(name, &packed, zeros.len()).unwrap().len(),
                zeros.len()
            );
            for limit in [0, 1, 5000, zeros.len() - 1] {
                let error = decode_small(name, &packed, limit).unwrap_err();
                assert!(
                    matches!(error, CodecError::TooLarge { .. }),
                    "{format}: {error}"
                );
            }
        }
    }

    #[test]
    fn half_a_document_is_none() {
        for format in PACKING {
            let packed = pack(format, LISTING);
            let error = decode_small(Some(format.as_str()), &packed[..packed.len() / 2], 1000);
            assert!(
                matches!(error, Err(CodecError::Truncated { .. })),
                "{format}: {error:?}"
            );
        }
    }
}
