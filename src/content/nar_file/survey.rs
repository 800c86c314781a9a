//! A look at everything that is kept of a NAR, whether anybody reads it or not.

use std::{ops::Range, os::unix::fs::FileExt};

use super::{NarFile, checked};
use crate::{
    content::{
        ContentError,
        sums::{BLOCK, Summed},
    },
    nix::{NarHash, NarHasher},
};

/// Bytes read at a time: whole blocks, and in the processor's cache when they are hashed.
const STEP: u64 = 16 * BLOCK;

/// What is kept of a NAR, compared with what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::content) struct Survey {
    /// What the disk changed or does not give back, in whole cells.
    pub(in crate::content) bad: Vec<Range<u64>>,
    /// The hash of all of it, if all of it is here and none is bad.
    pub(in crate::content) hash: Option<NarHash>,
}

impl NarFile {
    /// Reads everything that is here and compares it with its sums, and hashes it if it is complete. Drops nothing.
    /// `progress` gets the number of bytes after each step, and says whether to go on.
    ///
    /// What has no sum, because an older narfs kept it, gets one if the hash of the whole is right.
    pub(in crate::content) fn survey(
        &self,
        mut progress: impl FnMut(u64) -> bool,
    ) -> Result<Survey, ContentError> {
        let (generation, removals, extents) = {
            let state = self.state();
            (state.generation, state.removals, state.extents.clone())
        };
        let discarded = || Err(ContentError::Discarded { hash: self.hash });
        let mut hasher = (extents.covered() == self.size).then(NarHasher::new);
        let mut bad: Vec<Range<u64>> = Vec::new();
        let mut unsummed = Vec::new();
        let mut buf = vec![0; STEP as usize];
        for extent in extents.ranges() {
            let mut at = extent.start;
            while at < extent.end {
                let range = at..((at / STEP + 1) * STEP).min(extent.end);
                at = range.end;
                let buf = &mut buf[..(range.end - range.start) as usize];
                let Some(expected) = self.state().expected(&range) else {
                    // Evicted meanwhile: there is nothing that could be wrong.
                    hasher = None;
                    continue;
                };
                let read = self
                    .open_existing(generation, false)
                    .and_then(|file| file.read_exact_at(buf, range.start));
                if self.generation() != generation {
                    return discarded();
                }
                match read {
                    Ok(()) if *expected.range() == range => {
                        bad.extend(expected.wrong(range.clone(), [&[], buf, &[]]));
                    }
                    // Nothing to hold it against, or it grew at its edge while this went on.
                    Ok(()) => {}
                    Err(e) if checked::is_loss(&e) => bad.push(range.clone()),
                    Err(e) => return Err(self.failed("read", e)),
                }
                if let Some(hasher) = &mut hasher {
                    hasher.update(buf);
                    if expected.is_partial() {
                        unsummed.extend(Summed::of(buf, range.start));
                    }
                }
                if !progress(buf.len() as u64) {
                    return discarded();
                }
            }
        }
        let mut state = self.state_mut();
        if state.generation != generation {
            return discarded();
        }
        if state.removals != removals {
            // What was found may be of bytes that went while they were read.
            bad.clear();
            hasher = None;
        }
        let hash = hasher.filter(|_| bad.is_empty()).map(NarHasher::finish);
        if hash == Some(self.hash) && !unsummed.is_empty() {
            state.sums.complete(&unsummed);
            state.changes += 1;
            drop(state);
            self.shared.persister.mark(self.arc(), false);
        }
        Ok(Survey { bad, hash })
    }
}
