//! Making trees and copies of what is whole, in the background.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::Path,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{Copy, Native, Tree, allocated, listed, rest_name, write};
use crate::{
    nix::StorePath,
    snapshotter::{
        directories::remove,
        error::SnapshotError,
        record::{NixLayer, SnapshotId},
        snapshots::{Core, blocking},
    },
    store::{Path as Known, StoreError, ViewName},
};

/// How often layers are looked at. What is whole the same at two looks is made into a tree.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Most trees of one layer.
const MOST_TREES: u32 = 8;
/// A new tree has to bring so much more than the last: a fourth.
const WORTH: u64 = 4;
/// This part of the file system stays free, whatever the limits: one in so many.
const LEAVE_FREE: u64 = 20;

impl Native {
    /// Looks at the layers from time to time, as long as the snapshotter lives.
    pub(in crate::snapshotter) fn keep(self: Arc<Self>, core: Weak<Core>) {
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let Some(core) = core.upgrade() else { return };
                let state = core.metadata.state();
                let ids: HashSet<_> = state.iter().map(|(_, record)| record.id).collect();
                // The kernel takes a tree as the lowest layer only.
                let lowest = state.iter().filter(|(_, record)| record.parent.is_none());
                let layers: Vec<_> = lowest
                    .filter_map(|(_, record)| Some((record.id, record.nix.clone()?)))
                    .collect();
                let native = self.clone();
                if let Err(error) = blocking(move || native.look(&ids, &layers)).await {
                    tracing::warn!(%error, "native files can't be made; containers read from the mount");
                }
            }
        });
    }

    /// One look: what belongs to nobody goes, what is whole and worth it is made.
    fn look(
        &self,
        ids: &HashSet<SnapshotId>,
        layers: &[(SnapshotId, NixLayer)],
    ) -> Result<(), SnapshotError> {
        self.sweep(ids)?;
        if !self.on {
            return Ok(());
        }
        for (id, layer) in layers {
            let known = layer.own.iter().filter_map(|path| self.store.known(path));
            let whole: Vec<_> = known.filter(|path| self.store.is_whole(path)).collect();
            let content: u64 = whole.iter().map(|path| path.nar_size).sum();
            let before = self.state().seen.insert(*id, (whole.len(), content));
            let tree = self.state().trees.get(id).copied();
            let settled = before == Some((whole.len(), content)) && !whole.is_empty();
            let all = whole.len() == layer.own.len();
            if settled
                && worth_it(tree, whole.len(), content, all)
                && self.has_mountpoints_only(*id, layer)?
            {
                let number = tree.map_or(1, |tree| tree.number + 1);
                self.make(*id, number, layer, &whole, content)?;
            }
        }
        Ok(())
    }

    /// Whether so many bytes more may be kept.
    fn has_room(&self, bytes: u64) -> bool {
        let Ok(fs) = self.store.content().file_system() else {
            return false;
        };
        let fits = fs.free.saturating_sub(bytes) >= fs.size / LEAVE_FREE;
        fits && self.store.room_for(bytes)
    }

    /// Whether what the image itself has in a layer is nothing but where store paths are to be.
    fn has_mountpoints_only(
        &self,
        id: SnapshotId,
        layer: &NixLayer,
    ) -> Result<bool, SnapshotError> {
        let own: HashSet<_> = layer.own.iter().map(StorePath::to_string).collect();
        let root = self.directories.fs(id);
        let store = root.join("nix/store");
        for (directory, only) in [(&root, "nix"), (&root.join("nix"), "store")] {
            if directory.exists() && listed(directory)?.iter().any(|(_, name)| name != only) {
                return Ok(false);
            }
        }
        Ok(!store.exists() || listed(&store)?.iter().all(|(_, name)| own.contains(name)))
    }

    /// Makes the view of what is not in a tree.
    fn make_rest(
        &self,
        id: SnapshotId,
        number: u32,
        layer: &NixLayer,
        whole: &[Arc<Known>],
    ) -> Result<(), SnapshotError> {
        let whole: HashSet<_> = whole.iter().map(|path| &path.store_path).collect();
        let rest = layer.own.iter().filter(|path| !whole.contains(path));
        let rest: Vec<_> = rest.cloned().collect();
        let name = rest_name(id, number);
        let view = ViewName::parse(&name).map_err(|_| StoreError::NoEntry);
        let made = view.and_then(|view| {
            let made = self.store.make_view(&view, &rest, &layer.shown);
            self.store.runtime().block_on(made)
        });
        made.map_err(|source| SnapshotError::View { key: name, source })
    }

    fn make(
        &self,
        id: SnapshotId,
        number: u32,
        layer: &NixLayer,
        whole: &[Arc<Known>],
        content: u64,
    ) -> Result<(), SnapshotError> {
        let have = self.state().copies.clone();
        let other = |path: &Known| have.get(&path.store_path.to_string());
        let lacking: Vec<_> = whole
            .iter()
            .filter(|path| other(path).is_none_or(|copy| !copy.layers.contains(&id)))
            .collect();
        let new = lacking.iter().filter(|path| other(path).is_none());
        let bytes = new.map(|path| path.nar_size).sum();
        if !self.has_room(bytes) {
            tracing::debug!(snapshot = %id, bytes, "no room for native files");
            return Ok(());
        }
        let tmp = self.root.join("tmp");
        let writer = write::Writer {
            store: &self.store,
            overlay: self.overlay,
        };
        let tree = tmp.join(format!("{id}.{number}"));
        let made = (|| {
            for path in &lacking {
                let name = path.store_path.to_string();
                let to = tmp.join(&name);
                match other(path).and_then(|copy| copy.layers.first()) {
                    Some(other) => write::link(&self.files(*other).join(&name), &to)?,
                    None => writer.copy(path, &to)?,
                }
            }
            writer.tree(whole, &tree)?;
            // Before anything has its name, all of it is on the disk.
            write::sync(&tmp)
        })();
        if let Err(e) = made {
            // Whatever it was: nothing of this is seen by anybody.
            let _ = remove(&tmp).and_then(|()| create(&tmp));
            return Err(SnapshotError::io("write native files in", &tmp, e));
        }
        let files = self.files(id);
        fs::create_dir_all(&files)
            .map_err(|e| SnapshotError::io("create the directory", &files, e))?;
        for path in lacking {
            let name = path.store_path.to_string();
            let from = tmp.join(&name);
            // A path without a file has no copies.
            if !from.exists() {
                continue;
            }
            let bytes = allocated(&from)?;
            rename(&from, &files.join(&name))?;
            let mut state = self.state();
            state.made += 1;
            let made = state.made;
            let copy = state.copies.entry(name).or_insert_with(|| {
                self.allocated.fetch_add(bytes, Relaxed);
                Copy {
                    allocated: bytes,
                    layers: BTreeSet::new(),
                    made,
                }
            });
            copy.layers.insert(id);
        }
        self.make_rest(id, number, layer, whole)?;
        let bytes_of_tree = allocated(&tree)?;
        rename(&tree, &self.tree_path(id, number))?;
        self.allocated.fetch_add(bytes_of_tree, Relaxed);
        let made = Tree {
            number,
            paths: whole.len(),
            content: Some(content),
        };
        self.state().trees.insert(id, made);
        tracing::info!(snapshot = %id, number, paths = whole.len(), bytes, "native files are there for the next containers");
        Ok(())
    }
}

