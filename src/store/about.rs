//! What `user.narfs.*` tells of a file, a directory or a store path, without fetching anything.
//! Links have none: the kernel knows no `user.*` of a link.
//!
//! Of what is loaded, from memory; of what is not, from the state directory.

use std::{ops::Range, sync::Arc};

use narfs_state_schema::PathState;

use super::{Core, Node, NodeId, Slot, Store, StoreError};
use crate::{
    content::NarFile,
    nix::NarHash,
    tree::{self, EntryIndex, Tree},
};

/// What the names of our extended attributes begin with.
pub const PREFIX: &str = "user.narfs.";

/// What there is to tell of a store path.
struct Known {
    store_path: String,
    nar_hash: NarHash,
    tree: Arc<Tree>,
    file: Arc<NarFile>,
    /// Of the whole path.
    state: PathState,
    source: String,
    last_error: Option<String>,
}

impl Store {
    /// The extended attributes of a node, without [`PREFIX`]; none of what is in no store path, or
    /// of what nothing is kept.
    pub fn attributes(&self, node: NodeId) -> Vec<(&'static str, String)> {
        let Some(Node::Entry { slot, entry, .. }) = node.node() else {
            return Vec::new();
        };
        match self.0.told(slot) {
            Ok(known) => known.of(entry),
            Err(error) => {
                tracing::debug!(slot = slot.0, %error, "nothing to tell");
                Vec::new()
            }
        }
    }
}

impl Core {
    fn told(&self, slot: Slot) -> Result<Known, StoreError> {
        if let Some(path) = self.paths.loaded(slot) {
            let nar = self.nar_of(&path)?;
            let source = nar.sources.first();
            let source = source.as_ref().unwrap_or(&path.source);
            return Ok(Known {
                store_path: path.store_path.absolute(),
                nar_hash: path.nar_hash,
                tree: path.tree.clone(),
                state: self.progress(&path).0,
                source: source.substituter.name().to_owned(),
                last_error: path.health().last.map(|last| last.message),
                file: nar.file.clone(),
            });
        }
        let entry = self.paths.entry(slot).ok_or(StoreError::NoNode)?;
        let store_path = entry.store_path;
        let kept = self.kept_narinfo(&store_path)?;
        let (narinfo, source) = kept.ok_or(StoreError::NoNode)?;
        let tree = self.load_tree(&narinfo.nar_hash)?;
        let file = self.content.nar(&narinfo.nar_hash, narinfo.nar_size)?;
        let facts = self.content.db().facts(&store_path.hash())?;
        Ok(Known {
            store_path: store_path.absolute(),
            nar_hash: narinfo.nar_hash,
            tree: Arc::new(tree.ok_or(StoreError::NoNode)?),
            state: at_rest(file.valid_bytes(), narinfo.nar_size),
            source,
            last_error: facts.last_error.map(|last| last.text),
            file,
        })
    }
}

impl Known {
    fn of(&self, entry: EntryIndex) -> Vec<(&'static str, String)> {
        let Some(node) = self.tree.node(entry) else {
            return Vec::new();
        };
        let range = match (entry, node) {
            (_, tree::Node::Symlink { .. }) => return Vec::new(),
            (EntryIndex(0), _) => 0..self.file.size(),
            (_, tree::Node::Regular { size, offset, .. }) => offset..offset + size,
            (_, tree::Node::Directory { .. }) => span(&self.tree, entry),
        };
        let size = range.end - range.start;
        let missing = self.file.missing(range);
        let fetched = size - missing.iter().map(|gap| gap.end - gap.start).sum::<u64>();
        let state = match at_rest(fetched, size) {
            PathState::Complete => PathState::Complete,
            resting => match self.state {
                moving @ (PathState::Fetching | PathState::Quarantined) => moving,
                _ => resting,
            },
        };
        let mut all = vec![
            ("state", state.as_str().to_owned()),
            ("fetched", fetched.to_string()),
            ("size", size.to_string()),
            ("nar-hash", self.nar_hash.to_string()),
            ("source", self.source.clone()),
            ("store-path", self.store_path.clone()),
        ];
        all.extend(self.last_error.clone().map(|error| ("last-error", error)));
        all
    }
}

fn at_rest(fetched: u64, size: u64) -> PathState {
    match fetched {
        n if n >= size => PathState::Complete,
        0 => PathState::Known,
        _ => PathState::Partial,
    }
}

/// The part of a NAR from the first byte of a directory's first file to the last of its last: a
/// NAR has what is below a directory in one piece, in the order of the tree.
fn span(tree: &Tree, directory: EntryIndex) -> Range<u64> {
    match (edge(tree, directory, false), edge(tree, directory, true)) {
        (Some(first), Some(last)) if first.start <= last.end => first.start..last.end,
        _ => 0..0,
    }
}

/// Where the first or the last file at or below an entry lies.
fn edge(tree: &Tree, entry: EntryIndex, last: bool) -> Option<Range<u64>> {
    match tree.node(entry)? {
        tree::Node::Regular { size, offset, .. } => Some(offset..offset + size),
        tree::Node::Symlink { .. } => None,
        tree::Node::Directory { children } => {
            let mut children = children.map(EntryIndex);
            let of = |child| edge(tree, child, last);
            match last {
                true => children.rev().find_map(of),
                false => children.find_map(of),
            }
        }
    }
}
