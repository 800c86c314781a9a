//! Packs a directory tree of this machine into a NAR.
//!
//! Thin over the `nix-archive` crate. The one place in this layer that reads files; used for the
//! caches that the demonstration and the tests serve, never to read a cache.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use nix_archive::nar::{CaseHack, encode_path};

/// Why a tree could not be packed.
#[derive(Debug, thiserror::Error)]
#[error("cannot pack {path} into a NAR: {source}")]
pub struct DumpError {
    /// The tree's root.
    pub path: PathBuf,
    /// What the encoder says, including the kinds of files that a NAR cannot hold.
    #[source]
    pub source: nix_archive::nar::Error,
}

/// Writes the tree at `path` (a directory, file or symlink) as `nix-store --dump` does.
///
/// Trees deeper than 64 directories are refused: Nix refuses to read such archives, too.
pub fn dump(path: &Path, mut out: impl Write) -> Result<(), DumpError> {
    // The suffix of macOS's case hack is an ordinary name here, and has to stay as it is.
    encode_path(&mut out, path, CaseHack::Disabled).map_err(|source| DumpError {
        path: path.into(),
        source,
    })
}
