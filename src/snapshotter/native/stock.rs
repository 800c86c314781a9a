//! What native files there are: what an earlier process left, what belongs to nobody any more, what goes to make room.

use std::{
    collections::{BTreeSet, HashSet},
    sync::atomic::Ordering::Relaxed,
};

use super::{Copy, Native, Tree, allocated, listed, parse_tree};
use crate::{
    snapshotter::{directories::remove, error::SnapshotError, record::SnapshotId},
    store::{Beside, ViewName},
};

impl Native {
    /// What an earlier process left.
    pub(super) fn take_stock(&self) -> Result<(), SnapshotError> {
        let mut state = self.state();
        for (path, name) in listed(&self.root.join("trees"))? {
            let Some((id, number)) = parse_tree(&name) else {
                remove(&path)?;
                continue;
            };
            let tree = Tree {
                number,
                paths: listed(&path.join("nix/store"))?.len(),
                content: None,
            };
            self.allocated.fetch_add(allocated(&path)?, Relaxed);
            let newest = state.trees.entry(id).or_insert(tree);
            if newest.number < number {
                *newest = tree;
            }
        }
        for (path, name) in listed(&self.root.join("files"))? {
            let Some(id) = name.parse().ok().map(SnapshotId).filter(|_| self.on) else {
                remove(&path)?;
                continue;
            };
            for (path, name) in listed(&path)? {
                let bytes = allocated(&path)?;
                let copy = state.copies.entry(name).or_insert_with(|| {
                    self.allocated.fetch_add(bytes, Relaxed);
                    Copy {
                        allocated: bytes,
                        layers: BTreeSet::new(),
                        made: 0,
                    }
                });
                copy.layers.insert(id);
            }
        }
        Ok(())
    }

    /// Trees and copies of layers that are gone.
    pub(super) fn sweep(&self, ids: &HashSet<SnapshotId>) -> Result<(), SnapshotError> {
        let gone: Vec<_> = {
            let mut state = self.state();
            state.seen.retain(|id, _| ids.contains(id));
            let gone = state.trees.keys().filter(|id| !ids.contains(id));
            gone.copied().collect()
        };
        if !gone.is_empty() {
            for (path, name) in listed(&self.root.join("trees"))? {
                if parse_tree(&name).is_some_and(|(id, _)| gone.contains(&id)) {
                    let bytes = allocated(&path)?;
                    remove(&path)?;
                    self.allocated.fetch_sub(bytes, Relaxed);
                }
            }
            self.state().trees.retain(|id, _| ids.contains(id));
        }
        for view in self.store.views() {
            let tree = view.as_str().strip_prefix('s').and_then(parse_tree);
            if let Some((id, number)) = tree
                && !self.tree_path(id, number).exists()
            {
                self.remove_rest(&view)?;
            }
        }
        for (path, name) in listed(&self.root.join("files"))? {
            if name.parse().is_ok_and(|id| ids.contains(&SnapshotId(id))) {
                continue;
            }
            remove(&path)?;
        }
        let mut state = self.state();
        state.copies.retain(|_, copy| {
            copy.layers.retain(|id| ids.contains(id));
            if copy.layers.is_empty() {
                self.allocated.fetch_sub(copy.allocated, Relaxed);
            }
            !copy.layers.is_empty()
        });
        Ok(())
    }

    fn remove_rest(&self, view: &ViewName) -> Result<(), SnapshotError> {
        let removed = self.store.runtime().block_on(self.store.remove_view(view));
        removed.map(drop).map_err(|source| SnapshotError::View {
            key: view.as_str().to_owned(),
            source,
        })
    }

    /// Deletes the copies of a path; whoever has one open keeps it, others read from the mount. What is freed.
    pub(super) fn drop_copy(&self, name: &str) -> Result<u64, SnapshotError> {
        let Some(copy) = self.state().copies.remove(name) else {
            return Ok(0);
        };
        self.allocated.fetch_sub(copy.allocated, Relaxed);
        for id in copy.layers {
            remove(&self.files(id).join(name))?;
        }
        Ok(copy.allocated)
    }
}

impl Beside for Native {
    fn bytes(&self) -> u64 {
        self.allocated.load(Relaxed)
    }

    fn free(&self, bytes: u64) -> u64 {
        let mut copies: Vec<_> = {
            let state = self.state();
            let copies = state
                .copies
                .iter()
                .map(|(name, copy)| (copy.made, name.clone()));
            copies.collect()
        };
        copies.sort();
        let mut freed = 0;
        for (_, name) in copies {
            if freed >= bytes {
                break;
            }
            match self.drop_copy(&name) {
                Ok(bytes) => freed += bytes,
                Err(error) => tracing::warn!(%error, "native files can't be deleted"),
            }
        }
        freed
    }
}
