//! The directories of snapshots: `snapshots/ID/fs` with what a snapshot changes, beside it
//! `work` for overlayfs. Everything here touches the disk and is called on blocking threads.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, lchown},
    path::{Path, PathBuf},
};

use super::{
    closures::view_name,
    error::SnapshotError,
    record::{Kind, SnapshotId, Usage},
};

/// Where snapshots and views are.
#[derive(Debug, Clone)]
pub struct Directories {
    snapshots: PathBuf,
    views: PathBuf,
}

/// What lies in the directory of snapshots.
#[derive(Debug, Default)]
pub struct Found {
    /// Directories of snapshots.
    pub snapshots: HashSet<SnapshotId>,
    /// Anything else.
    pub strangers: Vec<PathBuf>,
}

/// Who owns a directory: user and group.
pub type Owner = (u32, u32);

impl Directories {
    /// Those of a state directory; `mountpoint` is where the store is mounted.
    pub fn new(root: &Path, mountpoint: &Path) -> Self {
        Self {
            snapshots: root.join("snapshots"),
            views: mountpoint.join("views"),
        }
    }

    /// Makes the directory that all are in; what is in it.
    pub(super) fn open(&self) -> Result<Found, SnapshotError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.snapshots)
            .map_err(|e| SnapshotError::io("create the directory", &self.snapshots, e))?;
        self.list()
    }

    /// What lies in the directory that all are in.
    pub(super) fn list(&self) -> Result<Found, SnapshotError> {
        let fail = |e| SnapshotError::io("list", &self.snapshots, e);
        let mut found = Found::default();
        for entry in fs::read_dir(&self.snapshots).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| {
                let id = name.parse().ok()?;
                // Not `007` or `+7`, which would be looked for under another name.
                (format!("{id}") == name).then_some(SnapshotId(id))
            });
            match id {
                Some(id) => drop(found.snapshots.insert(id)),
                None => found.strangers.push(entry.path()),
            }
        }
        Ok(found)
    }

    fn of(&self, id: SnapshotId) -> PathBuf {
        self.snapshots.join(id.to_string())
    }

    /// What a snapshot changes.
    pub fn fs(&self, id: SnapshotId) -> PathBuf {
        self.of(id).join("fs")
    }

    /// Overlayfs's own directory.
    pub fn work(&self, id: SnapshotId) -> PathBuf {
        self.of(id).join("work")
    }

    /// The root of a snapshot's view in the mount.
    pub fn view(&self, id: SnapshotId) -> PathBuf {
        self.view_named(&view_name(id))
    }

    /// The root of a view in the mount, by its name.
    pub(super) fn view_named(&self, name: &str) -> PathBuf {
        self.views.join(name)
    }

    /// Whether a snapshot has its directory.
    pub(super) fn exists(&self, id: SnapshotId) -> bool {
        fs::symlink_metadata(self.fs(id)).is_ok_and(|meta| meta.is_dir())
    }

    /// Makes the directories of a snapshot; its root belongs to `owner`, as its parent's does. Its
    /// mode is 0755 whatever the parent's is: so containerd has it, and images rely on it whose
    /// builders left a root that only root can enter.
    pub(super) fn make(
        &self,
        id: SnapshotId,
        kind: Kind,
        owner: Option<Owner>,
    ) -> Result<(), SnapshotError> {
        let make = |path: &Path, mode| {
            let made = DirBuilder::new().recursive(true).mode(mode).create(path);
            // The mode that was asked for, whatever this process masks.
            made.and_then(|()| {
                fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
            })
            .map_err(|e| SnapshotError::io("create the directory", path, e))
        };
        make(&self.of(id), 0o700)?;
        let root = self.fs(id);
        make(&root, 0o755)?;
        if let Some((user, group)) = owner {
            lchown(&root, Some(user), Some(group))
                .map_err(|e| SnapshotError::io("change the owner of", &root, e))?;
        }
        if kind == Kind::Active {
            make(&self.work(id), 0o711)?;
        }
        Ok(())
    }

    /// Who owns a snapshot's root.
    pub(super) fn owner(&self, id: SnapshotId) -> Result<Owner, SnapshotError> {
        let root = self.fs(id);
        let meta =
            fs::symlink_metadata(&root).map_err(|e| SnapshotError::io("look at", &root, e))?;
        Ok((meta.uid(), meta.gid()))
    }

    /// Deletes a snapshot's directories; those that are gone already are fine.
    pub(super) fn remove(&self, id: SnapshotId) -> Result<(), SnapshotError> {
        remove(&self.of(id))
    }

    /// What the changes of a snapshot take of the disk; each inode counts once.
    pub(super) fn usage(&self, id: SnapshotId) -> Result<Usage, SnapshotError> {
        let mut usage = Usage::default();
        let mut linked = HashSet::new();
        let mut directories = vec![self.fs(id)];
        let mut count = |meta: &fs::Metadata| {
            if meta.nlink() > 1 && !meta.is_dir() && !linked.insert((meta.dev(), meta.ino())) {
                return;
            }
            usage.size += meta.blocks() * 512;
            usage.inodes += 1;
        };
        let root = self.fs(id);
        let meta =
            fs::symlink_metadata(&root).map_err(|e| SnapshotError::io("look at", &root, e))?;
        count(&meta);
        while let Some(directory) = directories.pop() {
            let fail = |e| SnapshotError::io("list", &directory, e);
            let entries = match fs::read_dir(&directory) {
                // A container may be at work in it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(fail)?,
            };
            for entry in entries {
                let entry = entry.map_err(fail)?;
                let meta = match entry.metadata() {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    meta => meta.map_err(|e| SnapshotError::io("look at", entry.path(), e))?,
                };
                count(&meta);
                if meta.is_dir() {
                    directories.push(entry.path());
                }
            }
        }
        Ok(usage)
    }
}

