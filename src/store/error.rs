//! What can go wrong in the store, each with the path, the cache and the next step.

use std::{sync::Arc, time::Duration};

use crate::{
    content::ContentError,
    nix::{NarInfoError, StorePath},
    substituter::FetchError,
    tree::{ListingError, TreeError},
};

/// An error of the store. Shared ones reach every waiter of a fetch.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Every cache was asked and none has the path.
    #[error("{path} is in none of the caches ({caches})")]
    Absent {
        /// What was looked for.
        path: StorePath,
        /// The caches that answered, comma separated.
        caches: String,
    },
    /// A name that the directory does not hold.
    #[error("no such name")]
    NoEntry,
    /// An inode number that was never given out, or whose store path was replaced.
    #[error("no such node")]
    NoNode,
    /// A directory was needed.
    #[error("not a directory")]
    NotADirectory,
    /// A directory where a file was needed.
    #[error("is a directory")]
    IsADirectory,
    /// Not a symbolic link, or not a regular file.
    #[error("wrong kind of file")]
    WrongKind,
    /// No signature by a trusted key, and no content address.
    #[error(
        "{path} from {substituter} has no signature by a trusted key; add the cache's public key \
         (--trusted-key), or mark the cache as trusted"
    )]
    Untrusted {
        /// The path refused.
        path: StorePath,
        /// Who offered it.
        substituter: String,
    },
    /// No cache is left to ask: they hold another store's paths.
    #[error(
        "{path}: no cache can have it: {substituter} is a cache of {store_dir}; configure one of /nix/store"
    )]
    ForeignStore {
        /// The path asked for.
        path: StorePath,
        /// The first of these caches.
        substituter: String,
        /// The store that it is a cache of.
        store_dir: String,
    },
    /// A narinfo that can't be used.
    #[error("{path}: {substituter} serves a bad narinfo: {source}")]
    NarInfo {
        /// The path asked for.
        path: StorePath,
        /// Who served it.
        substituter: String,
        /// What is wrong with it.
        source: Box<NarInfoError>,
    },
    /// The network, a cache or its answer failed. Never the same as absent.
    #[error("{path}: {source}")]
    Fetch {
        /// The path that was being fetched.
        path: StorePath,
        /// What failed.
        #[source]
        source: Arc<FetchError>,
    },
    /// Nothing came in time.
    #[error("{path}: no progress for {} s while waiting for {what}; the fetch goes on, try again", .waited.as_secs())]
    TimedOut {
        /// The path waited for.
        path: StorePath,
        /// What was waited for: a narinfo, bytes, a verification.
        what: &'static str,
        /// The bound that was reached.
        waited: Duration,
    },
    /// The whole NAR had to be kept, and there is no room for it.
    #[error(
        "{path}: there is no room to keep it; make some with `narfs gc`, or give the state directory more"
    )]
    Unkept {
        /// The path.
        path: StorePath,
    },
    /// What a cache sent is not what its narinfo promised. Nothing of it is kept.
    #[error(
        "{path}: {substituter} sent a damaged NAR: {reason}; quarantined, its content was dropped"
    )]
    Damaged {
        /// The path.
        path: StorePath,
        /// Who sent it.
        substituter: String,
        /// What does not fit.
        reason: String,
    },
    /// The listing says something else than the NAR.
    #[error(
        "{path}: the listing of {substituter} does not match its NAR ({reason}); the NAR is indexed instead"
    )]
    ListingLies {
        /// The path.
        path: StorePath,
        /// Who serves the listing.
        substituter: String,
        /// The first difference.
        reason: String,
    },
    /// A listing that can't be compiled; the store falls back to the NAR.
    #[error("{path}: unusable listing: {source}")]
    Listing {
        /// The path.
        path: StorePath,
        /// What is wrong with it.
        source: Box<ListingError>,
    },
    /// The state directory failed.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// A compiled tree on disk is damaged.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// An error that several waiters share.
    #[error(transparent)]
    Shared(Arc<StoreError>),
    /// A task of the store ended without an answer: the process is stopping.
    #[error("the store is shutting down")]
    Stopping,
}

impl From<Arc<StoreError>> for StoreError {
    fn from(e: Arc<StoreError>) -> Self {
        Arc::try_unwrap(e).unwrap_or_else(Self::Shared)
    }
}

impl StoreError {
    /// The error itself, whoever shares it.
    pub fn root(&self) -> &Self {
        match self {
            Self::Shared(e) => e.root(),
            e => e,
        }
    }

    /// The cache it happened with, by the name that is safe to show.
    pub fn substituter(&self) -> Option<String> {
        match self.root() {
            Self::Untrusted { substituter, .. }
            | Self::ForeignStore { substituter, .. }
            | Self::NarInfo { substituter, .. }
            | Self::Damaged { substituter, .. }
            | Self::ListingLies { substituter, .. } => Some(substituter.clone()),
            Self::Fetch { source, .. } => Some(source.substituter().to_owned()),
            _ => None,
        }
    }

    /// Whether the caches said for certain that there is no such thing.
    pub fn is_absence(&self) -> bool {
        matches!(self.root(), Self::Absent { .. } | Self::NoEntry)
    }
}
