//! The store paths that are known, by digest and by slot.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

use super::{
    fetch::{Nar, Source},
    ids::Slot,
};
use crate::{
    nix::{NarHash, StorePath, StorePathHash},
    tree::{EntryIndex, Tree},
};

/// A store path that was admitted: its narinfo is trusted and its tree compiled.
pub struct Path {
    /// Its number, part of its inode numbers.
    pub slot: Slot,
    /// Its name.
    pub store_path: StorePath,
    /// Hash of its NAR.
    pub nar_hash: NarHash,
    /// Size of its NAR in bytes.
    pub nar_size: u64,
    /// The store paths it refers to, itself perhaps among them.
    pub references: Box<[StorePath]>,
    /// Names, sizes and offsets.
    pub tree: Arc<Tree>,
    pub(super) source: Arc<Source>,
    pub(super) nar: OnceLock<Arc<Nar>>,
    pub(super) touched: AtomicBool,
    pub(super) looked_up: AtomicBool,
    pub(super) trust: TreeTrust,
    pub(super) health: Mutex<Health>,
    /// Unix seconds at which the path was admitted first.
    pub(super) first_seen: u64,
}

/// How far the path's tree was confirmed by its NAR.
pub(super) struct TreeTrust {
    /// The NAR turned out to have another tree.
    replaced: AtomicBool,
    /// The file that was compared last, and was right; a file is read in many parts.
    confirmed: AtomicU32,
}

impl Default for TreeTrust {
    fn default() -> Self {
        // No tree has so many entries.
        Self {
            replaced: AtomicBool::new(false),
            confirmed: AtomicU32::new(u32::MAX),
        }
    }
}

/// What last went wrong with a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastError {
    /// The message, without secrets.
    pub message: String,
    /// Unix seconds.
    pub at: u64,
    /// The cache it happened with, if one.
    pub substituter: Option<String>,
}

/// Whether a path can be had, as far as the last attempt tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Health {
    /// The last attempt failed.
    pub failing: bool,
    /// What last went wrong; kept after the path recovered.
    pub last: Option<LastError>,
}

impl Path {
    /// Bytes that its NAR takes on the link, as far as the cache says.
    pub(super) fn packed_size(&self) -> u64 {
        self.source.file_size.unwrap_or(self.nar_size)
    }

    /// Says that it is used; true for the first time.
    pub(super) fn touch(&self) -> bool {
        !self.touched.load(Relaxed) && !self.touched.swap(true, Relaxed)
    }

    /// Says that somebody looked it up in a view; true for the first time.
    pub(super) fn look_up(&self) -> bool {
        !self.looked_up.load(Relaxed) && !self.looked_up.swap(true, Relaxed)
    }

    /// Says that its tree is not that of its NAR: nothing is read through it from now on.
    pub(super) fn set_replaced(&self) {
        self.trust.replaced.store(true, SeqCst);
    }

    /// Whether its tree is known to be wrong.
    pub(super) fn is_replaced(&self) -> bool {
        self.trust.replaced.load(SeqCst)
    }

    /// Whether this file was compared with the NAR and was right.
    pub(super) fn confirmed(&self, entry: EntryIndex) -> bool {
        self.trust.confirmed.load(Relaxed) == entry.0
    }

    /// Says that this file is where the tree has it.
    pub(super) fn confirm(&self, entry: EntryIndex) {
        self.trust.confirmed.store(entry.0, Relaxed);
    }

    /// What went wrong with it, unless it recovered.
    pub fn error(&self) -> Option<LastError> {
        let health = self.health();
        health.last.filter(|_| health.failing)
    }

    pub(super) fn health(&self) -> Health {
        self.health
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Remembers an error; says whether it is news.
    pub(super) fn set_error(&self, error: LastError) -> bool {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let news = !health.failing
            || health
                .last
                .as_ref()
                .is_none_or(|l| l.message != error.message);
        *health = Health {
            failing: true,
            last: Some(error),
        };
        news
    }

    /// Says that it can be had again; true if it could not before.
    pub(super) fn set_recovered(&self) -> bool {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut health.failing)
    }
}

/// A slot: its store path, and the path itself once it is loaded.
#[derive(Clone)]
pub(super) struct SlotEntry {
    pub store_path: StorePath,
    pub path: Option<Arc<Path>>,
}

/// All known store paths. Two reader-writer locks, each held for one table access; where both
/// are needed, `digests` is taken first.
#[derive(Default)]
pub(super) struct PathTable {
    digests: RwLock<HashMap<StorePathHash, Slot>>,
    slots: RwLock<Vec<Option<SlotEntry>>>,
    version: AtomicU64,
}

macro_rules! lock {
    ($lock:expr, $how:ident) => {
        $lock.$how().unwrap_or_else(PoisonError::into_inner)
    };
}

