//! Packs a directory tree of this machine into a NAR, and knows one by its first bytes.
//!
//! [`dump`] is thin over the `nix-archive` crate. The one place in this layer that reads files;
//! used for the caches that the demonstration and the tests serve, never to read a cache.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use nix_archive::nar::{CaseHack, encode_path};

/// What a store path is itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootKind {
    /// A directory: nearly every one.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}

/// Bytes of a NAR that tell its [`RootKind`]: the magic, `(`, `type`, and the type.
pub const ROOT_KIND_BYTES: usize = 80;

/// Everything in front of the type (`dump` in Nix's `libutil/archive.cc`).
const FRONT: &[u8; 56] = b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0\
    \x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0type\0\0\0\0";

impl RootKind {
    /// What the first bytes of a NAR say; `None` if they are those of something else.
    pub fn of_nar(head: &[u8; ROOT_KIND_BYTES]) -> Option<Self> {
        let token = head.strip_prefix(FRONT)?;
        let (length, word) = token.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        match word.get(..length)? {
            b"directory" => Some(Self::Directory),
            b"regular" => Some(Self::File),
            b"symlink" => Some(Self::Symlink),
            _ => None,
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(path: &Path) -> Option<RootKind> {
        let mut nar = Vec::new();
        dump(path, &mut nar).unwrap();
        let head = nar.first_chunk().expect("no NAR is shorter");
        RootKind::of_nar(head)
    }

    #[test]
    fn the_first_bytes_tell_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("empty")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("x", at("link")).unwrap();
        assert_eq!(kind(dir.path()), Some(RootKind::Directory));
        assert_eq!(kind(&at("empty")), Some(RootKind::Directory));
        assert_eq!(kind(&at("file")), Some(RootKind::File));
        assert_eq!(kind(&at("link")), Some(RootKind::Symlink));
        assert_eq!(RootKind::of_nar(&[0; ROOT_KIND_BYTES]), None);
        let mut lie = [0xff; ROOT_KIND_BYTES];
        lie[..56].copy_from_slice(FRONT);
        assert_eq!(RootKind::of_nar(&lie), None);
    }
}
