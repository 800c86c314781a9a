//! Changes of a root file system, done twice: in a mounted snapshot, and in one flat directory that
//! never was anything else. What the snapshots show has to be what the flat directory is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsString,
    fs,
    io::ErrorKind,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::{
    CWD, FileType, Mode, XattrFlags, lgetxattr, llistxattr, lremovexattr, lsetxattr, makedev,
    mknodat,
};

use crate::snapshotter::{Labels, Root, Snapshotter};

/// A change. Paths are relative to the root.
#[derive(Debug, Clone)]
pub enum Change {
    /// A file with this content and mode; one that is there is written anew in its place.
    File(&'static str, Vec<u8>, u32),
    /// A directory with this mode.
    Dir(&'static str, u32),
    /// Whatever it is, with all that is in it.
    Remove(&'static str),
    /// As mv(1) does it: where rename(2) can't, what is there is copied.
    Move(&'static str, &'static str),
    /// User and group.
    Chown(&'static str, u32, u32),
    /// All twelve bits.
    Chmod(&'static str, u32),
    /// A second name of a file: the old one, the new one.
    Link(&'static str, &'static str),
    /// A symbolic link: what it holds, its name.
    Symlink(&'static str, &'static str),
    /// An extended attribute.
    Xattr(&'static str, &'static str, &'static [u8]),
    /// No such attribute any more.
    NoXattr(&'static str, &'static str),
    /// A device node: character or block, major, minor.
    Device(&'static str, FileType, u32, u32),
    /// A named pipe.
    Fifo(&'static str),
}

pub use Change::*;

/// A file with this text, 0644.
pub fn file(path: &'static str, text: &str) -> Change {
    File(path, text.into(), 0o644)
}

/// Makes the changes, in their order.
pub fn apply(root: &Path, changes: &[Change]) {
    for change in changes {
        apply_one(root, change);
    }
}

fn apply_one(root: &Path, change: &Change) {
    let at = |path: &str| root.join(path);
    let set_mode = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode));
    let done = match change {
        File(path, bytes, mode) => {
            fs::write(at(path), bytes).and_then(|()| set_mode(&at(path), *mode))
        }
        Dir(path, mode) => fs::create_dir(at(path)).and_then(|()| set_mode(&at(path), *mode)),
        Remove(path) => match fs::symlink_metadata(at(path)) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(at(path)),
            Ok(_) => fs::remove_file(at(path)),
            Err(e) => Err(e),
        },
        Move(from, to) => match fs::rename(at(from), at(to)) {
            Err(e) if e.kind() == ErrorKind::CrossesDevices => {
                let moved = Command::new("mv").arg(at(from)).arg(at(to)).status();
                assert!(moved.expect("mv is there").success(), "{change:?}");
                Ok(())
            }
            moved => moved,
        },
        Chown(path, user, group) => lchown(at(path), Some(*user), Some(*group)),
        Chmod(path, mode) => set_mode(&at(path), *mode),
        Link(old, new) => fs::hard_link(at(old), at(new)),
        Symlink(target, path) => symlink(target, at(path)),
        Xattr(path, name, value) => {
            lsetxattr(at(path), *name, value, XattrFlags::empty()).map_err(Into::into)
        }
        NoXattr(path, name) => lremovexattr(at(path), *name).map_err(Into::into),
        Device(path, kind, major, minor) => {
            let device = makedev(*major, *minor);
            mknodat(CWD, at(path), *kind, Mode::from_raw_mode(0o640), device).map_err(Into::into)
        }
        Fifo(path) => mknodat(CWD, at(path), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .map_err(Into::into),
    };
    done.unwrap_or_else(|e| panic!("{change:?} in {}: {e}", root.display()));
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File(Vec<u8>),
    Link(PathBuf),
    Device(u64),
    Other(&'static str),
}

/// All that a program can see of it, but times and numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Its other names.
    same: BTreeSet<PathBuf>,
}

/// A tree by relative paths; the root is the empty one.
pub type Picture = BTreeMap<PathBuf, Seen>;

/// Looks at all of a tree.
pub fn picture(root: &Path) -> Picture {
    let mut found = Picture::new();
    let mut linked: HashMap<(u64, u64), BTreeSet<PathBuf>> = HashMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let at = root.join(&path);
        let fail = |e| -> ! { panic!("{}: {e}", at.display()) };
        let meta = fs::symlink_metadata(&at).unwrap_or_else(|e| fail(e));
        let kind = meta.file_type();
        if meta.is_dir() {
            for entry in fs::read_dir(&at).unwrap_or_else(|e| fail(e)) {
                todo.push(path.join(entry.unwrap_or_else(|e| fail(e)).file_name()));
            }
        } else if meta.nlink() > 1 {
            let inode = (meta.dev(), meta.ino());
            linked.entry(inode).or_default().insert(path.clone());
        }
        let kind = match () {
            () if kind.is_dir() => Kind::Directory,
            () if kind.is_file() => Kind::File(fs::read(&at).unwrap_or_else(|e| fail(e))),
            () if kind.is_symlink() => Kind::Link(fs::read_link(&at).unwrap_or_else(|e| fail(e))),
            () if kind.is_char_device() || kind.is_block_device() => Kind::Device(meta.rdev()),
            () if kind.is_fifo() => Kind::Other("fifo"),
            () => Kind::Other("socket"),
        };
        let seen = Seen {
            kind,
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            xattrs: xattrs(&at),
            same: BTreeSet::new(),
        };
        found.insert(path, seen);
    }
    for names in linked.values() {
        for name in names {
            let same = names.iter().filter(|other| *other != name).cloned();
            found.get_mut(name).expect("it was found").same = same.collect();
        }
    }
    found
}

fn xattrs(at: &Path) -> BTreeMap<OsString, Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let mut names = vec![0; 1 << 16];
    let length = match llistxattr(at, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(e) => panic!("attributes of {}: {e}", at.display()),
    };
    let names = names[..length].split(|b| *b == 0).filter(|n| !n.is_empty());
    let value = |name: &[u8]| {
        let name = std::ffi::OsStr::from_bytes(name);
        let mut value = vec![0; 1 << 16];
        let length = lgetxattr(at, name, &mut value[..])
            .unwrap_or_else(|e| panic!("{} of {}: {e}", name.display(), at.display()));
        (name.to_owned(), value[..length].to_vec())
    };
    names.map(value).collect()
}

/// Fails with the first differences.
pub fn assert_same(what: &str, found: &Picture, wanted: &Picture) {
    let all: BTreeSet<_> = found.keys().chain(wanted.keys()).collect();
    let differences = all.into_iter().filter_map(|path| {
        let (found, wanted) = (found.get(path), wanted.get(path));
        let path = path.display();
        (found != wanted).then(|| format!("/{path}:\n  {found:?}\n  wanted {wanted:?}"))
    });
    let differences: Vec<_> = differences.take(10).collect();
    assert!(
        differences.is_empty(),
        "{what}:\n{}",
        differences.join("\n")
    );
}

/// Layers made one on top of the other, and what a flat directory with the same changes was after
/// each of them.
pub struct Stack {
    /// Names of the committed snapshots, the lowest first.
    pub names: Vec<String>,
    /// What each shows.
    pub pictures: Vec<Picture>,
}

impl Stack {
    /// Commits a layer for each list of changes, and compares before, after and when it is
    /// committed; at the end once more, all of them.
    pub fn make(snapshotter: &Snapshotter, layers: &[Vec<Change>]) -> Self {
        Self::make_on(snapshotter, "", layers)
    }

    /// With another beginning of all names than none, so that there can be several.
    pub fn make_on(snapshotter: &Snapshotter, prefix: &str, layers: &[Vec<Change>]) -> Self {
        let flat = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(flat.path(), PermissionsExt::from_mode(0o755)).expect("mine");
        chown(flat.path(), Some(0), Some(0)).expect("mine");
        let mut stack = Self {
            names: Vec::new(),
            pictures: Vec::new(),
        };
        for (n, changes) in layers.iter().enumerate() {
            let parent = stack.names.last().cloned().unwrap_or_default();
            let key = format!("{prefix}active-{n}");
            let root = snapshotter.prepared(&key, &parent);
            let show = |what: &str, root: &Root| {
                let what = format!("layer {n}, {what}");
                assert_same(&what, &picture(root.path()), &picture(flat.path()));
            };
            show("before its changes", &root);
            apply(root.path(), changes);
            apply(flat.path(), changes);
            show("after its changes", &root);
            drop(root);
            let name = format!("{prefix}layer-{n}");
            let committed = snapshotter.commit(&name, &key, Labels::new());
            committed.unwrap_or_else(|e| panic!("Commit {name}: {e}"));
            stack.names.push(name);
            stack.pictures.push(picture(flat.path()));
        }
        stack.assert_unchanged(snapshotter);
        stack
    }

    /// Every layer shows what it did when it was committed.
    pub fn assert_unchanged(&self, snapshotter: &Snapshotter) {
        for (name, wanted) in self.names.iter().zip(&self.pictures) {
            let key = format!("view of {name}");
            let root = snapshotter.viewed(&key, name);
            assert_same(name, &picture(root.path()), wanted);
            drop(root);
            snapshotter.remove(&key).expect("nobody uses the view");
        }
    }

    /// The top of it.
    pub fn top(&self) -> &str {
        self.names.last().expect("there are layers")
    }
}
