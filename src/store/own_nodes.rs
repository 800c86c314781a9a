//! Names and attributes in the directories that are the mount's own.
//!
//! ```text
//! store/                    every path that is known or that a cache has       Root(WHOLE)
//!   .nix-snapshotter/       status of each; found by name, never listed        StatusDir(WHOLE)
//! views/NAME/               a view                                             ViewRoot
//!   nix/store/              its own paths                                      ViewNix, Root
//!   .nix-snapshotter/       status of those that it shows                      StatusDir
//! .nix-snapshotter/         the same as in store/                              TopStatusDir
//! ```
//!
//! A mount's root is either this whole (`Top`) or `store/` alone; see [`super::NodeId`].

use super::{
    Attr, Found, Node, NodeId, Step, Store, StoreError, ViewId,
    directory::own_attr,
    nodes::STATUS_DIR,
    status::{SUFFIX, SUMMARY},
};
use crate::nix::StorePath;

impl Store {
    /// What a name leads to in a directory of the mount's own.
    pub(super) fn lookup_own(&self, parent: Node, name: &[u8]) -> Step<Found> {
        match parent {
            Node::Root(ViewId::WHOLE) => self.lookup_in_whole(name),
            Node::Root(view) => self.lookup_in_view(view, name),
            Node::StatusDir(view) => Step::Ready(self.lookup_status(view, name)),
            Node::TopStatusDir => Step::Ready(self.lookup_status(ViewId::WHOLE, name)),
            Node::Views => Step::Ready(self.lookup_view(name)),
            Node::Top | Node::ViewRoot(_) | Node::ViewNix(_) => {
                Step::Ready(self.lookup_fixed(parent, name))
            }
            Node::Summary(_) | Node::Status(_) | Node::Entry { .. } => {
                Step::Ready(Err(StoreError::NotADirectory))
            }
        }
    }

    fn lookup_fixed(&self, parent: Node, name: &[u8]) -> Result<Found, StoreError> {
        let node = match (parent, name) {
            (Node::Top, b"store") => Node::Root(ViewId::WHOLE),
            (Node::Top, b"views") => Node::Views,
            (Node::Top, name) if name == STATUS_DIR.as_bytes() => Node::TopStatusDir,
            (Node::ViewRoot(view), b"nix") => Node::ViewNix(view),
            (Node::ViewRoot(view), name) if name == STATUS_DIR.as_bytes() => Node::StatusDir(view),
            (Node::ViewNix(view), b"store") => Node::Root(view),
            _ => return Ok(Found::Never),
        };
        self.own_node_attr(node).map(Found::Node)
    }

    /// Nothing is remembered of a view that is not there: it may come at any moment, and whoever
    /// made it mounts it at once.
    fn lookup_view(&self, name: &[u8]) -> Result<Found, StoreError> {
        let name = std::str::from_utf8(name).map_err(|_| StoreError::NoEntry)?;
        let view = self.0.views.named(name).ok_or(StoreError::NoEntry)?;
        Ok(Found::Node(own_attr(Node::ViewRoot(view.id))))
    }

    fn lookup_in_whole(&self, name: &[u8]) -> Step<Found> {
        let view = ViewId::WHOLE;
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
            match core.admit_named(&path).await {
                Ok(admitted) => core.found_path(view, &admitted),
                Err(error) if error.is_absence() => Ok(Found::NotNow),
                Err(error) => Err(error),
            }
        }))
    }

    /// What a view has was decided when it was made: any other name is never there.
    fn lookup_in_view(&self, view: ViewId, name: &[u8]) -> Step<Found> {
        let Some(contents) = self.0.views.get(view) else {
            return Step::Ready(Err(StoreError::NoNode));
        };
        let slot = StorePath::from_bytes(name).ok().and_then(|path| {
            let (slot, entry) = self.0.paths.slot(&path.hash())?;
            (entry.store_path == path && contents.has(slot)).then_some(slot)
        });
        let Some(slot) = slot else {
            return Step::Ready(Ok(Found::Never));
        };
        self.with_path(slot, move |core, path| core.found_path(view, path))
    }

    fn lookup_status(&self, view: ViewId, name: &[u8]) -> Result<Found, StoreError> {
        if name == SUMMARY.as_bytes() {
            return Ok(Found::Node(self.0.status_attr(Node::Summary(view))));
        }
        let path = name
            .strip_suffix(SUFFIX.as_bytes())
            .map(StorePath::from_bytes);
        let Some(Ok(path)) = path else {
            return Ok(Found::Never);
        };
        let slot = match self.0.paths.slot(&path.hash()) {
            Some((slot, entry)) if entry.store_path == path => Some(slot),
            _ => None,
        };
        let contents = self.0.views.get(view);
        Ok(match (slot, view, contents) {
            (Some(slot), ViewId::WHOLE, _) => Found::Node(self.0.status_attr(Node::Status(slot))),
            (None, ViewId::WHOLE, _) => Found::NotNow,
            (_, _, None) => return Err(StoreError::NoNode),
            (Some(slot), _, Some(contents)) if contents.shows(slot) => {
                Found::Node(self.0.status_attr(Node::Status(slot)))
            }
            _ => Found::Never,
        })
    }

    /// Attributes of a node of the mount's own.
    pub(super) fn own_node_attr(&self, node: Node) -> Result<Attr, StoreError> {
        let of_view = |view| match self.0.views.get(view) {
            Some(_) => Ok(own_attr(node)),
            None => Err(StoreError::NoNode),
        };
        match node {
            Node::Top => Ok(own_attr(node)),
            Node::Views | Node::TopStatusDir => Ok(self.0.listing_attr(node)),
            Node::Root(ViewId::WHOLE) | Node::StatusDir(ViewId::WHOLE) => {
                Ok(self.0.listing_attr(node))
            }
            Node::Root(view)
            | Node::StatusDir(view)
            | Node::ViewRoot(view)
            | Node::ViewNix(view) => of_view(view),
            Node::Summary(ViewId::WHOLE) | Node::Status(_) => Ok(self.0.status_attr(node)),
            Node::Summary(view) => of_view(view).map(|_| self.0.status_attr(node)),
            Node::Entry { .. } => Err(StoreError::WrongKind),
        }
    }

    /// The number of what a mount of everything has as its root.
    pub fn top() -> NodeId {
        NodeId::of(Node::Top)
    }

    /// The number of what a mount of the store alone has as its root.
    pub fn whole() -> NodeId {
        NodeId::of(Node::Root(ViewId::WHOLE))
    }
}
