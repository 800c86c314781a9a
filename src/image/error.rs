//! What can go wrong with an image, each with the file and the next step.

use std::{io, path::PathBuf};

use super::Digest;

/// Why an image can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The archive of the base can't be read.
    #[error("{file} cannot be read", file = .file.display())]
    Read {
        /// The archive.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The base is no archive of an image that can be used.
    #[error("{file} cannot be the base: {why}", file = .file.display())]
    Base {
        /// The archive.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// A blob of the base is not what its name says.
    #[error(
        "{file} is damaged: {blob} has the SHA-256 {found}, not {wanted}; export it anew",
        file = .file.display()
    )]
    Damaged {
        /// The archive.
        file: PathBuf,
        /// The file in it.
        blob: String,
        /// What its bytes have.
        found: Digest,
        /// What they should have.
        wanted: Digest,
    },
    /// Something cannot stand in the image's root directory.
    #[error("{what} cannot be linked at /{at}: {why}")]
    Root {
        /// The file of the store.
        what: String,
        /// The place.
        at: String,
        /// What stands in the way.
        why: String,
    },
    /// The archive can't be written.
    #[error("the image cannot be written")]
    Write(#[source] io::Error),
    /// Somebody stopped it.
    #[error("interrupted")]
    Stopped,
    /// A document can't be put into words: a fault of narfs.
    #[error("the image's documents cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// The same, in the words of the specification's types.
    #[error("the image's documents break the OCI specification")]
    Specification(#[from] oci_spec::OciSpecError),
}
