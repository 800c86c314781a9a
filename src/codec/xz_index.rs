//! The index at the end of an xz stream: where its blocks are.
//!
//! Format: "The .xz File Format", version 1.2.1, chapters 2 to 4 (tukaani.org). All integers little
//! endian; a VLI is 7 bits a byte, lowest first, the top bit saying that more follow.

use super::blocks::{BLOCKS_MAX, Block, BlockTable, Details, Probe, TABLE_BYTES_MAX, last, need};

/// Bytes of the stream header, and of the stream footer.
const HEADER: u64 = 12;
/// Where a stream starts.
const HEADER_MAGIC: [u8; 6] = *b"\xFD7zXZ\0";
/// Where it ends.
const FOOTER_MAGIC: [u8; 2] = *b"YZ";
/// The smallest stream: header, index of no block, footer.
const STREAM_MIN: u64 = HEADER + 8 + HEADER;
/// Longest run of zero bytes behind the stream that is looked through for its footer. Nothing needs
/// any; `xz` allows it for tapes, whose records are of this order.
const PADDING_MAX: u64 = 64 << 10;
/// Smallest and largest "unpadded size" of a block.
const UNPADDED: std::ops::RangeInclusive<u64> = 5..=(u64::MAX >> 1) & !3;
/// Largest VLI.
const VLI_MAX: u64 = u64::MAX >> 1;

/// Looks for the index of the only stream of a file.
pub(super) fn probe(file_size: u64, tail: &[u8]) -> Result<Probe, String> {
    if file_size < STREAM_MIN {
        return Ok(Probe::None);
    }
    let padding = 4 * tail
        .rchunks_exact(4)
        .take_while(|word| *word == [0; 4])
        .count() as u64;
    if padding > PADDING_MAX || padding + STREAM_MIN > file_size {
        return Err("no stream footer, only zero bytes".into());
    }
    let Some(footer) = last(tail, padding + HEADER) else {
        // Padding without an end in sight: twice as much each time, not a few bytes more.
        return Ok(need(2 * padding + HEADER, file_size));
    };
    let footer = Footer::parse(&footer[..HEADER as usize])?;
    let around = padding + HEADER + HEADER;
    if footer.index_size > TABLE_BYTES_MAX {
        return Err(format!(
            "its index has {} bytes, the limit is {TABLE_BYTES_MAX}",
            footer.index_size
        ));
    }
    if footer.index_size + around > file_size {
        return Err("its index is larger than the file".into());
    }
    let wanted = footer.index_size + HEADER + padding;
    let Some(index) = last(tail, wanted) else {
        return Ok(need(wanted, file_size));
    };
    let (blocks, paddings, end) = parse_index(&index[..footer.index_size as usize])?;
    let stream = end.checked_add(footer.index_size + HEADER + padding);
    match stream.map(|stream| stream.cmp(&file_size)) {
        Some(std::cmp::Ordering::Equal) => {}
        // Another stream stands before this one.
        Some(std::cmp::Ordering::Less) => return Ok(Probe::None),
        Some(std::cmp::Ordering::Greater) | None => {
            return Err("its blocks are larger than the file".into());
        }
    }
    Ok(BlockTable::worthwhile(
        blocks,
        Details::Xz {
            flags: footer.flags,
            padding: paddings,
        },
    ))
}

/// The stream footer.
struct Footer {
    flags: [u8; 2],
    index_size: u64,
}

impl Footer {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let [c0, c1, c2, c3, b0, b1, b2, b3, f0, f1, magic @ ..] = bytes else {
            return Err("its footer is too short".into());
        };
        if *magic != FOOTER_MAGIC {
            return Err("no stream footer at its end".into());
        }
        if crc32fast::hash(&[*b0, *b1, *b2, *b3, *f0, *f1])
            != u32::from_le_bytes([*c0, *c1, *c2, *c3])
        {
            return Err("its footer's CRC32 is wrong".into());
        }
        // Bits 8 to 11 are the kind of check; the others are for later versions of the format.
        if *f0 != 0 || *f1 > 0x0F {
            return Err(format!(
                "stream flags {f0:02x} {f1:02x} are of no known version"
            ));
        }
        let words = u64::from(u32::from_le_bytes([*b0, *b1, *b2, *b3])) + 1;
        Ok(Self {
            flags: [*f0, *f1],
            index_size: words * 4,
        })
    }
}

