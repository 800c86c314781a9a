//! What `.nix-snapshotter` shows: one JSON document for each store path, and a summary.
//!
//! Documents are made when they are read, from memory alone: neither the network nor the disk is
//! touched. Each is padded to [`DOCUMENT_SIZE`], so that its size never changes, one READ carries
//! it whole, and its modification time alone tells the kernel that it changed.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use narfs_state_schema::{
    self as schema, DaemonStatus, PathState, PathStatus, StateCounts, SubstituterStatus, Summary,
    Timestamp,
};

use super::{
    Attr, Core, Kind, Lasts, Node, NodeId, Path, Slot, Store, StoreError, ViewId,
    caches::wrong_store,
    path::{LastError, SlotEntry},
};
use crate::{
    nix::StorePath,
    substituter::Substituter,
    tree::{EntryIndex, Node as TreeNode, Tree},
};

/// Name of the summary.
pub const SUMMARY: &str = "summary.json";
/// What follows a store path in the name of its document.
pub const SUFFIX: &str = ".json";
/// Size of every document in bytes: a page where pages are smallest, so that a document is never
/// put together out of two reads.
pub const DOCUMENT_SIZE: usize = 4096;

/// So many paths are looked at without a second thread.
const LEAST_SHARE: usize = 64;

/// Sums over store paths.
#[derive(Default)]
struct Totals {
    paths: StateCounts,
    size: u64,
    fetched_size: u64,
}

/// When each document last changed, as far as anybody looked.
#[derive(Default)]
pub(super) struct StatusClock(Mutex<HashMap<NodeId, (u64, Duration)>>);

impl StatusClock {
    /// The time at which the content with this fingerprint was first seen; strictly growing.
    pub fn changed_at(&self, node: NodeId, fingerprint: u64) -> Duration {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(node).or_insert((fingerprint, now));
        if entry.0 != fingerprint {
            // A clock that jumps back must not make a new document look like an old one.
            *entry = (fingerprint, now.max(entry.1 + Duration::from_nanos(1)));
        }
        entry.1
    }
}

impl Store {
    /// The status of a path that is known.
    pub fn path_status(&self, path: &Path) -> PathStatus {
        self.0.path_status(path)
    }

    /// The totals over all that was used in this run, from memory alone.
    pub fn summary_of_whole(&self) -> Summary {
        let loaded = self.0.loaded_in(ViewId::WHOLE);
        self.0.summary_over(&loaded, Totals::default())
    }

    /// The status of every path that is known here, by name, and the totals over them. Local
    /// only: paths of earlier runs are looked up in the state directory, and not loaded.
    pub fn whole_status(&self) -> (Summary, Vec<PathStatus>) {
        let slots = self.0.paths.slots();
        // Of paths that nobody named yet, several files each tell: ten thousand take seconds one by one.
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = slots.len().div_ceil(threads).max(LEAST_SHARE);
        let mut all: Vec<_> = std::thread::scope(|scope| {
            let look = |slots: &[(_, SlotEntry)]| -> Vec<_> {
                let found = slots.iter().filter_map(|(_, e)| self.0.slot_status(e));
                found.collect()
            };
            let shares = slots
                .chunks(share)
                .map(|slots| scope.spawn(move || look(slots)));
            let shares: Vec<_> = shares.collect();
            let done = shares.into_iter().filter_map(|share| share.join().ok());
            done.flatten().collect()
        });
        all.sort_by(|a, b| a.store_path.cmp(&b.store_path));
        let mut counts = StateCounts::default();
        all.iter().for_each(|path| counts.add(path.state));
        let summary = self.0.summary_of(
            counts,
            all.iter().map(|path| path.size).sum(),
            all.iter().map(|path| path.fetched_size).sum(),
            all.iter().filter(|path| path.error.is_some()).count() as u64,
        );
        (summary, all)
    }
}

impl Core {
    pub(super) fn status_attr(&self, node: Node) -> Attr {
        let id = NodeId::of(node);
        let fold = |f: u64, p: &Arc<Path>| f ^ self.fingerprint(p).rotate_left(p.slot.0 % 64);
        let fingerprint = match node {
            Node::Status(slot) => self.paths.loaded(slot).map_or(0, |p| self.fingerprint(&p)),
            Node::Summary(view) => self.loaded_in(view).iter().fold(1, fold),
            _ => 0,
        };
        Attr {
            node: id,
            kind: Kind::File { executable: false },
            size: DOCUMENT_SIZE as u64,
            mtime: self.status_clock.changed_at(id, fingerprint),
            lasts: Lasts::No,
        }
    }

