//! Native files: what is here whole is read by containers from files of its own, by the kernel alone.
//!
//! A Nix layer at the bottom of its image gets, in the place of its view and its mountpoints, a *tree*: the names, sizes
//! and modes of those of its store paths that are whole and verified; above it a view of the others. The tree's files have no content but say by name where that is, in one of the overlay's data-only lowers: a
//! *copy* if there is one, else the layer's view. So a copy may go at any time, and what is not here yet is fetched as ever.
//!
//! | name | what |
//! |---|---|
//! | `native/trees/ID.N` | the N-th tree of the layer with this number; the newest is given to new containers |
//! | `native/files/ID/NAME` | copies of the files of a store path of that layer; of several layers hard links |
//! | `native/tmp/` | what is being made, before it gets its name; emptied at the start |
//!
//! Each layer has copies of its own paths only: what is in a data-only lower can be reached by any file of an image that
//! names it in its attributes, and a container is to see its closure and nothing else.
//!
//! A tree never changes and stays as long as its layer: containers have it. Copies count as kept content, and go first
//! when room is needed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    closures::view_name,
    directories::{Directories, remove},
    error::SnapshotError,
    mounts::Overlay,
    record::{NixLayer, SnapshotId},
    snapshots::{Core, blocking},
};
use crate::{
    nix::StorePath,
    store::{Beside, Path as Known, Store, StoreError, ViewName},
};

mod probe;
mod write;

/// How often layers are looked at. What is whole the same at two looks is made into a tree.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Most trees of one layer.
const MOST_TREES: u32 = 8;
/// A new tree has to bring so much more than the last: a fourth.
const WORTH: u64 = 4;
/// This part of the file system stays free, whatever the limits: one in so many.
const LEAVE_FREE: u64 = 20;

/// A tree that a layer has.
#[derive(Debug, Clone, Copy)]
struct Tree {
    number: u32,
    /// Store paths in it.
    paths: usize,
    /// Bytes of content that it names; not known of one that an earlier process made.
    content: Option<u64>,
}

/// Copies of a store path's files.
#[derive(Debug, Clone)]
struct Copy {
    allocated: u64,
    /// Layers that have them.
    layers: BTreeSet<SnapshotId>,
    /// In which order they were made.
    made: u64,
}

#[derive(Debug, Default)]
struct State {
    trees: HashMap<SnapshotId, Tree>,
    copies: BTreeMap<String, Copy>,
    /// What was whole of a layer at the last look: paths, bytes.
    seen: HashMap<SnapshotId, (usize, u64)>,
    made: u64,
}

/// The native files of a snapshotter.
pub struct Native {
    root: PathBuf,
    directories: Directories,
    overlay: Overlay,
    /// Whether trees are made and given to containers.
    on: bool,
    store: Store,
    state: Mutex<State>,
    allocated: AtomicU64,
}

impl fmt::Debug for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Native")
            .field("root", &self.root)
            .field("on", &self.on)
            .finish_non_exhaustive()
    }
}

impl Native {
    /// Those of a state directory; `None` where nobody wants any and none are left. `wanted` is what the
    /// configuration says; whether the kernel can do it is tried.
    ///
    /// # Errors
    /// When the directories can't be made or listed.
    pub fn open(
        root: &Path,
        directories: &Directories,
        overlay: Overlay,
        wanted: bool,
        store: &Store,
    ) -> Result<Option<Arc<Self>>, SnapshotError> {
        let root = root.join("native");
        if !wanted && !root.exists() {
            return Ok(None);
        }
        let tmp = root.join("tmp");
        probe::leave(&tmp);
        remove(&tmp)?;
        for name in ["tmp", "trees", "files"] {
            let path = root.join(name);
            fs::create_dir_all(&path)
                .map_err(|e| SnapshotError::io("create the directory", &path, e))?;
        }
        let on = wanted
            && match probe::works(&tmp, overlay) {
                Ok(()) => true,
                Err(why) => {
                    tracing::warn!(%why, "no native files: this kernel does not take data-only lowers as they are needed (Linux 6.16 does); containers read from the mount");
                    false
                }
            };
        let native = Self {
            directories: directories.clone(),
            overlay,
            on,
            store: store.clone(),
            state: Mutex::new(State::default()),
            allocated: AtomicU64::new(0),
            root,
        };
        native.take_stock()?;
        let native = Arc::new(native);
        store.set_beside(native.clone());
        Ok(Some(native))
    }

