//! Listings (`<digest>.ls`): a cache's description of a path, compiled into an image.
//!
//! Format: `{"version":1,"root":NODE}`, where NODE is
//! `{"type":"directory","entries":{NAME:NODE,…}}`,
//! `{"type":"regular","size":N,"executable":true?,"narOffset":N?}` or
//! `{"type":"symlink","target":TEXT}`, with members and entries in any order
//! (`listNar` in Nix's `libstore/nar-accessor.cc`). A listing is not signed: it is held against the
//! size of the NAR at once, and against the NAR itself when that has come.

use std::borrow::Cow;

use crate::nix::NarHash;

use super::{
    Source,
    draft::{Draft, DraftError, DraftKind},
    json::{Json, Syntax},
    limits::Refusal,
    shown,
};

/// The replacement character, U+FFFD, in UTF-8.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Why a listing cannot be used. The NAR may still be good: index it instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// Not JSON, or not a listing.
    #[error("not a listing: expected {expected} at byte {at}")]
    Malformed {
        /// Bytes from the beginning.
        at: usize,
        /// What should stand there.
        expected: &'static str,
    },
    /// Another version of the format than 1.
    #[error("the listing's version is {0}, this narfs reads version 1")]
    Version(String),
    /// An entry that contradicts itself or says too little.
    #[error("the listing is wrong about {}: {what}", shown(path))]
    Entry {
        /// The entry, from the root.
        path: Vec<u8>,
        /// What is wrong.
        what: &'static str,
    },
    /// The cache replaced bytes that are not UTF-8, so the name or target is lost.
    #[error("the listing has lost bytes of the name or target of {}", shown(path))]
    Lossy {
        /// The entry, from the root.
        path: Vec<u8>,
    },
    /// An entry that no tree may have.
    #[error("the listing's entry {} is refused: {refusal}", shown(path))]
    Refused {
        /// The entry, from the root.
        path: Vec<u8>,
        /// Why.
        refusal: Refusal,
    },
    /// Its `narOffset` is not where the file has to be.
    #[error(
        "the listing puts {} at byte {claimed} of the NAR, where it must be at {computed}",
        shown(path)
    )]
    Offset {
        /// The entry, from the root.
        path: Vec<u8>,
        /// What the listing says.
        claimed: u64,
        /// What follows from the rest of it.
        computed: u64,
    },
    /// It describes another NAR: the sizes do not add up to the narinfo's.
    #[error("the listing makes a NAR of {computed} bytes, the narinfo says {claimed}")]
    Total {
        /// The narinfo's `NarSize`.
        claimed: u64,
        /// What follows from the listing.
        computed: u64,
    },
}

impl From<Syntax> for ListingError {
    fn from(Syntax { at, expected }: Syntax) -> Self {
        Self::Malformed { at, expected }
    }
}

impl From<DraftError> for ListingError {
    fn from(error: DraftError) -> Self {
        match error {
            DraftError::Refused { path, refusal } => Self::Refused { path, refusal },
            DraftError::Offset {
                path,
                claimed,
                computed,
            } => Self::Offset {
                path,
                claimed,
                computed,
            },
            DraftError::Total { claimed, computed } => Self::Total { claimed, computed },
        }
    }
}

/// Compiles a listing into an image for [`super::Tree`], computing where files are in the NAR.
///
/// `nar_hash` and `nar_size` are the narinfo's; the layout has to have exactly that size.
pub fn compile_listing(
    json: &[u8],
    nar_hash: NarHash,
    nar_size: u64,
) -> Result<Vec<u8>, ListingError> {
    let draft = read(json)?;
    Ok(draft.compile(nar_hash, nar_size, Source::Listing)?)
}

fn read(text: &[u8]) -> Result<Draft, ListingError> {
    let mut json = Json::new(text);
    let mut draft = None;
    let mut version = None;
    let mut first = true;
    json.open()?;
    while let Some(key) = json.member(&mut first)? {
        match &*key {
            b"version" => version = Some(json.number()?),
            b"root" if draft.is_none() => draft = Some(Reader::read(&mut json)?),
            b"root" => return Ok(json.wrong("one root")?),
            _ => json.skip()?,
        }
    }
    json.end()?;
    match version {
        Some(b"1") => {}
        Some(other) => return Err(ListingError::Version(String::from_utf8_lossy(other).into())),
        None => return Ok(json.wrong("a version")?),
    }
    match draft {
        Some(draft) => Ok(draft),
        None => Ok(json.wrong("a root")?),
    }
}

/// A node that is being read. Its members come in any order, so it is judged at its end.
struct Frame<'a> {
    entry: u32,
    kind: Option<Cow<'a, [u8]>>,
    size: Option<u64>,
    offset: Option<u64>,
    executable: Option<bool>,
    target: Option<Cow<'a, [u8]>>,
    entries: Entries,
    /// For [`Json::member`], of the node and of its entries.
    first: bool,
    first_entry: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entries {
    None,
    Open,
    Read,
}

