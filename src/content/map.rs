//! The map of a NAR: which of its bytes are on the disk, and what is known of them. Pure.
//!
//! `content/<nix32 of the NAR hash>.map`, all numbers little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `narfsmap` |
//! | 8 | 4 | version, 2; 1 is read as well, any other is not |
//! | 12 | 4 | flags: bit 0 verified (the whole NAR was hashed and has the hash of its name); bit 1 it was verified once, and lost bytes since or not; the others are zero |
//! | 16 | 32 | SHA-256 of the NAR, the one in the file's name |
//! | 48 | 8 | size of the NAR in bytes |
//! | 56 | 8 | what the checkpoints belong to: a number made of the compressed file's identity, 0 for none |
//! | 64 | 4 | E, number of extents |
//! | 68 | 4 | C, number of checkpoints |
//! | 72 | 4 | size of a block in bytes, 16384 |
//! | 76 | 4 | S, number of sums: one for each part of an extent that lies in one block, or 0 for none at all |
//! | 80 | 16 × E | extents: first byte, byte behind the last; ascending, not empty, with a gap between them |
//! | 80 + 16 E | 16 × C | checkpoints: offset in the compressed file, offset in the NAR; ascending by the latter |
//! | 80 + 16 (E + C) | 4 × S | sums: CRC-32 (IEEE) of the part's bytes, in order; 0 for not known |
//! | 80 + 16 (E + C) + 4 S | 4 | CRC-32 (IEEE) of all bytes before it |
//!
//! Version 1 had neither bit 1 of the flags (it counts as set where bit 0 is) nor bytes 72 to 80 nor sums: what it
//! speaks of is served unchecked until the NAR is hashed again.
//!
//! A map is written (in `tmp/`, then renamed) after the bytes it speaks of are on the disk. One that does not
//! read, or does not fit the `.nar` beside it, counts as absent: nothing is valid.

use super::{
    Checkpoint, Extents,
    sums::{self, BLOCK},
};
use crate::nix::NarHash;

const MAGIC: &[u8; 8] = b"narfsmap";
const VERSION: u32 = 2;
/// The version without sums.
const WITHOUT_SUMS: u32 = 1;
const VERIFIED: u32 = 1;
const WAS_VERIFIED: u32 = 2;
/// Bytes before the extents.
const HEADER: usize = 80;
/// Bytes of an extent, and of a checkpoint.
const ENTRY: usize = 16;
/// Bytes of a sum.
const SUM: usize = 4;

/// Largest map that is read, in bytes: that of a NAR of 500 GiB. Larger ones are somebody else's file.
pub const MAX_MAP: u64 = 128 << 20;

/// What a map says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// The NAR.
    pub hash: NarHash,
    /// Its size in bytes.
    pub nar_size: u64,
    /// Whether the whole NAR was hashed, rightly.
    pub verified: bool,
    /// Whether it ever was; bytes may have gone since, and come again.
    pub was_verified: bool,
    /// Its bytes that are on the disk.
    pub extents: Extents,
    /// The sum of each cell of the extents (a part that lies in one block), in order, 0 for not known; or none.
    pub sums: Vec<u32>,
    /// Which compressed file the checkpoints belong to; 0 for none.
    pub checkpoint_source: u64,
    /// Where decoding of that file can start afresh.
    pub checkpoints: Vec<Checkpoint>,
}

/// Why a file is not used as a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Another format.
    #[error("it is no map")]
    Magic,
    /// Another version.
    #[error("it has version {0}, not {WITHOUT_SUMS} or {VERSION}")]
    Version(u32),
    /// Fewer or more bytes than it says.
    #[error("it is cut off or goes on after its end")]
    Length,
    /// Some bit is not what was written.
    #[error("its checksum is wrong")]
    Checksum,
    /// It speaks of another NAR.
    #[error("it is the map of another NAR")]
    Hash,
    /// Ranges that cannot be.
    #[error("its extents, checkpoints or sums make no sense")]
    Extents,
}

