//! A tree while it is being compiled: entries as they come, then sorted, numbered and laid out.

use crate::nix::NarHash;

use super::{
    Source,
    format::{CHECKSUM_AT, ENTRY_LEN, Entry, HEADER_LEN, Header, Kind, checksum},
    layout::{Laid, Shape, layout},
    limits::{MAX_DEPTH, MAX_ENTRIES, MAX_STRINGS, Refusal, check_name, check_target},
    walk::Place,
};

/// What an entry turned out to be.
#[derive(Debug, Clone, Copy)]
pub(super) enum DraftKind {
    /// Also what an entry is until something else is known.
    Directory,
    /// `claimed`: where its bytes are said to stand in the NAR.
    Regular {
        executable: bool,
        size: u64,
        claimed: Option<u64>,
    },
    Symlink {
        at: u32,
        len: u16,
    },
}

#[derive(Debug, Clone)]
struct DraftEntry {
    parent: u32,
    depth: u16,
    name_len: u8,
    name_at: u32,
    kind: DraftKind,
}

/// The entries in the order in which they were found, every one after its directory.
#[derive(Debug)]
pub(super) struct Draft {
    entries: Vec<DraftEntry>,
    strings: Vec<u8>,
    /// [`MAX_ENTRIES`] and [`MAX_STRINGS`]; tests make do with less.
    max_entries: u32,
    max_strings: u32,
}

/// Why a draft does not make a tree; the path names the entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DraftError {
    Refused {
        path: Vec<u8>,
        refusal: Refusal,
    },
    /// A file's bytes are elsewhere than claimed.
    Offset {
        path: Vec<u8>,
        claimed: u64,
        computed: u64,
    },
    /// The NAR has another size than claimed.
    Total {
        claimed: u64,
        computed: u64,
    },
}

impl Draft {
    /// Adds the root, and gives its number.
    pub fn root() -> Self {
        let root = DraftEntry {
            parent: 0,
            depth: 0,
            name_len: 0,
            name_at: 0,
            kind: DraftKind::Directory,
        };
        Self {
            entries: vec![root],
            strings: Vec::new(),
            max_entries: MAX_ENTRIES,
            max_strings: MAX_STRINGS,
        }
    }

    /// Adds an entry to a directory, and gives its number.
    pub fn add(&mut self, parent: u32, name: &[u8]) -> Result<u32, Refusal> {
        check_name(name)?;
        let number = self.entries.len() as u32;
        if number >= self.max_entries {
            return Err(Refusal::TooManyEntries);
        }
        let depth = self.entries[parent as usize].depth + 1;
        if u32::from(depth) > MAX_DEPTH {
            return Err(Refusal::TooDeep);
        }
        let name_at = self.keep(name)?;
        let name_len = name.len() as u8;
        self.entries.push(DraftEntry {
            parent,
            depth,
            name_len,
            name_at,
            kind: DraftKind::Directory,
        });
        Ok(number)
    }

    /// Says what an entry is.
    pub fn set(&mut self, entry: u32, kind: DraftKind) {
        self.entries[entry as usize].kind = kind;
    }

    /// Says that an entry is a symlink.
    pub fn set_symlink(&mut self, entry: u32, target: &[u8]) -> Result<(), Refusal> {
        check_target(target)?;
        let at = self.keep(target)?;
        self.set(
            entry,
            DraftKind::Symlink {
                at,
                len: target.len() as u16,
            },
        );
        Ok(())
    }

    /// The name of an entry; empty for the root.
    pub fn name(&self, entry: u32) -> &[u8] {
        let e = &self.entries[entry as usize];
        &self.strings[e.name_at as usize..][..e.name_len.into()]
    }

