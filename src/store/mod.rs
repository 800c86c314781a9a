//! The lazy store: store paths are admitted when they are named, bytes fetched when they are read.
//!
//! A library that needs no mount: [`Store`] answers by inode number (`nodes`) for file systems
//! and by store path (`admit`) for everything else. What does not need the network is answered
//! at once; the rest comes as a future ([`Step`]), so that no thread of a front end ever blocks.
//!
//! ```text
//! nodes.rs     names, attributes, directories, reads, by inode number
//! directory.rs lists of names
//! own_nodes.rs the directories that are the mount's own: its root, views, status
//! admit.rs     store path ──▶ trusted narinfo ──▶ compiled tree ──▶ slot
//! closure.rs   the same for whole closures, and at once for all that is known
//! beliefs.rs   trees that no NAR has confirmed yet
//! caches.rs    in which order the caches are asked
//! narinfo.rs   which cache has a path, and whether it is trusted
//! describe.rs  what the caches say of paths that are not admitted; root_kind.rs what they are
//! fetch/       bytes of a NAR: waiters, streams, pieces
//! read_ahead/  what a program that starts will load
//! lanes.rs     who may use the link now          inflight.rs  what is under way, on show
//! about.rs     what extended attributes tell
//! status.rs    what `.nix-snapshotter` shows        recent.rs the last errors
//! check.rs     hashing what is kept             room.rs  making room: gc, quota, pins
//! scrub.rs     looking through what is kept, slowly
//! path.rs      the table of known paths         ids.rs   inode numbers
//! views.rs     named subsets of the store
//! ```
//!
//! Concurrency: everything is shared by `Arc`, tasks run on the caller's tokio runtime. Locks are
//! leaves (none is taken while another is held, but for the two of `PathTable`, in its order) and
//! are never held across an await, a system call or a callback.

mod about;
mod admit;
mod beliefs;
mod book;
mod caches;
mod check;
mod closure;
mod counters;
mod describe;
mod directory;
mod early;
mod error;
mod fetch;
mod ids;
mod inflight;
mod lanes;
mod metrics;
mod narinfo;
mod nodes;
mod own_nodes;
mod pages;
mod path;
mod profiles;
mod read_ahead;
mod recent;
mod room;
mod root_kind;
mod scrub;
mod settings;
mod single_flight;
mod status;
mod upkeep;
mod views;
mod window;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, broadcast},
};

use crate::{
    content::{ContentError, ContentStore, PathError},
    nix::{NarHash, StorePath, StorePathHash},
    substituter::Substituter,
    tree::{Tree, TreeError},
};

pub use about::PREFIX as ATTRIBUTE_PREFIX;
pub use check::{CheckReport, Checked, Condition};
pub use closure::ClosureReport;
pub use counters::Counters;
pub use describe::Description;
pub use directory::{Directory, DirectoryEntry};
pub use error::StoreError;
pub use ids::{Node, NodeId, Slot, ViewId};
pub use inflight::{InFlight, Stage, TransferView};
pub use lanes::Lane;
pub use metrics::METRICS;
pub use nodes::{Attr, Found, Kind, Lasts, Step};
pub use path::{LastError, Path};
pub use profiles::Profiles;
pub use room::Beside;
pub use settings::{Settings, Verify};
pub use views::{ViewContents, ViewName, ViewNameError};

use admit::Admissions;
use book::ChunkBook;
use caches::Caches;
pub(crate) use fetch::packed_channel;
use fetch::{Nar, Source};
use lanes::Lanes;
use path::PathTable;
use read_ahead::Examined;
#[doc(hidden)]
pub use read_ahead::all_of_image;
use recent::RecentErrors;
use room::Room;
use status::StatusClock;
use views::Views;

/// Events that a slow front end may be behind before it has to look at everything anew.
const EVENT_QUEUE: usize = 1024;
/// Share of the connections that background admissions leave to lookups that somebody waits for.
const KEPT_FOR_DEMAND: usize = 5;

