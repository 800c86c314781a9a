//! Indexes a NAR as it passes, in any pieces, keeping names and sizes but no contents.

use crate::nix::NarHash;

use super::{
    Source,
    draft::{Draft, DraftError, DraftKind},
    layout::NAR_MAGIC,
    limits::{MAX_NAME, MAX_TARGET, Refusal},
    shown,
};

/// Bytes of the longest keyword, `nix-archive-1`.
const MAX_KEYWORD: u64 = NAR_MAGIC.len() as u64;

/// Why bytes are no NAR that narfs shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarError {
    /// Something else stands where the format wants a certain word.
    #[error("not a NAR: expected {expected} before byte {at}")]
    Token {
        /// Bytes from the beginning, behind the word that is wrong.
        at: u64,
        /// What should stand there.
        expected: &'static str,
    },
    /// Padding that is not zero.
    #[error("not a NAR: the padding at byte {at} is not zero")]
    Padding {
        /// Bytes from the beginning.
        at: u64,
    },
    /// Names that are not in the order that the format demands.
    #[error("the NAR's entry {} comes after one that sorts behind it", shown(path))]
    Unsorted {
        /// The entry, from the root.
        path: Vec<u8>,
    },
    /// An entry that no tree may have.
    #[error("the NAR's entry {} is refused: {refusal}", shown(path))]
    Refused {
        /// The entry, from the root.
        path: Vec<u8>,
        /// Why.
        refusal: Refusal,
    },
    /// More bytes after the archive's end.
    #[error("the NAR goes on after its end at byte {at}")]
    Trailing {
        /// Where it should have ended.
        at: u64,
    },
    /// The archive is not complete.
    #[error("the NAR ends too early, at byte {at}")]
    Truncated {
        /// Where it ended.
        at: u64,
    },
}

/// What the next token has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Magic,
    NodeOpen,
    TypeWord,
    Type,
    ExecutableOrContents,
    ExecutableValue,
    ContentsWord,
    Contents,
    TargetWord,
    Target,
    EntryOrClose,
    EntryOpen,
    NameWord,
    Name,
    NodeWord,
    NodeClose,
    EntryClose,
    End,
}

/// The part of a token that comes next.
#[derive(Debug, Clone, Copy)]
enum Part {
    Length { raw: [u8; 8], got: usize },
    Token { left: usize },
    Contents { left: u64 },
    Padding { left: u64 },
}

const NEXT_TOKEN: Part = Part::Length {
    raw: [0; 8],
    got: 0,
};

/// A directory whose end has not come.
#[derive(Debug)]
struct Open {
    entry: u32,
    last: Option<u32>,
}

/// Indexes a NAR that is pushed through it.
///
/// Strict: padding is zero, names are legal, sorted and unique, nothing follows the end. Once it
/// has refused, it refuses everything with the same reason.
#[derive(Debug)]
pub struct NarIndexer {
    at: u64,
    expect: Expect,
    part: Part,
    /// Padding behind the token whose length was read.
    padding: u64,
    token: Vec<u8>,
    draft: Draft,
    /// The node that is being read.
    entry: u32,
    executable: bool,
    open: Vec<Open>,
    refused: Option<NarError>,
}

impl Default for NarIndexer {
    fn default() -> Self {
        Self::new()
    }
}

impl NarIndexer {
    /// At the beginning of a NAR.
    pub fn new() -> Self {
        Self {
            at: 0,
            expect: Expect::Magic,
            part: NEXT_TOKEN,
            padding: 0,
            token: Vec::new(),
            draft: Draft::root(),
            entry: 0,
            executable: false,
            open: Vec::new(),
            refused: None,
        }
    }

