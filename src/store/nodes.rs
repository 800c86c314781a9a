//! The store by inode number: what a file system front end asks.
//!
//! What is in memory or on disk is answered at once ([`Step::Ready`], or `Some` of
//! [`Store::read_now`]); what has to be waited for comes as a future. Nothing here blocks for
//! longer than a read of the local disk. What is no part of a store path is in `own_nodes.rs`.

use std::{ops::Range, pin::Pin, sync::Arc, time::Duration};

use super::{
    Core, Directory, Lane, Node, NodeId, Path, Slot, Store, StoreError, ViewId, fetch::Delivered,
    unix_now,
};
use crate::{
    content::ContentError,
    nix::store_path,
    tree::{self, EntryIndex},
};

/// The hidden directory of the status files; found by name, never listed.
pub const STATUS_DIR: &str = ".nix-snapshotter";
/// Nix sets every modification time in a store to this second after the epoch.
pub(super) const STORE_MTIME: Duration = Duration::from_secs(1);

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

impl Store {
    /// What `name` leads to in the directory `parent`.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Step<Found> {
        self.0.counters.lookups.add(1);
        match parent.node() {
            Some(Node::Entry { view, slot, entry }) => {
                let name = name.to_vec();
                self.with_path(slot, move |_, path| lookup_inside(view, path, entry, &name))
            }
            Some(own) => self.lookup_own(own, name),
            None => Step::Ready(Err(StoreError::NoNode)),
        }
    }

    /// Attributes of a node.
    pub fn attr(&self, node: NodeId) -> Step<Attr> {
        self.0.counters.getattrs.add(1);
        match node.node() {
            Some(Node::Entry { view, slot, entry }) => self.with_path(slot, move |_, path| {
                entry_attr(view, path, entry).ok_or(StoreError::NoNode)
            }),
            Some(own) => Step::Ready(self.own_node_attr(own)),
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
            Some(node @ Node::StatusDir(view)) => Step::Ready(self.list_status(node, view)),
            Some(node @ Node::TopStatusDir) => Step::Ready(self.list_status(node, ViewId::WHOLE)),
            Some(Node::Entry { view, slot, entry }) => {
                self.with_path(slot, move |_, path| match path.tree.node(entry) {
                    Some(tree::Node::Directory { children }) => {
                        Ok(Directory::Inside(view, path.clone(), entry, children))
                    }
                    Some(_) => Err(StoreError::NotADirectory),
                    None => Err(StoreError::NoNode),
                })
            }
            Some(own) => Step::Ready(self.list_own(own)),
            None => Step::Ready(Err(StoreError::NoNode)),
        }
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
        match node.node() {
            Some(Node::Entry { slot, entry, .. }) => {
                let path = self.0.paths.loaded(slot)?;
                let range = match nar_range(&path, entry, offset, size) {
                    Ok(range) => range,
                    Err(error) => return Some(Err(error)),
                };
                self.0.recordings.note(slot, &range);
                let done = self.0.read_kept(&path, entry, &range, buf)?;
                if offset == 0 && done.is_ok() {
                    self.0.examine(&path, entry, buf);
                }
                self.0.counters.reads.add(1);
                self.0.counters.read_bytes.add(buf.len() as u64);
                Some(done)
            }
            // What is not loaded is looked up in the state directory, which may be much to look at.
            Some(Node::Summary(view)) if !self.0.all_loaded(view) => None,
            Some(n @ (Node::Status(_) | Node::Summary(_))) => {
                self.0.counters.reads.add(1);
                let document = match self.0.status_document(n) {
                    Ok(document) => document,
                    Err(error) => return Some(Err(error)),
                };
                buf.clear();
                buf.extend_from_slice(part(&document, offset, size));
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
        if let Some(summary @ Node::Summary(_)) = node.node() {
            self.0.counters.reads.add(1);
            let core = self.0.clone();
            let made = self
                .runtime()
                .spawn_blocking(move || core.status_document(summary));
            let document = made.await.map_err(|_| StoreError::Stopping)??;
            return Ok(part(&document, offset, size).to_vec());
        }
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

    /// Where a node is in `/nix/store`, for messages; what is not in a store path is named by what
    /// it is. From memory alone.
    pub fn name_of(&self, node: NodeId) -> String {
        let Some(node) = node.node() else {
            return "an unknown node".into();
        };
        let (slot, entry) = match node {
            Node::Entry { slot, entry, .. } => (slot, entry),
            Node::Status(slot) => (slot, EntryIndex(0)),
            Node::Root(_) => return store_path::STORE_DIR.into(),
            other => return format!("{other:?}"),
        };
        let Some(known) = self.0.paths.entry(slot) else {
            return "an unknown store path".into();
        };
        let root = known.store_path.absolute();
        match (node, known.path) {
            (Node::Status(_), _) => format!("the status of {root}"),
            (_, Some(path)) if entry.0 > 0 && entry.0 < path.tree.len() => {
                let inside = path.tree.path_of(entry);
                format!("{root}/{}", String::from_utf8_lossy(&inside))
            }
            _ => root,
        }
    }

    /// Answers at once if the path in `slot` is loaded, else after loading it.
    pub(super) fn with_path<T: Send + 'static>(
        &self,
        slot: Slot,
        answer: impl FnOnce(&Arc<Core>, &Arc<Path>) -> Result<T, StoreError> + Send + 'static,
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
    pub(super) async fn load(self: &Arc<Self>, slot: Slot) -> Result<Arc<Path>, StoreError> {
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

    pub(super) fn found_path(
        self: &Arc<Self>,
        view: ViewId,
        path: &Arc<Path>,
    ) -> Result<Found, StoreError> {
        // The paths of a view were all made known, and so touched, before anybody looks one up.
        if view != ViewId::WHOLE && path.look_up() {
            self.start_begins(path);
        }
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
            buf.clear();
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
        nar.file.touch_range(range, unix_now());
        // Not cleared before: what is there is written over, and need not be zeroed once more.
        buf.resize((range.end - range.start) as usize, 0);
        match nar.file.read_at(buf, range.start) {
            // Replaced while it was read.
            Ok(()) if path.is_replaced() => Some(Err(StoreError::NoNode)),
            Ok(()) => {
                self.note_served(&nar, range);
                Some(Ok(()))
            }
            // Dropped in this moment: fetch it again.
            Err(ContentError::Discarded { .. } | ContentError::NotValid { .. }) => None,
            // Changed on the disk, which is dropped by now: the same.
            Err(ContentError::Damaged { .. }) => {
                self.counters.damaged_reads.add(1);
                None
            }
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
            let (confirmed, delivered, ()) = tokio::join!(
                self.confirm(path, entry, &nar),
                self.ensure(&nar, self.want(&nar, range.clone()), Lane::Demand),
                // After the request for what is waited for, and not after its answer.
                async {
                    self.read_index(&nar).await;
                    if self.guides.guides_wait(path.slot, &range) {
                        return;
                    }
                    self.read_neighbours(&nar, path, entry);
                    if offset == 0 {
                        self.read_program(path, entry);
                    }
                },
            );
            confirmed?;
            let delivered = delivered?;
            if !self.guides.guides(path.slot) {
                self.read_ahead(&nar, &range, file_end(path, entry));
            }
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

/// What a read of a document gets.
fn part(document: &[u8], offset: u64, size: u32) -> &[u8] {
    let from = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(document.len());
    let to = from.saturating_add(size as usize).min(document.len());
    &document[from..to]
}

fn kind_of(path: &Path, entry: EntryIndex) -> Option<Kind> {
    Some(match path.tree.node(entry)? {
        tree::Node::Directory { .. } => Kind::Directory,
        tree::Node::Regular { executable, .. } => Kind::File { executable },
        tree::Node::Symlink { .. } => Kind::Symlink,
    })
}

/// Attributes of an entry as seen in `view`: only directories have a number of their own in it.
pub(super) fn entry_attr(view: ViewId, path: &Path, entry: EntryIndex) -> Option<Attr> {
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