/// Deletes a file or a directory with everything in it.
pub(super) fn remove(path: &Path) -> Result<(), SnapshotError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(SnapshotError::io("delete", path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories() -> (tempfile::TempDir, Directories) {
        let dir = tempfile::tempdir().unwrap();
        let directories = Directories::new(dir.path(), &dir.path().join("mnt"));
        directories.open().unwrap();
        (dir, directories)
    }

    #[test]
    fn makes_and_removes_them() {
        let (_dir, directories) = directories();
        let (active, view) = (SnapshotId(1), SnapshotId(12));
        directories.make(active, Kind::Active, None).unwrap();
        directories
            .make(view, Kind::View, Some((0, 0)))
            .unwrap_or_else(|e| {
                assert!(!rustix::process::geteuid().is_root(), "{e}");
            });
        assert!(directories.exists(active) && directories.work(active).is_dir());
        assert!(!directories.work(view).exists());
        let mode = fs::metadata(directories.fs(active)).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o755);
        fs::write(directories.snapshots.join("new-3"), "").unwrap();
        fs::create_dir(directories.snapshots.join("007")).unwrap();
        let found = directories.list().unwrap();
        assert_eq!(found.snapshots, HashSet::from([active, view]));
        assert_eq!(found.strangers.len(), 2);
        directories.remove(active).unwrap();
        directories.remove(active).unwrap();
        assert!(!directories.exists(active));
    }

    #[test]
    fn each_inode_counts_once() {
        let (_dir, directories) = directories();
        let id = SnapshotId(1);
        directories.make(id, Kind::Active, None).unwrap();
        let empty = directories.usage(id).unwrap();
        assert_eq!(empty.inodes, 1);
        let root = directories.fs(id);
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/f"), vec![1; 100_000]).unwrap();
        fs::hard_link(root.join("d/f"), root.join("g")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("l")).unwrap();
        let usage = directories.usage(id).unwrap();
        assert_eq!(usage.inodes, 4);
        assert!((100_000..300_000).contains(&usage.size), "{usage:?}");
        assert!(directories.usage(SnapshotId(2)).is_err());
    }
}