impl Map {
    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let ranges = self.extents.ranges();
        let entries = ENTRY * (ranges.len() + self.checkpoints.len());
        let mut out = Vec::with_capacity(HEADER + entries + SUM * self.sums.len() + 4);
        let flag = |is: bool, flag: u32| if is { flag } else { 0 };
        let flags = flag(self.verified, VERIFIED) | flag(self.was_verified, WAS_VERIFIED);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(self.hash.as_bytes());
        out.extend_from_slice(&self.nar_size.to_le_bytes());
        out.extend_from_slice(&self.checkpoint_source.to_le_bytes());
        out.extend_from_slice(&(ranges.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.checkpoints.len() as u32).to_le_bytes());
        out.extend_from_slice(&(BLOCK as u32).to_le_bytes());
        out.extend_from_slice(&(self.sums.len() as u32).to_le_bytes());
        for r in ranges {
            out.extend_from_slice(&r.start.to_le_bytes());
            out.extend_from_slice(&r.end.to_le_bytes());
        }
        for c in &self.checkpoints {
            out.extend_from_slice(&c.packed.to_le_bytes());
            out.extend_from_slice(&c.nar.to_le_bytes());
        }
        for sum in &self.sums {
            out.extend_from_slice(&sum.to_le_bytes());
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the map of the NAR `hash`.
    pub fn decode(bytes: &[u8], hash: &NarHash) -> Result<Self, MapError> {
        let mut at = Cursor(bytes);
        if at.take::<8>()? != *MAGIC {
            return Err(MapError::Magic);
        }
        let version = at.u32()?;
        if version != VERSION && version != WITHOUT_SUMS {
            return Err(MapError::Version(version));
        }
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(MapError::Length)?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return Err(MapError::Checksum);
        }
        let flags = at.u32()?;
        if at.take::<32>()? != *hash.as_bytes() {
            return Err(MapError::Hash);
        }
        let nar_size = at.u64()?;
        let checkpoint_source = at.u64()?;
        let (extents, checkpoints) = (at.u32()? as usize, at.u32()? as usize);
        let (block, listed) = match version {
            WITHOUT_SUMS => (BLOCK, 0),
            _ => (u64::from(at.u32()?), at.u32()? as usize),
        };
        let entries = (extents as u64 + checkpoints as u64) * ENTRY as u64;
        if at.0.len() as u64 != entries + listed as u64 * SUM as u64 + 4 {
            return Err(MapError::Length);
        }
        let mut ranges = Vec::with_capacity(extents);
        for _ in 0..extents {
            ranges.push(at.u64()?..at.u64()?);
        }
        let extents = Extents::from_sorted(ranges).ok_or(MapError::Extents)?;
        let checkpoints = (0..checkpoints)
            .map(|_| {
                Ok(Checkpoint {
                    packed: at.u64()?,
                    nar: at.u64()?,
                })
            })
            .collect::<Result<Vec<_>, MapError>>()?;
        let listed = (0..listed)
            .map(|_| at.u32())
            .collect::<Result<Vec<_>, MapError>>()?;
        let inside = extents.ranges().last().is_none_or(|r| r.end <= nar_size);
        let ascending = checkpoints.windows(2).all(|w| w[0].nar < w[1].nar);
        let verified = flags & VERIFIED != 0;
        let was_verified = match version {
            WITHOUT_SUMS => verified,
            _ => flags & WAS_VERIFIED != 0,
        };
        let complete = extents.covered() == nar_size;
        let known = match version {
            WITHOUT_SUMS => VERIFIED,
            _ => VERIFIED | WAS_VERIFIED,
        };
        let flags_fit = flags & !known == 0 && (!verified || (complete && was_verified));
        let sums_fit =
            block == BLOCK && (listed.is_empty() || listed.len() as u64 == sums::count(&extents));
        if !inside || !ascending || !flags_fit || !sums_fit {
            return Err(MapError::Extents);
        }
        Ok(Self {
            hash: *hash,
            nar_size,
            verified,
            was_verified,
            extents,
            sums: listed,
            checkpoint_source,
            checkpoints,
        })
    }
}

