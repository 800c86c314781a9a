//! What can be wrong with packed data.

use std::io;

use crate::nix::Compression;

/// Why packed bytes did not become the bytes that they should stand for.
///
/// Offsets named `at` count packed bytes from the start of the packed file.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The decoder met something that its format does not allow, or a check sum that is wrong.
    #[error(
        "the {format} data is damaged near its byte {at}: {what}; fetch it again or from another substituter"
    )]
    Damaged {
        /// The format that the data should have.
        format: Compression,
        /// How far the decoder had read.
        at: u64,
        /// What the decoder says.
        what: String,
    },
    /// The packed data stops in the middle of a stream, frame or member.
    #[error("the {format} data breaks off at its byte {at}, in the middle of a {}; fetch the rest", unit(*.format))]
    Truncated {
        /// The format of the data.
        format: Compression,
        /// How many packed bytes there were.
        at: u64,
    },
    /// The packed data is whole but stands for too few bytes.
    #[error(
        "the {format} data holds {got} bytes where the narinfo promises {nar_size}; try another substituter"
    )]
    Short {
        /// The format of the data.
        format: Compression,
        /// How many unpacked bytes there were.
        got: u64,
        /// How many there should be.
        nar_size: u64,
    },
    /// The packed data goes on after all promised bytes have come out.
    #[error(
        "the {format} data goes on after its end: the narinfo promises {nar_size} bytes; try another substituter"
    )]
    Long {
        /// The format of the data.
        format: Compression,
        /// How many unpacked bytes there should be.
        nar_size: u64,
    },
    /// Something that is no further stream, frame or member stands behind the last one.
    #[error(
        "foreign bytes stand behind the {format} data, at its byte {at}; try another substituter"
    )]
    Trailing {
        /// The format of the data.
        format: Compression,
        /// Where the foreign bytes start.
        at: u64,
    },
    /// Decoding needs more memory than narfs allows.
    #[error("the {format} data needs a decoder with more than {} MiB of memory, which narfs does not allow", .limit >> 20)]
    Memory {
        /// The format of the data.
        format: Compression,
        /// The limit in bytes.
        limit: u64,
    },
    /// A small document (listing, narinfo) is larger than the caller allows.
    #[error("the unpacked document is larger than {limit} bytes, the limit for it")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// A `Content-Encoding` that narfs does not know.
    #[error(
        "unknown content encoding {name:?}; narfs reads br, zstd, gzip, xz, bzip2, lz4 and identity"
    )]
    Encoding {
        /// What the header says.
        name: String,
    },
    /// Decoding cannot start at the place that the caller asked for.
    #[error(
        "decoding {format} data cannot start at its byte {packed} for byte {nar} of the NAR; start at 0"
    )]
    Checkpoint {
        /// The format of the data.
        format: Compression,
        /// Offset in the packed file.
        packed: u64,
        /// Offset in the NAR.
        nar: u64,
    },
    /// The block index or seek table at the end of the file contradicts itself or the file.
    #[error("the {format} block table is unusable: {what}; read the file from its start instead")]
    Table {
        /// The format of the data.
        format: Compression,
        /// What is wrong.
        what: String,
    },
    /// The caller gave other bytes than those of the block that it asked for.
    #[error("{format} block {index} has {expected} packed bytes, {got} were given")]
    BlockBytes {
        /// The format of the data.
        format: Compression,
        /// Position of the block in the table.
        index: usize,
        /// How many packed bytes the block has.
        expected: u64,
        /// How many were given.
        got: u64,
    },
    /// The decoder could not be set up: the machine is out of memory.
    #[error("no memory for a {format} decoder")]
    Setup {
        /// The format of the data.
        format: Compression,
    },
    /// The reader failed before and was asked again.
    #[error("the {format} decoder was asked again after it had failed; open a new one")]
    Failed {
        /// The format of the data.
        format: Compression,
    },
    /// Reading the packed data failed. [`io::Error`]s made from this are the cause itself.
    #[error("reading the packed data failed: {0}")]
    Io(#[from] io::Error),
}

/// What a format calls its self-contained parts.
fn unit(format: Compression) -> &'static str {
    match format {
        Compression::Zstd | Compression::Lz4 => "frame",
        Compression::Gzip => "member",
        Compression::None => "file",
        Compression::Xz | Compression::Bzip2 | Compression::Brotli => "stream",
    }
}

impl CodecError {
    /// The codec's error inside an [`io::Error`] that a [`NarReader`](super::NarReader) returned;
    /// `None` if it is the packed source's own error.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// The codec's error that an [`io::Error`] was made from, by value.
    pub(super) fn from_read(error: io::Error) -> Self {
        error.downcast().unwrap_or_else(Self::Io)
    }

    /// The kind of [`io::Error`] that this becomes.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Truncated { .. } | Self::Short { .. } => io::ErrorKind::UnexpectedEof,
            Self::Setup { .. } => io::ErrorKind::OutOfMemory,
            Self::Checkpoint { .. } | Self::BlockBytes { .. } => io::ErrorKind::InvalidInput,
            Self::Encoding { .. } => io::ErrorKind::Unsupported,
            Self::Io(error) => error.kind(),
            Self::Failed { .. } => io::ErrorKind::Other,
            Self::Damaged { .. }
            | Self::Long { .. }
            | Self::Trailing { .. }
            | Self::Memory { .. }
            | Self::TooLarge { .. }
            | Self::Table { .. } => io::ErrorKind::InvalidData,
        }
    }
}

impl From<CodecError> for io::Error {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::Io(error) => error,
            other => Self::new(other.kind(), other),
        }
    }
}
