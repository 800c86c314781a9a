//! A NAR's bytes held against a tree while they pass: everything but the files' contents is known
//! beforehand, since the layout is a pure function of the tree.
//!
//! Source of the format: `dump` in Nix's `libutil/archive.cc`; see [`super::layout`].

use std::{collections::VecDeque, ops::Range, sync::Arc};

use sha2::{Digest, Sha256};

use super::{
    EntryIndex, Node, Tree,
    layout::NAR_MAGIC,
    shown,
    walk::{Place, Step, Walk},
};

/// Where a NAR is not as its tree says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset} of the NAR, at {path}, is not what the listing implies")]
pub struct Mismatch {
    /// Offset in the NAR of the first byte that differs.
    pub offset: u64,
    /// The entry it belongs to.
    pub path: String,
}

/// A stretch of a NAR.
enum Stretch {
    /// Bytes that the tree determines.
    Known(Vec<u8>),
    /// That many bytes of a file.
    Contents(u64),
}

impl Stretch {
    fn len(&self) -> u64 {
        match self {
            Stretch::Known(bytes) => bytes.len() as u64,
            Stretch::Contents(len) => *len,
        }
    }
}

/// Checks a NAR that comes in pieces, from any offset on.
pub struct SkeletonCheck {
    tree: Arc<Tree>,
    steps: Box<dyn Iterator<Item = Step> + Send>,
    /// What comes next; `done` bytes of the first of them have passed.
    coming: VecDeque<Stretch>,
    done: u64,
    entry: u32,
    position: u64,
}

impl SkeletonCheck {
    /// A check of the NAR's bytes from offset `at` on.
    pub fn new(tree: Arc<Tree>, at: u64) -> Self {
        let places = tree.clone();
        let steps = Walk::new(move |entry| Place {
            parent: places.parent(EntryIndex(entry)).0,
            children: match places.node(EntryIndex(entry)) {
                Some(Node::Directory { children }) => Some(children),
                _ => None,
            },
        });
        let mut magic = Vec::new();
        token(&mut magic, NAR_MAGIC);
        let mut check = Self {
            tree,
            steps: Box::new(steps),
            coming: [Stretch::Known(magic)].into(),
            done: 0,
            entry: 0,
            position: 0,
        };
        while check.position < at && check.ready() {
            let n = check.left().min(at - check.position);
            check.pass(n);
        }
        check
    }

    /// Bytes left of the stretch that comes next.
    fn left(&self) -> u64 {
        self.coming.front().map_or(0, Stretch::len) - self.done
    }

    fn pass(&mut self, n: u64) {
        self.done += n;
        self.position += n;
    }

    /// Brings up the next stretch that is not empty; false at the tree's end.
    fn ready(&mut self) -> bool {
        while self.left() == 0 {
            self.coming.pop_front();
            self.done = 0;
            if self.coming.is_empty() {
                let Some(step) = self.steps.next() else {
                    return false;
                };
                self.lay_out(step);
            }
        }
        true
    }

    fn lay_out(&mut self, step: Step) {
        let mut bytes = Vec::new();
        match step {
            Step::Enter(entry, _) => {
                self.entry = entry;
                let entry = EntryIndex(entry);
                open(&self.tree, entry, &mut bytes);
                match self.tree.node(entry) {
                    Some(Node::Regular { size, .. }) => {
                        self.coming
                            .push_back(Stretch::Known(std::mem::take(&mut bytes)));
                        self.coming.push_back(Stretch::Contents(size));
                        bytes.resize(padding(size), 0);
                        close(entry, &mut bytes);
                    }
                    Some(Node::Symlink { .. }) => close(entry, &mut bytes),
                    _ => {}
                }
            }
            Step::Leave(entry) => close(EntryIndex(entry), &mut bytes),
        }
        self.coming.push_back(Stretch::Known(bytes));
    }

    /// The next bytes of the NAR.
    ///
    /// # Errors
    /// The first byte that the tree does not allow.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), Mismatch> {
        while !bytes.is_empty() {
            if !self.ready() {
                return Err(self.mismatch(0));
            }
            let n = bytes
                .len()
                .min(usize::try_from(self.left()).unwrap_or(usize::MAX));
            let (now, rest) = bytes.split_at(n);
            if let Some(Stretch::Known(known)) = self.coming.front() {
                let expected = &known[self.done as usize..];
                if let Some(at) = expected.iter().zip(now).position(|(a, b)| a != b) {
                    return Err(self.mismatch(at as u64));
                }
            }
            self.pass(n as u64);
            bytes = rest;
        }
        Ok(())
    }

    /// Says that the NAR ended here.
    ///
    /// # Errors
    /// When the tree goes on.
    pub fn finish(mut self) -> Result<(), Mismatch> {
        if self.ready() {
            Err(self.mismatch(0))
        } else {
            Ok(())
        }
    }

    fn mismatch(&self, further: u64) -> Mismatch {
        Mismatch {
            offset: self.position + further,
            path: shown(&self.tree.path_of(EntryIndex(self.entry))),
        }
    }
}

