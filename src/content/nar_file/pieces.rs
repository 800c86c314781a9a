//! Parts of a NAR that go by themselves: when each was used last, and how it goes.

use std::{
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};

use super::{Generation, NarFile, keep::NotDurable, lock};
use crate::content::{ContentError, state_dir::sync_dir};

/// What goes at a time, in bytes: as much as one read of a sequence brings, and a few of the requests that would
/// bring it back. Smaller pieces would not be worth a request each, and larger ones would keep what nobody reads.
pub const PIECE: u64 = 1 << 20;

/// NARs below this go as a whole, in bytes: nearly all of them, with a few percent of what is kept.
const PARTS_FROM: u64 = 2 * PIECE;

/// A part with less than this here stays until the whole goes, in bytes: a write of the map costs as much.
const WORTH_IT: u64 = 64 << 10;

/// When each piece was read or came last, in seconds since 1970.
///
/// One word for a MiB, in memory only, written without a lock and only when the second changed: nothing beside the
/// read that it is noted for. After a restart a piece counts as used when the process opened the NAR.
pub(super) struct PieceUses {
    opened: u32,
    used: OnceLock<Box<[AtomicU32]>>,
}

impl PieceUses {
    pub(super) fn new() -> Self {
        Self {
            opened: seconds(now()),
            used: OnceLock::new(),
        }
    }

    fn note(&self, size: u64, range: &Range<u64>, now: u64) {
        if size < PARTS_FROM || range.start >= range.end {
            return;
        }
        let used = self
            .used
            .get_or_init(|| (0..size.div_ceil(PIECE)).map(|_| 0.into()).collect());
        let pieces = (range.start / PIECE) as usize..range.end.div_ceil(PIECE) as usize;
        let now = seconds(now);
        for piece in used.get(pieces).into_iter().flatten() {
            // Other threads read the same piece: a store that changes nothing would cost them its cache line.
            if piece.load(Ordering::Relaxed) != now {
                piece.store(now, Ordering::Relaxed);
            }
        }
    }

    fn last(&self, piece: u64) -> u32 {
        let used = self
            .used
            .get()
            .and_then(|used| used.get(usize::try_from(piece).ok()?));
        used.map_or(0, |used| used.load(Ordering::Relaxed))
            .max(self.opened)
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// Good until 2106.
fn seconds(at: u64) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// A part of a NAR that can go by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::content) struct Part {
    /// When it was used last, in seconds since 1970.
    pub(in crate::content) last_use: u64,
    /// Whole pieces, ascending, none touching another.
    pub(in crate::content) ranges: Vec<Range<u64>>,
    /// Bytes of them that are here.
    pub(in crate::content) bytes: u64,
}

impl NarFile {
    /// Notes that these bytes were read at `now` (seconds since 1970): what eviction goes by.
    pub fn touch_range(&self, range: &Range<u64>, now: u64) {
        self.touch(now);
        self.uses.note(self.size, range, now);
    }

    /// These bytes came.
    pub(super) fn note_arrival(&self, range: &Range<u64>) {
        self.uses.note(self.size, range, now());
    }

    /// Its parts, those used at the same time together; the least recently used first. None, if it goes as a whole.
    pub(in crate::content) fn parts(&self) -> Vec<Part> {
        if self.size < PARTS_FROM || !self.shared.punches() {
            return Vec::new();
        }
        let extents = self.state().extents.clone();
        let mut parts = std::collections::BTreeMap::<u32, Part>::new();
        for piece in 0..self.size.div_ceil(PIECE) {
            let range = piece * PIECE..((piece + 1) * PIECE).min(self.size);
            let here: u64 = extents.within(&range).iter().map(|r| r.end - r.start).sum();
            if here == 0 {
                continue;
            }
            let last_use = self.uses.last(piece);
            let part = parts.entry(last_use).or_insert_with(|| Part {
                last_use: last_use.into(),
                ranges: Vec::new(),
                bytes: 0,
            });
            part.bytes += here;
            match part.ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => part.ranges.push(range),
            }
        }
        parts
            .into_values()
            .filter(|part| part.bytes >= WORTH_IT)
            .collect()
    }

    /// Drops what is here of whole pieces, if it `may`; the bytes that became free, or `None` if it may not.
    ///
    /// The map that no longer speaks of them is durable before the first hole is punched: a kill in between leaves
    /// more on the disk than the map says, never less. Where the map can't be written (on a full disk) or the file
    /// system punches no holes, all of the NAR goes.
    pub(in crate::content) fn drop_pieces(
        &self,
        ranges: &[Range<u64>],
        may: impl Fn(&Self) -> bool,
    ) -> Result<Option<u64>, ContentError> {
        {
            let _writer = lock(&self.writer);
            let generation = {
                let mut state = self.state_mut();
                if !may(self) {
                    return Ok(None);
                }
                if !state.exists {
                    return Ok(Some(0));
                }
                ranges.iter().for_each(|range| state.take_out(range));
                // Nothing left: the file and its map would only take room.
                (!state.extents.is_empty()).then_some(state.generation)
            };
            if let Some(generation) = generation {
                match self.shrink(generation, ranges) {
                    Ok(freed) => return Ok(Some(freed)),
                    Err(error) => {
                        tracing::debug!(nar = %self.hash, %error, "no part of it can go, so all of it goes");
                    }
                }
            }
        }
        self.discard_if(may)
    }

    /// Makes durable that these pieces are not here, then frees them. The writer lock is held.
    fn shrink(&self, generation: Generation, ranges: &[Range<u64>]) -> Result<u64, ContentError> {
        self.write_map().map_err(|e| match e {
            NotDurable::Sync(_, e) => self.failed("sync", e),
            NotDurable::Other(e) => e,
        })?;
        sync_dir(self.shared.content())?;
        let file = self
            .open_existing(generation, true)
            .map_err(|e| self.failed("open", e))?;
        let before = *lock(&self.nar_allocated);
        for range in ranges {
            // To the end of the file system's last block.
            let len = range.end.div_ceil(PIECE) * PIECE - range.start;
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if let Err(e) = fallocate(&*file, how, range.start, len) {
                if matches!(e, Errno::OPNOTSUPP | Errno::NOSYS) {
                    self.shared.punches_nothing();
                }
                return Err(self.failed("punch a hole into", e.into()));
            }
        }
        self.account(&file);
        Ok(before.saturating_sub(*lock(&self.nar_allocated)))
    }
}
