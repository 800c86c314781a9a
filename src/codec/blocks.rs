//! Random access: the table of a packed file's blocks, and decoding one of them.

use std::{io::Read, ops::Range};

use sha2::{Digest, Sha256};

use super::{Bound, Checkpoint, CodecError, open, xz_index, zstd, zstd_table};
use crate::nix::Compression;

/// How many of a file's last bytes to give [`probe`] first: 16 KiB hold the index of some 1,500 xz
/// blocks (36 GB in blocks of `xz -6`), at the price of a request that fetches next to nothing.
pub const FIRST_TAIL: u64 = 16 << 10;

/// Largest index or seek table in bytes that is fetched and parsed. 2 TiB of NAR in blocks of
/// 1 MiB need 20 MiB.
pub(super) const TABLE_BYTES_MAX: u64 = 64 << 20;

/// Most blocks in a table: it takes 40 bytes of memory for each, so 80 MiB.
pub(super) const BLOCKS_MAX: u64 = 1 << 21;

/// Largest block in unpacked bytes that is worth decoding at once, as it is held in memory while
/// one reader waits for it: what `xz -9 -T0` makes is 192 MiB. A file with a larger one is streamed.
pub(super) const BLOCK_BYTES_MAX: u64 = 256 << 20;

/// A part of the packed file that can be unpacked by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Where it is in the packed file.
    pub packed: Range<u64>,
    /// Which bytes of the NAR it holds, at least one.
    pub nar: Range<u64>,
}

/// What decoding a block takes besides its bytes, by format; vectors run parallel to the blocks.
#[derive(Debug, Clone)]
pub(super) enum Details {
    /// The stream flags, and how many padding bytes (0 to 3) end each block.
    Xz { flags: [u8; 2], padding: Vec<u8> },
    /// The low 32 bits of each frame's XXH64, if the table has them.
    /// Or the SHA-256 of each, from a chunk index.
    Zstd {
        checksums: Option<Vec<u32>>,
        digests: Option<Vec<[u8; 32]>>,
    },
}

/// The blocks of a packed file: they cover the NAR without gaps, in order.
#[derive(Debug, Clone)]
pub struct BlockTable {
    blocks: Vec<Block>,
    details: Details,
}

/// What the end of a packed file tells.
#[derive(Debug, Clone)]
pub enum Probe {
    /// Ask again with this many last bytes of the file, more than were given.
    Need {
        /// How many bytes; at most the size of the file.
        tail: u64,
    },
    /// The file can be read block by block. The caller compares [`BlockTable::nar_size`] with the
    /// narinfo's.
    Table(BlockTable),
    /// The file has to be read from its start.
    None,
}

/// Looks for a block index (xz) or seek table (zstd) in `tail`, the last bytes of a packed file of
/// `file_size` bytes. Begin with [`FIRST_TAIL`] bytes, or none.
///
/// There is a table only if it is of use: more than one block, none of them huge, one xz stream.
///
/// # Errors
///
/// [`CodecError::Table`] when there is a table that contradicts itself, the file, or a limit; the
/// file may still be good when read from its start.
pub fn probe(format: Compression, file_size: u64, tail: &[u8]) -> Result<Probe, CodecError> {
    let table = |what| CodecError::Table { format, what };
    if tail.len() as u64 > file_size {
        return Err(table(format!("{} last bytes of {file_size}", tail.len())));
    }
    match format {
        Compression::Xz => xz_index::probe(file_size, tail).map_err(table),
        Compression::Zstd => zstd_table::probe(file_size, tail).map_err(table),
        _ => Ok(Probe::None),
    }
}

/// The last `n` bytes of `tail`, if it has them.
pub(super) fn last(tail: &[u8], n: u64) -> Option<&[u8]> {
    let start = tail.len().checked_sub(usize::try_from(n).ok()?)?;
    tail.get(start..)
}

/// Asks for the last `n` bytes, or as many as are worth a request.
pub(super) fn need(n: u64, file_size: u64) -> Probe {
    Probe::Need {
        tail: n.max(FIRST_TAIL).min(file_size),
    }
}

impl BlockTable {
    /// A table of `blocks` that follow one another in the file and in the NAR. Says no if nobody
    /// gains by it.
    pub(super) fn worthwhile(blocks: Vec<Block>, details: Details) -> Probe {
        let huge = |block: &Block| block.nar.end - block.nar.start > BLOCK_BYTES_MAX;
        if blocks.len() < 2 || blocks.iter().any(huge) {
            return Probe::None;
        }
        Probe::Table(Self { blocks, details })
    }

    /// The frames that a chunk index names, with the SHA-256 of what each unpacks to.
    pub fn of_chunks(chunks: impl IntoIterator<Item = (Block, [u8; 32])>) -> Self {
        let (blocks, digests) = chunks.into_iter().unzip();
        let details = Details::Zstd {
            checksums: None,
            digests: Some(digests),
        };
        Self { blocks, details }
    }

