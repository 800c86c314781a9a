//! Bytes come, become durable, and go.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::atomic::Ordering,
};

use super::{Generation, NarFile, State, lock};
use crate::content::{
    ContentError, Map,
    shared::Kind,
    state_dir::{allocated, replace_file},
    sums::Summed,
};

/// Why what is kept is not durable.
pub(super) enum NotDurable {
    /// The NAR file of this generation was not synced.
    Sync(Generation, io::Error),
    /// The map was not written.
    Other(ContentError),
}

impl NarFile {
    /// Keeps `bytes`, which are those of the NAR from `offset` on; they are valid at once, and durable soon after.
    ///
    /// Bytes that are valid already are not written again: who came first wins, so a reader never sees a valid
    /// byte change. On an error nothing of `bytes` becomes valid.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), ContentError> {
        self.write(None, bytes, offset)
    }

    /// As [`NarFile::write_at`], for a writer that began at `generation`: [`ContentError::Discarded`] if the bytes
    /// were dropped since, so that the rest of a stream found to be wrong does not get in among the next one's.
    pub fn write_at_generation(
        &self,
        generation: u64,
        bytes: &[u8],
        offset: u64,
    ) -> Result<(), ContentError> {
        self.write(Some(generation), bytes, offset)
    }

    fn write(
        &self,
        wanted: Option<Generation>,
        bytes: &[u8],
        offset: u64,
    ) -> Result<(), ContentError> {
        let range = self.range(offset, bytes.len())?;
        let _writer = lock(&self.writer);
        let (generation, exists, missing) = {
            let state = self.state();
            (
                state.generation,
                state.exists,
                state.extents.missing(&range),
            )
        };
        if wanted.is_some_and(|wanted| wanted != generation) {
            return Err(ContentError::Discarded { hash: self.hash });
        }
        if missing.is_empty() {
            return Ok(());
        }
        if self.shared.closed() {
            return Err(ContentError::Closed {
                what: "the bytes were kept",
            });
        }
        if !exists {
            self.create()?;
        }
        let file = self
            .open_existing(generation, true)
            .map_err(|e| self.failed("open", e))?;
        let mut sums = Vec::new();
        let written = missing.iter().try_for_each(|gap| {
            let part = &bytes[(gap.start - offset) as usize..(gap.end - offset) as usize];
            sums.extend(Summed::of(part, gap.start));
            file.write_all_at(part, gap.start)
        });
        self.account(&file);
        written.map_err(|e| self.failed("write", e))?;
        self.note_arrival(&range);
        self.change(|state| {
            state.sums.insert(sums);
            state.extents.insert(range);
        });
        self.shared.persister.mark(self.arc(), false);
        Ok(())
    }

    /// Drops the bytes and the map. From the return of this on, and in fact from its beginning, nobody reads a
    /// byte of what was here; who is reading gets [`ContentError::Discarded`].
    pub fn discard(&self) -> Result<(), ContentError> {
        self.discard_if(|_| true)?;
        // What was found to be wrong must not be back after a power cut.
        self.shared.settle_removals()
    }

    /// Discards if it may; the bytes that became free, or `None` if it may not.
    pub(in crate::content) fn discard_if(
        &self,
        may: impl Fn(&Self) -> bool,
    ) -> Result<Option<u64>, ContentError> {
        let _writer = lock(&self.writer);
        let old = {
            let mut state = self.state_mut();
            if !may(self) {
                return Ok(None);
            }
            let next = State::empty(self.shared.next_generation(), self.size);
            std::mem::replace(&mut *state, next).generation
        };
        self.shared.files.forget(old);
        // A map that is being written now would outlive the bytes.
        let _persisting = lock(&self.persisting);
        self.shared.remove(&self.hash, Kind::Map)?;
        self.shared.remove(&self.hash, Kind::Nar)?;
        let nar = std::mem::take(&mut *lock(&self.nar_allocated));
        let freed = nar + self.map_allocated.swap(0, Ordering::Relaxed);
        self.shared.usage.change(freed, 0);
        Ok(Some(freed))
    }

    /// Makes the bytes and then the map durable, if there is anything new; whether there was.
    pub(in crate::content) fn persist(&self) -> Result<bool, ContentError> {
        match self.write_map() {
            Ok(new) => Ok(new),
            Err(NotDurable::Other(e)) => Err(e),
            Err(NotDurable::Sync(generation, _)) if self.generation() != generation => Ok(false),
            Err(NotDurable::Sync(_, e)) => {
                // After a failed sync the kernel may have dropped the pages it could not write and call them clean:
                // what is read next may be older than what was written. None of it can be called valid any more.
                let error = self.failed("sync", e);
                tracing::warn!(nar = %self.hash, %error, "the kept bytes are dropped, because the disk did not take them");
                self.discard()?;
                Err(error)
            }
        }
    }

    /// As [`NarFile::persist`], but that a failure changes nothing.
    pub(super) fn write_map(&self) -> Result<bool, NotDurable> {
        let _persisting = lock(&self.persisting);
        let (map, generation, changes) = {
            let state = self.state();
            if state.changes == state.persisted || !state.exists {
                return Ok(false);
            }
            (self.map(&state), state.generation, state.changes)
        };
        let file = self
            .open_existing(generation, false)
            .and_then(|file| file.sync_data().map(|()| file))
            .map_err(|e| NotDurable::Sync(generation, e))?;
        // Only now has the file system decided what they take.
        self.account(&file);
        let bytes = map.encode();
        let path = self.shared.path(&self.hash, Kind::Map);
        let now = replace_file(&self.shared.tmp(), &path, &bytes).map_err(NotDurable::Other)?;
        self.shared
            .usage
            .change(self.map_allocated.swap(now, Ordering::Relaxed), now);
        let mut state = self.state_mut();
        if state.generation == generation {
            state.persisted = changes;
        }
        Ok(true)
    }

    fn map(&self, state: &State) -> Map {
        Map {
            hash: self.hash,
            nar_size: self.size,
            verified: state.verified,
            was_verified: state.was_verified,
            extents: state.extents.clone(),
            sums: state.sums.list(&state.extents),
            checkpoint_source: state.checkpoint_source,
            checkpoints: state.checkpoints.clone(),
        }
    }

    /// Makes a new, empty file; whatever had its name is somebody else's from now on. The writer lock is held.
    fn create(&self) -> Result<(), ContentError> {
        let path = self.shared.path(&self.hash, Kind::Nar);
        self.shared.remove_counted(&self.hash, Kind::Map)?;
        self.shared.remove_counted(&self.hash, Kind::Nar)?;
        self.shared.settle_removals()?;
        let make = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.set_len(self.size)?;
            Ok(file)
        };
        match make() {
            Ok(_) => {
                self.state_mut().exists = true;
                Ok(())
            }
            Err(e) => {
                let _ = self.shared.remove(&self.hash, Kind::Nar);
                Err(self.failed("create", e))
            }
        }
    }

    pub(super) fn account(&self, file: &File) {
        let mut known = lock(&self.nar_allocated);
        if let Ok(meta) = file.metadata() {
            let now = allocated(&meta);
            self.shared
                .usage
                .change(std::mem::replace(&mut known, now), now);
        }
    }
}