/// SHA-256 of everything that a tree's NAR has besides the files' contents: names, kinds, sizes,
/// executable bits, link targets, and how they stand in order. Two trees with the same one have
/// the same bytes at the same places.
pub fn structure(tree: &Arc<Tree>) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut laid = SkeletonCheck::new(tree.clone(), 0);
    while laid.ready() {
        if let Some(Stretch::Known(bytes)) = laid.coming.front() {
            hash.update(bytes);
        }
        laid.pass(laid.left());
    }
    hash.finalize().into()
}

impl Tree {
    /// What stands in the NAR in front of a file's bytes (its name, type, executable bit and
    /// size), and where; `None` if the entry is no file.
    pub fn header_before(&self, entry: EntryIndex) -> Option<(Range<u64>, Vec<u8>)> {
        let Some(Node::Regular { offset, .. }) = self.node(entry) else {
            return None;
        };
        let mut bytes = Vec::new();
        open(self, entry, &mut bytes);
        Some((offset.checked_sub(bytes.len() as u64)?..offset, bytes))
    }
}

fn token(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
    out.resize(out.len() + padding(bytes.len() as u64), 0);
}

/// Zeros behind `len` bytes.
fn padding(len: u64) -> usize {
    (len.wrapping_neg() % 8) as usize
}

/// Everything of an entry's node up to its contents or its first child.
fn open(tree: &Tree, entry: EntryIndex, out: &mut Vec<u8>) {
    if entry != EntryIndex::ROOT {
        for word in ["entry", "(", "name"] {
            token(out, word.as_bytes());
        }
        token(out, tree.name(entry));
        token(out, b"node");
    }
    token(out, b"(");
    token(out, b"type");
    match tree.node(entry) {
        Some(Node::Regular {
            executable, size, ..
        }) => {
            token(out, b"regular");
            if executable {
                token(out, b"executable");
                token(out, b"");
            }
            token(out, b"contents");
            out.extend(size.to_le_bytes());
        }
        Some(Node::Symlink { target }) => {
            token(out, b"symlink");
            token(out, b"target");
            token(out, target);
        }
        _ => token(out, b"directory"),
    }
}

/// The end of an entry's node, and of its place in the directory that holds it.
fn close(entry: EntryIndex, out: &mut Vec<u8>) {
    token(out, b")");
    if entry != EntryIndex::ROOT {
        token(out, b")");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nix::{NarHasher, nar},
        tree::NarIndexer,
    };
    use proptest::prelude::*;

    /// A directory with a bit of everything, its NAR and its tree.
    fn example() -> (Vec<u8>, Arc<Tree>) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::create_dir_all(root.join("empty")).unwrap();
        std::fs::write(root.join("bin/tool"), [7u8; 100]).unwrap();
        std::fs::write(root.join("bin/nothing"), "").unwrap();
        std::fs::write(root.join("bin/eight"), "12345678").unwrap();
        std::os::unix::fs::symlink("bin/tool", root.join("link")).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(root.join("bin/tool"), PermissionsExt::from_mode(0o755)).unwrap();
        let mut bytes = Vec::new();
        nar::dump(&root, &mut bytes).unwrap();
        let mut hasher = NarHasher::new();
        hasher.update(&bytes);
        let mut indexer = NarIndexer::new();
        indexer.push(&bytes).unwrap();
        let tree = Tree::from_image(indexer.finish(hasher.finish()).unwrap()).unwrap();
        (bytes, Arc::new(tree))
    }

    #[test]
    fn headers_are_where_the_tree_says() {
        let (nar, tree) = example();
        for entry in (0..tree.len()).map(EntryIndex) {
            if let Some((range, bytes)) = tree.header_before(entry) {
                assert_eq!(&nar[range.start as usize..range.end as usize], bytes);
            }
        }
        assert!(
            tree.header_before(tree.resolve(b"bin/tool").unwrap())
                .is_some()
        );
        assert!(tree.header_before(tree.resolve(b"bin").unwrap()).is_none());
    }

    proptest! {
        #[test]
        fn the_right_nar_passes_from_any_offset(at in 0usize..2000, chunk in 1usize..400) {
            let (nar, tree) = example();
            let at = at.min(nar.len());
            let mut check = SkeletonCheck::new(tree, at as u64);
            for piece in nar[at..].chunks(chunk) {
                check.push(piece).unwrap();
            }
            check.finish().unwrap();
        }

        #[test]
        fn a_changed_byte_is_found_unless_it_is_a_files(at in 0usize..2000) {
            let (mut nar, tree) = example();
            let at = at % nar.len();
            nar[at] ^= 1;
            let in_a_file = (0..tree.len()).any(|e| match tree.node(EntryIndex(e)) {
                Some(Node::Regular { offset, size, .. }) => (offset..offset + size).contains(&(at as u64)),
                _ => false,
            });
            let mut check = SkeletonCheck::new(tree, 0);
            let result = check.push(&nar);
            prop_assert_eq!(result.is_ok(), in_a_file);
            if let Err(e) = result {
                prop_assert_eq!(e.offset, at as u64);
            }
        }
    }

    #[test]
    fn a_nar_that_stops_or_goes_on_is_found() {
        let (nar, tree) = example();
        let mut check = SkeletonCheck::new(tree.clone(), 0);
        check.push(&nar[..nar.len() - 8]).unwrap();
        assert!(check.finish().is_err());
        let mut check = SkeletonCheck::new(tree, 0);
        check.push(&nar).unwrap();
        assert!(check.push(b"x").is_err());
    }
}
