//! Any bytes as the end of a seekable zstd file. Errors are fine, panics are bugs, and a table never
//! points outside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narfs::{
    codec::{Probe, probe},
    nix::Compression,
};

/// Largest block that is given to the decoder: what it claims to unpack to is allocated.
const UNPACKED_MAX: u64 = 1 << 20;

/// `data` with a header and footer that fit one another, so that the fuzzer gets past them.
fn mended(data: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = data.to_vec();
    let foot = bytes.len().checked_sub(9)?;
    bytes[foot + 4] &= 0x80;
    bytes[foot + 5..].copy_from_slice(&0x8F92_EAB1_u32.to_le_bytes());
    let entry = if bytes[foot + 4] == 0 { 8 } else { 12 };
    let count = u32::from(bytes[foot] % 16);
    bytes[foot..foot + 4].copy_from_slice(&count.to_le_bytes());
    let entries = foot.checked_sub(count as usize * entry)?;
    let head = entries.checked_sub(8)?;
    bytes[head..head + 4].copy_from_slice(&0x184D_2A5E_u32.to_le_bytes());
    let size = (bytes.len() - entries) as u32;
    bytes[head + 4..entries].copy_from_slice(&size.to_le_bytes());
    // Sizes of at most 64 KiB, else hardly any table fits its file.
    for number in bytes[entries..foot].chunks_exact_mut(entry) {
        number[2..4].fill(0);
        number[6..8].fill(0);
    }
    Some(bytes)
}

fn check(file: &[u8], tail: &[u8]) {
    let size = file.len() as u64;
    match probe(Compression::Zstd, size, tail) {
        Ok(Probe::Need { tail: more }) => assert!(more > tail.len() as u64 && more <= size),
        Ok(Probe::Table(table)) => {
            let (mut packed, mut nar) = (0, 0);
            for block in table.blocks() {
                assert!(block.packed.start >= packed && block.nar.start == nar);
                (packed, nar) = (block.packed.end, block.nar.end);
                assert!(packed <= size && block.nar.start < nar);
                if nar - block.nar.start <= UNPACKED_MAX {
                    let bytes = &file[block.packed.start as usize..packed as usize];
                    if let Ok(out) = table.decode(block, bytes) {
                        assert_eq!(out.len() as u64, nar - block.nar.start);
                    }
                }
            }
            assert_eq!(table.nar_size(), nar);
        }
        Ok(Probe::None) | Err(_) => {}
    }
}

fuzz_target!(|data: &[u8]| {
    check(data, data);
    check(data, &data[data.len() / 2..]);
    if let Some(mended) = mended(data) {
        check(&mended, &mended);
    }
});
