//! What can go wrong with snapshots, and which of gRPC's codes containerd sees.

use std::{io, path::PathBuf, sync::Arc};

use tonic::{Code, Status};

use super::{filter::FilterError, layer::LayerError, record::Kind};
use crate::{content::ContentError, store::StoreError};

/// An error of the snapshotter. Messages name the snapshot and, where it is not obvious, what to do.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A call without the key of a snapshot.
    #[error("a snapshot has to have a key; none was given as {field}")]
    NoKey {
        /// The field that is empty.
        field: &'static str,
    },
    /// There is no such snapshot.
    #[error("snapshot {key} does not exist")]
    NotFound {
        /// Its key.
        key: String,
    },
    /// There is no such snapshot to be a parent.
    #[error("the parent {parent} of snapshot {key} does not exist")]
    NoParent {
        /// Who wants it.
        key: String,
        /// Its key.
        parent: String,
    },
    /// The key is taken.
    #[error("snapshot {key} exists already")]
    Exists {
        /// The key.
        key: String,
    },
    /// Only committed snapshots have children.
    #[error("the parent {parent} is {}, not committed", kind.name())]
    ParentNotCommitted {
        /// Its key.
        parent: String,
        /// What it is.
        kind: Kind,
    },
    /// Only active snapshots are committed.
    #[error("snapshot {key} is {}, not active", kind.name())]
    NotActive {
        /// Its key.
        key: String,
        /// What it is.
        kind: Kind,
    },
    /// Committed snapshots are not mounted.
    #[error("snapshot {key} is committed: only active ones and views have mounts")]
    NoMounts {
        /// Its key.
        key: String,
    },
    /// Others need it.
    #[error("snapshot {key} has children and can't be removed before them")]
    HasChildren {
        /// Its key.
        key: String,
    },
    /// Only labels can change.
    #[error("the field {field:?} of snapshot {key} can't be changed; only its labels can")]
    Immutable {
        /// Its key.
        key: String,
        /// The field, as the mask names it.
        field: String,
    },
    /// A filter that can't be read.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A Nix layer that can't be had.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The directory of a committed snapshot is gone, or its parent is.
    #[error(
        "snapshot {key} is damaged ({what}); remove the images that use it (ctr images rm, crictl rmi) and pull them again"
    )]
    Damaged {
        /// Its key.
        key: String,
        /// What is missing.
        what: String,
    },
    /// The store could not make, change or remove a view.
    #[error("the view of snapshot {key}: {source}")]
    View {
        /// Its key.
        key: String,
        /// Why not.
        source: StoreError,
    },
    /// A change of the database.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The system refused an operation on a snapshot's files.
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
    /// The snapshotter is ending.
    #[error("the snapshotter is stopping; try again when it is back")]
    Stopping,
}

/// What can go wrong with the database of snapshots.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MetadataError {
    /// A newer narfs wrote it.
    #[error(
        "the database of snapshots {path} has version {found} and this narfs knows {known}; use a newer narfs, or another directory with --root",
        path = path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The newest that this program knows.
        known: u64,
    },
    /// A version that no narfs wrote.
    #[error(
        "the database of snapshots {path} has version {found}, from which there is no way to version {known}; \
         restore it from a backup, or begin anew: remove all images and containers, then this file and {directories}",
        path = path.display(), directories = path.with_file_name("snapshots").display()
    )]
    TooOld {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The version of this program.
        known: u64,
    },
    /// It can't be read.
    #[error(
        "the database of snapshots {path} is damaged ({why}); nothing was changed. Restore it from a backup, or begin \
         anew: remove all images and containers of this snapshotter, then this file and {directories}",
        path = path.display(), directories = path.with_file_name("snapshots").display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It is gone, and the snapshots are not.
    #[error(
        "the database of snapshots {path} is missing, but {directories} holds {count}; restore it from a backup, or \
         begin anew: remove all images and containers of this snapshotter, then {directories}",
        path = path.display(), directories = path.with_file_name("snapshots").display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// How many snapshots there are.
        count: usize,
    },
    /// No room for a change. Nothing was changed.
    #[error("no space left to change {path}; free some on its file system, then try again", path = path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
    },
    /// The system failed. Nothing was changed.
    #[error("the database of snapshots {path}: {source}", path = path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: Arc<redb::Error>,
    },
    /// It was closed before the change.
    #[error("the database of snapshots was closed before the change; nothing was changed")]
    Closed,
}

impl SnapshotError {
    /// From a failed system call.
    pub fn io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        Self::Io { what, path, source }
    }

    /// What containerd acts upon: the codes of its own snapshotters.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } | Self::NoParent { .. } => Code::NotFound,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::NoKey { .. }
            | Self::ParentNotCommitted { .. }
            | Self::Immutable { .. }
            | Self::Filter(_) => Code::InvalidArgument,
            Self::NotActive { .. }
            | Self::NoMounts { .. }
            | Self::HasChildren { .. }
            | Self::Damaged { .. } => Code::FailedPrecondition,
            Self::Layer(error) => error.code(),
            Self::View { source, .. } => code_of(source),
            Self::Metadata(MetadataError::NoSpace { .. }) => Code::ResourceExhausted,
            Self::Metadata(MetadataError::Closed) | Self::Stopping => Code::Unavailable,
            Self::Metadata(_) => Code::Internal,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Code::ResourceExhausted
                }
                _ => Code::Internal,
            },
        }
    }
}

/// The code for an error of the store: whether to look for the path elsewhere, to try again, or
/// to see to the cache.
pub(super) fn code_of(error: &StoreError) -> Code {
    match error.root() {
        StoreError::Absent { .. } => Code::NotFound,
        StoreError::Fetch { .. } | StoreError::TimedOut { .. } | StoreError::Stopping => {
            Code::Unavailable
        }
        StoreError::Untrusted { .. }
        | StoreError::ForeignStore { .. }
        | StoreError::NarInfo { .. }
        | StoreError::Damaged { .. }
        | StoreError::ListingLies { .. }
        | StoreError::Listing { .. } => Code::FailedPrecondition,
        StoreError::Unkept { .. } | StoreError::Content(ContentError::NoSpace { .. }) => {
            Code::ResourceExhausted
        }
        _ => Code::Internal,
    }
}

impl From<SnapshotError> for Status {
    fn from(error: SnapshotError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