/// The blocks that hold something, the padding of each, and the packed offset behind all blocks.
fn parse_index(index: &[u8]) -> Result<(Vec<Block>, Vec<u8>, u64), String> {
    let Some((body, crc)) = index.split_last_chunk::<4>() else {
        return Err("its index is too short".into());
    };
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return Err("its index's CRC32 is wrong".into());
    }
    let Some((0, mut rest)) = body.split_first() else {
        return Err("what its footer points to is no index".into());
    };
    let count = take_vli(&mut rest)?;
    // A record has at least two bytes: no count can make this ask for more memory than the index
    // itself takes, times twenty.
    if count > BLOCKS_MAX || count > rest.len() as u64 / 2 {
        return Err(format!(
            "its index has {count} blocks, the limit is {BLOCKS_MAX}"
        ));
    }
    let mut blocks = Vec::with_capacity(count as usize);
    let mut paddings = Vec::with_capacity(count as usize);
    let (mut packed, mut nar) = (HEADER, 0_u64);
    for number in 0..count {
        let unpadded = take_vli(&mut rest)?;
        let size = take_vli(&mut rest)?;
        if !UNPADDED.contains(&unpadded) {
            return Err(format!("its block {number} has {unpadded} packed bytes"));
        }
        let padding = unpadded.wrapping_neg() % 4;
        let sums = packed
            .checked_add(unpadded + padding)
            .zip(nar.checked_add(size));
        let Some((packed_end, nar_end)) = sums.filter(|(a, b)| (*a).max(*b) <= VLI_MAX) else {
            return Err("its blocks are larger than any file".into());
        };
        if size > 0 {
            blocks.push(Block {
                packed: packed..packed_end,
                nar: nar..nar_end,
            });
            paddings.push(padding as u8);
        }
        (packed, nar) = (packed_end, nar_end);
    }
    if rest.len() > 3 || rest.iter().any(|&byte| byte != 0) {
        return Err("its index goes on behind its last block".into());
    }
    Ok((blocks, paddings, packed))
}

/// Takes a VLI off the front.
fn take_vli(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    // Nine bytes are 63 bits.
    for (position, &byte) in bytes.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7F) << (7 * position);
        if byte & 0x80 == 0 {
            if byte == 0 && position > 0 {
                return Err("a number in its index is written longer than it needs".into());
            }
            *bytes = &bytes[position + 1..];
            return Ok(value);
        }
    }
    Err("a number in its index does not end".into())
}

fn put_vli(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// What to put before and behind a block so that it is a stream, which every xz decoder reads and
/// checks. `unpadded` and `size` are the block's packed and unpacked sizes.
pub(super) fn wrapping(flags: [u8; 2], unpadded: u64, size: u64) -> ([u8; 12], Vec<u8>) {
    let mut header = [0; HEADER as usize];
    header[..6].copy_from_slice(&HEADER_MAGIC);
    header[6..8].copy_from_slice(&flags);
    header[8..].copy_from_slice(&crc32fast::hash(&flags).to_le_bytes());

    // One record; two numbers of at most nine bytes each, so the index has at most 28 bytes.
    let mut end = vec![0, 1];
    put_vli(&mut end, unpadded);
    put_vli(&mut end, size);
    end.resize(end.len().next_multiple_of(4), 0);
    let crc = crc32fast::hash(&end);
    end.extend(crc.to_le_bytes());

    let words = (end.len() / 4 - 1) as u32;
    let mut fields = [0; 6];
    fields[..4].copy_from_slice(&words.to_le_bytes());
    fields[4..].copy_from_slice(&flags);
    end.extend(crc32fast::hash(&fields).to_le_bytes());
    end.extend(fields);
    end.extend(FOOTER_MAGIC);
    (header, end)
}
