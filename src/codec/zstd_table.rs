//! The seek table at the end of a zstd file: where its frames are.
//!
//! Format: "Zstandard Seekable Format", version 0.1.0 (facebook/zstd, contrib/seekable_format). All
//! integers little endian. A skippable frame: magic, size of the rest; for each frame its packed and
//! unpacked size and, if the descriptor says so, the low half of its XXH64; then the number of
//! frames, the descriptor, and a magic number.

use super::blocks::{BLOCKS_MAX, Block, BlockTable, Details, Probe, TABLE_BYTES_MAX, last, need};

/// Magic number of the skippable frame.
const FRAME_MAGIC: u32 = 0x184D_2A5E;
/// Magic number at the very end.
const TABLE_MAGIC: u32 = 0x8F92_EAB1;
/// Bytes before the entries: magic and size.
const HEAD: u64 = 8;
/// Bytes behind the entries: number of frames, descriptor, magic.
const FOOT: u64 = 9;
/// Descriptor bit: entries have a checksum.
const CHECKSUMS: u8 = 0x80;
/// Descriptor bits that must be zero.
const RESERVED: u8 = 0x7C;

/// Looks for a seek table.
pub(super) fn probe(file_size: u64, tail: &[u8]) -> Result<Probe, String> {
    if file_size < HEAD + FOOT {
        return Ok(Probe::None);
    }
    let Some(foot) = last(tail, FOOT) else {
        return Ok(need(FOOT, file_size));
    };
    let [n0, n1, n2, n3, descriptor, magic @ ..] = foot else {
        return Err("its footer is too short".into());
    };
    if *magic != TABLE_MAGIC.to_le_bytes() {
        return Ok(Probe::None);
    }
    if descriptor & RESERVED != 0 {
        return Err(format!(
            "descriptor {descriptor:02x} is of no known version"
        ));
    }
    let with_checksums = descriptor & CHECKSUMS != 0;
    let entry: u64 = if with_checksums { 12 } else { 8 };
    let count = u64::from(u32::from_le_bytes([*n0, *n1, *n2, *n3]));
    let size = HEAD + count * entry + FOOT;
    if count > BLOCKS_MAX || size > TABLE_BYTES_MAX {
        return Err(format!("it has {count} frames, the limit is {BLOCKS_MAX}"));
    }
    if size > file_size {
        return Err("it is larger than the file".into());
    }
    let Some(table) = last(tail, size) else {
        return Ok(need(size, file_size));
    };
    let (head, entries) = table.split_at(HEAD as usize);
    let entries = &entries[..(count * entry) as usize];
    if le32(head, 0) != FRAME_MAGIC || u64::from(le32(head, 4)) != size - HEAD {
        return Err("its header and footer disagree".into());
    }
    parse_entries(entries, entry as usize, file_size - size, with_checksums)
}

/// The table of the frames in the first `room` bytes of the file.
fn parse_entries(
    entries: &[u8],
    entry: usize,
    room: u64,
    with_checksums: bool,
) -> Result<Probe, String> {
    let count = entries.len() / entry;
    let mut blocks = Vec::with_capacity(count);
    let mut checksums = Vec::with_capacity(if with_checksums { count } else { 0 });
    // Sums of at most 2^32 numbers of 32 bits.
    let (mut packed, mut nar) = (0_u64, 0_u64);
    for (number, bytes) in entries.chunks_exact(entry).enumerate() {
        let packed_end = packed + u64::from(le32(bytes, 0));
        let nar_end = nar + u64::from(le32(bytes, 4));
        if packed_end > room {
            return Err("its frames are larger than the file".into());
        }
        if nar_end > nar {
            if packed_end == packed {
                return Err(format!("its frame {number} has no packed bytes"));
            }
            blocks.push(Block {
                packed: packed..packed_end,
                nar: nar..nar_end,
            });
            if with_checksums {
                checksums.push(le32(bytes, 8));
            }
        }
        (packed, nar) = (packed_end, nar_end);
    }
    let checksums = with_checksums.then_some(checksums);
    Ok(BlockTable::worthwhile(
        blocks,
        Details::Zstd {
            checksums,
            digests: None,
        },
    ))
}

/// The number at `offset`, which the caller knows to be inside.
fn le32(bytes: &[u8], offset: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(number)
}

/// A frame in a seek table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeekEntry {
    /// Its packed bytes.
    pub packed: u32,
    /// Its unpacked bytes.
    pub unpacked: u32,
    /// [`seek_checksum`] of those.
    pub checksum: u32,
}

/// The seek table of these frames: the skippable frame that stands at the end of the file.
pub fn seek_table(frames: &[SeekEntry]) -> Vec<u8> {
    let size = frames.len() * 12 + FOOT as usize;
    let mut out = Vec::with_capacity(HEAD as usize + size);
    out.extend(FRAME_MAGIC.to_le_bytes());
    out.extend((size as u32).to_le_bytes());
    for frame in frames {
        out.extend(frame.packed.to_le_bytes());
        out.extend(frame.unpacked.to_le_bytes());
        out.extend(frame.checksum.to_le_bytes());
    }
    out.extend((frames.len() as u32).to_le_bytes());
    out.push(CHECKSUMS);
    out.extend(TABLE_MAGIC.to_le_bytes());
    out
}

/// The checksum of a frame's content as the table holds it: the low half of its XXH64.
pub fn seek_checksum(content: &[u8]) -> u32 {
    twox_hash::XxHash64::oneshot(0, content) as u32
}
