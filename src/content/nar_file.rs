//! One NAR on the disk: a sparse file of its uncompressed bytes, and which of them are valid.

mod checked;
mod keep;
mod pieces;
mod survey;
mod verify;

use std::{
    fs::{File, OpenOptions},
    io,
    num::NonZeroU64,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use rustix::fs::{Advice, fadvise};

use super::{
    Checkpoint, ContentError, Extents,
    shared::{Kind, Shared},
    sums::Sums,
};
use crate::nix::NarHash;
use checked::Read;
use pieces::PieceUses;

pub use pieces::PIECE;
pub(super) use survey::Survey;

/// Counts the lives of NAR files: never the same for two of them in one process.
pub(super) type Generation = u64;

/// Seconds between two notes of a NAR's last use.
const USE_INTERVAL: u64 = 60;

/// The kept bytes of one NAR. There is one object for each hash in the process.
pub struct NarFile {
    hash: NarHash,
    size: u64,
    me: Weak<NarFile>,
    shared: Arc<Shared>,
    /// Held by whoever changes the file: one writer, or a discard.
    writer: Mutex<()>,
    /// Held while the map on the disk is written or removed.
    persisting: Mutex<()>,
    state: RwLock<State>,
    holds: AtomicU32,
    noted_use: AtomicU64,
    uses: PieceUses,
    /// Bytes allocated for the file, as far as the usage knows; locked while they are looked up.
    nar_allocated: Mutex<u64>,
    map_allocated: AtomicU64,
}

/// What is known of the bytes.
pub(super) struct State {
    pub(super) generation: Generation,
    /// Whether the file of this generation was made.
    pub(super) exists: bool,
    pub(super) verified: bool,
    /// Whether it ever was, in this generation.
    pub(super) was_verified: bool,
    pub(super) extents: Extents,
    /// What the disk has to give back.
    pub(super) sums: Sums,
    /// Counts the times that valid bytes were taken out.
    pub(super) removals: u64,
    pub(super) checkpoint_source: u64,
    pub(super) checkpoints: Vec<Checkpoint>,
    /// Counts changes; what the map on the disk says is as of `persisted`.
    pub(super) changes: u64,
    pub(super) persisted: u64,
}

impl State {
    pub(super) fn empty(generation: Generation, size: u64) -> Self {
        Self {
            generation,
            exists: false,
            verified: false,
            was_verified: false,
            extents: Extents::new(),
            sums: Sums::new(size),
            removals: 0,
            checkpoint_source: 0,
            checkpoints: Vec::new(),
            changes: 0,
            persisted: 0,
        }
    }
}

/// Keeps a NAR's bytes from eviction while it lives.
pub struct Hold(Arc<NarFile>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::AcqRel);
    }
}

