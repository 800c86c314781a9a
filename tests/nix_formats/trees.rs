//! Random trees on disk, and comparing them with compiled ones.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::Path,
};

use narfs::tree::{EntryIndex, Node, Tree};

/// A generator of numbers that are the same in every run (SplitMix64).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// What a random tree may hold.
#[derive(Clone, Copy)]
pub struct Spec {
    /// Names and targets are UTF-8.
    pub utf8: bool,
}

/// Names that sort, escape or look in a way that matters.
const NAMES: &[&str] = &[
    "a",
    "a.b",
    "a-b",
    "ab",
    "A",
    "a b",
    " ",
    "\"",
    "\\",
    "\n",
    "\u{1}",
    "é",
    "\u{10ffff}",
    "~",
    ".hidden",
    "...",
    "-",
    "x~nix~case~hack~1",
    "{",
    "}",
    ":",
    "lib64",
    "\u{7f}",
    "\u{200b}",
];

fn name(rng: &mut Rng, spec: Spec) -> Vec<u8> {
    match rng.below(if spec.utf8 { 3 } else { 4 }) {
        0 => NAMES[rng.below(NAMES.len())].as_bytes().to_vec(),
        1 => format!("file-{}", rng.below(50)).into(),
        2 => vec![b'n'; 1 + rng.below(255)],
        _ => (0..1 + rng.below(20))
            .map(|_| 1 + rng.below(255) as u8)
            .map(|b| if b == b'/' { b'_' } else { b })
            .collect(),
    }
}

/// Makes a random tree, a directory, at `root`.
pub fn random(rng: &mut Rng, root: &Path, spec: Spec) {
    fs::create_dir(root).unwrap();
    fill(rng, root, spec, 0);
}

fn fill(rng: &mut Rng, dir: &Path, spec: Spec, depth: u32) {
    for _ in 0..rng.below(9) {
        let path = dir.join(OsStr::from_bytes(&name(rng, spec)));
        if path.file_name().is_none() || path.symlink_metadata().is_ok() {
            continue;
        }
        match rng.below(if depth < 5 { 6 } else { 4 }) {
            0 => {
                let target = name(rng, spec).repeat(1 + rng.below(10));
                std::os::unix::fs::symlink(OsStr::from_bytes(&target), &path).unwrap();
            }
            kind @ 1..=3 => {
                let size = [0, 1, 7, 8, 9, 4096, 70_000][rng.below(7)];
                let contents: Vec<u8> = (0..size).map(|_| rng.next() as u8).collect();
                fs::write(&path, contents).unwrap();
                let mode = if kind == 1 { 0o755 } else { 0o644 };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
            _ => {
                fs::create_dir(&path).unwrap();
                fill(rng, &path, spec, depth + 1);
            }
        }
    }
}

/// Holds every entry of a tree against the file system, its bytes taken out of the NAR.
pub fn assert_same(tree: &Tree, nar: &[u8], root: &Path) {
    let mut seen = 0;
    let mut open = vec![(EntryIndex::ROOT, root.to_path_buf())];
    while let Some((entry, path)) = open.pop() {
        seen += 1;
        let meta = path.symlink_metadata().unwrap();
        match tree.node(entry).unwrap() {
            Node::Directory { children } => {
                assert!(meta.is_dir(), "{path:?}");
                let mut names: Vec<_> = fs::read_dir(&path)
                    .unwrap()
                    .map(|e| e.unwrap().file_name().as_bytes().to_vec())
                    .collect();
                names.sort();
                let found: Vec<_> = children
                    .clone()
                    .map(|c| tree.name(EntryIndex(c)).to_vec())
                    .collect();
                assert_eq!(found, names, "{path:?}");
                for (child, name) in children.map(EntryIndex).zip(names) {
                    assert_eq!(tree.lookup(entry, &name), Some(child));
                    assert_eq!(tree.resolve(&tree.path_of(child)), Some(child));
                    open.push((child, path.join(OsStr::from_bytes(&name))));
                }
            }
            Node::Regular {
                executable,
                size,
                offset,
            } => {
                assert!(meta.is_file(), "{path:?}");
                assert_eq!(
                    executable,
                    meta.permissions().mode() & 0o100 != 0,
                    "{path:?}"
                );
                assert_eq!(size, meta.len(), "{path:?}");
                let bytes = &nar[offset as usize..][..size as usize];
                assert!(
                    bytes == fs::read(&path).unwrap(),
                    "{path:?}: other bytes at {offset}"
                );
            }
            Node::Symlink { target } => {
                assert_eq!(
                    target,
                    fs::read_link(&path).unwrap().as_os_str().as_bytes(),
                    "{path:?}"
                );
            }
        }
    }
    assert_eq!(seen, tree.len());
}