impl PathTable {
    /// Slots known from earlier runs.
    pub fn with_slots(known: Vec<(Slot, StorePath)>) -> Self {
        let table = Self::default();
        {
            let mut digests = lock!(table.digests, write);
            let mut slots = lock!(table.slots, write);
            digests.reserve(known.len());
            let most = known.iter().map(|(slot, _)| slot.0 as usize + 1).max();
            slots.resize(most.unwrap_or(0), None);
            table.version.store(known.len() as u64, Relaxed);
            for (slot, store_path) in known {
                // A path whose tree was replaced has several slots; the newest, the greatest, counts.
                let newest = digests.entry(store_path.hash()).or_insert(slot);
                *newest = (*newest).max(slot);
                let entry = SlotEntry {
                    store_path,
                    path: None,
                };
                slots[slot.0 as usize] = Some(entry);
            }
        }
        table
    }

    /// The slot that counts for the path in this one.
    pub fn newest(&self, slot: Slot) -> Option<Slot> {
        let entry = self.entry(slot)?;
        Some(self.slot(&entry.store_path.hash())?.0)
    }

    /// An admitted path takes its place; if it was loaded meanwhile, that one is in use and is given back.
    pub fn insert(&self, path: Arc<Path>) -> Arc<Path> {
        let (slot, digest) = (path.slot, path.store_path.hash());
        let mut digests = lock!(self.digests, write);
        let mut slots = lock!(self.slots, write);
        let at = slot.0 as usize;
        if slots.len() <= at {
            slots.resize(at + 1, None);
        }
        let first = slots[at].as_ref().and_then(|e| e.path.clone());
        if let Some(first) = first.filter(|p| p.store_path == path.store_path) {
            return first;
        }
        // A path whose tree was replaced has several slots; the newest, the greatest, counts.
        let newest = digests.entry(digest).or_insert(slot);
        if *newest <= slot {
            *newest = slot;
        }
        slots[at] = Some(SlotEntry {
            store_path: path.store_path.clone(),
            path: Some(path.clone()),
        });
        self.version.fetch_add(1, Relaxed);
        path
    }

    /// Takes a slot out of use: its inode numbers are gone for good.
    pub fn retire(&self, slot: Slot) {
        if let Some(entry) = lock!(self.slots, write).get_mut(slot.0 as usize) {
            *entry = None;
            self.version.fetch_add(1, Relaxed);
        }
    }

    /// Takes every slot out of use whose path has a newer one: what a replaced tree of an earlier run had.
    pub fn retire_replaced(&self) {
        let known = lock!(self.slots, read).iter().flatten().count();
        if known == lock!(self.digests, read).len() {
            // Each path has one slot, as nearly always.
            return;
        }
        for (slot, entry) in self.slots() {
            let newest = self.slot(&entry.store_path.hash());
            if newest.is_some_and(|(n, e)| n != slot && e.store_path == entry.store_path) {
                self.retire(slot);
            }
        }
    }

    /// Changes whenever a path becomes known or goes.
    pub fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// The newest slot of a digest.
    pub fn slot(&self, digest: &StorePathHash) -> Option<(Slot, SlotEntry)> {
        let slot = *lock!(self.digests, read).get(digest)?;
        Some((slot, self.entry(slot)?))
    }

    /// What stands in a slot.
    pub fn entry(&self, slot: Slot) -> Option<SlotEntry> {
        lock!(self.slots, read).get(slot.0 as usize)?.clone()
    }

    /// The path in a slot, if it is loaded.
    pub fn loaded(&self, slot: Slot) -> Option<Arc<Path>> {
        lock!(self.slots, read)
            .get(slot.0 as usize)?
            .as_ref()?
            .path
            .clone()
    }

    /// The path with this digest, if it is loaded.
    pub fn by_digest(&self, digest: &StorePathHash) -> Option<Arc<Path>> {
        self.slot(digest)?.1.path
    }

    /// How many store paths are known, and how many of them are loaded.
    pub fn count(&self) -> (u64, u64) {
        let slots = lock!(self.slots, read);
        let known = slots.iter().flatten();
        let loaded = known.clone().filter(|e| e.path.is_some());
        (known.count() as u64, loaded.count() as u64)
    }

    /// All slots in use, in order.
    pub fn slots(&self) -> Vec<(Slot, SlotEntry)> {
        let slots = lock!(self.slots, read);
        slots
            .iter()
            .enumerate()
            .filter_map(|(n, e)| Some((Slot(n as u32), e.clone()?)))
            .collect()
    }

    /// Every loaded path that satisfies `which`.
    pub fn find(&self, which: impl Fn(&Path) -> bool) -> Vec<Arc<Path>> {
        let slots = lock!(self.slots, read);
        slots
            .iter()
            .flatten()
            .filter_map(|e| e.path.clone())
            .filter(|p| which(p))
            .collect()
    }
}