    /// Changes whenever the document does.
    fn fingerprint(&self, path: &Path) -> u64 {
        let mut hasher = DefaultHasher::new();
        let (state, fetched, verified) = self.progress(path);
        (
            path.slot,
            state.as_str(),
            fetched,
            verified,
            path.health().last.map(|e| e.at),
        )
            .hash(&mut hasher);
        path.health().failing.hash(&mut hasher);
        hasher.finish()
    }

    pub(super) fn status_document(&self, node: Node) -> Result<Vec<u8>, StoreError> {
        match node {
            Node::Summary(view) => Ok(schema::render_padded(&self.summary(view)?, DOCUMENT_SIZE)),
            Node::Status(slot) => match self.paths.loaded(slot) {
                Some(path) => Ok(schema::render_padded(
                    &self.path_status(&path),
                    DOCUMENT_SIZE,
                )),
                None => self.unloaded_document(slot),
            },
            _ => Err(StoreError::IsADirectory),
        }
    }

    /// A path of an earlier run that nobody named yet: loaded from the state directory alone.
    fn unloaded_document(&self, slot: Slot) -> Result<Vec<u8>, StoreError> {
        let entry = self.paths.entry(slot).ok_or(StoreError::NoNode)?;
        let status = self.unloaded_status(&entry.store_path)?;
        Ok(schema::render_padded(&status, DOCUMENT_SIZE))
    }

    /// The status of what stands in a slot; `None` if nothing is kept that tells.
    fn slot_status(&self, entry: &SlotEntry) -> Option<PathStatus> {
        match &entry.path {
            Some(path) => Some(self.path_status(path)),
            None => match self.unloaded_status(&entry.store_path) {
                Ok(status) => Some(status),
                Err(error) => {
                    tracing::debug!(path = %entry.store_path, %error, "no status");
                    None
                }
            },
        }
    }

    fn unloaded_status(&self, path: &StorePath) -> Result<PathStatus, StoreError> {
        let (narinfo, substituter) = self.kept_narinfo(path)?.ok_or(StoreError::NoNode)?;
        let file = self.content.nar(&narinfo.nar_hash, narinfo.nar_size)?;
        let fetched = file.valid_bytes();
        let facts = self.content.db().facts(&path.hash())?;
        let tree = self.load_tree(&narinfo.nar_hash)?;
        Ok(PathStatus {
            digest: hex_digest(&narinfo.nar_hash),
            size: narinfo.nar_size,
            fetched_size: fetched,
            fetched_percent: schema::percent(fetched, narinfo.nar_size),
            error: None,
            store_path: path.absolute(),
            state: resting(fetched, narinfo.nar_size),
            verified: file.verified(),
            files: tree.as_ref().map(files),
            entries: tree.as_ref().map(|tree| tree.len().into()),
            substituter: Some(substituter),
            compression: Some(narinfo.compression.as_str().to_owned()),
            first_seen: facts.first_seen.map(timestamp),
            last_fetched: facts.last_fetched.map(timestamp),
            last_error: facts.last_error.map(|e| schema::LastError {
                message: e.text,
                at: timestamp(e.at),
                substituter: None,
            }),
        })
    }

    /// State, bytes here, and whether they were verified: exact at this moment.
    pub(super) fn progress(&self, path: &Path) -> (PathState, u64, bool) {
        let Ok(nar) = self.nar_of(path) else {
            return (PathState::Known, 0, false);
        };
        let fetched = nar.file.valid_bytes();
        let state = match resting(fetched, path.nar_size) {
            PathState::Complete => PathState::Complete,
            _ if nar.is_fetching() => PathState::Fetching,
            _ if nar.sources.all_quarantined() => PathState::Quarantined,
            resting => resting,
        };
        (state, fetched, nar.file.verified())
    }

    fn path_status(&self, path: &Path) -> PathStatus {
        let (state, fetched, verified) = self.progress(path);
        let health = path.health();
        let source = self
            .nar_of(path)
            .ok()
            .and_then(|n| n.sources.first())
            .unwrap_or_else(|| path.source.clone());
        PathStatus {
            digest: hex_digest(&path.nar_hash),
            size: path.nar_size,
            fetched_size: fetched,
            fetched_percent: schema::percent(fetched, path.nar_size),
            error: health
                .last
                .as_ref()
                .filter(|_| health.failing)
                .map(|e| e.message.clone()),
            store_path: path.store_path.absolute(),
            state,
            verified,
            files: Some(files(&path.tree)),
            entries: Some(path.tree.len().into()),
            substituter: Some(source.substituter.name().to_owned()),
            compression: Some(source.compression.as_str().to_owned()),
            first_seen: Some(timestamp(path.first_seen)),
            last_fetched: self.last_fetched(path).map(timestamp),
            last_error: health.last.map(|e: LastError| schema::LastError {
                message: e.message,
                at: timestamp(e.at),
                substituter: e.substituter,
            }),
        }
    }

