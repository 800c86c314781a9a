//! The bytes of a chunk index; see `docs/chunk-index.md`.

use super::{Chunk, ChunkIndex, MAX_CHUNK, MAX_CHUNKS};
use crate::nix::{NarHash, Signature, SigningKey};

/// What every index begins with: a name, and the format's version.
const MAGIC: &[u8; 12] = b"narfschk\x01\0\0\0";
/// Bytes of the magic without the version.
const NAME: usize = 8;
/// What a signature is of, in front of the signed bytes: no signature of anything else can be
/// mistaken for one of an index.
const CONTEXT: &[u8] = b"narfs chunk index\0";

/// Why bytes are no chunk index that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Something else.
    #[error("this is no chunk index")]
    NotAnIndex,
    /// A later format.
    #[error("it has version {0} of the format; this narfs reads version 1")]
    Version(u32),
    /// It breaks off, or goes on after its end.
    #[error("it is of the wrong length")]
    Length,
    /// What it says cannot be.
    #[error("it contradicts itself: {0}")]
    Contradiction(&'static str),
    /// Nobody whom the user trusts signed it.
    #[error("no trusted key signed it, it names {key:?}; if that is the cache's key, trust it")]
    Untrusted {
        /// The key that it names.
        key: String,
    },
    /// It is another NAR's, or another file's.
    #[error("it is that of another {0}")]
    Other(&'static str),
}

/// Takes bytes from the front.
struct Taking<'a>(&'a [u8]);

impl<'a> Taking<'a> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], IndexError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(IndexError::Length)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, IndexError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, IndexError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn hash(&mut self) -> Result<NarHash, IndexError> {
        self.bytes().map(NarHash::from_bytes)
    }

    fn slice(&mut self, len: usize) -> Result<&'a [u8], IndexError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(IndexError::Length)?;
        self.0 = rest;
        Ok(taken)
    }
}

/// What is signed of these bytes.
pub(super) fn statement(signed: &[u8]) -> Vec<u8> {
    [CONTEXT, signed].concat()
}

/// An index, the bytes of it that are signed, and the signature; nothing is believed yet.
pub(super) fn read(bytes: &[u8]) -> Result<(ChunkIndex, &[u8], Signature), IndexError> {
    let mut left = Taking(bytes);
    let magic: [u8; 12] = left.bytes().map_err(|_| IndexError::NotAnIndex)?;
    if magic[..NAME] != MAGIC[..NAME] {
        return Err(IndexError::NotAnIndex);
    }
    if magic != *MAGIC {
        let version = [magic[8], magic[9], magic[10], magic[11]];
        return Err(IndexError::Version(u32::from_le_bytes(version)));
    }
    let count = left.u32()?;
    let mut index = ChunkIndex {
        nar_hash: left.hash()?,
        nar_size: left.u64()?,
        file_hash: left.hash()?,
        file_size: left.u64()?,
        structure: left.bytes()?,
        chunks: Vec::new(),
    };
    if count > MAX_CHUNKS {
        return Err(IndexError::Contradiction("too many chunks"));
    }
    index.chunks = chunks(&mut left, count)?;
    let end = index
        .chunks
        .last()
        .ok_or(IndexError::Contradiction("it has no chunks"))?;
    if end.nar.end != index.nar_size {
        return Err(IndexError::Contradiction(
            "its chunks are not as long as the NAR",
        ));
    }
    if end.packed.end > index.file_size {
        return Err(IndexError::Contradiction(
            "its chunks are longer than the file",
        ));
    }
    let signed = &bytes[..bytes.len() - left.0.len()];
    let [name_len] = left.bytes()?;
    let (name, bytes) = (left.slice(name_len.into())?, left.bytes()?);
    let signature = std::str::from_utf8(name)
        .ok()
        .and_then(|name| Signature::new(name, bytes))
        .ok_or(IndexError::Contradiction("its key has no name"))?;
    match left.0.is_empty() {
        true => Ok((index, signed, signature)),
        false => Err(IndexError::Length),
    }
}

fn chunks(left: &mut Taking<'_>, count: u32) -> Result<Vec<Chunk>, IndexError> {
    // What is announced costs memory only as far as it has come.
    let mut chunks = Vec::with_capacity((count as usize).min(left.0.len() / CHUNK));
    let (mut packed, mut nar) = (0_u64, 0_u64);
    for _ in 0..count {
        let (packed_size, size, digest) = (left.u32()?, left.u32()?, left.bytes()?);
        if packed_size == 0 || size == 0 || size > MAX_CHUNK {
            return Err(IndexError::Contradiction(
                "a chunk that is empty or too large",
            ));
        }
        // Sums of at most 2^21 numbers of 32 bits.
        let (packed_end, nar_end) = (packed + u64::from(packed_size), nar + u64::from(size));
        chunks.push(Chunk {
            packed: packed..packed_end,
            nar: nar..nar_end,
            digest,
        });
        (packed, nar) = (packed_end, nar_end);
    }
    Ok(chunks)
}

/// Bytes of a chunk's entry.
const CHUNK: usize = 40;

pub(super) fn write(index: &ChunkIndex, key: &SigningKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 + index.chunks.len() * CHUNK);
    out.extend(MAGIC);
    out.extend((index.chunks.len() as u32).to_le_bytes());
    out.extend(index.nar_hash.as_bytes());
    out.extend(index.nar_size.to_le_bytes());
    out.extend(index.file_hash.as_bytes());
    out.extend(index.file_size.to_le_bytes());
    out.extend(index.structure);
    for chunk in &index.chunks {
        // What is written was made by us: no chunk is larger than `MAX_CHUNK`, nor much larger packed.
        out.extend(((chunk.packed.end - chunk.packed.start) as u32).to_le_bytes());
        out.extend(((chunk.nar.end - chunk.nar.start) as u32).to_le_bytes());
        out.extend(chunk.digest);
    }
    let signature = key.sign_text(&statement(&out));
    // `narfs publish` refuses names that are longer.
    let name = &signature.key().as_bytes()[..signature.key().len().min(255)];
    out.push(name.len() as u8);
    out.extend(name);
    out.extend(signature.bytes());
    out
}
