//! Whether the first bytes of a packed file hint at a table of blocks at its end.
//!
//! Looking for the table costs a request; almost all files in caches are one block or one frame.

use crate::nix::Compression;

/// Whether `head`, the first bytes of a packed NAR of `nar_size` bytes, is that of a file whose
/// first block or frame says that it holds less than the whole NAR.
///
/// xz: only multi-threaded writers put sizes into block headers ("The .xz File Format", 3.1.2).
/// zstd: the frame header's content size (RFC 8878, 3.1.1.1.4); a single frame made in one go
/// says the whole size, one made as a stream says none.
pub fn hints_at_blocks(format: Compression, head: &[u8], nar_size: u64) -> bool {
    let size = match format {
        Compression::Xz => xz_block_size(head),
        Compression::Zstd => zstd_frame_size(head),
        _ => None,
    };
    size.is_some_and(|size| size < nar_size)
}

/// Bytes of an xz stream header; its first block header follows.
const XZ_HEADER: usize = 12;

fn xz_block_size(head: &[u8]) -> Option<u64> {
    let block = head
        .strip_prefix(b"\xFD7zXZ\0")
        .and(head.get(XZ_HEADER..))?;
    let [_size, flags, rest @ ..] = block else {
        return None;
    };
    let mut rest = rest;
    if flags & 0x40 != 0 {
        variable_length(&mut rest)?;
    }
    if flags & 0x80 == 0 {
        return None;
    }
    variable_length(&mut rest)
}

/// An integer of seven bits a byte, the lowest first, at most nine bytes.
fn variable_length(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn zstd_frame_size(head: &[u8]) -> Option<u64> {
    let frame = head.strip_prefix(&[0x28, 0xB5, 0x2F, 0xFD])?;
    let (descriptor, rest) = frame.split_first()?;
    let single_segment = descriptor & 0x20 != 0;
    let window = usize::from(!single_segment);
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let field = rest.get(window + dictionary..)?;
    match descriptor >> 6 {
        0 if single_segment => Some(u64::from(*field.first()?)),
        0 => None,
        1 => Some(u64::from(u16::from_le_bytes(field.get(..2)?.try_into().ok()?)) + 256),
        2 => Some(u32::from_le_bytes(field.get(..4)?.try_into().ok()?).into()),
        _ => Some(u64::from_le_bytes(field.get(..8)?.try_into().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn zstd_frames_that_hold_a_part_are_seen() {
        let whole = zstd::bulk::compress(&[1; 5000], 3).unwrap();
        assert!(!hints_at_blocks(Compression::Zstd, &whole, 5000));
        assert!(hints_at_blocks(Compression::Zstd, &whole, 5001));
        let mut stream = zstd::Encoder::new(Vec::new(), 3).unwrap();
        stream.write_all(&[1; 5000]).unwrap();
        let streamed = stream.finish().unwrap();
        assert!(!hints_at_blocks(Compression::Zstd, &streamed, 1 << 30));
    }

    #[test]
    fn xz_blocks_of_one_thread_say_nothing() {
        let mut one = liblzma::write::XzEncoder::new(Vec::new(), 6);
        one.write_all(&[1; 5000]).unwrap();
        assert!(!hints_at_blocks(
            Compression::Xz,
            &one.finish().unwrap(),
            1 << 30
        ));
        // What `xz -T2 --block-size` writes: header, then a block header with both sizes.
        let head = b"\xFD7zXZ\0\0\x04\xe6\xd6\xb4\x46\x04\xc0\x90\x01\x80\x80\x04\x21\x01\x16";
        assert!(hints_at_blocks(Compression::Xz, head, 65537));
        assert!(!hints_at_blocks(Compression::Xz, head, 65536));
    }

    #[test]
    fn short_and_foreign_heads_say_nothing() {
        for head in [&b""[..], b"\xFD7zXZ\0", b"(\xB5/\xFD", b"garbage"] {
            assert!(!hints_at_blocks(Compression::Xz, head, 1));
            assert!(!hints_at_blocks(Compression::Zstd, head, 1));
        }
    }
}