/// What front ends have to tell the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The content of a NAR was dropped: pages that were cached of it may be wrong.
    ContentDropped(NarHash),
    /// A store path has another tree now: its old inodes are gone, its name leads elsewhere.
    Replaced {
        /// The inodes that are gone.
        old: Slot,
        /// The name.
        path: StorePath,
        /// The views in whose stores it stands, besides the whole.
        views: Vec<ViewId>,
    },
    /// The name leads to this view no longer.
    ViewGone(ViewName),
}

/// A lazy store. Clones share it.
#[derive(Clone)]
pub struct Store(Arc<Core>);

/// A store that may be gone.
#[derive(Clone)]
pub struct WeakStore(Weak<Core>);

impl WeakStore {
    /// The store, while somebody keeps it.
    pub fn upgrade(&self) -> Option<Store> {
        self.0.upgrade().map(Store)
    }
}

pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) counters: Counters,
    pub(crate) content: ContentStore,
    caches: Caches,
    /// Tries of one NAR at one source when there is no other.
    tries: u32,
    runtime: Handle,
    lanes: Lanes,
    paths: PathTable,
    views: Views,
    admissions: Admissions,
    /// The first path of an empty store was named: see `only_cache_of_an_empty_store`.
    first_named: AtomicBool,
    examined: Examined,
    recordings: profiles::Recordings,
    guides: profiles::Guides,
    served: pages::Served,
    nars: Mutex<HashMap<NarHash, Weak<Nar>>>,
    /// Which chunks are here, or were.
    book: ChunkBook,
    /// Small requests under way, and those among them that nobody waits for.
    small: Semaphore,
    small_background: Semaphore,
    events: broadcast::Sender<Event>,
    status_clock: StatusClock,
    room: Room,
    recent: RecentErrors,
    started: SystemTime,
}

impl Store {
    /// A store over `content` and `substituters` (in the order of the configuration). Known paths
    /// are those of the state directory; nothing is fetched.
    ///
    /// # Errors
    /// When the state directory's database can't be read.
    pub fn new(
        content: ContentStore,
        substituters: Vec<Substituter>,
        settings: Settings,
        tries: u32,
        runtime: Handle,
    ) -> Result<Self, StoreError> {
        let slots = content
            .db()
            .slots()?
            .into_iter()
            .map(|(slot, path)| (Slot(slot), path))
            .collect();
        let paths = PathTable::with_slots(slots);
        let views = Views::load(&content, &paths)?;
        paths.retire_replaced();
        let connections = settings.connections.max(1);
        let names: Vec<_> = substituters.iter().map(|s| s.name().to_owned()).collect();
        let background = connections.saturating_sub(KEPT_FOR_DEMAND).max(1);
        Ok(Self(Arc::new(Core {
            counters: Counters::default(),
            caches: Caches::new(substituters, content.db()),
            content,
            tries: tries.max(1),
            runtime,
            lanes: Lanes::over(names),
            paths,
            views,
            admissions: Admissions::default(),
            first_named: AtomicBool::new(false),
            examined: Examined::default(),
            recordings: profiles::Recordings::default(),
            guides: profiles::Guides::default(),
            served: pages::Served::default(),
            nars: Mutex::default(),
            book: ChunkBook::default(),
            small: Semaphore::new(connections),
            small_background: Semaphore::new(background),
            events: broadcast::channel(EVENT_QUEUE).0,
            status_clock: StatusClock::default(),
            room: Room::default(),
            recent: RecentErrors::default(),
            started: SystemTime::now(),
            settings,
        })))
    }

    /// A handle that does not keep the store alive.
    pub fn downgrade(&self) -> WeakStore {
        WeakStore(Arc::downgrade(&self.0))
    }

    /// Counters since the start.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// How it is set up.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The last errors of store paths, the newest first.
    pub fn recent_errors(&self) -> Vec<(StorePath, LastError)> {
        self.0.recent.all()
    }

