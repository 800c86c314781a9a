//! The store by inode number: what a file system front end asks.
//!
//! What is in memory or on disk is answered at once ([`Step::Ready`], or `Some` of
//! [`Store::read_now`]); what has to be waited for comes as a future. Nothing here blocks for
//! longer than a read of the local disk.

use std::{
    ops::Range,
    pin::Pin,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use super::{
    Core, Lane, Node, NodeId, Path, Slot, Store, StoreError, ViewId, fetch::Delivered, status,
    unix_now,
};
use crate::{
    content::ContentError,
    nix::StorePath,
    tree::{self, EntryIndex},
};

/// The hidden directory of the status files; found by name, never listed.
pub const STATUS_DIR: &str = ".nix-snapshotter";
/// Nix sets every modification time in a store to this second after the epoch.
const STORE_MTIME: Duration = Duration::from_secs(1);

/// An answer, or the future that brings it.
pub enum Step<T> {
    /// Known now.
    Ready(Result<T, StoreError>),
    /// Has to be fetched or loaded.
    Wait(Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>),
}

/// Kind of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Whether it may be executed.
        executable: bool,
    },
    /// A symbolic link.
    Symlink,
}

/// Attributes of a node. Owner is root; times not given here are the same as `mtime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub node: NodeId,
    /// Its kind.
    pub kind: Kind,
    /// Its size in bytes; of a link, its target's length.
    pub size: u64,
    /// Modification time since the epoch.
    pub mtime: Duration,
    /// How long it stays as it is.
    pub lasts: Lasts,
}

/// How long an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// What is in a store path never changes.
    Forever,
    /// Directories that grow as paths become known: new names may be missing for a moment.
    Shortly,
    /// Status files.
    No,
}

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A node.
    Node(Attr),
    /// Nothing, and there never will be.
    Never,
    /// Nothing now: no cache has the path, or it has no status yet.
    NotNow,
}

/// A directory that can be listed.
pub enum Directory {
    /// The store paths of a view, with the view.
    Root(ViewId, Vec<(Slot, StorePath, Attr)>),
    /// The status files, with their store paths.
    Status(ViewId, Vec<(Slot, StorePath)>),
    /// A directory in a store path.
    Inside(ViewId, Arc<Path>, EntryIndex, Range<u32>),
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Where the listing goes on behind this name; 0 is the beginning.
    pub next: u64,
    /// Its bytes.
    pub name: Vec<u8>,
    /// Attributes of what it leads to.
    pub attr: Attr,
}

