//! Where a NAR can be had: one source for each cache that has it, good ones first.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::Access;
use crate::{
    codec::Checkpoint,
    content::NarFile,
    nix::{Compression, NarHash, NarInfo},
    store::{caches::last_those_that_rest, early::Early, narinfo::Offer},
    substituter::{Deadline, FetchError, NarBody, Substituter},
};

/// How long a cache that sent a damaged NAR is not asked for it again. It may be mended; and a
/// failure must not be remembered for ever.
const QUARANTINE: Duration = Duration::from_secs(600);

/// Packed files up to this are streamed even if they have a chunk index, in bytes: their whole
/// stream takes little longer than the index.
const IN_ONE: u64 = 128 << 10;

/// One cache's copy of a NAR.
pub(crate) struct Source {
    pub substituter: Substituter,
    pub url: String,
    pub compression: Compression,
    /// Bytes of the packed file, where the narinfo says so.
    pub file_size: Option<u64>,
    /// SHA-256 of the packed file, where the narinfo says so.
    pub file_hash: Option<NarHash>,
    /// Whether a trusted key says that the cache has a chunk index of the file.
    pub chunks: bool,
    /// What was asked for along with its narinfo.
    pub(in crate::store) early: Arc<Early>,
    /// The cache answered a range with the whole file.
    no_ranges: AtomicBool,
    damaged: Mutex<Option<(Instant, String)>>,
}

impl Source {
    /// The source that a cache's narinfo names.
    pub(in crate::store) fn of(offer: &Offer) -> Self {
        Self {
            early: offer.early.clone(),
            ..Self::new(offer.substituter.clone(), &offer.narinfo, offer.chunks)
        }
    }

    pub(super) fn new(substituter: Substituter, narinfo: &NarInfo, chunks: bool) -> Self {
        Self {
            substituter,
            url: narinfo.url.clone(),
            compression: narinfo.compression,
            file_size: narinfo.file_size,
            file_hash: narinfo.file_hash,
            chunks,
            early: Arc::default(),
            no_ranges: AtomicBool::new(false),
            damaged: Mutex::new(None),
        }
    }

    /// Bytes of its file; an end of `u64::MAX` means all behind the start.
    pub(super) async fn open(
        &self,
        range: Range<u64>,
        validator: Option<String>,
        deadline: Deadline,
    ) -> Result<NarBody, FetchError> {
        let range = (range != (0..u64::MAX)).then_some(range);
        self.substituter
            .nar(&self.url, range, validator.as_deref(), deadline)
            .await
    }

    /// How to begin: a chunk index that is announced is asked for, a block table only looked for
    /// once the stream hints at one.
    pub(super) fn first_access(self: &Arc<Self>) -> Access {
        match self.compression {
            Compression::Zstd if self.has_index() => Access::Indexed(self.clone()),
            Compression::None if !self.no_ranges() => Access::Ranges,
            _ => Access::Stream,
        }
    }

    /// Whether there is a chunk index that is worth its request: a small file comes in one.
    pub(in crate::store) fn has_index(&self) -> bool {
        self.chunks && !self.no_ranges() && self.file_size.is_some_and(|size| size > IN_ONE)
    }

    /// Whether the cache turned out not to serve parts of the file.
    pub(super) fn no_ranges(&self) -> bool {
        self.no_ranges.load(Relaxed)
    }

    pub(super) fn set_no_ranges(&self) {
        self.no_ranges.store(true, Relaxed);
    }

    /// It sent something wrong: not asked again for a while.
    pub(super) fn quarantine(&self, reason: &str) {
        *self.damaged() = Some((Instant::now(), reason.to_owned()));
    }

    /// Why it is not asked now, if so.
    pub fn quarantined(&self) -> Option<String> {
        let damaged = self.damaged();
        damaged
            .as_ref()
            .filter(|(when, _)| when.elapsed() < QUARANTINE)
            .map(|(_, reason)| reason.clone())
    }

    /// Tells this very file from any other of the same NAR, whose frames begin elsewhere.
    fn number(&self) -> u64 {
        let mut hash = Sha256::new();
        for part in [self.substituter.name(), "\0", &self.url] {
            hash.update(part);
        }
        let digest = hash.finalize();
        u64::from_le_bytes(std::array::from_fn(|i| digest[i])).max(1)
    }

    /// Remembers with the NAR that decoding of this file can start there.
    pub(super) fn add_checkpoint(&self, file: &NarFile, point: Checkpoint) {
        let number = self.number();
        if file.checkpoint_source() != number {
            file.set_checkpoint_source(number);
        }
        file.add_checkpoint(point);
    }

    /// The last place at or before `nar`, an offset in the NAR, where decoding of this file can
    /// start.
    pub(super) fn checkpoint_before(&self, file: &NarFile, nar: u64) -> Checkpoint {
        if file.checkpoint_source() != self.number() {
            return Checkpoint::START;
        }
        let known = file.checkpoints().into_iter().filter(|c| c.nar <= nar);
        known.max_by_key(|c| c.nar).unwrap_or(Checkpoint::START)
    }

    fn damaged(&self) -> std::sync::MutexGuard<'_, Option<(Instant, String)>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The known sources of one NAR.
pub(crate) struct Sources {
    list: Mutex<Vec<Arc<Source>>>,
    asked_all: AtomicBool,
}

impl Sources {
    pub(super) fn new(first: Arc<Source>) -> Self {
        Self {
            list: Mutex::new(vec![first]),
            asked_all: AtomicBool::new(false),
        }
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Source>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source that is asked first.
    pub fn first(&self) -> Option<Arc<Source>> {
        self.list().first().cloned()
    }

    /// All that may be asked now, those whose cache failed lately behind the others.
    pub(super) fn usable(&self) -> Vec<Arc<Source>> {
        let list = self.list();
        let usable = list.iter().filter(|s| s.quarantined().is_none());
        last_those_that_rest(usable.cloned().collect(), |s| &s.substituter)
    }

    /// Why nothing may be asked now.
    pub(super) fn quarantine_reason(&self) -> Option<(String, String)> {
        let list = self.list();
        list.iter()
            .find_map(|s| Some((s.substituter.name().to_owned(), s.quarantined()?)))
    }

    /// Whether the other caches still have to be asked for this NAR; says so once.
    pub(super) fn ask_others(&self) -> bool {
        !self.asked_all.swap(true, Relaxed)
    }

    /// The other caches may be asked again: the last round did not reach them all.
    pub(super) fn ask_others_again(&self) {
        self.asked_all.store(false, Relaxed);
    }

    /// Whether none may be asked now, because each sent something wrong.
    pub fn all_quarantined(&self) -> bool {
        self.list().iter().all(|s| s.quarantined().is_some())
    }

    pub(super) fn has(&self, substituter: &Substituter) -> bool {
        self.list()
            .iter()
            .any(|s| s.substituter.name() == substituter.name())
    }

    /// Another cache has it too.
    pub fn add(&self, source: Arc<Source>) {
        if !self.has(&source.substituter) {
            self.list().push(source);
        }
    }

    /// Moves the source that just worked to the front.
    pub(super) fn prefer(&self, source: &Arc<Source>) {
        let mut list = self.list();
        if let Some(at) = list.iter().position(|s| Arc::ptr_eq(s, source)) {
            let good = list.remove(at);
            list.insert(0, good);
        }
    }
}