    /// Transfers that are under way.
    pub fn in_flight(&self) -> &InFlight {
        self.0.lanes.in_flight()
    }

    /// The caches, in the order they are asked in.
    pub fn substituters(&self) -> Vec<Substituter> {
        self.0
            .caches
            .all()
            .iter()
            .map(|cache| cache.substituter.clone())
            .collect()
    }

    /// Where bytes rest.
    pub fn content(&self) -> &ContentStore {
        &self.0.content
    }

    /// The runtime its tasks run on.
    pub fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// What front ends have to react to, from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    /// Every path that is loaded.
    pub fn loaded_paths(&self) -> Vec<Arc<Path>> {
        self.0.paths.find(|_| true)
    }

    /// Bytes of all known NARs and number of all their entries, from memory.
    pub fn extent(&self) -> (u64, u64) {
        let paths = self.0.paths.find(|_| true);
        (
            paths.iter().map(|p| p.nar_size).sum(),
            paths.iter().map(|p| u64::from(p.tree.len())).sum(),
        )
    }

    /// Every path that is loaded with this NAR.
    pub fn paths_with(&self, nar: NarHash) -> Vec<Arc<Path>> {
        self.0.paths.find(|p| p.nar_hash == nar)
    }
}

/// Whether the state directory has no room or may not be written: then bytes are served without
/// being kept.
fn cannot_keep(error: &ContentError) -> bool {
    matches!(
        error,
        ContentError::NoSpace { .. } | ContentError::ReadOnly { .. }
    )
}

/// Unix seconds.
fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

impl Core {
    fn emit(&self, event: Event) {
        // No front end, nobody to tell.
        let _ = self.events.send(event);
    }

    /// The NAR of a path: one object for all paths with its hash.
    fn nar_of(&self, path: &Path) -> Result<Arc<Nar>, StoreError> {
        if let Some(nar) = path.nar.get() {
            return Ok(nar.clone());
        }
        let nar = self.nar(
            &path.store_path,
            path.nar_hash,
            path.nar_size,
            path.source.clone(),
            Some(path.tree.clone()),
        )?;
        Ok(path.nar.get_or_init(|| nar).clone())
    }

