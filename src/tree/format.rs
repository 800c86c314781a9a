//! The index image, version 1.
//!
//! All numbers are little-endian and unsigned. Nothing is aligned by more than its place in the
//! file says; readers must not assume any page size. Reserved bytes are zero.
//!
//! ```text
//! header, 96 bytes
//!    0   8  magic `narfsidx`
//!    8   4  version: 1
//!   12   4  number of entries, 1 ..= 2^24 - 1
//!   16   8  bytes of strings, at most 2^30
//!   24   8  size of the NAR
//!   32  32  SHA-256 of the NAR
//!   64   1  source: 0 a listing, 1 the NAR
//!   65   7  reserved
//!   72   4  CRC-32 (IEEE 802.3, as in gzip) of bytes 0..72, 76..end
//!   76  20  reserved
//!
//! entries, 32 bytes each
//!    0   4  parent: number of the directory that holds it; 0 for entry 0
//!    4   4  place of its name in the strings
//!    8   1  length of its name: 0 for entry 0, else 1 ..= 255
//!    9   1  kind: 0 directory, 1 regular file, 2 executable regular file, 3 symlink
//!   10   2  symlink: length of its target, 1 ..= 4095; else 0
//!   12   4  symlink: place of its target in the strings; else 0
//!   16   8  directory: first child (4 bytes), number of children (4 bytes); file: its size; else 0
//!   24   8  file: place of its bytes in the NAR; else 0
//!
//! strings
//!           for each entry in order: its name, then for a symlink its target; nothing between
//! ```
//!
//! Entry 0 is the root: a directory, a file or a symlink. Entries stand in breadth-first order,
//! with the children of a directory sorted by the bytes of their names. So the children of a
//! directory stand together, directories' children follow in the order of the directories, and the
//! first child of an empty directory is where its children would begin. A tree has exactly one
//! image for each source: two images are of the same tree if they differ in nothing but the source
//! and the checksum.

use crate::nix::NarHash;

use super::Source;

/// What every image begins with.
pub const MAGIC: [u8; 8] = *b"narfsidx";

/// The version that this program writes, and the only one that it reads.
pub const VERSION: u32 = 1;

/// Bytes of the header.
pub const HEADER_LEN: usize = 96;

/// Bytes of an entry.
pub const ENTRY_LEN: usize = 32;

/// Where the checksum stands, which it does not cover.
pub(super) const CHECKSUM_AT: usize = 72;

/// The header's fields but magic, version and checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub entries: u32,
    pub strings: u64,
    pub nar_size: u64,
    pub nar_hash: NarHash,
    pub source: Source,
}

impl Header {
    /// The header with its checksum left zero.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.entries.to_le_bytes());
        out[16..24].copy_from_slice(&self.strings.to_le_bytes());
        out[24..32].copy_from_slice(&self.nar_size.to_le_bytes());
        out[32..64].copy_from_slice(self.nar_hash.as_bytes());
        out[64] = match self.source {
            Source::Listing => 0,
            Source::Nar => 1,
        };
        out
    }
}

/// What an entry is, with the numbers that belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory {
        first: u32,
        count: u32,
    },
    Regular {
        executable: bool,
        size: u64,
        offset: u64,
    },
    Symlink {
        at: u32,
        len: u16,
    },
}

/// An entry, as it stands in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub parent: u32,
    pub name_at: u32,
    pub name_len: u8,
    pub kind: Kind,
}

impl Entry {
    pub fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut out = [0; ENTRY_LEN];
        out[0..4].copy_from_slice(&self.parent.to_le_bytes());
        out[4..8].copy_from_slice(&self.name_at.to_le_bytes());
        out[8] = self.name_len;
        match self.kind {
            Kind::Directory { first, count } => {
                out[16..20].copy_from_slice(&first.to_le_bytes());
                out[20..24].copy_from_slice(&count.to_le_bytes());
            }
            Kind::Regular {
                executable,
                size,
                offset,
            } => {
                out[9] = if executable { 2 } else { 1 };
                out[16..24].copy_from_slice(&size.to_le_bytes());
                out[24..32].copy_from_slice(&offset.to_le_bytes());
            }
            Kind::Symlink { at, len } => {
                out[9] = 3;
                out[10..12].copy_from_slice(&len.to_le_bytes());
                out[12..16].copy_from_slice(&at.to_le_bytes());
            }
        }
        out
    }

    /// Whether the bytes that mean nothing are zero, so that the entry has no other form than [`Self::encode`]'s.
    pub fn is_canonical(bytes: &[u8; ENTRY_LEN]) -> bool {
        let is_zero = |range: std::ops::Range<usize>| bytes[range].iter().all(|b| *b == 0);
        match bytes[9] {
            0 => is_zero(10..16) && is_zero(24..32),
            1 | 2 => is_zero(10..16),
            3 => is_zero(16..32),
            _ => false,
        }
    }

    /// The entry; `None` for an unknown kind.
    pub fn decode(bytes: &[u8; ENTRY_LEN]) -> Option<Self> {
        let kind = match bytes[9] {
            0 => Kind::Directory {
                first: u32_at(bytes, 16),
                count: u32_at(bytes, 20),
            },
            kind @ (1 | 2) => Kind::Regular {
                executable: kind == 2,
                size: u64_at(bytes, 16),
                offset: u64_at(bytes, 24),
            },
            3 => Kind::Symlink {
                at: u32_at(bytes, 12),
                len: u16::from_le_bytes([bytes[10], bytes[11]]),
            },
            _ => return None,
        };
        Some(Self {
            parent: u32_at(bytes, 0),
            name_at: u32_at(bytes, 4),
            name_len: bytes[8],
            kind,
        })
    }
}

/// The number at `at`, or 0 past the end: callers have checked the length.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// As [`u32_at`], of 8 bytes.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// The checksum of an image, which has at least a header's length.
pub(super) fn checksum(image: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&image[..CHECKSUM_AT]);
    crc.update(&image[CHECKSUM_AT + 4..]);
    crc.finalize()
}