impl Store {
    /// What `name` leads to in the directory `parent`.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Step<Found> {
        self.0.counters.lookups.add(1);
        match parent.node() {
            Some(Node::Root(view)) => self.lookup_root(view, name),
            Some(Node::StatusDir(view)) => Step::Ready(Ok(self.lookup_status(view, name))),
            Some(Node::Entry { view, slot, entry }) => {
                let name = name.to_vec();
                self.with_path(slot, move |_, path| lookup_inside(view, path, entry, &name))
            }
            Some(Node::Summary(_) | Node::Status(_)) => Step::Ready(Err(StoreError::NotADirectory)),
            None => Step::Ready(Err(StoreError::NoNode)),
        }
    }

    fn lookup_root(&self, view: ViewId, name: &[u8]) -> Step<Found> {
        if name == STATUS_DIR.as_bytes() {
            return Step::Ready(Ok(Found::Node(self.0.listing_attr(Node::StatusDir(view)))));
        }
        // Programs probe all kinds of names in a directory; only store paths are worth a request.
        let Ok(path) = StorePath::from_bytes(name) else {
            return Step::Ready(Ok(Found::Never));
        };
        if let Some(known) = self.known(&path) {
            return Step::Ready(self.0.found_path(view, &known));
        }
        let core = self.0.clone();
        Step::Wait(Box::pin(async move {
            match core.admit_in_time(&path).await {
                Ok(admitted) => core.found_path(view, &admitted),
                Err(error) if error.is_absence() => Ok(Found::NotNow),
                Err(error) => Err(error),
            }
        }))
    }

    fn lookup_status(&self, view: ViewId, name: &[u8]) -> Found {
        if name == status::SUMMARY.as_bytes() {
            return Found::Node(self.0.status_attr(Node::Summary(view)));
        }
        let path = name
            .strip_suffix(status::SUFFIX.as_bytes())
            .map(StorePath::from_bytes);
        let Some(Ok(path)) = path else {
            return Found::Never;
        };
        match self.0.paths.slot(&path.hash()) {
            Some((slot, entry)) if entry.store_path == path => {
                Found::Node(self.0.status_attr(Node::Status(slot)))
            }
            _ => Found::NotNow,
        }
    }

    /// Attributes of a node.
    pub fn attr(&self, node: NodeId) -> Step<Attr> {
        self.0.counters.getattrs.add(1);
        match node.node() {
            Some(n @ (Node::Root(_) | Node::StatusDir(_))) => {
                Step::Ready(Ok(self.0.listing_attr(n)))
            }
            Some(n @ (Node::Summary(_) | Node::Status(_))) => {
                Step::Ready(Ok(self.0.status_attr(n)))
            }
            Some(Node::Entry { view, slot, entry }) => self.with_path(slot, move |_, path| {
                entry_attr(view, path, entry).ok_or(StoreError::NoNode)
            }),
            None => Step::Ready(Err(StoreError::NoNode)),
        }
    }

    /// Where a link leads.
    pub fn readlink(&self, node: NodeId) -> Step<Vec<u8>> {
        self.0.counters.readlinks.add(1);
        let Some(Node::Entry { slot, entry, .. }) = node.node() else {
            return Step::Ready(Err(StoreError::WrongKind));
        };
        self.with_path(slot, move |_, path| match path.tree.node(entry) {
            Some(tree::Node::Symlink { target }) => Ok(target.to_vec()),
            Some(_) => Err(StoreError::WrongKind),
            None => Err(StoreError::NoNode),
        })
    }

    /// A directory to list.
    pub fn directory(&self, node: NodeId) -> Step<Directory> {
        self.0.counters.readdirs.add(1);
        match node.node() {
            Some(Node::Root(view)) => self.list_root(view),
            Some(Node::StatusDir(view)) => {
                let slots = self
                    .0
                    .paths
                    .slots()
                    .into_iter()
                    .map(|(s, e)| (s, e.store_path))
                    .collect();
                Step::Ready(Ok(Directory::Status(view, slots)))
            }
            Some(Node::Entry { view, slot, entry }) => {
                self.with_path(slot, move |_, path| match path.tree.node(entry) {
                    Some(tree::Node::Directory { children }) => {
                        Ok(Directory::Inside(view, path.clone(), entry, children))
                    }
                    Some(_) => Err(StoreError::NotADirectory),
                    None => Err(StoreError::NoNode),
                })
            }
            Some(_) => Step::Ready(Err(StoreError::NotADirectory)),
            None => Step::Ready(Err(StoreError::NoNode)),
        }
    }

    fn list_root(&self, view: ViewId) -> Step<Directory> {
        let core = self.0.clone();
        let entries = core.paths.slots();
        let list = move |entries: Vec<(Slot, super::path::SlotEntry)>| {
            let known = entries.into_iter().filter_map(|(slot, entry)| {
                let path = entry.path?;
                Some((
                    slot,
                    entry.store_path,
                    entry_attr(view, &path, EntryIndex(0))?,
                ))
            });
            Ok(Directory::Root(view, known.collect()))
        };
        if entries.iter().all(|(_, e)| e.path.is_some()) {
            return Step::Ready(list(entries));
        }
        // Paths of an earlier run: their kind is in their trees, which are on disk.
        Step::Wait(Box::pin(async move {
            for (slot, _) in entries.iter().filter(|(_, e)| e.path.is_none()) {
                // One that can't be loaded now is left out and found by name later.
                if let Err(error) = core.load(*slot).await {
                    tracing::debug!(slot = slot.0, %error, "not listed");
                }
            }
            list(core.paths.slots())
        }))
    }

    /// Reads into `buf` what can be read without waiting for anything but the local disk;
    /// `None`: it has to be fetched, use [`Store::read`].
    pub fn read_now(
        &self,
        node: NodeId,
        offset: u64,
        size: u32,
        buf: &mut Vec<u8>,
    ) -> Option<Result<(), StoreError>> {
        buf.clear();
        match node.node() {
            Some(Node::Entry { slot, entry, .. }) => {
                let path = self.0.paths.loaded(slot)?;
                let range = match nar_range(&path, entry, offset, size) {
                    Ok(range) => range,
                    Err(error) => return Some(Err(error)),
                };
                let done = self.0.read_kept(&path, entry, &range, buf)?;
                if offset == 0 && done.is_ok() {
                    self.0.examine(&path, entry, buf);
                }
                self.0.counters.reads.add(1);
                self.0.counters.read_bytes.add(buf.len() as u64);
                Some(done)
            }
            Some(n @ (Node::Status(_) | Node::Summary(_))) => {
                self.0.counters.reads.add(1);
                let document = match self.0.status_document(n) {
                    Ok(document) => document,
                    Err(error) => return Some(Err(error)),
                };
                let from = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(document.len());
                let to = from.saturating_add(size as usize).min(document.len());
                buf.extend_from_slice(&document[from..to]);
                Some(Ok(()))
            }
            Some(_) => Some(Err(StoreError::IsADirectory)),
            None => Some(Err(StoreError::NoNode)),
        }
    }

    /// Reads up to `size` bytes at `offset`, fetched if need be; shorter only at the file's end.
    ///
    /// # Errors
    /// Whatever made the fetch fail; the next read tries anew.
    pub async fn read(&self, node: NodeId, offset: u64, size: u32) -> Result<Vec<u8>, StoreError> {
        let Some(Node::Entry { slot, entry, .. }) = node.node() else {
            let mut buf = Vec::new();
            return match self.read_now(node, offset, size, &mut buf) {
                Some(done) => done.map(|()| buf),
                None => Err(StoreError::NoNode),
            };
        };
        let path = self.0.load(slot).await?;
        self.0.counters.reads.add(1);
        self.0.counters.read_misses.add(1);
        let bytes = self.0.read_entry(&path, entry, offset, size).await?;
        if offset == 0 {
            self.0.examine(&path, entry, &bytes);
        }
        self.0.counters.read_bytes.add(bytes.len() as u64);
        Ok(bytes)
    }

    /// Answers at once if the path in `slot` is loaded, else after loading it.
    fn with_path<T: Send + 'static>(
        &self,
        slot: Slot,
        answer: impl FnOnce(&Core, &Arc<Path>) -> Result<T, StoreError> + Send + 'static,
    ) -> Step<T> {
        if let Some(path) = self.0.paths.loaded(slot) {
            return Step::Ready(answer(&self.0, &path));
        }
        let core = self.0.clone();
        Step::Wait(Box::pin(async move {
            let path = core.load(slot).await?;
            answer(&core, &path)
        }))
    }
}

