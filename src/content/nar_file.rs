//! One NAR on the disk: a sparse file of its uncompressed bytes, and which of them are valid.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use super::{
    Checkpoint, ContentError, Extents, Map,
    shared::{Kind, Shared},
    state_dir::{allocated, replace_file},
};
use crate::nix::{NarHash, NarHasher};

/// Counts the lives of NAR files: never the same for two of them in one process.
pub(super) type Generation = u64;

/// Bytes read at a time for hashing: large enough that the system calls do not count, small enough to stay in the
/// processor's cache.
const HASH_CHUNK: usize = 256 << 10;

/// Most checkpoints kept for one NAR. Beyond it every second one is dropped: a decoder that starts afresh then has
/// a little more to skip, and the map stays below 1.5 MiB.
const MAX_CHECKPOINTS: usize = 1 << 16;

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
    pub(super) extents: Extents,
    pub(super) checkpoint_source: u64,
    pub(super) checkpoints: Vec<Checkpoint>,
    /// Counts changes; what the map on the disk says is as of `persisted`.
    pub(super) changes: u64,
    pub(super) persisted: u64,
}

impl State {
    pub(super) fn empty(generation: Generation) -> Self {
        Self {
            generation,
            exists: false,
            verified: false,
            extents: Extents::new(),
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

    /// Fills `buf` with the bytes from `offset` on. All of them have to be valid.
    ///
    /// No lock is held while the disk works. Bytes that were discarded meanwhile are not given out.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ContentError> {
        let range = self.range(offset, buf.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let generation = {
            let state = self.state();
            if !state.extents.contains(&range) {
                return Err(ContentError::NotValid {
                    hash: self.hash,
                    range,
                });
            }
            state.generation
        };
        let read = self
            .open_existing(generation, false)
            .and_then(|file| file.read_exact_at(buf, offset));
        if self.generation() != generation {
            return Err(ContentError::Discarded { hash: self.hash });
        }
        read.map_err(|e| self.failed("read", e))
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
        let written = missing.iter().try_for_each(|gap| {
            let part = (gap.start - offset) as usize..(gap.end - offset) as usize;
            file.write_all_at(&bytes[part], gap.start)
        });
        self.account(&file);
        written.map_err(|e| self.failed("write", e))?;
        self.change(|state| state.extents.insert(range));
        self.shared.persister.mark(self.arc(), false);
        Ok(())
    }

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
            state.changes += 1;
        }
        self.shared.persister.mark(self.arc(), true);
        Ok(())
    }

    /// The hash of the bytes that are here now, read from the disk. Complete NARs only.
    pub fn hash_now(&self) -> Result<NarHash, ContentError> {
        self.hash_with(|_| {}).map(|(hash, _)| hash)
    }

    /// As [`NarFile::hash_now`], telling `progress` the number of bytes after each piece; with the generation that
    /// was hashed.
    pub(super) fn hash_with(
        &self,
        mut progress: impl FnMut(u64),
    ) -> Result<(NarHash, Generation), ContentError> {
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
            progress(len as u64);
        }
        if self.generation() != generation {
            return Err(ContentError::Discarded { hash: self.hash });
        }
        Ok((hasher.finish(), generation))
    }

    /// Hashes what is here and, if that is the NAR's hash, marks it verified; whether it was.
    pub fn verify(&self) -> Result<bool, ContentError> {
        let (found, generation) = self.hash_with(|_| {})?;
        if found == self.hash {
            self.set_verified(Some(generation))?;
        }
        Ok(found == self.hash)
    }

    /// Drops the bytes and the map. From the return of this on, and in fact from its beginning, nobody reads a
    /// byte of what was here; who is reading gets [`ContentError::Discarded`].
    pub fn discard(&self) -> Result<(), ContentError> {
        self.discard_if(|_| true)?;
        // What was found to be wrong must not be back after a power cut.
        self.shared.settle_removals()
    }

    /// Discards if it may; the bytes that became free, or `None` if it may not.
    pub(super) fn discard_if(
        &self,
        may: impl Fn(&Self) -> bool,
    ) -> Result<Option<u64>, ContentError> {
        let _writer = lock(&self.writer);
        let old = {
            let mut state = self.state_mut();
            if !may(self) {
                return Ok(None);
            }
            let next = State::empty(self.shared.next_generation());
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

    /// Makes the bytes and then the map durable, if there is anything new; whether there was.
    pub(super) fn persist(&self) -> Result<bool, ContentError> {
        let synced = {
            let _persisting = lock(&self.persisting);
            let (map, generation, changes) = {
                let state = self.state();
                if state.changes == state.persisted || !state.exists {
                    return Ok(false);
                }
                (self.map(&state), state.generation, state.changes)
            };
            match self
                .open_existing(generation, false)
                .and_then(|file| file.sync_data().map(|()| file))
            {
                Err(e) => Err((generation, e)),
                Ok(file) => {
                    // Only now has the file system decided what they take.
                    self.account(&file);
                    let bytes = map.encode();
                    let path = self.shared.path(&self.hash, Kind::Map);
                    let now = replace_file(&self.shared.tmp(), &path, &bytes)?;
                    self.shared
                        .usage
                        .change(self.map_allocated.swap(now, Ordering::Relaxed), now);
                    let mut state = self.state_mut();
                    if state.generation == generation {
                        state.persisted = changes;
                    }
                    Ok(())
                }
            }
        };
        match synced {
            Ok(()) => Ok(true),
            Err((generation, _)) if self.generation() != generation => Ok(false),
            Err((_, e)) => {
                // After a failed sync the kernel may have dropped the pages it could not write and call them clean:
                // what is read next may be older than what was written. None of it can be called valid any more.
                let error = self.failed("sync", e);
                tracing::warn!(nar = %self.hash, %error, "the kept bytes are dropped, because the disk did not take them");
                self.discard()?;
                Err(error)
            }
        }
    }

    fn map(&self, state: &State) -> Map {
        Map {
            hash: self.hash,
            nar_size: self.size,
            verified: state.verified,
            extents: state.extents.clone(),
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

    fn account(&self, file: &File) {
        let mut known = lock(&self.nar_allocated);
        if let Ok(meta) = file.metadata() {
            let now = allocated(&meta);
            self.shared
                .usage
                .change(std::mem::replace(&mut known, now), now);
        }
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
