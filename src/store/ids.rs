//! Inode numbers as a pure function of (view, slot, entry).
//!
//! ```text
//!  63      62 ...... 48  47 ........ 24  23 ......... 0
//! status   view          slot            entry
//! ```
//!
//! A store path's *slot* is given once and kept in the database; an *entry* is a position in the
//! path's compiled tree. A file or symlink is the same inode in every view (view bits zero: one
//! page cache for all), a directory has one per view. Slot 0 is no store path: its entries are
//! the mount's own nodes. So there is no table to lose, `forget` needs no answer, and the next
//! process serves the same numbers.

use crate::tree::EntryIndex;

/// Bits for a position in a tree: 16.7 million entries in one store path.
const ENTRY_BITS: u32 = 24;
/// Bits for a slot: 16.7 million store paths known to one state directory.
const SLOT_BITS: u32 = 24;
/// Bits for a view.
const VIEW_BITS: u32 = 15;
const STATUS_BIT: u64 = 1 << 63;

/// The number a store path has in this state directory, for good. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// A named subset of the store; 0 is the whole store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ViewId(pub u16);

impl ViewId {
    /// Everything.
    pub const WHOLE: Self = Self(0);
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Node {
    /// The root of a mount that shows everything: `store`, `views`, `.nix-snapshotter`.
    Top,
    /// `.nix-snapshotter` there: what [`ViewId::WHOLE`] has, once more, since a directory can't be in two places.
    TopStatusDir,
    /// `views` there: a directory for each view.
    Views,
    /// The root of a view: `nix`, `.nix-snapshotter`.
    ViewRoot(ViewId),
    /// `nix` there: `store`.
    ViewNix(ViewId),
    /// The directory of store paths of a view.
    Root(ViewId),
    /// `.nix-snapshotter` of a view.
    StatusDir(ViewId),
    /// `.nix-snapshotter/summary.json` of a view.
    Summary(ViewId),
    /// `.nix-snapshotter/<store path>.json`; the same in all views.
    Status(Slot),
    /// Something inside a store path.
    Entry {
        /// The view, for directories; [`ViewId::WHOLE`] for the rest.
        view: ViewId,
        /// The store path.
        slot: Slot,
        /// Position in its tree.
        entry: EntryIndex,
    },
}

/// A 64-bit inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// Entries of slot 0. FUSE requires the root to be inode 1.
const ROOT: u64 = 1;
const STATUS_DIR: u64 = 2;
const SUMMARY: u64 = 3;
const VIEW_ROOT: u64 = 4;
const VIEW_NIX: u64 = 5;
const TOP: u64 = 6;
const TOP_STATUS_DIR: u64 = 7;
const VIEWS: u64 = 8;

impl NodeId {
    /// The number of `node`.
    pub fn of(node: Node) -> Self {
        let view = |v: ViewId| u64::from(v.0) << (ENTRY_BITS + SLOT_BITS);
        let slot = |s: Slot| u64::from(s.0) << ENTRY_BITS;
        Self(match node {
            Node::Top => TOP,
            Node::TopStatusDir => TOP_STATUS_DIR,
            Node::Views => VIEWS,
            Node::ViewRoot(v) => view(v) | VIEW_ROOT,
            Node::ViewNix(v) => view(v) | VIEW_NIX,
            Node::Root(v) => view(v) | ROOT,
            Node::StatusDir(v) => view(v) | STATUS_DIR,
            Node::Summary(v) => view(v) | SUMMARY,
            Node::Status(s) => STATUS_BIT | slot(s),
            Node::Entry {
                view: v,
                slot: s,
                entry,
            } => view(v) | slot(s) | u64::from(entry.0),
        })
    }

    /// What the number stands for; `None` for numbers that were never given out.
    pub fn node(self) -> Option<Node> {
        let field = |shift: u32, bits: u32| (self.0 >> shift) & ((1 << bits) - 1);
        let entry = field(0, ENTRY_BITS);
        let slot = Slot(field(ENTRY_BITS, SLOT_BITS) as u32);
        let view = ViewId(field(ENTRY_BITS + SLOT_BITS, VIEW_BITS) as u16);
        match (self.0 & STATUS_BIT != 0, slot.0, entry) {
            (true, 1.., 0) if view == ViewId::WHOLE => Some(Node::Status(slot)),
            (true, ..) => None,
            (false, 0, ROOT) => Some(Node::Root(view)),
            (false, 0, STATUS_DIR) => Some(Node::StatusDir(view)),
            (false, 0, SUMMARY) => Some(Node::Summary(view)),
            (false, 0, VIEW_ROOT) if view != ViewId::WHOLE => Some(Node::ViewRoot(view)),
            (false, 0, VIEW_NIX) if view != ViewId::WHOLE => Some(Node::ViewNix(view)),
            (false, 0, TOP) if view == ViewId::WHOLE => Some(Node::Top),
            (false, 0, TOP_STATUS_DIR) if view == ViewId::WHOLE => Some(Node::TopStatusDir),
            (false, 0, VIEWS) if view == ViewId::WHOLE => Some(Node::Views),
            (false, 0, _) => None,
            (false, _, entry) => Some(Node::Entry {
                view,
                slot,
                entry: EntryIndex(entry as u32),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_root_is_inode_1() {
        assert_eq!(NodeId::of(Node::Root(ViewId::WHOLE)), NodeId(1));
    }

    fn any_node() -> impl Strategy<Value = Node> {
        let view = || (0u16..1 << VIEW_BITS).prop_map(ViewId);
        let slot = || (1u32..1 << SLOT_BITS).prop_map(Slot);
        let named = || (1u16..1 << VIEW_BITS).prop_map(ViewId);
        prop_oneof![
            Just(Node::Top),
            Just(Node::TopStatusDir),
            Just(Node::Views),
            named().prop_map(Node::ViewRoot),
            named().prop_map(Node::ViewNix),
            view().prop_map(Node::Root),
            view().prop_map(Node::StatusDir),
            view().prop_map(Node::Summary),
            slot().prop_map(Node::Status),
            (view(), slot(), 0u32..1 << ENTRY_BITS).prop_map(|(view, slot, e)| Node::Entry {
                view,
                slot,
                entry: EntryIndex(e)
            }),
        ]
    }

    proptest! {
        #[test]
        fn numbers_and_nodes_are_one_to_one(node in any_node()) {
            prop_assert_eq!(NodeId::of(node).node(), Some(node));
        }

        #[test]
        fn a_number_is_a_node_only_if_it_was_given(n in any::<u64>()) {
            if let Some(node) = NodeId(n).node() {
                prop_assert_eq!(NodeId::of(node), NodeId(n));
            }
        }
    }
}
