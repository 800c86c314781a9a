//! A NAR packed in frames that can be unpacked alone, with the table of them at the end.
//!
//! Formats: RFC 8878 (zstd), and "Zstandard Seekable Format" 0.1.0 (facebook/zstd,
//! contrib/seekable_format), whose table is read by [`crate::codec`]: a skippable frame, which
//! every decoder passes over.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use sha2::{Digest, Sha256};
use zstd::bulk::Compressor;

use crate::{chunks::Chunk, codec, nix::NarHash};

/// What became of a NAR.
#[derive(Debug)]
pub struct Packed {
    /// The chunks, in order.
    pub chunks: Vec<Chunk>,
    /// SHA-256 of the packed file.
    pub file_hash: NarHash,
    /// Its bytes.
    pub file_size: u64,
}

/// Packs the NAR in the file `nar`, cut at `ends`, into a new file at `out`. Tells after each
/// chunk how many bytes of the NAR are packed.
///
/// # Errors
/// Of the two files. The same input gives the same bytes.
pub fn pack(
    nar: &File,
    ends: &[u64],
    level: i32,
    out: &Path,
    mut tell: impl FnMut(u64),
) -> io::Result<Packed> {
    // Each frame is made in one go, so that it says how long it is.
    let mut compressor = Compressor::new(level)?;
    let mut out = Hashing {
        file: BufWriter::new(File::create_new(out)?),
        hash: Sha256::new(),
        size: 0,
    };
    let mut chunks = Vec::with_capacity(ends.len());
    let mut table = Vec::with_capacity(ends.len());
    let mut bytes = Vec::new();
    let mut start = 0;
    for &end in ends {
        bytes.resize((end - start) as usize, 0);
        nar.read_exact_at(&mut bytes, start)?;
        let frame = compressor.compress(&bytes)?;
        let packed = out.size;
        out.write_all(&frame)?;
        table.push(codec::SeekEntry {
            // No chunk is larger than 16 MiB.
            packed: frame.len() as u32,
            unpacked: bytes.len() as u32,
            checksum: codec::seek_checksum(&bytes),
        });
        chunks.push(Chunk {
            packed: packed..out.size,
            nar: start..end,
            digest: Sha256::digest(&bytes).into(),
        });
        start = end;
        tell(end);
    }
    out.write_all(&codec::seek_table(&table))?;
    out.file.flush()?;
    Ok(Packed {
        chunks,
        file_hash: NarHash::from_bytes(out.hash.finalize().into()),
        file_size: out.size,
    })
}

struct Hashing {
    file: BufWriter<File>,
    hash: Sha256,
    size: u64,
}

impl Hashing {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{codec::Probe, nix::Compression};

    #[test]
    fn the_packed_file_is_one_for_every_reader() {
        let dir = tempfile::tempdir().unwrap();
        let nar: Vec<u8> = (0..70_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        let (plain, packed) = (dir.path().join("nar"), dir.path().join("packed"));
        std::fs::write(&plain, &nar).unwrap();
        let ends = [100, 150_000, nar.len() as u64];
        let made = pack(&File::open(&plain).unwrap(), &ends, 3, &packed, |_| {}).unwrap();
        let bytes = std::fs::read(&packed).unwrap();
        assert_eq!(made.file_size, bytes.len() as u64);
        // As one stream.
        assert_eq!(zstd::decode_all(&bytes[..]).unwrap(), nar);
        // By its table.
        let Ok(Probe::Table(table)) = codec::probe(Compression::Zstd, made.file_size, &bytes)
        else {
            panic!("no table");
        };
        assert_eq!(table.blocks().len(), 3);
        for (block, chunk) in table.blocks().iter().zip(&made.chunks) {
            assert_eq!((&block.packed, &block.nar), (&chunk.packed, &chunk.nar));
            let part = &bytes[block.packed.start as usize..block.packed.end as usize];
            let unpacked = table.decode(block, part).unwrap();
            assert_eq!(
                unpacked,
                nar[block.nar.start as usize..block.nar.end as usize]
            );
            assert_eq!(<[u8; 32]>::from(Sha256::digest(&unpacked)), chunk.digest);
        }
        // With a first frame that says that it is not all.
        assert!(codec::hints_at_blocks(
            Compression::Zstd,
            &bytes[..18],
            nar.len() as u64
        ));
    }
}
