//! Any bytes as the end of an `.xz` file. Errors are fine, panics are bugs, and a table never
//! points outside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narfs::{
    codec::{Probe, probe},
    nix::Compression,
};

/// Largest block that is given to the decoder: what it claims to unpack to is allocated.
const UNPACKED_MAX: u64 = 1 << 20;

/// `data` with every CRC32 of its index and footer made right, so that the fuzzer gets past them.
fn mended(data: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = data.to_vec();
    let foot = bytes.len().checked_sub(12)?;
    bytes[foot + 8] = 0;
    bytes[foot + 9] &= 0x0F;
    bytes[foot + 10..].copy_from_slice(b"YZ");
    let words = u32::from_le_bytes(bytes[foot + 4..foot + 8].try_into().ok()?) % 64;
    bytes[foot + 4..foot + 8].copy_from_slice(&words.to_le_bytes());
    let crc = crc32fast::hash(&bytes[foot + 4..foot + 10]);
    bytes[foot..foot + 4].copy_from_slice(&crc.to_le_bytes());
    let index = foot.checked_sub((words as usize + 1) * 4)?;
    let crc = crc32fast::hash(&bytes[index..foot - 4]);
    bytes[foot - 4..foot].copy_from_slice(&crc.to_le_bytes());
    Some(bytes)
}

fn check(file: &[u8], tail: &[u8]) {
    let size = file.len() as u64;
    match probe(Compression::Xz, size, tail) {
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
