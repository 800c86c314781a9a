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
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{
    closures::view_name,
    directories::{Directories, remove},
    error::SnapshotError,
    mounts::Overlay,
    record::SnapshotId,
};
use crate::store::Store;

mod check;
mod make;
mod probe;
mod stock;
mod write;

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
    /// Files of copies that were mended.
    mended: AtomicU64,
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
            mended: AtomicU64::new(0),
            root,
        };
        native.take_stock()?;
        let native = Arc::new(native);
        store.set_beside(native.clone());
        Ok(Some(native))
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

    /// How many files of copies were not what was fetched, and were mended.
    pub fn mended(&self) -> u64 {
        self.mended.load(Relaxed)
    }

    /// Where the content of a layer's tree is: first come copies, then the view.
    pub fn data(&self, id: SnapshotId) -> [PathBuf; 2] {
        let view = self.directories.view(id);
        [self.files(id), view.join("nix/store")]
    }

    fn files(&self, id: SnapshotId) -> PathBuf {
        self.root.join("files").join(id.to_string())
    }
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
    fn names_of_trees() {
        assert_eq!(parse_tree("12.3"), Some((SnapshotId(12), 3)));
        for other in ["12", "x.1", "1.x", ".", "1.2.3"] {
            assert_eq!(parse_tree(other), None, "{other}");
        }
    }
}