    /// The path of an entry, for messages.
    pub fn path(&self, mut entry: u32) -> Vec<u8> {
        let mut names = Vec::new();
        while entry != 0 {
            names.push(self.name(entry));
            entry = self.entries[entry as usize].parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    fn keep(&mut self, text: &[u8]) -> Result<u32, Refusal> {
        let at = self.strings.len();
        if at + text.len() > self.max_strings as usize {
            return Err(Refusal::TooManyStrings);
        }
        self.strings.extend_from_slice(text);
        Ok(at as u32)
    }

    /// The image of the finished tree. `nar_size` is what the NAR's size is said to be.
    pub fn compile(
        &self,
        nar_hash: NarHash,
        nar_size: u64,
        source: Source,
    ) -> Result<Vec<u8>, DraftError> {
        let numbered = self.number()?;
        let mut offsets = vec![0u64; self.entries.len()];
        let total = layout(&numbered, |entry, at| offsets[entry as usize] = at);
        let total = total
            .map_err(|(entry, refusal)| self.refused(numbered.order[entry as usize], refusal))?;
        for (entry, computed) in offsets.iter().enumerate() {
            let draft = numbered.order[entry];
            match self.entries[draft as usize].kind {
                DraftKind::Regular {
                    claimed: Some(claimed),
                    ..
                } if claimed != *computed => {
                    let path = self.path(draft);
                    return Err(DraftError::Offset {
                        path,
                        claimed,
                        computed: *computed,
                    });
                }
                _ => {}
            }
        }
        if total != nar_size {
            return Err(DraftError::Total {
                claimed: nar_size,
                computed: total,
            });
        }
        let header = Header {
            entries: self.entries.len() as u32,
            strings: self.strings.len() as u64,
            nar_size,
            nar_hash,
            source,
        };
        Ok(numbered.write(&header, &offsets))
    }

    fn refused(&self, draft: u32, refusal: Refusal) -> DraftError {
        DraftError::Refused {
            path: self.path(draft),
            refusal,
        }
    }

    /// Groups by directory, sorts by name, and numbers breadth first.
    fn number(&self) -> Result<Numbered<'_>, DraftError> {
        let count = self.entries.len();
        // `starts[d]..starts[d + 1]` are directory d's children in `children`.
        let mut starts = vec![0u32; count + 1];
        for e in &self.entries[1..] {
            starts[e.parent as usize + 1] += 1;
        }
        for d in 0..count {
            starts[d + 1] += starts[d];
        }
        let mut free = starts.clone();
        let mut children = vec![0u32; count - 1];
        for (number, e) in self.entries.iter().enumerate().skip(1) {
            let slot = &mut free[e.parent as usize];
            children[*slot as usize] = number as u32;
            *slot += 1;
        }
        let mut order = Vec::with_capacity(count);
        let mut entries = Vec::with_capacity(count);
        order.push(0u32);
        entries.push(Child {
            parent: 0,
            first: 0,
            count: 0,
        });
        let mut next = 0;
        while next < order.len() {
            let draft = order[next] as usize;
            let own = &mut children[starts[draft] as usize..starts[draft + 1] as usize];
            // A NAR comes sorted, which costs one pass to see.
            own.sort_by(|a, b| self.name(*a).cmp(self.name(*b)));
            if let Some(twice) = own.windows(2).find(|w| self.name(w[0]) == self.name(w[1])) {
                return Err(self.refused(twice[1], Refusal::Duplicate));
            }
            entries[next].first = order.len() as u32;
            entries[next].count = own.len() as u32;
            for child in own {
                order.push(*child);
                entries.push(Child {
                    parent: next as u32,
                    first: 0,
                    count: 0,
                });
            }
            next += 1;
        }
        Ok(Numbered {
            draft: self,
            order,
            entries,
        })
    }
}

#[derive(Debug)]
struct Child {
    parent: u32,
    first: u32,
    count: u32,
}

/// A draft with its final numbers.
struct Numbered<'a> {
    draft: &'a Draft,
    /// The draft's number of each entry.
    order: Vec<u32>,
    entries: Vec<Child>,
}

impl Numbered<'_> {
    fn drafted(&self, entry: u32) -> &DraftEntry {
        &self.draft.entries[self.order[entry as usize] as usize]
    }

    fn write(&self, header: &Header, offsets: &[u64]) -> Vec<u8> {
        let count = self.entries.len();
        let size = HEADER_LEN + count * ENTRY_LEN + self.draft.strings.len();
        let mut image = Vec::with_capacity(size);
        let mut strings = Vec::with_capacity(self.draft.strings.len());
        image.extend_from_slice(&header.encode());
        for (number, place) in self.entries.iter().enumerate() {
            let e = self.drafted(number as u32);
            let name_at = strings.len() as u32;
            strings.extend_from_slice(self.draft.name(self.order[number]));
            let kind = match e.kind {
                DraftKind::Directory => Kind::Directory {
                    first: place.first,
                    count: place.count,
                },
                DraftKind::Regular {
                    executable, size, ..
                } => Kind::Regular {
                    executable,
                    size,
                    offset: offsets[number],
                },
                DraftKind::Symlink { at, len } => {
                    let copy = strings.len() as u32;
                    strings.extend_from_slice(&self.draft.strings[at as usize..][..len.into()]);
                    Kind::Symlink { at: copy, len }
                }
            };
            let entry = Entry {
                parent: place.parent,
                name_at,
                name_len: e.name_len,
                kind,
            };
            image.extend_from_slice(&entry.encode());
        }
        image.extend_from_slice(&strings);
        let sum = checksum(&image);
        image[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_le_bytes());
        image
    }
}

impl Laid for Numbered<'_> {
    fn place(&self, entry: u32) -> Place {
        let child = &self.entries[entry as usize];
        let children = match self.drafted(entry).kind {
            DraftKind::Directory => Some(child.first..child.first + child.count),
            _ => None,
        };
        Place {
            parent: child.parent,
            children,
        }
    }

    fn shape(&self, entry: u32) -> Shape {
        match self.drafted(entry).kind {
            DraftKind::Directory => Shape::Directory,
            DraftKind::Regular {
                executable, size, ..
            } => Shape::Regular { executable, size },
            DraftKind::Symlink { len, .. } => Shape::Symlink {
                target_len: len.into(),
            },
        }
    }

    fn name_len(&self, entry: u32) -> u64 {
        self.drafted(entry).name_len.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_strings_are_limited() {
        let mut draft = Draft::root();
        draft.max_entries = 3;
        assert_eq!((draft.add(0, b"a"), draft.add(0, b"b")), (Ok(1), Ok(2)));
        assert_eq!(draft.add(0, b"c"), Err(Refusal::TooManyEntries));

        let mut draft = Draft::root();
        draft.max_strings = 4;
        assert_eq!(draft.add(0, b"ab"), Ok(1));
        assert_eq!(draft.set_symlink(1, b"123"), Err(Refusal::TooManyStrings));
        assert_eq!(draft.set_symlink(1, b"12"), Ok(()));
        assert_eq!(draft.add(0, b"c"), Err(Refusal::TooManyStrings));
    }
}