    /// Bytes that were pushed and accepted.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next bytes of the NAR, as many as there are.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        if let Some(reason) = &self.refused {
            return Err(reason.clone());
        }
        self.advance(bytes)
            .inspect_err(|reason| self.refused = Some(reason.clone()))
    }

    /// The image, once all of the NAR was pushed; `nar_hash` is its SHA-256.
    pub fn finish(self, nar_hash: NarHash) -> Result<Vec<u8>, NarError> {
        if let Some(reason) = self.refused {
            return Err(reason);
        }
        if self.expect != Expect::End {
            return Err(NarError::Truncated { at: self.at });
        }
        // The layout is computed once more from the names and sizes alone, and has to agree with
        // what was seen.
        self.draft
            .compile(nar_hash, self.at, Source::Nar)
            .map_err(|error| match error {
                DraftError::Refused { path, refusal } => NarError::Refused { path, refusal },
                DraftError::Offset { computed, .. } | DraftError::Total { computed, .. } => {
                    NarError::Token {
                        at: computed,
                        expected: "the layout that Nix writes",
                    }
                }
            })
    }

    fn advance(&mut self, mut bytes: &[u8]) -> Result<(), NarError> {
        while !bytes.is_empty() {
            if self.expect == Expect::End {
                return Err(NarError::Trailing { at: self.at });
            }
            let used = match &mut self.part {
                Part::Length { raw, got } => {
                    let used = bytes.len().min(8 - *got);
                    raw[*got..*got + used].copy_from_slice(&bytes[..used]);
                    *got += used;
                    used
                }
                Part::Token { left } => {
                    let used = bytes.len().min(*left);
                    self.token.extend_from_slice(&bytes[..used]);
                    *left -= used;
                    used
                }
                Part::Contents { left } => {
                    let used =
                        usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    *left -= used as u64;
                    used
                }
                Part::Padding { left } => {
                    // At most 7 are left.
                    let used = bytes.len().min(*left as usize);
                    if let Some(bad) = bytes[..used].iter().position(|b| *b != 0) {
                        return Err(NarError::Padding {
                            at: self.at + bad as u64,
                        });
                    }
                    *left -= used as u64;
                    used
                }
            };
            // Contents are not bounded by what is in memory, only by what a NAR can have.
            self.at = self
                .at
                .checked_add(used as u64)
                .ok_or_else(|| self.refuse(Refusal::TooLarge))?;
            bytes = &bytes[used..];
            self.settle()?;
        }
        Ok(())
    }

    /// Goes on to the next part for as long as the present one is complete.
    fn settle(&mut self) -> Result<(), NarError> {
        loop {
            self.part = match self.part {
                Part::Length { raw, got: 8 } => self.length(u64::from_le_bytes(raw))?,
                Part::Token { left: 0 } | Part::Contents { left: 0 } => {
                    Part::Padding { left: self.padding }
                }
                Part::Padding { left: 0 } => {
                    self.complete()?;
                    NEXT_TOKEN
                }
                _ => return Ok(()),
            }
        }
    }

    /// A token of `len` bytes follows.
    fn length(&mut self, len: u64) -> Result<Part, NarError> {
        self.padding = len.wrapping_neg() % 8;
        match self.expect {
            Expect::Contents => {
                let end = len
                    .checked_next_multiple_of(8)
                    .and_then(|padded| padded.checked_add(self.at));
                if end.is_none() {
                    return Err(self.refuse(Refusal::TooLarge));
                }
                let kind = DraftKind::Regular {
                    executable: self.executable,
                    size: len,
                    claimed: Some(self.at),
                };
                self.draft.set(self.entry, kind);
                return Ok(Part::Contents { left: len });
            }
            Expect::Name if len > MAX_NAME as u64 => {
                return Err(self.refuse(Refusal::NameTooLong(len)));
            }
            Expect::Target if len > MAX_TARGET as u64 => {
                return Err(self.refuse(Refusal::TargetTooLong(len)));
            }
            Expect::Name | Expect::Target => {}
            _ if len > MAX_KEYWORD => return self.unexpected(),
            _ => {}
        }
        self.token.clear();
        Ok(Part::Token { left: len as usize })
    }

    /// The token is complete.
    fn complete(&mut self) -> Result<(), NarError> {
        use Expect as E;
        self.expect = match (self.expect, self.token.as_slice()) {
            (E::Magic, NAR_MAGIC) => E::NodeOpen,
            (E::NodeOpen, b"(") => E::TypeWord,
            (E::TypeWord, b"type") => E::Type,
            (E::Type, b"regular") => {
                self.executable = false;
                E::ExecutableOrContents
            }
            (E::Type, b"symlink") => E::TargetWord,
            (E::Type, b"directory") => {
                self.open.push(Open {
                    entry: self.entry,
                    last: None,
                });
                E::EntryOrClose
            }
            (E::ExecutableOrContents, b"executable") => E::ExecutableValue,
            (E::ExecutableValue, b"") => {
                self.executable = true;
                E::ContentsWord
            }
            (E::ExecutableOrContents | E::ContentsWord, b"contents") => E::Contents,
            (E::Contents, _) => E::NodeClose,
            (E::TargetWord, b"target") => E::Target,
            (E::Target, target) => {
                let set = self.draft.set_symlink(self.entry, target);
                set.map_err(|refusal| self.refuse(refusal))?;
                E::NodeClose
            }
            (E::NodeClose, b")") => self.closed(),
            (E::EntryOrClose, b"entry") => E::EntryOpen,
            (E::EntryOrClose, b")") => {
                self.open.pop();
                self.closed()
            }
            (E::EntryOpen, b"(") => E::NameWord,
            (E::NameWord, b"name") => E::Name,
            (E::Name, _) => {
                self.named()?;
                E::NodeWord
            }
            (E::NodeWord, b"node") => E::NodeOpen,
            (E::EntryClose, b")") => E::EntryOrClose,
            _ => return self.unexpected(),
        };
        Ok(())
    }

    /// A node has ended.
    fn closed(&self) -> Expect {
        if self.open.is_empty() {
            Expect::End
        } else {
            Expect::EntryClose
        }
    }

    /// The token is the name of the next entry.
    fn named(&mut self) -> Result<(), NarError> {
        let Some(Open {
            entry: parent,
            last,
        }) = self.open.last()
        else {
            return self.unexpected();
        };
        let parent = *parent;
        if let Some(last) = *last {
            match self.draft.name(last).cmp(&self.token) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return Err(self.refuse_named(Refusal::Duplicate)),
                std::cmp::Ordering::Greater => {
                    return Err(NarError::Unsorted {
                        path: self.named_path(),
                    });
                }
            }
        }
        match self.draft.add(parent, &self.token) {
            Err(refusal) => Err(self.refuse_named(refusal)),
            Ok(entry) => {
                self.entry = entry;
                if let Some(open) = self.open.last_mut() {
                    open.last = Some(entry);
                }
                Ok(())
            }
        }
    }

    /// The path that the token names in the innermost directory.
    fn named_path(&self) -> Vec<u8> {
        let mut path = self.draft.path(self.open.last().map_or(0, |o| o.entry));
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&self.token);
        path
    }

    fn refuse_named(&self, refusal: Refusal) -> NarError {
        NarError::Refused {
            path: self.named_path(),
            refusal,
        }
    }

    /// The node that is being read is refused.
    fn refuse(&self, refusal: Refusal) -> NarError {
        NarError::Refused {
            path: self.draft.path(self.entry),
            refusal,
        }
    }

    fn unexpected<T>(&self) -> Result<T, NarError> {
        let expected = match self.expect {
            Expect::Magic => "`nix-archive-1`",
            Expect::NodeOpen | Expect::EntryOpen => "`(`",
            Expect::TypeWord => "`type`",
            Expect::Type => "`regular`, `symlink` or `directory`",
            Expect::ExecutableOrContents => "`executable` or `contents`",
            Expect::ExecutableValue => "an empty word",
            Expect::ContentsWord | Expect::Contents => "`contents`",
            Expect::TargetWord | Expect::Target => "`target`",
            Expect::EntryOrClose => "`entry` or `)`",
            Expect::NameWord | Expect::Name => "`name`",
            Expect::NodeWord => "`node`",
            Expect::NodeClose | Expect::EntryClose => "`)`",
            Expect::End => "the end",
        };
        Err(NarError::Token {
            at: self.at,
            expected,
        })
    }
}