impl Frame<'_> {
    fn new(entry: u32) -> Self {
        Self {
            entry,
            kind: None,
            size: None,
            offset: None,
            executable: None,
            target: None,
            entries: Entries::None,
            first: true,
            first_entry: true,
        }
    }
}

/// Reads nodes without recursion: the stack is bounded by [`super::limits::MAX_DEPTH`].
struct Reader<'j, 'a> {
    json: &'j mut Json<'a>,
    draft: Draft,
    stack: Vec<Frame<'a>>,
}

impl<'j, 'a> Reader<'j, 'a> {
    fn read(json: &'j mut Json<'a>) -> Result<Draft, ListingError> {
        json.open()?;
        let mut reader = Self {
            json,
            draft: Draft::root(),
            stack: vec![Frame::new(0)],
        };
        while let Some(frame) = reader.stack.last_mut() {
            if frame.entries == Entries::Open {
                match reader.json.member(&mut frame.first_entry)? {
                    Some(name) => reader.entry(&name)?,
                    None => frame.entries = Entries::Read,
                }
            } else {
                match reader.json.member(&mut frame.first)? {
                    Some(key) => reader.member(&key)?,
                    None => reader.close()?,
                }
            }
        }
        Ok(reader.draft)
    }

    /// An entry of the innermost directory.
    fn entry(&mut self, name: &[u8]) -> Result<(), ListingError> {
        let parent = self.stack.last().map_or(0, |f| f.entry);
        let path = |draft: &Draft| {
            let mut path = draft.path(parent);
            if parent != 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            path
        };
        if is_lossy(name) {
            return Err(ListingError::Lossy {
                path: path(&self.draft),
            });
        }
        let entry = self.draft.add(parent, name);
        let entry = entry.map_err(|refusal| ListingError::Refused {
            path: path(&self.draft),
            refusal,
        })?;
        self.json.open()?;
        self.stack.push(Frame::new(entry));
        Ok(())
    }

    /// A member of the innermost node.
    fn member(&mut self, key: &[u8]) -> Result<(), ListingError> {
        let Some(frame) = self.stack.last_mut() else {
            return Ok(());
        };
        // Some writers say so of what they leave out.
        if self.json.null()? {
            return Ok(());
        }
        let repeated = match key {
            b"type" => frame.kind.replace(self.json.string()?).is_some(),
            b"target" => frame.target.replace(self.json.string()?).is_some(),
            b"executable" => frame.executable.replace(self.json.boolean()?).is_some(),
            b"size" | b"narOffset" => {
                let number = whole(self.json.number()?).ok_or_else(|| ListingError::Entry {
                    path: self.draft.path(frame.entry),
                    what: "a size or offset is no number from 0 to 2^64 - 1",
                })?;
                let field = if key == b"size" {
                    &mut frame.size
                } else {
                    &mut frame.offset
                };
                field.replace(number).is_some()
            }
            b"entries" => {
                self.json.open()?;
                std::mem::replace(&mut frame.entries, Entries::Open) != Entries::None
            }
            _ => {
                self.json.skip()?;
                false
            }
        };
        if repeated {
            let path = self.draft.path(frame.entry);
            return Err(ListingError::Entry {
                path,
                what: "it says something twice",
            });
        }
        Ok(())
    }

    /// The end of the innermost node.
    fn close(&mut self) -> Result<(), ListingError> {
        let Some(frame) = self.stack.pop() else {
            return Ok(());
        };
        let entry = frame.entry;
        let wrong = |draft: &Draft, what| {
            Err(ListingError::Entry {
                path: draft.path(entry),
                what,
            })
        };
        let has_entries = frame.entries != Entries::None;
        match (frame.kind.as_deref(), frame.size, frame.target) {
            (Some(b"directory"), None, None) if has_entries => {}
            (Some(b"regular"), Some(size), None) if !has_entries => {
                let executable = frame.executable.unwrap_or(false);
                // A file's bytes are never at 0; some writers mean "not known" by it.
                let claimed = frame.offset.filter(|at| *at != 0);
                self.draft.set(
                    entry,
                    DraftKind::Regular {
                        executable,
                        size,
                        claimed,
                    },
                );
            }
            (Some(b"symlink"), None, Some(target)) if !has_entries => {
                if is_lossy(&target) {
                    return Err(ListingError::Lossy {
                        path: self.draft.path(entry),
                    });
                }
                self.draft.set_symlink(entry, &target).map_err(|refusal| {
                    ListingError::Refused {
                        path: self.draft.path(entry),
                        refusal,
                    }
                })?;
            }
            (Some(b"directory" | b"regular" | b"symlink"), ..) => {
                return wrong(&self.draft, "what it says does not go with its type");
            }
            (Some(_), ..) => return wrong(&self.draft, "its type is none that a NAR can hold"),
            (None, ..) => return wrong(&self.draft, "it has no type"),
        }
        Ok(())
    }
}

fn is_lossy(text: &[u8]) -> bool {
    text.windows(REPLACEMENT.len()).any(|w| w == REPLACEMENT)
}

/// A number of bytes; `None` for a negative, broken or too large number.
fn whole(number: &[u8]) -> Option<u64> {
    std::str::from_utf8(number).ok()?.parse().ok()
}
