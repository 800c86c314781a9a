//! A compiled tree, used in place.

use std::{
    fmt, io,
    ops::Range,
    path::{Path, PathBuf},
};

use crate::nix::NarHash;

use super::{
    Damage, Source,
    format::{Header, Kind},
    layout::Laid,
    map::Bytes,
    validate::{Parts, validate},
    walk::Walk,
};

/// The number of an entry in its tree; [`EntryIndex::ROOT`] is the tree itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryIndex(pub u32);

impl EntryIndex {
    /// The root.
    pub const ROOT: Self = Self(0);
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node<'a> {
    /// A directory.
    Directory {
        /// The numbers of its entries, which are sorted by the bytes of their names.
        children: Range<u32>,
    },
    /// A regular file.
    Regular {
        /// Whether it may be executed.
        executable: bool,
        /// Its bytes.
        size: u64,
        /// Where they begin in the NAR.
        offset: u64,
    },
    /// A symlink.
    Symlink {
        /// What it points to, as it is.
        target: &'a [u8],
    },
}

/// The names, sizes, links and offsets of one store path.
///
/// Checked when it was opened, so that nothing can fail later. Entries that do not exist are no
/// directory, have no name, and lie in the root.
pub struct Tree {
    bytes: Bytes,
    header: Header,
}

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The file cannot be read; this may mean that there is none.
    #[error("cannot read the index {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is no image, or no longer one. It can be made again from listing or NAR.
    #[error("the index {path} cannot be used, remove it to have it made again: {damage}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        damage: Damage,
    },
    /// The bytes are no image.
    #[error("the index cannot be used: {0}")]
    Image(#[from] Damage),
}

impl TreeError {
    /// Whether the reason is that there is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl Tree {
    /// Maps the image in the file at `path`, and checks all of it.
    ///
    /// The file must never be written to again: replace it by renaming another one over it.
    pub fn open(path: &Path) -> Result<Self, TreeError> {
        let bytes = Bytes::map(path).map_err(|source| TreeError::Io {
            path: path.into(),
            source,
        })?;
        Self::checked(bytes).map_err(|damage| TreeError::File {
            path: path.into(),
            damage,
        })
    }

    /// Uses the image in `bytes`, and checks all of it.
    pub fn from_image(bytes: Vec<u8>) -> Result<Self, TreeError> {
        Ok(Self::checked(Bytes::Owned(bytes))?)
    }

    fn checked(bytes: Bytes) -> Result<Self, Damage> {
        let header = validate(&bytes)?;
        Ok(Self { bytes, header })
    }

    /// The image, as [`super::format`] describes it.
    pub fn image(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the NAR that this is the tree of.
    pub fn nar_hash(&self) -> NarHash {
        self.header.nar_hash
    }

    /// Bytes of that NAR.
    pub fn nar_size(&self) -> u64 {
        self.header.nar_size
    }

    /// What it was compiled from.
    pub fn source(&self) -> Source {
        self.header.source
    }

    /// Number of entries, the root among them.
    #[allow(clippy::len_without_is_empty)] // There is always a root.
    pub fn len(&self) -> u32 {
        self.header.entries
    }

    /// What the entry is; `None` if there is no such entry.
    pub fn node(&self, entry: EntryIndex) -> Option<Node<'_>> {
        let parts = self.parts();
        Some(match parts.entry(entry.0)?.kind {
            Kind::Directory { first, count } => Node::Directory {
                children: first..first + count,
            },
            Kind::Regular {
                executable,
                size,
                offset,
            } => Node::Regular {
                executable,
                size,
                offset,
            },
            Kind::Symlink { at, len } => Node::Symlink {
                target: parts.string(at, len.into()),
            },
        })
    }

    /// The entry's name in its directory; empty for the root.
    pub fn name(&self, entry: EntryIndex) -> &[u8] {
        self.parts().name(entry.0)
    }

    /// The directory that holds the entry; the root's is the root.
    pub fn parent(&self, entry: EntryIndex) -> EntryIndex {
        EntryIndex(self.parts().entry(entry.0).map_or(0, |e| e.parent))
    }

    /// The entry by this name in a directory, in O(log n).
    pub fn lookup(&self, dir: EntryIndex, name: &[u8]) -> Option<EntryIndex> {
        let Some(Node::Directory {
            children:
                Range {
                    start: mut low,
                    end: mut high,
                },
        }) = self.node(dir)
        else {
            return None;
        };
        let parts = self.parts();
        while low < high {
            let middle = low + (high - low) / 2;
            match parts.name(middle).cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(EntryIndex(middle)),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The entry at a path from the root, `a/b/c`; symlinks are not followed.
    ///
    /// The empty path is the root; slashes at the ends and doubled ones do not matter.
    pub fn resolve(&self, path: &[u8]) -> Option<EntryIndex> {
        path.split(|b| *b == b'/')
            .filter(|name| !name.is_empty())
            .try_fold(EntryIndex::ROOT, |dir, name| self.lookup(dir, name))
    }

    /// The path of an entry from the root, `a/b/c`; the root's is empty.
    pub fn path_of(&self, entry: EntryIndex) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = entry;
        while at != EntryIndex::ROOT {
            names.push(self.name(at));
            at = self.parent(at);
        }
        names.reverse();
        names.join(&b'/')
    }

    pub(super) fn parts(&self) -> Parts<'_> {
        Parts::split(&self.bytes, self.header.entries)
    }

    /// Depth first, as the NAR has it.
    pub(super) fn walk(&self) -> impl Iterator<Item = super::walk::Step> + '_ {
        let parts = self.parts();
        Walk::new(move |entry| parts.place(entry))
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tree({}, {} entries)", self.nar_hash(), self.len())
    }
}
