//! What can go wrong where bytes rest, and what to do about it.

use std::{io, ops::Range, path::Path, path::PathBuf, sync::Arc};

use crate::nix::NarHash;

/// Errors of the content store. Every message names the file or the NAR and says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// Another process holds the state directory.
    #[error(
        "the state directory {dir} is in use by {holder}; stop that process, or choose another directory with --state-dir",
        dir = dir.display(), holder = holder(*pid)
    )]
    InUse {
        /// The holder, when its number could be read from the lock file.
        pid: Option<u32>,
        /// The state directory.
        dir: PathBuf,
    },
    /// The state directory was written by a newer narfs.
    #[error(
        "the state directory {dir} has format {found} and this narfs knows {known}; use a newer narfs, or choose another directory with --state-dir",
        dir = dir.display()
    )]
    Newer {
        /// The state directory.
        dir: PathBuf,
        /// The version found in it.
        found: u64,
        /// The newest version this program knows.
        known: u64,
    },
    /// The directory holds something else than narfs's state.
    #[error(
        "{dir} is no state directory of narfs ({found}); choose an empty directory, or a new one, with --state-dir",
        dir = dir.display()
    )]
    NotOurs {
        /// The directory.
        dir: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// Somebody else could change what is in the directory.
    #[error(
        "the state directory {dir} {problem}; narfs trusts what it finds in it, so it has to belong to the user who runs narfs and to be writable by nobody else: chown and chmod 0700 it, or choose another with --state-dir",
        dir = dir.display()
    )]
    Unsafe {
        /// The state directory.
        dir: PathBuf,
        /// Who could change it.
        problem: String,
    },
    /// No room: the file system is full or the user's quota is used up.
    #[error(
        "no space left to keep {path}; free some on its file system, or let narfs evict with `narfs gc`",
        path = path.display()
    )]
    NoSpace {
        /// The file that did not fit.
        path: PathBuf,
    },
    /// The file system cannot be written to.
    #[error(
        "{path} cannot be written: its file system is read-only; remount it writable, or choose another directory with --state-dir",
        path = path.display()
    )]
    ReadOnly {
        /// The file that was to be written.
        path: PathBuf,
    },
    /// The system refused or failed an operation on a file.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// The operation, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The bytes asked for were not fetched yet.
    #[error("bytes {}..{} of the NAR {hash} are not kept here; fetch them first", range.start, range.end)]
    NotValid {
        /// The NAR.
        hash: NarHash,
        /// What was asked for.
        range: Range<u64>,
    },
    /// A range that is not inside the NAR.
    #[error("bytes {}..{} are not in the NAR {hash}, which has {size}", range.start, range.end)]
    OutOfRange {
        /// The NAR.
        hash: NarHash,
        /// What was asked for.
        range: Range<u64>,
        /// Its size in bytes.
        size: u64,
    },
    /// The NAR's bytes were dropped between the caller's look at it and the operation.
    #[error("the kept bytes of the NAR {hash} were dropped meanwhile; begin again")]
    Discarded {
        /// The NAR.
        hash: NarHash,
    },
    /// The disk gave back other bytes than were kept. They were dropped.
    #[error(
        "bytes {}..{} of the NAR {hash} changed on the disk and were dropped; fetch them again, and look after the disk",
        range.start, range.end
    )]
    Damaged {
        /// The NAR.
        hash: NarHash,
        /// From the first wrong byte's block to the last one's.
        range: Range<u64>,
    },
    /// Only a NAR of which every byte is here can be hashed or called verified.
    #[error(
        "the NAR {hash} is not complete: {valid} of {size} bytes are kept; fetch the rest first"
    )]
    Incomplete {
        /// The NAR.
        hash: NarHash,
        /// Bytes that are here.
        valid: u64,
        /// Bytes it has.
        size: u64,
    },
    /// Two sources give one NAR two sizes; one of them lies.
    #[error(
        "the NAR {hash} is said to have {asked} bytes, but is known with {known}; the narinfo that says so is wrong"
    )]
    SizeMismatch {
        /// The NAR.
        hash: NarHash,
        /// The size in use.
        known: u64,
        /// The size asked for.
        asked: u64,
    },
    /// The content store was closed.
    #[error("the content store was closed before {what}")]
    Closed {
        /// What was left undone.
        what: &'static str,
    },
    /// All numbers for store paths are given away.
    #[error(
        "no number is left for another store path ({limit} were given away); begin with a new state directory"
    )]
    NoSlots {
        /// How many there are.
        limit: u32,
    },
    /// All numbers for views are in use.
    #[error(
        "there are {limit} views, and no number is left for another one; remove containers or images"
    )]
    NoViews {
        /// How many there are.
        limit: u16,
    },
    /// The database refused or failed an operation.
    #[error("the database {path}: {source}", path = path.display())]
    Database {
        /// Its file.
        path: PathBuf,
        /// What it said; shared, because one commit answers many callers.
        #[source]
        source: Arc<redb::Error>,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

impl ContentError {
    /// The error for a failed operation on a file: no room and read-only are told apart from the rest.
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path },
            _ => Self::Io { what, path, source },
        }
    }

    /// As [`ContentError::io`], for what the database says.
    pub(super) fn database(path: &Path, source: impl Into<redb::Error>) -> Self {
        match source.into() {
            redb::Error::Io(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
            {
                Self::NoSpace { path: path.into() }
            }
            redb::Error::Io(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                Self::ReadOnly { path: path.into() }
            }
            source => Self::Database {
                path: path.into(),
                source: Arc::new(source),
            },
        }
    }
}
