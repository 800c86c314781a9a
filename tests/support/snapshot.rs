//! A directory tree as comparable data: names, kinds, modes, sizes, link targets, SHA-256.
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Directory,
    File {
        executable: bool,
        size: u64,
        sha256: [u8; 32],
    },
    Link(PathBuf),
}

/// A tree by paths relative to its root, which is the empty path.
pub type Snapshot = BTreeMap<PathBuf, Entry>;

/// Reads a tree, every byte of it.
pub fn snapshot(root: &Path) -> Snapshot {
    let mut found = Snapshot::new();
    visit(root, Path::new(""), &mut |path, at| {
        found.insert(path.to_owned(), entry(at));
    });
    found
}

/// Calls `each` with every path of a tree, relative and whole.
pub fn visit(root: &Path, inner: &Path, each: &mut dyn FnMut(&Path, &Path)) {
    let at = if inner.as_os_str().is_empty() {
        root.to_owned()
    } else {
        root.join(inner)
    };
    each(inner, &at);
    let kind = fs::symlink_metadata(&at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
    if kind.is_dir() {
        let entries = fs::read_dir(&at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
        for entry in entries {
            let name = entry
                .unwrap_or_else(|e| panic!("{}: {e}", at.display()))
                .file_name();
            visit(root, &inner.join(name), each);
        }
    }
}

/// What stands at `at`.
pub fn entry(at: &Path) -> Entry {
    let found = fs::symlink_metadata(at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
    if found.is_dir() {
        return Entry::Directory;
    }
    if found.is_symlink() {
        return Entry::Link(fs::read_link(at).unwrap_or_else(|e| panic!("{}: {e}", at.display())));
    }
    Entry::File {
        executable: found.mode() & 0o111 != 0,
        size: found.len(),
        sha256: hash(at),
    }
}

/// SHA-256 of a file, read in order.
pub fn hash(at: &Path) -> [u8; 32] {
    let failed = |e| panic!("{}: {e}", at.display());
    let mut file = File::open(at).unwrap_or_else(failed);
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 17]);
    loop {
        match file
            .read(&mut buffer)
            .unwrap_or_else(|e| panic!("{}: {e}", at.display()))
        {
            0 => return hasher.finalize().into(),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Fails with the first differences.
pub fn assert_same(what: &str, found: &Snapshot, wanted: &Snapshot) {
    let mut differences = Vec::new();
    for (path, entry) in wanted {
        match found.get(path) {
            Some(other) if other == entry => {}
            other => differences.push(format!("{}: {other:?}, not {entry:?}", path.display())),
        }
    }
    for path in found.keys().filter(|path| !wanted.contains_key(*path)) {
        differences.push(format!("{}: should not be there", path.display()));
    }
    differences.truncate(10);
    assert!(
        differences.is_empty(),
        "{what}:\n{}",
        differences.join("\n")
    );
}

/// Attributes as Nix has them, of everything in a tree.
pub fn assert_attributes(root: &Path) {
    visit(root, Path::new(""), &mut |_, at| {
        let found = fs::symlink_metadata(at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
        let kind = found.file_type();
        let mode = found.mode() & 0o7777;
        let right = match () {
            () if kind.is_dir() => mode == 0o555,
            () if kind.is_symlink() => mode == 0o777,
            () => mode == 0o444 || mode == 0o555,
        };
        let name = at.display();
        assert!(right, "{name}: mode {mode:o}");
        assert_eq!((found.uid(), found.gid()), (0, 0), "{name}");
        assert_eq!((found.mtime(), found.mtime_nsec()), (1, 0), "{name}");
        assert!(found.nlink() >= 1, "{name}");
        if kind.is_file() {
            assert_eq!(found.blocks(), found.len().div_ceil(512), "{name}");
        }
    });
}

/// The regular files of a tree, larger than empty.
pub fn files(tree: &Snapshot) -> Vec<PathBuf> {
    let full = |entry: &Entry| matches!(entry, Entry::File { size: 1.., .. });
    tree.iter()
        .filter(|(_, entry)| full(entry))
        .map(|(path, _)| path.clone())
        .collect()
}

/// Bytes of a file somewhere in the middle.
pub fn read_at(at: &Path, offset: u64, length: usize) -> Vec<u8> {
    let file = File::open(at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
    let mut bytes = vec![0; length];
    let mut have = 0;
    while have < length {
        let n = file
            .read_at(&mut bytes[have..], offset + have as u64)
            .unwrap_or_else(|e| panic!("{} at {offset}: {e}", at.display()));
        if n == 0 {
            break;
        }
        have += n;
    }
    bytes.truncate(have);
    bytes
}

/// A name of any bytes.
pub fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// The bytes of a path.
pub fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().to_owned().into_vec()
}

/// Numbers that look random and are the same each time.
pub struct Shuffle(pub u64);

impl Shuffle {
    /// The next one (splitmix64).
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}