impl NarFile {
    pub(super) fn new(
        hash: NarHash,
        size: u64,
        shared: Arc<Shared>,
        state: State,
        nar_allocated: u64,
        map_allocated: u64,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            hash,
            size,
            me: me.clone(),
            shared,
            writer: Mutex::default(),
            persisting: Mutex::default(),
            state: RwLock::new(state),
            holds: AtomicU32::new(0),
            noted_use: AtomicU64::new(0),
            uses: PieceUses::new(),
            nar_allocated: Mutex::new(nar_allocated),
            map_allocated: map_allocated.into(),
        })
    }

    /// The NAR's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The NAR's hash: the one it should have; see [`NarFile::verified`].
    pub fn hash(&self) -> NarHash {
        self.hash
    }

    /// Whether all bytes of `range` are here.
    pub fn is_valid(&self, range: Range<u64>) -> bool {
        range.end <= self.size && self.state().extents.contains(&range)
    }

    /// The parts of `range` that are not here.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.state()
            .extents
            .missing(&(range.start..range.end.min(self.size)))
    }

    /// Number of bytes that are here.
    pub fn valid_bytes(&self) -> u64 {
        self.state().extents.covered()
    }

    /// Whether every byte is here.
    pub fn complete(&self) -> bool {
        self.valid_bytes() == self.size
    }

    /// Whether the NAR was complete and had the right hash.
    pub fn verified(&self) -> bool {
        self.state().verified
    }

    /// Number of this life of the file: changed by [`NarFile::discard`], never the same twice in a process.
    pub fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Whether the NAR was verified once; bytes of it may have gone since. What is here of it is a part of the right
    /// NAR, as far as its sums hold, and the tree that it was compared with is its tree.
    pub fn was_verified(&self) -> bool {
        self.state().was_verified
    }

    /// Fills `buf` with the bytes from `offset` on. All of them have to be valid.
    ///
    /// No lock is held while the disk works. Bytes that were discarded meanwhile are not given out, and none that
    /// the disk changed: those are dropped ([`ContentError::Damaged`]), to be fetched again.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ContentError> {
        let range = self.range(offset, buf.len())?;
        if range.is_empty() {
            return Ok(());
        }
        loop {
            let (expected, as_of) = {
                let state = self.state();
                let Some(expected) = state.expected(&range) else {
                    return Err(ContentError::NotValid {
                        hash: self.hash,
                        range,
                    });
                };
                (expected, (state.generation, state.removals))
            };
            let read = self
                .open_existing(as_of.0, false)
                .and_then(|file| checked::read(&file, &expected, buf, offset));
            {
                let state = self.state();
                if state.generation != as_of.0 {
                    return Err(ContentError::Discarded { hash: self.hash });
                }
                if state.removals != as_of.1 {
                    // Perhaps these bytes went while they were read: look again.
                    continue;
                }
            }
            return match read {
                Ok(Read::Right) => Ok(()),
                Ok(Read::Wrong(cells)) => Err(self.lose(as_of, &cells)),
                Err(e) if checked::is_loss(&e) => Err(self.lose_unreadable(as_of, &range, &e)),
                Err(e) => Err(self.failed("read", e)),
            };
        }
    }

    /// Gives pages of the page cache back that were filled from the file, those at the edges too. Of bytes that
    /// are not on the disk yet they stay.
    pub fn give_pages_back(&self, range: &Range<u64>) {
        let page = rustix::param::page_size() as u64;
        let (start, end) = (range.start / page * page, range.end.next_multiple_of(page));
        let Ok(file) = self.open_existing(self.generation(), false) else {
            // It is gone, and its pages with it.
            return;
        };
        let len = NonZeroU64::new(end - start);
        // A kernel that does not want to keeps them.
        let _ = fadvise(&file, start, len, Advice::DontNeed);
    }

    /// The file itself, for handing its descriptor on (to the kernel, or to `sendfile`). Complete NARs only.
    pub fn file(&self) -> Result<Arc<File>, ContentError> {
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
        self.open_existing(generation, false)
            .map_err(|e| match self.generation() == generation {
                true => self.failed("open", e),
                false => ContentError::Discarded { hash: self.hash },
            })
    }

    /// Keeps the bytes from eviction until the returned value is dropped. (A discard because of a wrong hash
    /// happens nevertheless.)
    pub fn hold(&self) -> Hold {
        self.holds.fetch_add(1, Ordering::AcqRel);
        Hold(self.arc())
    }

    /// Whether somebody holds it.
    pub fn held(&self) -> bool {
        self.holds.load(Ordering::Acquire) > 0
    }

    /// Notes that the NAR was used at `now` (seconds since 1970): what eviction goes by. Cheap; at most one note a
    /// minute reaches the database.
    pub fn touch(&self, now: u64) {
        let noted = self.noted_use.load(Ordering::Relaxed);
        // A clock that was set back counts as well: else nothing would be noted until it is where it was.
        if noted == 0 || now >= noted.saturating_add(USE_INTERVAL) || now < noted {
            self.noted_use.store(now.max(1), Ordering::Relaxed);
            self.shared.persister.note_use(self.hash, now);
        }
    }

    /// The file of this generation, which was made before.
    fn open_existing(&self, generation: Generation, writable: bool) -> io::Result<Arc<File>> {
        let file = self.shared.files.get(generation, writable, || {
            // The name belongs to this generation as long as the lock is held: a discard changes the state first.
            let state = self.state();
            if state.generation != generation {
                return Err(io::ErrorKind::NotFound.into());
            }
            OpenOptions::new()
                .read(true)
                .write(writable)
                .open(self.shared.path(&self.hash, Kind::Nar))
        })?;
        if self.generation() != generation {
            // Discarded meanwhile: nobody asks for this descriptor again, and it would keep the bytes on the disk.
            self.shared.files.forget(generation);
        }
        Ok(file)
    }

    fn change(&self, how: impl FnOnce(&mut State)) {
        let mut state = self.state_mut();
        how(&mut state);
        state.changes += 1;
    }

    fn range(&self, offset: u64, len: usize) -> Result<Range<u64>, ContentError> {
        let range = offset..offset.saturating_add(len as u64);
        match range.end <= self.size && range.end - range.start == len as u64 {
            true => Ok(range),
            false => Err(ContentError::OutOfRange {
                hash: self.hash,
                range,
                size: self.size,
            }),
        }
    }

    fn failed(&self, what: &'static str, e: io::Error) -> ContentError {
        ContentError::io(what, &self.shared.path(&self.hash, Kind::Nar), e)
    }

    fn arc(&self) -> Arc<Self> {
        // A method can only be called through the one `Arc` that `new` made.
        self.me.upgrade().expect("a NAR file lives in an Arc")
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NarFile {
    fn drop(&mut self) {
        let generation = self
            .state
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .generation;
        self.shared.files.forget(generation);
        self.shared.forget(&self.hash);
    }
}

/// Locks; a panic of another holder changes nothing, because no invariant is broken while a lock is held here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
