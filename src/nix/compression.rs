//! How a NAR is packed: the values of a narinfo's `Compression` field.

use std::fmt;

/// A compression method that binary caches use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Stored as it is.
    None,
    /// `.xz`, one or more streams of one or more blocks.
    Xz,
    /// Zstandard, one or more frames.
    Zstd,
    /// bzip2: also what a narinfo without a `Compression` field means.
    Bzip2,
    /// gzip, one or more members.
    Gzip,
    /// Brotli.
    Brotli,
    /// LZ4 in its frame format.
    Lz4,
}

impl Compression {
    /// Every method.
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::Xz,
        Self::Zstd,
        Self::Bzip2,
        Self::Gzip,
        Self::Brotli,
        Self::Lz4,
    ];

    /// Reads the name that a narinfo uses. `None` for a name that narfs does not know; what an
    /// absent or empty field means (bzip2) is for the caller to say.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == name)
    }

    /// The name that a narinfo uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Lz4 => "lz4",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_names_it_writes_and_no_others() {
        for method in Compression::ALL {
            assert_eq!(Compression::parse(method.as_str()), Some(method));
        }
        for name in ["", "brotli", "XZ", "lzip", "xz "] {
            assert_eq!(Compression::parse(name), None, "{name:?}");
        }
    }
}
