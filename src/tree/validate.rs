//! Whether an image is one: every byte of it is checked, so that nothing has to be checked later.

use super::{
    Source,
    format::{
        CHECKSUM_AT, ENTRY_LEN, Entry, HEADER_LEN, Header, Kind, MAGIC, VERSION, checksum, u32_at,
        u64_at,
    },
    layout::{Laid, Shape, layout},
    limits::{MAX_DEPTH, MAX_ENTRIES, MAX_STRINGS, check_name, check_target},
    walk::Place,
};
use crate::nix::NarHash;

/// What is wrong with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It does not begin as one.
    #[error("it is no narfs index")]
    Magic,
    /// Another version of the format.
    #[error("its format has version {0}, this narfs reads version {VERSION}")]
    Version(u32),
    /// Longer or shorter than its header says.
    #[error("it has {actual} bytes where its header means {expected}")]
    Length {
        /// Bytes that there should be.
        expected: u64,
        /// Bytes that there are.
        actual: u64,
    },
    /// A header that no program wrote.
    #[error("its header has an impossible {0}")]
    Header(&'static str),
    /// Bytes changed since they were written.
    #[error("its checksum does not match")]
    Checksum,
    /// An entry that no program wrote.
    #[error("entry {entry} has an impossible {what}")]
    Entry {
        /// Its number.
        entry: u32,
        /// The field.
        what: &'static str,
    },
    /// The layout of the NAR does not end where the NAR does.
    #[error("its entries make a NAR of another size than {0} bytes")]
    NarSize(u64),
}

/// The entries and strings of an image whose lengths have been checked.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    entries: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Takes an image apart at the place that its header names.
    pub fn split(image: &'a [u8], count: u32) -> Self {
        let body = image.get(HEADER_LEN..).unwrap_or_default();
        let (entries, strings) = body
            .split_at_checked(count as usize * ENTRY_LEN)
            .unwrap_or_default();
        Self { entries, strings }
    }

    pub fn raw(&self, entry: u32) -> Option<&'a [u8; ENTRY_LEN]> {
        let at = (entry as usize).checked_mul(ENTRY_LEN)?;
        self.entries.get(at..at + ENTRY_LEN)?.try_into().ok()
    }

    pub fn entry(&self, entry: u32) -> Option<Entry> {
        Entry::decode(self.raw(entry)?)
    }

    pub fn string(&self, at: u32, len: usize) -> &'a [u8] {
        self.strings
            .get(at as usize..)
            .and_then(|s| s.get(..len))
            .unwrap_or_default()
    }

    pub fn name(&self, entry: u32) -> &'a [u8] {
        self.entry(entry)
            .map_or(&[], |e| self.string(e.name_at, e.name_len.into()))
    }
}

/// Checks an image, and reads its header.
pub(super) fn validate(image: &[u8]) -> Result<Header, Damage> {
    let header = check_header(image)?;
    let parts = Parts::split(image, header.entries);
    check_entries(&parts, &header)?;
    check_layout(&parts, &header)?;
    Ok(header)
}

fn check_header(image: &[u8]) -> Result<Header, Damage> {
    if image.len() < HEADER_LEN || image[..8] != MAGIC {
        return Err(Damage::Magic);
    }
    let version = u32_at(image, 8);
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let header = Header {
        entries: u32_at(image, 12),
        strings: u64_at(image, 16),
        nar_size: u64_at(image, 24),
        nar_hash: NarHash::from_bytes(image[32..64].try_into().unwrap_or_default()),
        source: if image[64] == 0 {
            Source::Listing
        } else {
            Source::Nar
        },
    };
    if header.entries == 0 || header.entries > MAX_ENTRIES {
        return Err(Damage::Header("number of entries"));
    }
    if header.strings > MAX_STRINGS.into() {
        return Err(Damage::Header("number of bytes of strings"));
    }
    let expected =
        HEADER_LEN as u64 + u64::from(header.entries) * ENTRY_LEN as u64 + header.strings;
    if expected != image.len() as u64 {
        return Err(Damage::Length {
            expected,
            actual: image.len() as u64,
        });
    }
    if u32_at(image, CHECKSUM_AT) != checksum(image) {
        return Err(Damage::Checksum);
    }
    let mut again = header.encode();
    again[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&image[CHECKSUM_AT..CHECKSUM_AT + 4]);
    if again[..] != image[..HEADER_LEN] {
        return Err(Damage::Header("source or reserved byte"));
    }
    Ok(header)
}