    /// The SHA-256 of what a block of this table unpacks to, if it came from a chunk index.
    pub fn digest(&self, block: &Block) -> Option<&[u8; 32]> {
        let Details::Zstd { digests, .. } = &self.details else {
            return None;
        };
        digests.as_ref()?.get(self.place(block))
    }

    /// Whether every block is checked when it is decoded.
    pub fn has_digests(&self) -> bool {
        matches!(&self.details, Details::Zstd { digests, .. } if digests.is_some())
    }

    /// The format of the file.
    pub fn format(&self) -> Compression {
        match self.details {
            Details::Xz { .. } => Compression::Xz,
            Details::Zstd { .. } => Compression::Zstd,
        }
    }

    /// All blocks, in order.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// How many bytes all blocks unpack to.
    pub fn nar_size(&self) -> u64 {
        self.blocks.last().map_or(0, |block| block.nar.end)
    }

    /// The blocks that hold the bytes `nar` of the NAR; empty for an empty range.
    pub fn covering(&self, nar: Range<u64>) -> &[Block] {
        if nar.is_empty() {
            return &[];
        }
        let from = self
            .blocks
            .partition_point(|block| block.nar.end <= nar.start);
        let to = self
            .blocks
            .partition_point(|block| block.nar.start < nar.end);
        &self.blocks[from..to]
    }

    /// Unpacks a block of this table from `packed`, the bytes `block.packed` of the file.
    ///
    /// # Errors
    ///
    /// [`CodecError::BlockBytes`] if those are not as many or the block is not of this table; what
    /// [`stream`](super::stream) finds wrong with the data, `at` counting from the block's start.
    pub fn decode(&self, block: &Block, packed: &[u8]) -> Result<Vec<u8>, CodecError> {
        let mut bytes = Vec::new();
        self.decode_onto(block, packed, &mut bytes)?;
        Ok(bytes)
    }

    /// The same, appended to `out`; which is as it was after an error.
    ///
    /// # Errors
    ///
    /// Those of [`decode`](Self::decode).
    pub fn decode_onto(
        &self,
        block: &Block,
        packed: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let index = self.place(block);
        let expected = block.packed.end.saturating_sub(block.packed.start);
        let got = packed.len() as u64;
        if self.blocks.get(index) != Some(block) || expected != got {
            return Err(CodecError::BlockBytes {
                format: self.format(),
                index,
                expected,
                got,
            });
        }
        let start = out.len();
        let unpacked = self.unpack(index, packed, out);
        let done = unpacked.and_then(|()| self.check(index, &out[start..], got));
        if done.is_err() {
            out.truncate(start);
        }
        done
    }

    /// Where a block of this table stands in it.
    fn place(&self, block: &Block) -> usize {
        self.blocks
            .partition_point(|other| other.nar.start < block.nar.start)
    }

    /// Appends what a block's bytes unpack to.
    fn unpack(&self, index: usize, packed: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
        let nar = &self.blocks[index].nar;
        let size = nar.end - nar.start;
        match &self.details {
            Details::Xz { flags, padding } => {
                let unpadded = packed.len() as u64 - u64::from(padding[index]);
                let (head, end) = xz_index::wrapping(*flags, unpadded, size);
                let packed = Box::new(head.chain(packed).chain(&end[..]));
                unpack(Compression::Xz, packed, size, out)
            }
            Details::Zstd { .. } => match usize::try_from(size) {
                Ok(size) if zstd::in_one_step(packed, size, out) => Ok(()),
                _ => unpack(Compression::Zstd, Box::new(packed), size, out),
            },
        }
    }

    /// Whether a block, of so many bytes, unpacked to what the table says.
    fn check(&self, index: usize, bytes: &[u8], packed: u64) -> Result<(), CodecError> {
        let Details::Zstd { checksums, digests } = &self.details else {
            return Ok(());
        };
        let what = if digests
            .as_ref()
            .is_some_and(|d| *Sha256::digest(bytes) != d[index])
        {
            "not the bytes that the chunk index promises"
        } else if checksums
            .as_ref()
            .is_some_and(|c| zstd_table::seek_checksum(bytes) != c[index])
        {
            "not the bytes that the seek table's checksum is of"
        } else {
            return Ok(());
        };
        Err(CodecError::Damaged {
            format: self.format(),
            at: packed,
            what: what.into(),
        })
    }
}

/// Appends all `size` bytes that `packed` unpacks to. `out` may end with some of them after an error.
fn unpack(
    format: Compression,
    packed: Box<dyn Read + Send + '_>,
    size: u64,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let mut reader = open(format, packed, Checkpoint::START, Bound::Exactly(size))?;
    // Memory that is not written to costs nothing: a block that lies about its size takes address
    // space only.
    out.reserve(usize::try_from(size).map_err(|_| CodecError::Setup { format })?);
    // To the end, as only that says that the size and the block's check were right.
    let read = reader.read_to_end(out);
    read.map(drop).map_err(CodecError::from_read)
}