/// Whether a tree of so many paths, with so many bytes, is made beside the newest that there is; `all` that the layer has
/// always are.
fn worth_it(tree: Option<Tree>, paths: usize, content: u64, all: bool) -> bool {
    let Some(tree) = tree else { return true };
    let (before, now) = match tree.content {
        Some(before) => (before, content),
        None => (tree.paths as u64, paths as u64),
    };
    let enough = now >= before + (before / WORTH).max(1) || all && paths > tree.paths;
    enough && tree.number < MOST_TREES
}

fn create(path: &Path) -> Result<(), SnapshotError> {
    fs::create_dir(path).map_err(|e| SnapshotError::io("create the directory", path, e))
}

fn rename(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    fs::rename(from, to).map_err(|e| SnapshotError::io("rename", from, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_tree_has_to_bring_more() {
        let tree = |number, content| {
            Some(Tree {
                number,
                paths: 8,
                content,
            })
        };
        assert!(worth_it(None, 1, 1, false));
        assert!(!worth_it(tree(1, None), 9, 1000, false));
        assert!(worth_it(tree(1, None), 10, 1, false));
        assert!(!worth_it(tree(1, Some(100)), 8, 100, true));
        assert!(!worth_it(tree(1, Some(100)), 20, 124, false));
        assert!(worth_it(tree(1, Some(100)), 9, 101, true));
        assert!(worth_it(tree(1, Some(100)), 9, 125, false));
        assert!(!worth_it(tree(1, Some(0)), 8, 0, false));
        assert!(!worth_it(tree(MOST_TREES, Some(1)), 80, 100, true));
    }
}