impl Core {
    /// The path in a slot, loaded from the state directory (or the caches) if need be.
    async fn load(self: &Arc<Self>, slot: Slot) -> Result<Arc<Path>, StoreError> {
        if let Some(path) = self.paths.loaded(slot) {
            return Ok(path);
        }
        let entry = self.paths.entry(slot).ok_or(StoreError::NoNode)?;
        let path = self.admit_in_time(&entry.store_path).await?;
        // The digest may have a newer slot: then this one's inodes are gone.
        if path.slot == slot {
            Ok(path)
        } else {
            Err(StoreError::NoNode)
        }
    }

    fn found_path(self: &Arc<Self>, view: ViewId, path: &Arc<Path>) -> Result<Found, StoreError> {
        self.touch(path);
        entry_attr(view, path, EntryIndex(0))
            .map(Found::Node)
            .ok_or(StoreError::NoNode)
    }

    /// Reads what is kept; `None` if it is not.
    fn read_kept(
        self: &Arc<Self>,
        path: &Path,
        entry: EntryIndex,
        range: &Range<u64>,
        buf: &mut Vec<u8>,
    ) -> Option<Result<(), StoreError>> {
        if range.is_empty() {
            return Some(Ok(()));
        }
        let nar = match self.nar_of(path) {
            Ok(nar) => nar,
            Err(error) => return Some(Err(error)),
        };
        let _hold = nar.file.hold();
        if !self.can_serve(&nar, range.clone()) {
            return None;
        }
        if let Err(error) = self.believed(path, entry, &nar)? {
            return Some(Err(error));
        }
        nar.file.touch(unix_now());
        buf.resize((range.end - range.start) as usize, 0);
        match nar.file.read_at(buf, range.start) {
            // Replaced while it was read.
            Ok(()) if path.is_replaced() => Some(Err(StoreError::NoNode)),
            Ok(()) => Some(Ok(())),
            // Dropped in this moment: fetch it again.
            Err(ContentError::Discarded { .. } | ContentError::NotValid { .. }) => None,
            Err(error) => Some(Err(error.into())),
        }
    }