/// Numbers, parents, names, links, depth: all but the offsets.
fn check_entries(parts: &Parts<'_>, header: &Header) -> Result<(), Damage> {
    let mut strings = 0u64;
    // Children follow each other in the order of their directories: this is the first one that no
    // directory has claimed yet.
    let mut unclaimed = 1u32;
    // Entries stand level by level: where the next one begins, all children of this one's are claimed.
    let (mut depth, mut level_end) = (0, 1);
    for number in 0..header.entries {
        let wrong = |what| Damage::Entry {
            entry: number,
            what,
        };
        let raw = parts.raw(number).ok_or(wrong("place"))?;
        let entry = Entry::decode(raw).ok_or(wrong("kind"))?;
        if !Entry::is_canonical(raw) {
            return Err(wrong("reserved byte"));
        }
        if number == 0 && (entry.parent != 0 || entry.name_len != 0) {
            return Err(wrong("name or parent, being the root"));
        }
        if number == level_end {
            (depth, level_end) = (depth + 1, unclaimed);
            if depth > MAX_DEPTH {
                return Err(wrong("depth"));
            }
        }
        if u64::from(entry.name_at) != strings {
            return Err(wrong("place of its name"));
        }
        strings += u64::from(entry.name_len);
        if number != 0 {
            if number >= unclaimed {
                return Err(wrong("place: it is in no directory"));
            }
            check_name(parts.string(entry.name_at, entry.name_len.into()))
                .map_err(|_| wrong("name"))?;
        }
        match entry.kind {
            Kind::Directory { first, count } => {
                if first != unclaimed || count > header.entries - unclaimed {
                    return Err(wrong("range of children"));
                }
                unclaimed += count;
                check_children(parts, number, first..first + count)?;
            }
            Kind::Symlink { at, len } => {
                if u64::from(at) != strings {
                    return Err(wrong("place of its target"));
                }
                strings += u64::from(len);
                check_target(parts.string(at, len.into())).map_err(|_| wrong("target"))?;
            }
            Kind::Regular { .. } => {}
        }
    }
    if unclaimed != header.entries {
        return Err(Damage::Entry {
            entry: unclaimed,
            what: "place: it is in no directory",
        });
    }
    if strings != header.strings {
        return Err(Damage::Header("number of bytes of strings"));
    }
    Ok(())
}

fn check_children(
    parts: &Parts<'_>,
    parent: u32,
    children: std::ops::Range<u32>,
) -> Result<(), Damage> {
    let mut last: &[u8] = &[];
    for child in children {
        let wrong = |what| Damage::Entry { entry: child, what };
        let entry = parts.entry(child).ok_or(wrong("kind"))?;
        if entry.parent != parent {
            return Err(wrong("parent"));
        }
        let name = parts.string(entry.name_at, entry.name_len.into());
        // An empty name is never greater, so it is refused here as well.
        if name <= last {
            return Err(wrong("name: it is not sorted"));
        }
        last = name;
    }
    Ok(())
}

/// Offsets and total.
fn check_layout(parts: &Parts<'_>, header: &Header) -> Result<(), Damage> {
    let mut misplaced = None;
    let total = layout(parts, |entry, at| {
        let right = matches!(
            parts.entry(entry).map(|e| e.kind),
            Some(Kind::Regular { offset, .. }) if offset == at
        );
        if !right {
            misplaced.get_or_insert(entry);
        }
    });
    if let Some(entry) = misplaced {
        return Err(Damage::Entry {
            entry,
            what: "place in the NAR",
        });
    }
    match total {
        Ok(total) if total == header.nar_size => Ok(()),
        Ok(_) => Err(Damage::NarSize(header.nar_size)),
        Err((entry, _)) => Err(Damage::Entry {
            entry,
            what: "size",
        }),
    }
}

impl Laid for Parts<'_> {
    fn place(&self, entry: u32) -> Place {
        match self.entry(entry) {
            Some(Entry {
                parent,
                kind: Kind::Directory { first, count },
                ..
            }) => Place {
                parent,
                children: Some(first..first.saturating_add(count)),
            },
            other => Place {
                parent: other.map_or(0, |e| e.parent),
                children: None,
            },
        }
    }

    fn shape(&self, entry: u32) -> Shape {
        match self.entry(entry).map(|e| e.kind) {
            Some(Kind::Regular {
                executable, size, ..
            }) => Shape::Regular { executable, size },
            Some(Kind::Symlink { len, .. }) => Shape::Symlink {
                target_len: len.into(),
            },
            Some(Kind::Directory { .. }) | None => Shape::Directory,
        }
    }

    fn name_len(&self, entry: u32) -> u64 {
        self.entry(entry).map_or(0, |e| e.name_len.into())
    }
}