    /// What an earlier process left.
    fn take_stock(&self) -> Result<(), SnapshotError> {
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tree_path(&self, id: SnapshotId, number: u32) -> PathBuf {
        self.root.join("trees").join(format!("{id}.{number}"))
    }

    /// The newest tree of a layer, for a container that starts now, and above it the view of what is not in it.
    pub fn lowers(&self, id: SnapshotId) -> Option<[PathBuf; 2]> {
        let tree = *self.state().trees.get(&id).filter(|_| self.on)?;
        // Somebody may have tidied up.
        fs::create_dir_all(self.files(id)).ok()?;
        let rest = self.directories.view_named(&rest_name(id, tree.number));
        Some([rest, self.tree_path(id, tree.number)])
    }

    /// Where the content of a layer's tree is: first come copies, then the view.
    pub fn data(&self, id: SnapshotId) -> [PathBuf; 2] {
        let view = self.directories.view(id);
        [self.files(id), view.join("nix/store")]
    }

    fn files(&self, id: SnapshotId) -> PathBuf {
        self.root.join("files").join(id.to_string())
    }

    /// Looks at the layers from time to time, as long as the snapshotter lives.
    pub(super) fn keep(self: Arc<Self>, core: Weak<Core>) {
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

    /// Trees and copies of layers that are gone.
    fn sweep(&self, ids: &HashSet<SnapshotId>) -> Result<(), SnapshotError> {
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

    /// Deletes the copies of a path; whoever has one open keeps it, others read from the mount. What is freed.
    fn drop_copy(&self, name: &str) -> Result<u64, SnapshotError> {
        let Some(copy) = self.state().copies.remove(name) else {
            return Ok(0);
        };
        self.allocated.fetch_sub(copy.allocated, Relaxed);
        for id in copy.layers {
            remove(&self.files(id).join(name))?;
        }
        Ok(copy.allocated)
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

    fn remove_rest(&self, view: &ViewName) -> Result<(), SnapshotError> {
        let removed = self.store.runtime().block_on(self.store.remove_view(view));
        removed.map(drop).map_err(|source| SnapshotError::View {
            key: view.as_str().to_owned(),
            source,
        })
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

/// Name of the view of what is not in a tree.
fn rest_name(id: SnapshotId, number: u32) -> String {
    format!("{}.{number}", view_name(id))
}

/// `ID.N`.
fn parse_tree(name: &str) -> Option<(SnapshotId, u32)> {
    let (id, number) = name.split_once('.')?;
    Some((SnapshotId(id.parse().ok()?), number.parse().ok()?))
}

fn create(path: &Path) -> Result<(), SnapshotError> {
    fs::create_dir(path).map_err(|e| SnapshotError::io("create the directory", path, e))
}

fn rename(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    fs::rename(from, to).map_err(|e| SnapshotError::io("rename", from, e))
}

/// What lies in a directory, with its name.
fn listed(directory: &Path) -> Result<Vec<(PathBuf, String)>, SnapshotError> {
    let all = || -> io::Result<Vec<_>> {
        let entries = fs::read_dir(directory)?;
        let named = entries.map(|entry| {
            let entry = entry?;
            Ok((
                entry.path(),
                entry.file_name().to_string_lossy().into_owned(),
            ))
        });
        named.collect()
    };
    all().map_err(|e| SnapshotError::io("list", directory, e))
}

/// Bytes of disk that a file, or a directory with everything in it, takes.
fn allocated(path: &Path) -> Result<u64, SnapshotError> {
    use std::os::unix::fs::MetadataExt;
    let fail = |e| SnapshotError::io("look at", path, e);
    let meta = fs::symlink_metadata(path).map_err(fail)?;
    let mut total = meta.blocks() * 512;
    if meta.is_dir() {
        for (path, _) in listed(path)? {
            total += allocated(&path)?;
        }
    }
    Ok(total)
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

    #[test]
    fn names_of_trees() {
        assert_eq!(parse_tree("12.3"), Some((SnapshotId(12), 3)));
        for other in ["12", "x.1", "1.x", ".", "1.2.3"] {
            assert_eq!(parse_tree(other), None, "{other}");
        }
    }
}