    pub(super) async fn read_entry(
        self: &Arc<Self>,
        path: &Arc<Path>,
        entry: EntryIndex,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, StoreError> {
        let range = nar_range(path, entry, offset, size)?;
        let nar = self.nar_of(path)?;
        let mut buf = Vec::new();
        // What was fetched for this reader is not evicted before it was read.
        let _hold = nar.file.hold();
        // A NAR may be dropped between fetching and reading because another part of it turned out
        // damaged; then it is fetched anew. Twice in a row is not chance.
        for _ in 0..2 {
            if let Some(done) = self.read_kept(path, entry, &range, &mut buf) {
                return done.map(|()| buf);
            }
            let (confirmed, delivered) = tokio::join!(
                self.confirm(path, entry, &nar),
                self.ensure(&nar, self.want(range.clone()), Lane::Demand)
            );
            confirmed?;
            let delivered = delivered?;
            self.read_ahead(&nar, &range, file_end(path, entry));
            match delivered {
                Delivered::Bytes(_) if path.is_replaced() => return Err(StoreError::NoNode),
                Delivered::Bytes(bytes) => return Ok(bytes),
                Delivered::OnDisk => {}
            }
        }
        match self.read_kept(path, entry, &range, &mut buf) {
            Some(done) => done.map(|()| buf),
            None => Err(StoreError::TimedOut {
                path: path.store_path.clone(),
                what: "its bytes, which were dropped as often as they came",
                waited: Duration::ZERO,
            }),
        }
    }
}

fn kind_of(path: &Path, entry: EntryIndex) -> Option<Kind> {
    Some(match path.tree.node(entry)? {
        tree::Node::Directory { .. } => Kind::Directory,
        tree::Node::Regular { executable, .. } => Kind::File { executable },
        tree::Node::Symlink { .. } => Kind::Symlink,
    })
}

/// Attributes of an entry as seen in `view`: only directories have a number of their own in it.
fn entry_attr(view: ViewId, path: &Path, entry: EntryIndex) -> Option<Attr> {
    let (view, size) = match path.tree.node(entry)? {
        tree::Node::Directory { .. } => (view, 0),
        tree::Node::Regular { size, .. } => (ViewId::WHOLE, size),
        tree::Node::Symlink { target } => (ViewId::WHOLE, target.len() as u64),
    };
    let node = NodeId::of(Node::Entry {
        view,
        slot: path.slot,
        entry,
    });
    Some(Attr {
        node,
        kind: kind_of(path, entry)?,
        size,
        mtime: STORE_MTIME,
        lasts: Lasts::Forever,
    })
}

fn lookup_inside(
    view: ViewId,
    path: &Path,
    dir: EntryIndex,
    name: &[u8],
) -> Result<Found, StoreError> {
    match path.tree.lookup(dir, name) {
        Some(entry) => entry_attr(view, path, entry)
            .map(Found::Node)
            .ok_or(StoreError::NoNode),
        None => Ok(Found::Never),
    }
}

/// Where the bytes `offset..offset + size` of a file lie in its NAR, cut at the file's end.
fn nar_range(
    path: &Path,
    entry: EntryIndex,
    offset: u64,
    size: u32,
) -> Result<Range<u64>, StoreError> {
    match path.tree.node(entry) {
        Some(tree::Node::Regular {
            size: length,
            offset: start,
            ..
        }) => {
            let from = offset.min(length);
            let to = offset.saturating_add(size.into()).min(length);
            Ok(start + from..start + to)
        }
        Some(tree::Node::Directory { .. }) => Err(StoreError::IsADirectory),
        Some(tree::Node::Symlink { .. }) => Err(StoreError::WrongKind),
        None => Err(StoreError::NoNode),
    }
}

fn file_end(path: &Path, entry: EntryIndex) -> u64 {
    match path.tree.node(entry) {
        Some(tree::Node::Regular { size, offset, .. }) => offset + size,
        _ => 0,
    }
}

impl Directory {
    /// Names behind the cookie `after` (0: from the beginning), in a stable order.
    pub fn entries(&self, after: u64) -> Box<dyn Iterator<Item = DirectoryEntry> + '_> {
        match self {
            Directory::Root(_, paths) => Box::new(
                paths
                    .iter()
                    .filter(move |(slot, ..)| u64::from(slot.0) > after)
                    .map(|(slot, path, attr)| DirectoryEntry {
                        next: slot.0.into(),
                        name: path.to_string().into_bytes(),
                        attr: *attr,
                    }),
            ),
            Directory::Status(view, paths) => {
                let summary = (after == 0)
                    .then(|| status_entry(1, status::SUMMARY.into(), Node::Summary(*view)));
                Box::new(
                    summary.into_iter().chain(
                        paths
                            .iter()
                            .filter(move |(slot, _)| u64::from(slot.0) + 1 > after)
                            .map(|(slot, path)| {
                                let name = format!("{path}{}", status::SUFFIX);
                                status_entry(u64::from(slot.0) + 1, name, Node::Status(*slot))
                            }),
                    ),
                )
            }
            Directory::Inside(view, path, _, children) => {
                let first = u64::from(children.start).saturating_add(after);
                let range =
                    u32::try_from(first).unwrap_or(u32::MAX).min(children.end)..children.end;
                Box::new(range.filter_map(move |n| {
                    let entry = EntryIndex(n);
                    Some(DirectoryEntry {
                        next: u64::from(n - children.start) + 1,
                        name: path.tree.name(entry).to_vec(),
                        attr: entry_attr(*view, path, entry)?,
                    })
                }))
            }
        }
    }

