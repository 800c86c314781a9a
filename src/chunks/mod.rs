//! The chunk index of a NAR: which parts of its packed file unpack to which bytes, and the SHA-256
//! of each, signed by the cache's key.
//!
//! Pure: bytes in, typed values or typed errors out. The format is described in
//! `docs/chunk-index.md`. `publish` writes it, the store reads it.
//!
//! What always holds of a [`ChunkIndex`]: its chunks cover the NAR from its first byte to its last,
//! in order, none empty and none above [`MAX_CHUNK`]; their packed parts follow one another from
//! the file's first byte, and end inside the file.

mod announce;
mod format;

#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::nix::{NarHash, NarInfo, SigningKey, TrustedKeys};

pub use announce::{announce, announced, file_name};
pub use format::IndexError;

/// Largest chunk, in unpacked bytes: one is held in memory while it is checked.
pub const MAX_CHUNK: u32 = 16 << 20;

/// Most chunks of one NAR: 100 GB in chunks of 64 KiB, 80 MB of memory.
pub const MAX_CHUNKS: u32 = 1 << 21;

/// SHA-256 of a chunk's unpacked bytes.
pub type ChunkDigest = [u8; 32];

/// A part of a NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where it is in the packed file.
    pub packed: Range<u64>,
    /// Which bytes of the NAR it holds.
    pub nar: Range<u64>,
    /// SHA-256 of those.
    pub digest: ChunkDigest,
}

/// The chunks of one NAR in one packed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkIndex {
    /// SHA-256 of the NAR.
    pub nar_hash: NarHash,
    /// Bytes of the NAR.
    pub nar_size: u64,
    /// SHA-256 of the packed file.
    pub file_hash: NarHash,
    /// Bytes of the packed file.
    pub file_size: u64,
    /// SHA-256 of everything in the NAR but the files' contents; see [`crate::tree::structure`].
    pub structure: [u8; 32],
    /// The chunks, in order.
    pub chunks: Vec<Chunk>,
}

impl ChunkIndex {
    /// The index as a file, signed.
    pub fn to_bytes(&self, key: &SigningKey) -> Vec<u8> {
        format::write(self, key)
    }

    /// Reads an index and checks that one of `keys` signed it.
    ///
    /// # Errors
    /// What is wrong with it; nothing of it may be used then.
    pub fn parse(bytes: &[u8], keys: &TrustedKeys) -> Result<Self, IndexError> {
        let (index, signed, signature) = format::read(bytes)?;
        match keys.verify(&format::statement(signed), &signature) {
            true => Ok(index),
            false => Err(IndexError::Untrusted {
                key: signature.key().to_owned(),
            }),
        }
    }

    /// Whether it is the index of the file that a narinfo names.
    ///
    /// # Errors
    /// [`IndexError::Other`].
    pub fn check(&self, narinfo: &NarInfo) -> Result<(), IndexError> {
        let other = |what| Err(IndexError::Other(what));
        if (self.nar_hash, self.nar_size) != (narinfo.nar_hash, narinfo.nar_size) {
            return other("NAR");
        }
        match (narinfo.file_hash, narinfo.file_size) {
            (Some(hash), Some(size)) if (hash, size) == (self.file_hash, self.file_size) => Ok(()),
            _ => other("file"),
        }
    }

    /// What an index says, whoever signed it: for tests, and for nothing that is served.
    pub fn parse_unsigned(bytes: &[u8]) -> Option<Self> {
        format::read(bytes).ok().map(|(index, ..)| index)
    }
}
