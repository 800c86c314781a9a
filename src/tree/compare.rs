//! The first difference between two trees: what a listing claimed and what the NAR held.

use std::{cmp::Ordering, fmt};

use super::{EntryIndex, Node, Tree, shown};

/// How an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Differs {
    /// Only the first tree has it.
    Missing,
    /// Only the second tree has it.
    Unexpected,
    /// Directory in one, file or symlink in the other.
    Kind,
    /// Executable in one of them only.
    Executable,
    /// Sizes in the first and in the second tree.
    Size(u64, u64),
    /// Symlinks to different targets.
    Target,
}

/// Where two trees differ first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The entry, as a path from the root.
    pub path: Vec<u8>,
    /// How it differs.
    pub what: Differs,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", shown(&self.path))?;
        match self.what {
            Differs::Missing => f.write_str("missing in the second"),
            Differs::Unexpected => f.write_str("missing in the first"),
            Differs::Kind => f.write_str("of different kinds"),
            Differs::Executable => f.write_str("executable in one only"),
            Differs::Size(ours, theirs) => {
                write!(f, "{ours} bytes in the first, {theirs} in the second")
            }
            Differs::Target => f.write_str("symlinks to different targets"),
        }
    }
}

impl std::error::Error for Difference {}

impl Tree {
    /// Whether both have the same entries, with the same kinds, sizes, bits and targets.
    ///
    /// Hash, source and the sizes of the NARs are not compared: equal entries make equal layouts.
    pub fn same_as(&self, other: &Self) -> Result<(), Difference> {
        // Both are numbered breadth first: as long as nothing differs, equal numbers mean the
        // same entry.
        for entry in (0..self.len().max(other.len())).map(EntryIndex) {
            let (Some(ours), Some(theirs)) = (self.node(entry), other.node(entry)) else {
                // Cannot be reached: a surplus entry is seen in its directory.
                return Err(Difference {
                    path: self.path_of(entry),
                    what: Differs::Kind,
                });
            };
            let differ = |what| {
                Err(Difference {
                    path: self.path_of(entry),
                    what,
                })
            };
            match (ours, theirs) {
                (Node::Directory { children: a }, Node::Directory { children: b }) => {
                    self.same_names(other, a, b)?;
                }
                (
                    Node::Regular {
                        executable: x,
                        size: a,
                        ..
                    },
                    Node::Regular {
                        executable: y,
                        size: b,
                        ..
                    },
                ) => {
                    if a != b {
                        return differ(Differs::Size(a, b));
                    }
                    if x != y {
                        return differ(Differs::Executable);
                    }
                }
                (Node::Symlink { target: a }, Node::Symlink { target: b }) => {
                    if a != b {
                        return differ(Differs::Target);
                    }
                }
                _ => return differ(Differs::Kind),
            }
        }
        Ok(())
    }

    fn same_names(
        &self,
        other: &Self,
        ours: std::ops::Range<u32>,
        theirs: std::ops::Range<u32>,
    ) -> Result<(), Difference> {
        let (mut ours, mut theirs) = (ours.map(EntryIndex), theirs.map(EntryIndex));
        loop {
            let only_ours = |e| Difference {
                path: self.path_of(e),
                what: Differs::Missing,
            };
            let only_theirs = |e| Difference {
                path: other.path_of(e),
                what: Differs::Unexpected,
            };
            match (ours.next(), theirs.next()) {
                (None, None) => return Ok(()),
                (Some(a), None) => return Err(only_ours(a)),
                (None, Some(b)) => return Err(only_theirs(b)),
                (Some(a), Some(b)) => match self.name(a).cmp(other.name(b)) {
                    Ordering::Equal => {}
                    Ordering::Less => return Err(only_ours(a)),
                    Ordering::Greater => return Err(only_theirs(b)),
                },
            }
        }
    }
}
