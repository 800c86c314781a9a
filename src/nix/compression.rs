//! The compressions that a narinfo may name.

use std::fmt;

/// How a NAR is packed in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all: `none`.
    None,
    /// `xz`, what most caches used for a decade.
    Xz,
    /// `zstd`, what most caches use now.
    Zstd,
    /// `bzip2`, also what a narinfo means that names none.
    Bzip2,
    /// `gzip`.
    Gzip,
    /// `br`.
    Brotli,
    /// `lz4`, in its frame format.
    Lz4,
}

impl Compression {
    /// Every compression that narfs reads.
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::Xz,
        Self::Zstd,
        Self::Bzip2,
        Self::Gzip,
        Self::Brotli,
        Self::Lz4,
    ];

    /// The compression with this name in a narinfo; `None` if narfs cannot read it.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == name)
    }

    /// Its name in a narinfo.
    pub fn as_str(self) -> &'static str {
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
    fn names_are_the_ones_in_narinfos() {
        for c in Compression::ALL {
            assert_eq!(Compression::parse(c.as_str()), Some(c));
        }
        assert_eq!(Compression::parse("br"), Some(Compression::Brotli));
        for unknown in ["", "lzma", "XZ", "brotli"] {
            assert_eq!(Compression::parse(unknown), None, "{unknown}");
        }
    }
}