    /// The directory's own attributes, and its parent's.
    pub fn itself(&self) -> (NodeId, NodeId) {
        match self {
            Directory::Root(view, _) => {
                (NodeId::of(Node::Root(*view)), NodeId::of(Node::Root(*view)))
            }
            Directory::Status(view, _) => (
                NodeId::of(Node::StatusDir(*view)),
                NodeId::of(Node::Root(*view)),
            ),
            Directory::Inside(view, path, entry, _) => {
                let of = |entry| {
                    NodeId::of(Node::Entry {
                        view: *view,
                        slot: path.slot,
                        entry,
                    })
                };
                let parent = match entry.0 {
                    0 => NodeId::of(Node::Root(*view)),
                    _ => of(path.tree.parent(*entry)),
                };
                (of(*entry), parent)
            }
        }
    }
}

fn status_entry(next: u64, name: String, node: Node) -> DirectoryEntry {
    let mtime = UNIX_EPOCH.elapsed().unwrap_or(STORE_MTIME);
    DirectoryEntry {
        next,
        name: name.into_bytes(),
        attr: Attr {
            node: NodeId::of(node),
            kind: Kind::File { executable: false },
            size: status::DOCUMENT_SIZE as u64,
            mtime,
            lasts: Lasts::No,
        },
    }
}
