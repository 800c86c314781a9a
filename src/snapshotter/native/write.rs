//! Writing copies and trees.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    },
    path::Path,
    sync::Arc,
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, setxattr, syncfs, utimensat};

use crate::{
    snapshotter::mounts::Overlay,
    store::{Path as Known, Store},
    tree::{EntryIndex, Node},
};

/// Read at a time.
pub(super) const STEP: u64 = 1 << 20;
/// Files of at most so many bytes lie in the tree itself: a block, as the attributes that would say where they are.
const SMALL: u64 = 4096;
/// Seconds since 1970 that everything in a Nix store was changed at.
const MTIME: i64 = 1;

pub(super) struct Writer<'a> {
    pub store: &'a Store,
    pub overlay: Overlay,
}

/// Whether a file's content is a copy beside the tree.
pub(super) fn is_apart(size: u64) -> bool {
    size > SMALL
}

impl Writer<'_> {
    /// Writes the copies of a path's files to `to`; nothing if it has none that need one.
    pub fn copy(&self, path: &Arc<Known>, to: &Path) -> io::Result<()> {
        self.copy_entry(path, EntryIndex::ROOT, to)
    }

    fn copy_entry(&self, path: &Arc<Known>, entry: EntryIndex, to: &Path) -> io::Result<()> {
        match path.tree.node(entry) {
            Some(Node::Directory { children }) => {
                for child in children.map(EntryIndex) {
                    self.copy_entry(path, child, &to.join(named(path, child)))?;
                }
                Ok(())
            }
            Some(Node::Regular {
                executable, size, ..
            }) if is_apart(size) => {
                if let Some(directory) = to.parent() {
                    fs::create_dir_all(directory)?;
                }
                self.file(path, entry, size, executable, to)
            }
            _ => Ok(()),
        }
    }

    /// Writes a tree of these paths to `to`.
    pub fn tree(&self, paths: &[Arc<Known>], to: &Path) -> io::Result<()> {
        let store = to.join("nix/store");
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&store)?;
        for path in paths {
            let name = path.store_path.to_string();
            let content = format!("/{name}").into_bytes();
            self.tree_entry(path, EntryIndex::ROOT, &store.join(&name), &content)?;
        }
        for directory in [&store, &to.join("nix"), &to.to_path_buf()] {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o555))?;
            dated(directory)?;
        }
        Ok(())
    }

    /// `content` is the entry's path below the data-only lowers.
    fn tree_entry(
        &self,
        path: &Arc<Known>,
        entry: EntryIndex,
        to: &Path,
        content: &[u8],
    ) -> io::Result<()> {
        match path.tree.node(entry) {
            Some(Node::Directory { children }) => {
                DirBuilder::new().mode(0o755).create(to)?;
                for child in children.map(EntryIndex) {
                    let below = [content, b"/", path.tree.name(child)].concat();
                    self.tree_entry(path, child, &to.join(named(path, child)), &below)?;
                }
                fs::set_permissions(to, fs::Permissions::from_mode(0o555))?;
            }
            Some(Node::Regular {
                executable, size, ..
            }) if is_apart(size) => {
                let file = create(to, executable)?;
                file.set_len(size)?;
                self.attribute(to, "metacopy", b"")?;
                self.attribute(to, "redirect", content)?;
            }
            Some(Node::Regular {
                executable, size, ..
            }) => return self.file(path, entry, size, executable, to),
            Some(Node::Symlink { target }) => symlink(OsStr::from_bytes(target), to)?,
            None => return Err(io::Error::other("a tree without a root")),
        }
        dated(to)
    }

    /// A file with its content.
    fn file(
        &self,
        path: &Arc<Known>,
        entry: EntryIndex,
        size: u64,
        executable: bool,
        to: &Path,
    ) -> io::Result<()> {
        let mut file = create(to, executable)?;
        let mut at = 0;
        while at < size {
            let wanted = STEP.min(size - at);
            let read = self.store.read_file(path, entry, at, wanted as u32);
            let bytes = self.store.runtime().block_on(read);
            let bytes = bytes.map_err(io::Error::other)?;
            if bytes.len() as u64 != wanted {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all(&bytes)?;
            at += wanted;
        }
        drop(file);
        dated(to)
    }

    /// Sets an attribute of overlayfs.
    fn attribute(&self, path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
        let space = match self.overlay.userxattr {
            true => "user",
            false => "trusted",
        };
        let name = format!("{space}.overlay.{name}");
        Ok(setxattr(path, name, value, XattrFlags::CREATE)?)
    }
}

pub(super) fn named(path: &Known, entry: EntryIndex) -> &OsStr {
    OsStr::from_bytes(path.tree.name(entry))
}

fn create(path: &Path, executable: bool) -> io::Result<File> {
    let mode = if executable { 0o555 } else { 0o444 };
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path)?;
    // Whatever this process masks.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(file)
}

/// Gives it the time that everything in a Nix store has.
pub(super) fn dated(path: &Path) -> io::Result<()> {
    let time = Timespec {
        tv_sec: MTIME,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Makes hard links of what was copied once.
pub(super) fn link(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return fs::hard_link(from, to);
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        link(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Brings all of the directory's file system to the disk.
pub(super) fn sync(directory: &Path) -> io::Result<()> {
    Ok(syncfs(File::open(directory)?)?)
}
