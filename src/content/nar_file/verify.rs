//! What is known of the bytes: where decoding can start afresh, and whether they are the right ones.

use super::{Generation, NarFile};
use crate::{
    content::{Checkpoint, ContentError},
    nix::{NarHash, NarHasher},
};

/// Bytes read at a time for hashing: large enough that the system calls do not count, small enough to stay in the
/// processor's cache.
const HASH_CHUNK: usize = 256 << 10;

/// Most checkpoints kept for one NAR. Beyond it every second one is dropped: a decoder that starts afresh then has
/// a little more to skip, and the map stays below 1.5 MiB.
const MAX_CHECKPOINTS: usize = 1 << 16;

impl NarFile {
    /// Where decoding of the compressed file can start afresh, ascending.
    pub fn checkpoints(&self) -> Vec<Checkpoint> {
        self.state().checkpoints.clone()
    }

    /// Remembers a place where decoding can start afresh.
    pub fn add_checkpoint(&self, checkpoint: Checkpoint) {
        if checkpoint.nar > self.size {
            return;
        }
        self.change(|state| {
            let list = &mut state.checkpoints;
            if let Err(at) = list.binary_search_by_key(&checkpoint.nar, |c| c.nar) {
                list.insert(at, checkpoint);
            }
            if list.len() > MAX_CHECKPOINTS {
                let mut at = 0;
                list.retain(|_| {
                    at += 1;
                    at % 2 == 0
                });
            }
        });
        self.shared.persister.mark(self.arc(), false);
    }

    /// Which compressed file the checkpoints belong to, as its user numbers them; 0 for none.
    pub fn checkpoint_source(&self) -> u64 {
        self.state().checkpoint_source
    }

    /// Says which compressed file the checkpoints belong to. Those of another one are forgotten: its offsets mean
    /// nothing in this one.
    pub fn set_checkpoint_source(&self, source: u64) {
        self.change(|state| {
            if state.checkpoint_source != source {
                state.checkpoint_source = source;
                state.checkpoints.clear();
            }
        });
    }

    /// Says that the whole NAR was hashed and has the right hash. Durable as soon as the disk allows.
    pub fn mark_verified(&self) -> Result<(), ContentError> {
        self.set_verified(None)
    }

    fn set_verified(&self, wanted: Option<Generation>) -> Result<(), ContentError> {
        {
            let mut state = self.state_mut();
            if wanted.is_some_and(|wanted| wanted != state.generation) {
                return Err(ContentError::Discarded { hash: self.hash });
            }
            let valid = state.extents.covered();
            if valid != self.size {
                return Err(ContentError::Incomplete {
                    hash: self.hash,
                    valid,
                    size: self.size,
                });
            }
            if state.verified {
                return Ok(());
            }
            state.verified = true;
            state.was_verified = true;
            state.changes += 1;
        }
        self.shared.persister.mark(self.arc(), true);
        Ok(())
    }

    /// The hash of the bytes that are here now, read from the disk. Complete NARs only.
    pub fn hash_now(&self) -> Result<NarHash, ContentError> {
        self.hash_generation().map(|(hash, _)| hash)
    }

    /// As [`NarFile::hash_now`], with the generation that was hashed.
    fn hash_generation(&self) -> Result<(NarHash, Generation), ContentError> {
        let (generation, valid) = {
            let state = self.state();
            (state.generation, state.extents.covered())
        };
        if valid != self.size {
            return Err(ContentError::Incomplete {
                hash: self.hash,
                valid,
                size: self.size,
            });
        }
        let mut hasher = NarHasher::new();
        let mut buf = vec![0; HASH_CHUNK.min(usize::try_from(self.size).unwrap_or(HASH_CHUNK))];
        let mut at = 0;
        while at < self.size {
            let len = buf
                .len()
                .min(usize::try_from(self.size - at).unwrap_or(HASH_CHUNK));
            self.read_at(&mut buf[..len], at)?;
            hasher.update(&buf[..len]);
            at += len as u64;
        }
        if self.generation() != generation {
            return Err(ContentError::Discarded { hash: self.hash });
        }
        Ok((hasher.finish(), generation))
    }

    /// Hashes what is here and, if that is the NAR's hash, marks it verified; whether it was.
    pub fn verify(&self) -> Result<bool, ContentError> {
        let (found, generation) = self.hash_generation()?;
        if found == self.hash {
            self.set_verified(Some(generation))?;
        }
        Ok(found == self.hash)
    }
}