/// The bytes not read yet.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], MapError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(MapError::Length)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, MapError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, MapError> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Map {
        let mut extents = Extents::new();
        extents.insert(0..4096);
        extents.insert(0x1_0000_0000..0x1_0000_0010);
        Map {
            hash: NarHash::from_bytes([0xab; 32]),
            nar_size: 0x2_0000_0000,
            verified: false,
            was_verified: true,
            extents,
            sums: vec![0xa1a2_a3a4, 0xb1b2_b3b4],
            checkpoint_source: 0x1122_3344_5566_7788,
            checkpoints: vec![Checkpoint {
                packed: 512,
                nar: 4096,
            }],
        }
    }

    #[test]
    fn golden_bytes() {
        let hex = data_encoding::HEXLOWER.encode(&sample().encode());
        let want = [
            "6e617266736d6170", // magic
            "02000000",         // version
            "02000000",         // flags
            "abababababababababababababababababababababababababababababababab",
            "0000000002000000", // NAR size
            "8877665544332211", // checkpoint source
            "02000000",         // extents
            "01000000",         // checkpoints
            "00400000",         // bytes of a block
            "02000000",         // sums
            "00000000000000000010000000000000",
            "00000000010000001000000001000000",
            "00020000000000000010000000000000",
            "a4a3a2a1b4b3b2b1",
            "1a194f1e", // CRC-32, as zlib computes it
        ];
        assert_eq!(hex, want.concat());
    }

    #[test]
    fn maps_without_sums_are_read() {
        // Version 1 of `sample`, as it was written then.
        let hex = [
            "6e617266736d6170",
            "01000000",
            "00000000",
            "abababababababababababababababababababababababababababababababab",
            "0000000002000000",
            "8877665544332211",
            "02000000",
            "01000000",
            "00000000000000000010000000000000",
            "00000000010000001000000001000000",
            "00020000000000000010000000000000",
            "c80e16cf",
        ];
        let bytes = data_encoding::HEXLOWER
            .decode(hex.concat().as_bytes())
            .unwrap();
        let want = Map {
            was_verified: false,
            sums: Vec::new(),
            ..sample()
        };
        assert_eq!(Map::decode(&bytes, &want.hash), Ok(want));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let map = sample();
        let bytes = map.encode();
        assert_eq!(Map::decode(&bytes, &map.hash).as_ref(), Ok(&map));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Map::decode(&bad, &map.hash).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(
                Map::decode(&bytes[..len], &map.hash).is_err(),
                "{len} bytes"
            );
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(Map::decode(&longer, &map.hash).is_err());
        assert_eq!(
            Map::decode(&bytes, &NarHash::from_bytes([0; 32])),
            Err(MapError::Hash)
        );
    }

    #[test]
    fn refuses_what_cannot_be_though_the_checksum_is_right() {
        let hash = sample().hash;
        let beyond = Map {
            nar_size: 100,
            ..sample()
        };
        let verified = Map {
            verified: true,
            ..sample()
        };
        let twice = Map {
            checkpoints: vec![Checkpoint { packed: 1, nar: 1 }; 2],
            ..sample()
        };
        let sums = Map {
            sums: vec![1],
            ..sample()
        };
        for bad in [beyond, verified, twice, sums] {
            assert_eq!(Map::decode(&bad.encode(), &hash), Err(MapError::Extents));
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for version in [b"\x01\0\0\0", b"\x02\0\0\0"] {
                let _ = Map::decode(&[b"narfsmap", version.as_slice(), &bytes].concat(), &sample().hash);
            }
        }
    }
}