    fn nar(
        &self,
        path: &StorePath,
        hash: NarHash,
        size: u64,
        source: Arc<Source>,
        tree: Option<Arc<Tree>>,
    ) -> Result<Arc<Nar>, StoreError> {
        let file = self.content.nar(&hash, size)?;
        let mut nars = self.nars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nar) = nars.get(&hash).and_then(Weak::upgrade) {
            nar.sources.add(source);
            return Ok(nar);
        }
        let nar = Arc::new(Nar::new(path.clone(), file, source, tree));
        nars.insert(hash, Arc::downgrade(&nar));
        Ok(nar)
    }

    /// The NAR with this hash, if anybody uses it.
    fn living_nar(&self, hash: &NarHash) -> Option<Arc<Nar>> {
        self.nars
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(hash)
            .and_then(Weak::upgrade)
    }

    /// The compiled tree of a NAR, if it is kept. A damaged one is as good as none.
    fn load_tree(&self, hash: &NarHash) -> Result<Option<Tree>, StoreError> {
        match Tree::open(&self.content.tree_path(hash)) {
            Ok(tree) => Ok(Some(tree)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error @ TreeError::Io { .. }) => Err(error.into()),
            Err(error) => {
                tracing::warn!(%hash, %error, "tree dropped");
                self.content.drop_tree(hash)?;
                Ok(None)
            }
        }
    }

    /// Keeps a compiled tree; where the state directory is full, in memory.
    fn keep_tree(&self, hash: &NarHash, image: &[u8]) -> Result<Tree, StoreError> {
        match self.content.save_tree(hash, image) {
            Ok(path) => Ok(Tree::open(&path)?),
            Err(error) if cannot_keep(&error) => {
                tracing::warn!(%hash, %error, "its tree stays in memory");
                Ok(Tree::from_image(image.to_vec())?)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn loaded(&self, digest: &StorePathHash) -> Option<Arc<Path>> {
        self.paths.by_digest(digest)
    }

    /// Whether an error needs no line in the log: its cache can't be reached, and that was said.
    fn is_explained(&self, error: &StoreError) -> bool {
        let StoreError::Fetch { source, .. } = error.root() else {
            return false;
        };
        let all = self.caches.all();
        let cache = all
            .iter()
            .find(|c| c.substituter.name() == source.substituter());
        source.failure().is_of_the_cache()
            && cache.is_some_and(|c| c.substituter.health().explains_one_more())
    }

    /// Remembers what went wrong with a path, for its status and the log.
    fn note_failure(&self, store_path: &StorePath, error: &StoreError) {
        let last = LastError {
            message: error.to_string(),
            at: unix_now(),
            substituter: error.substituter(),
        };
        self.recent.add(store_path, last.clone());
        let Some(path) = self.loaded(&store_path.hash()) else {
            if !self.is_explained(error) {
                tracing::warn!(path = %store_path, %error, "fetch failed");
            }
            return;
        };
        if path.set_error(last.clone()) && !self.is_explained(error) {
            tracing::warn!(path = %store_path, %error, "fetch failed");
        }
        let kept = self
            .content
            .db()
            .update_facts(&store_path.hash(), move |facts| {
                facts.last_error = Some(PathError {
                    text: last.message,
                    at: last.at,
                });
            });
        // Not awaited: the status is right from memory, this is for the next start.
        drop(kept);
    }

    /// Remembers why a path can't be known.
    fn note_refusal(&self, store_path: &StorePath, error: &StoreError) {
        let last = LastError {
            message: error.to_string(),
            at: unix_now(),
            substituter: error.substituter(),
        };
        self.recent.add(store_path, last);
    }

    /// Bytes came for a reader: what kept them away is over, though the NAR may never be complete.
    fn note_delivery(&self, nar: &Nar) {
        // While its tree is in doubt, bytes alone prove nothing.
        let path = self
            .loaded(&nar.path.hash())
            .filter(|_| nar.tree().is_some());
        if path.is_some_and(|path| path.set_recovered()) {
            tracing::info!(path = %nar.path, "recovered");
        }
    }

    /// Remembers what went wrong with a NAR, for every path that has it.
    fn note_nar_failure(&self, nar: &Nar, error: &StoreError) {
        nar.failing.store(true, Relaxed);
        let paths = self.paths.find(|p| p.nar_hash == nar.hash);
        if paths.is_empty() {
            // It is being indexed: there is no path yet.
            self.note_failure(&nar.path, error);
        }
        paths
            .iter()
            .for_each(|path| self.note_failure(&path.store_path, error));
    }

    /// A part of a NAR came: it can be had again.
    fn note_arrival(&self, nar: &Nar) {
        if !nar.failing.swap(false, Relaxed) {
            return;
        }
        for path in self
            .paths
            .find(|p| p.nar_hash == nar.hash && p.set_recovered())
        {
            tracing::info!(path = %path.store_path, "recovered");
        }
    }

    /// A NAR is complete and verified: errors of its paths are over.
    fn note_success(self: &Arc<Self>, nar: &Nar, substituter: &str) {
        self.counters.verified.add(1);
        nar.file.touch(unix_now());
        self.make_room_soon();
        tracing::info!(path = %nar.path, bytes = nar.size, %substituter, "complete and verified");
        for path in self.paths.find(|p| p.nar_hash == nar.hash) {
            if path.set_recovered() {
                tracing::info!(path = %path.store_path, "recovered");
            }
            let (now, from) = (unix_now(), substituter.to_owned());
            let kept = self
                .content
                .db()
                .update_facts(&path.store_path.hash(), move |facts| {
                    facts.last_fetched = Some(now);
                    facts.fetched_from = Some(from);
                });
            // Not awaited, as in `note_failure`.
            drop(kept);
        }
    }
}
