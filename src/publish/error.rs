//! Why a path, or nothing at all, could be published.

use std::{io, path::PathBuf, sync::Arc};

use crate::{
    nix::{NarHash, NarInfoError, StorePath},
    store::StoreError,
    substituter::FetchError,
};

/// What kept something from being published.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// The path cannot be had from where it is to come from.
    #[error("{0}")]
    Source(Arc<StoreError>),
    /// Its NAR came, and is another one.
    #[error("the NAR of {path} from {from} is not what was promised: {reason}")]
    Damaged {
        /// The path.
        path: StorePath,
        /// Who gave it.
        from: String,
        /// What is wrong.
        reason: String,
    },
    /// A file of this machine: of the local store, or between reading and writing.
    #[error("{path}: cannot {doing} {}: {error}", file.display())]
    File {
        /// The store path.
        path: StorePath,
        /// What was tried.
        doing: &'static str,
        /// With which file.
        file: PathBuf,
        /// What the system says.
        error: Arc<io::Error>,
    },
    /// The cache that is written to.
    #[error("{path} cannot be written: {error}")]
    Target {
        /// The store path.
        path: StorePath,
        /// What the cache says.
        error: FetchError,
    },
    /// The cache that is written to, before any path.
    #[error("{0}")]
    Cache(FetchError),
    /// The cache that is written to is one of another store.
    #[error(
        "{cache} is a cache of the store {store_dir}, and these paths are of {}",
        crate::nix::STORE_DIR
    )]
    Foreign {
        /// The cache.
        cache: String,
        /// Its store.
        store_dir: String,
    },
    /// The cache has the path already, as something else.
    #[error(
        "{cache} has {path} already, with the NAR {there} and not {here}; publish to another cache, or remove {file} from this one"
    )]
    Conflict {
        /// The cache.
        cache: String,
        /// The path.
        path: StorePath,
        /// Hash of its NAR there.
        there: Box<NarHash>,
        /// Hash of its NAR here.
        here: Box<NarHash>,
        /// The file that says so.
        file: String,
    },
    /// What the cache says of the path cannot be read, and is not to be replaced unasked.
    #[error("{cache} has a narinfo of {path} that cannot be read: {error}")]
    Unreadable {
        /// The cache.
        cache: String,
        /// The path.
        path: StorePath,
        /// What is wrong.
        error: Box<NarInfoError>,
    },
    /// Not written, because something that it refers to is not.
    #[error("{path} was left out, because {reference} is missing, to which it refers")]
    HeldBack {
        /// The path.
        path: StorePath,
        /// What it refers to.
        reference: StorePath,
    },
    /// The references lead in a circle.
    #[error("the references of {path} lead in a circle; its narinfo is wrong")]
    Circle {
        /// One of the circle.
        path: StorePath,
    },
    /// The program `nix`, which knows a local store.
    #[error("`{command}` {what}")]
    Nix {
        /// As it was called.
        command: String,
        /// How it failed.
        what: String,
    },
    /// A thread died.
    #[error("a thread died while it worked on {path}; this is a bug")]
    Died {
        /// The path.
        path: StorePath,
    },
}

impl From<StoreError> for PublishError {
    fn from(error: StoreError) -> Self {
        Self::Source(Arc::new(error))
    }
}

impl PublishError {
    /// An error of a file.
    pub(super) fn file(
        path: &StorePath,
        doing: &'static str,
        file: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let (path, file) = (path.clone(), file.into());
        move |error| Self::File {
            path,
            doing,
            file,
            error: Arc::new(error),
        }
    }
}
