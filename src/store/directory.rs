//! Directories as they are listed: names behind a cookie, in an order that stays.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use super::{
    Attr, Core, Kind, Lasts, Node, NodeId, Path, Slot, Step, Store, StoreError, ViewId,
    nodes::{STORE_MTIME, entry_attr},
    path::SlotEntry,
    status,
};
use crate::{nix::StorePath, tree::EntryIndex};

/// A directory that can be listed.
pub enum Directory {
    /// The store paths of a view, with the view.
    Root(ViewId, Vec<(Slot, StorePath, Attr)>),
    /// The status files, with their store paths; which directory it is, and whose summary.
    Status(Node, ViewId, Vec<(Slot, StorePath)>),
    /// One of the mount's own with a handful of names: itself, its parent, names.
    Own(Node, Node, Vec<(Vec<u8>, Attr)>),
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
            Directory::Status(_, view, paths) => {
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
            Directory::Own(_, _, names) => {
                let skip = usize::try_from(after).unwrap_or(usize::MAX);
                let numbered = (1..).zip(names).skip(skip);
                Box::new(numbered.map(|(next, (name, attr))| DirectoryEntry {
                    next,
                    name: name.clone(),
                    attr: *attr,
                }))
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

    /// The directory's own number, and its parent's.
    pub fn itself(&self) -> (NodeId, NodeId) {
        let of = NodeId::of;
        match self {
            Directory::Root(view, _) => (of(Node::Root(*view)), of(above_root(*view))),
            Directory::Status(node @ Node::StatusDir(view), ..) => {
                let parent = match *view {
                    ViewId::WHOLE => Node::Root(ViewId::WHOLE),
                    view => Node::ViewRoot(view),
                };
                (of(*node), of(parent))
            }
            Directory::Status(node, ..) => (of(*node), of(Node::Top)),
            Directory::Own(node, parent, _) => (of(*node), of(*parent)),
            Directory::Inside(view, path, entry, _) => {
                let inside = |entry| {
                    of(Node::Entry {
                        view: *view,
                        slot: path.slot,
                        entry,
                    })
                };
                let parent = match entry.0 {
                    0 => of(Node::Root(*view)),
                    _ => inside(path.tree.parent(*entry)),
                };
                (inside(*entry), parent)
            }
        }
    }
}

/// What stands above a directory of store paths. The whole store may be a mount's root; then that
/// is above itself, and nobody but a listing of `..` ever sees the difference.
fn above_root(view: ViewId) -> Node {
    match view {
        ViewId::WHOLE => Node::Root(view),
        view => Node::ViewNix(view),
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

/// Attributes of a directory of the mount's own that never changes.
pub(super) fn own_attr(node: Node) -> Attr {
    Attr {
        node: NodeId::of(node),
        kind: Kind::Directory,
        size: 0,
        mtime: STORE_MTIME,
        lasts: Lasts::Forever,
    }
}

impl Store {
    /// The store paths of a view: for the whole store, those that are known here.
    pub(super) fn list_root(&self, view: ViewId) -> Step<Directory> {
        let core = self.0.clone();
        let entries = match core.slots_of(view, false) {
            Ok(entries) => entries,
            Err(error) => return Step::Ready(Err(error)),
        };
        let list = move |entries: Vec<(Slot, SlotEntry)>| {
            let known = entries.into_iter().filter_map(|(slot, entry)| {
                let path = entry.path?;
                let attr = entry_attr(view, &path, EntryIndex(0))?;
                Some((slot, entry.store_path, attr))
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
            list(core.slots_of(view, false)?)
        }))
    }

    /// The status files of a view.
    pub(super) fn list_status(&self, node: Node, view: ViewId) -> Result<Directory, StoreError> {
        let entries = self.0.slots_of(view, true)?.into_iter();
        let slots = entries.map(|(slot, entry)| (slot, entry.store_path));
        Ok(Directory::Status(node, view, slots.collect()))
    }

    /// One of the mount's own directories with a handful of names.
    pub(super) fn list_own(&self, node: Node) -> Result<Directory, StoreError> {
        let fixed = |name: &str, child| (name.as_bytes().to_vec(), own_attr(child));
        let (parent, names) = match node {
            Node::Top => {
                let store = self.0.listing_attr(Node::Root(ViewId::WHOLE));
                let views = self.0.listing_attr(Node::Views);
                let names = vec![(b"store".to_vec(), store), (b"views".to_vec(), views)];
                (Node::Top, names)
            }
            Node::Views => {
                let views = self.0.views.all();
                let roots = views
                    .iter()
                    .map(|v| fixed(v.name.as_str(), Node::ViewRoot(v.id)));
                (Node::Top, roots.collect())
            }
            Node::ViewRoot(view) => (Node::Views, vec![fixed("nix", Node::ViewNix(view))]),
            Node::ViewNix(view) => {
                let names = vec![fixed("store", Node::Root(view))];
                (Node::ViewRoot(view), names)
            }
            _ => return Err(StoreError::NotADirectory),
        };
        Ok(Directory::Own(node, parent, names))
    }
}

impl Core {
    /// The slots of a view's store, or of its status directory, in order; what stands in them.
    pub(super) fn slots_of(
        &self,
        view: ViewId,
        shown: bool,
    ) -> Result<Vec<(Slot, SlotEntry)>, StoreError> {
        if view == ViewId::WHOLE {
            return Ok(self.paths.slots());
        }
        let view = self.views.get(view).ok_or(StoreError::NoNode)?;
        let slots = if shown { view.shown() } else { view.own() };
        let entry = |slot: &Slot| Some((*slot, self.paths.entry(*slot)?));
        Ok(slots.iter().filter_map(entry).collect())
    }

    /// Attributes of a directory whose names are those of the known paths, or of the views.
    pub(super) fn listing_attr(&self, node: Node) -> Attr {
        let version = match node {
            Node::Views => self.views.version(),
            _ => self.paths.version(),
        };
        let mtime: Duration = self.status_clock.changed_at(NodeId::of(node), version);
        Attr {
            mtime,
            lasts: Lasts::Shortly,
            ..own_attr(node)
        }
    }
}
