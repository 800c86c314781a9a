//! An image's bytes: owned, or mapped from its file.

use std::{fs::File, io, ops::Deref, path::Path};

/// Bytes that do not change.
pub(super) enum Bytes {
    Owned(Vec<u8>),
    Mapped(memmap2::Mmap),
}

impl Bytes {
    /// Maps a whole file.
    #[allow(unsafe_code)]
    pub fn map(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: a map is undefined behaviour or a SIGBUS if the file changes or shrinks under it.
        // Index files lie in the state directory, which only its owner can enter (0700) and only
        // one process holds (its lock); there they appear by rename when complete, are never
        // written again, and are removed by name, which leaves maps as they are.
        unsafe { memmap2::Mmap::map(&file) }.map(Self::Mapped)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}
