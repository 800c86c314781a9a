//! Which chunks are here: by their digest, the NAR that had them and where.
//!
//! Filled from chunk indexes, whether the bytes have come or not. It is a hint: who follows it reads
//! what is there and hashes it. It is bounded, and forgets what it heard of first.
//!
//! One lock, a leaf.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use crate::{
    chunks::{ChunkDigest, ChunkIndex},
    content::ContentStore,
    nix::NarHash,
};

/// Most chunks that are remembered: of 50 GB in the usual size, 8 MB of memory.
const MOST: usize = 200_000;

/// The chunks that were heard of.
#[derive(Default)]
pub(super) struct ChunkBook {
    /// Those of earlier runs were read.
    loaded: AtomicBool,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    /// By the first bytes of the digest: the NAR's number, and where in it.
    places: HashMap<u64, (u32, u64)>,
    /// Keys of `places`, the oldest first.
    order: VecDeque<u64>,
    nars: Vec<(NarHash, u64)>,
    numbers: HashMap<NarHash, u32>,
}

/// Where a chunk may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkPlace {
    /// The NAR.
    pub nar: NarHash,
    /// Its size in bytes.
    pub nar_size: u64,
    /// Where in it the chunk begins.
    pub start: u64,
}

/// Digests are evenly spread, so their first bytes are a hash.
fn key(digest: &ChunkDigest) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

impl ChunkBook {
    /// Notes the chunks of a NAR.
    pub fn add(&self, index: &ChunkIndex) {
        let mut pages = self.pages();
        if pages.numbers.contains_key(&index.nar_hash) {
            return;
        }
        let number = pages.nars.len() as u32;
        pages.nars.push((index.nar_hash, index.nar_size));
        pages.numbers.insert(index.nar_hash, number);
        for chunk in &index.chunks {
            let key = key(&chunk.digest);
            // The first one stays: it is the one that may be here.
            if pages.places.contains_key(&key) {
                continue;
            }
            if pages.order.len() >= MOST
                && let Some(oldest) = pages.order.pop_front()
            {
                pages.places.remove(&oldest);
            }
            pages.places.insert(key, (number, chunk.nar.start));
            pages.order.push_back(key);
        }
    }

    /// Where a chunk may be, besides `start` of this NAR: another NAR, or a copy in the same one.
    pub fn find(&self, digest: &ChunkDigest, of: &NarHash, at: u64) -> Option<ChunkPlace> {
        let pages = self.pages();
        let (number, start) = *pages.places.get(&key(digest))?;
        let (nar, nar_size) = *pages.nars.get(number as usize)?;
        ((nar, start) != (*of, at)).then_some(ChunkPlace {
            nar,
            nar_size,
            start,
        })
    }

    /// Reads what earlier runs kept, once. Blocks.
    pub fn load(&self, content: &ContentStore) {
        if self.loaded.swap(true, Relaxed) {
            return;
        }
        for hash in content.all_chunks() {
            if self.pages().order.len() >= MOST {
                break;
            }
            let index = content
                .chunks(&hash)
                .and_then(|bytes| ChunkIndex::parse_unsigned(&bytes));
            if let Some(index) = index.filter(|index| index.nar_hash == hash) {
                self.add(&index);
            }
        }
    }

    fn pages(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunks::Chunk;

    fn index(nar: u8, digests: impl Iterator<Item = u64>) -> ChunkIndex {
        let chunks: Vec<Chunk> = digests
            .enumerate()
            .map(|(at, digest)| {
                let mut bytes = [0; 32];
                bytes[..8].copy_from_slice(&digest.to_le_bytes());
                let at = at as u64;
                Chunk {
                    packed: at..at + 1,
                    nar: at * 10..at * 10 + 10,
                    digest: bytes,
                }
            })
            .collect();
        ChunkIndex {
            nar_hash: NarHash::from_bytes([nar; 32]),
            nar_size: chunks.len() as u64 * 10,
            file_hash: NarHash::from_bytes([0; 32]),
            file_size: 1 << 40,
            structure: [0; 32],
            chunks,
        }
    }

    #[test]
    fn it_tells_where_and_forgets_the_oldest() {
        let book = ChunkBook::default();
        book.add(&index(1, 0..3));
        book.add(&index(2, 2..5));
        let digest = |n| index(0, n..n + 1).chunks[0].digest;
        let at = |n| book.find(&digest(n), &NarHash::from_bytes([9; 32]), 0);
        assert_eq!(at(2).map(|p| (p.nar.as_bytes()[0], p.start)), Some((1, 20)));
        assert_eq!(at(4).map(|p| (p.nar.as_bytes()[0], p.start)), Some((2, 20)));
        assert_eq!(
            book.find(&digest(0), &NarHash::from_bytes([1; 32]), 0),
            None
        );
        book.add(&index(3, 10..10 + MOST as u64 - 2));
        assert_eq!(at(0), None);
        assert!(at(4).is_some() && book.pages().places.len() == MOST);
    }
}
