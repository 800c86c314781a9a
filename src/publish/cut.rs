//! Where a NAR is cut into chunks: where files begin, so that reading a file fetches what is of it,
//! and so that the same file gives the same chunks in the next version of its package.
//!
//! A file of half a chunk or more begins a chunk of its own, together with its name, and is cut
//! every [`Size`] bytes; what is left at its end stays with the chunk in front of it if it is less
//! than half a one. Smaller files are grouped, up to a chunk's size. Some files end a group early,
//! by their name and size: after a file came in or went, the groups behind it are soon the same as
//! before.
//!
//! Pure.

use std::hash::{BuildHasher, Hasher};

use crate::tree::{EntryIndex, Node, Tree};

/// Size of a chunk, in unpacked bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(u32);

impl Size {
    /// Smallest. Below it compression suffers, and every chunk costs 52 bytes of tables.
    pub const SMALLEST: u32 = 16 << 10;
    /// Largest. Above it a reader of one file fetches what is of no use to him.
    pub const LARGEST: u32 = 4 << 20;
    /// What is taken unless the user says otherwise; see `docs/publish.md` for what was measured.
    pub const USUAL: Self = Self(256 << 10);

    /// A chunk of so many bytes, if one may have so many.
    pub fn new(bytes: u64) -> Option<Self> {
        let bytes = u32::try_from(bytes).ok()?;
        (Self::SMALLEST..=Self::LARGEST)
            .contains(&bytes)
            .then_some(Self(bytes))
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0.into()
    }
}

/// A group may end early once it has this part of a chunk's size.
const EARLY: u64 = 4;
/// One in so many files ends a group that may end early.
const ONE_IN: u64 = 4;

/// Where each chunk of the tree's NAR ends, in order; the last is the NAR's end.
pub fn cut(tree: &Tree, size: Size) -> Vec<u64> {
    let size = size.bytes();
    let mut cuts = Cuts {
        ends: Vec::new(),
        begun: 0,
    };
    let mut files: Vec<_> = (0..tree.len())
        .map(EntryIndex)
        .filter_map(|entry| match tree.node(entry)? {
            Node::Regular { size, offset, .. } if size > 0 => Some((offset, size, entry)),
            _ => None,
        })
        .collect();
    files.sort_unstable_by_key(|(offset, ..)| *offset);
    // Whether the next file begins a chunk.
    let mut begins = false;
    for (offset, len, entry) in files {
        let header = tree
            .header_before(entry)
            .map_or(offset, |(range, _)| range.start);
        let end = offset + len;
        if len >= size / 2 {
            cuts.at(header);
            let pieces = ((len + size / 2) / size).max(1);
            for piece in 1..pieces {
                cuts.at(offset + piece * size);
            }
            begins = true;
        } else {
            if begins || end - cuts.begun > size {
                cuts.at(header);
            }
            begins = end - cuts.begun >= size / EARLY && ends_early(tree.name(entry), len);
        }
    }
    cuts.at(tree.nar_size());
    cuts.ends
}

struct Cuts {
    ends: Vec<u64>,
    /// Where the present chunk begins.
    begun: u64,
}

impl Cuts {
    fn at(&mut self, end: u64) {
        if end > self.begun {
            self.ends.push(end);
            self.begun = end;
        }
    }
}

/// Whether a file ends its group: a function of what stays the same from version to version.
fn ends_early(name: &[u8], size: u64) -> bool {
    let mut hasher = twox_hash::xxhash64::State::with_seed(0).build_hasher();
    hasher.write(name);
    hasher.write(&size.to_le_bytes());
    hasher.finish().is_multiple_of(ONE_IN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{nix::NarHash, tree::compile_listing};

    fn tree(files: &[(&str, u64)]) -> Tree {
        let entry = |(name, size): &(&str, u64)| {
            format!("\"{name}\":{{\"type\":\"regular\",\"size\":{size}}}")
        };
        let entries: Vec<_> = files.iter().map(entry).collect();
        let json = format!(
            "{{\"version\":1,\"root\":{{\"type\":\"directory\",\"entries\":{{{}}}}}}}",
            entries.join(",")
        );
        // The size is not known before the tree is: the error tells it.
        let hash = NarHash::from_bytes([0; 32]);
        let mut size = 0;
        for _ in 0..2 {
            match compile_listing(json.as_bytes(), hash, size) {
                Ok(image) => return Tree::from_image(image).unwrap(),
                Err(error) => {
                    let text = error.to_string();
                    let numbers = text.split(|c: char| !c.is_ascii_digit());
                    size = numbers.filter_map(|n| n.parse().ok()).max().unwrap();
                }
            }
        }
        panic!("no tree of {files:?}");
    }

    const SIZE: u64 = 256 << 10;

    fn at_usual(tree: &Tree) -> Vec<u64> {
        cut(tree, Size::USUAL)
    }

    #[test]
    fn chunks_cover_the_nar_and_are_of_a_size() {
        let tree = tree(&[
            ("a", 10),
            ("b", 5 << 20),
            ("c", 0),
            ("d", SIZE / 2),
            ("e", 100),
        ]);
        let ends = at_usual(&tree);
        assert_eq!(ends.last(), Some(&tree.nar_size()));
        let mut begun = 0;
        for end in ends {
            assert!(end > begun && end - begun <= SIZE * 3 / 2 + 1024);
            begun = end;
        }
    }

    #[test]
    fn a_large_file_has_its_chunks_for_itself() {
        let tree = tree(&[("a", 10), ("b", SIZE * 2 + 5), ("c", 10)]);
        let b = tree.resolve(b"b").unwrap();
        let Some(Node::Regular { offset, .. }) = tree.node(b) else {
            panic!()
        };
        let begins = |name: &[u8]| {
            tree.header_before(tree.resolve(name).unwrap())
                .unwrap()
                .0
                .start
        };
        assert_eq!(
            at_usual(&tree),
            [begins(b"b"), offset + SIZE, begins(b"c"), tree.nar_size()]
        );
    }

    #[test]
    fn small_files_share_a_chunk() {
        let files: Vec<_> = (0..1000).map(|n| (format!("{n:04}"), 1000)).collect();
        let files: Vec<_> = files
            .iter()
            .map(|(name, size)| (name.as_str(), *size))
            .collect();
        let tree = tree(&files);
        let few = tree.nar_size().div_ceil(SIZE);
        let ends = at_usual(&tree);
        assert!(
            (few as usize..=few as usize * 4).contains(&ends.len()),
            "{}",
            ends.len()
        );
    }

    #[test]
    fn what_stands_behind_a_new_file_is_soon_cut_as_before() {
        let names: Vec<_> = (0..3000).map(|n| format!("{n:04}")).collect();
        let mut files: Vec<_> = names.iter().map(|name| (name.as_str(), 900)).collect();
        let before = tree(&files);
        files.insert(100, ("0099a", 5000));
        let after = tree(&files);
        let from_end = |tree: &Tree| -> Vec<u64> {
            let ends = at_usual(tree);
            ends.iter().map(|end| tree.nar_size() - end).collect()
        };
        let (before, after) = (from_end(&before), from_end(&after));
        let same = before.iter().filter(|end| after.contains(end)).count();
        assert!(same * 4 > before.len() * 3, "{same} of {}", before.len());
    }
}