    fn last_fetched(&self, path: &Path) -> Option<u64> {
        let now = self.nar_of(path).ok().and_then(|n| n.fetched_at());
        now.or_else(|| {
            self.content
                .db()
                .facts(&path.store_path.hash())
                .ok()?
                .last_fetched
        })
    }

    /// The loaded paths that a view shows.
    fn loaded_in(&self, view: ViewId) -> Vec<Arc<Path>> {
        match self.views.get(view) {
            Some(view) => {
                let loaded = |slot: &Slot| self.paths.loaded(*slot);
                view.shown().iter().filter_map(loaded).collect()
            }
            None if view == ViewId::WHOLE => self.paths.find(|_| true),
            None => Vec::new(),
        }
    }

    /// Whether everything that a view's summary counts is in memory. That of the whole store
    /// counts what was used in this run.
    pub(super) fn all_loaded(&self, view: ViewId) -> bool {
        self.views
            .get(view)
            .is_none_or(|view| view.shown().len() == self.loaded_in(view.id).len())
    }

    fn summary(&self, view: ViewId) -> Result<Summary, StoreError> {
        let mut totals = Totals::default();
        if view != ViewId::WHOLE {
            let unloaded = self.slots_of(view, true)?.into_iter();
            for (_, entry) in unloaded.filter(|(_, entry)| entry.path.is_none()) {
                if let Some(status) = self.slot_status(&entry) {
                    totals.paths.add(status.state);
                    totals.size += status.size;
                    totals.fetched_size += status.fetched_size;
                }
            }
        }
        Ok(self.summary_over(&self.loaded_in(view), totals))
    }

    /// The summary of these paths and of others, whose totals are known.
    fn summary_over(&self, loaded: &[Arc<Path>], mut totals: Totals) -> Summary {
        let mut errors = 0;
        for path in loaded {
            let (state, fetched, _) = self.progress(path);
            totals.paths.add(state);
            totals.size += path.nar_size;
            totals.fetched_size += fetched;
            errors += u64::from(path.health().failing);
        }
        self.summary_of(totals.paths, totals.size, totals.fetched_size, errors)
    }

    fn summary_of(&self, paths: StateCounts, size: u64, fetched_size: u64, errors: u64) -> Summary {
        let started = timestamp(
            self.started
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
        );
        let all = self.caches.all();
        let substituters = all.iter().map(|cache| SubstituterStatus {
            name: cache.substituter.name().to_owned(),
            priority: cache.priority,
            requests: cache.substituter.counters().requests(),
            bytes_received: cache.substituter.counters().bytes_received(),
            failures: cache.substituter.counters().failures(),
            last_error: match &cache.foreign {
                Some(store_dir) => Some(schema::LastError {
                    message: wrong_store(store_dir),
                    at: started.clone(),
                    substituter: None,
                }),
                None => last_failure(&cache.substituter),
            },
        });
        Summary {
            paths,
            size,
            fetched_size,
            fetched_percent: schema::percent(fetched_size, size),
            errors,
            substituters: substituters.collect(),
            substituters_omitted: 0,
            daemon: DaemonStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                started,
            },
        }
    }
}

fn last_failure(substituter: &Substituter) -> Option<schema::LastError> {
    let last = substituter.health().last_failure()?;
    let at = last.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Some(schema::LastError {
        message: last.message,
        at: timestamp(at.as_secs()),
        substituter: None,
    })
}

/// Number of regular files.
fn files(tree: &Tree) -> u64 {
    (0..tree.len())
        .filter(|e| matches!(tree.node(EntryIndex(*e)), Some(TreeNode::Regular { .. })))
        .count() as u64
}

fn resting(fetched: u64, size: u64) -> PathState {
    match fetched {
        0 => PathState::Known,
        n if n >= size => PathState::Complete,
        _ => PathState::Partial,
    }
}

fn hex_digest(hash: &crate::nix::NarHash) -> String {
    format!("sha256:{}", data_encoding::HEXLOWER.encode(hash.as_bytes()))
}

fn timestamp(seconds: u64) -> Timestamp {
    Timestamp::from_unix_millis(
        i64::try_from(seconds)
            .unwrap_or(i64::MAX)
            .saturating_mul(1000),
    )
}
