//! How NARs are packed: decoders as streams, and random access where the format allows it.
//!
//! Uses `nix` for the names of the formats, does no I/O of its own: [`stream`] reads from what the
//! caller gives it (a channel fed by the network, on a thread of its own), the rest is bytes in,
//! bytes out. Nothing here is shared between threads.
//!
//! | format | several units | own check of the content | random access |
//! |---|---|---|---|
//! | none | - | no | any offset |
//! | xz | streams, padding | yes (if the encoder wrote one) | blocks, from the index at the end |
//! | zstd | frames, skippable frames | if the encoder wrote one (`zstd` does, libzstd's default is not to) | frames, from a seek table at the end |
//! | bzip2, gzip | streams, members | yes | no |
//! | lz4 | frames, skippable frames | if the encoder wrote one | no |
//! | brotli | no | no | no |
//!
//! Whatever the input says, a decoder needs at most 128 MiB and a few for itself, gives out at most
//! the promised number of bytes, and `Ok(0)` comes only when the packed data was complete.
//! Bytes of formats without a check may be wrong: the NAR's hash is what counts.

mod blocks;
mod brotli;
mod bzip2;
mod error;
mod gzip;
mod hints;
mod input;
mod lz4;
mod plain;
mod pull;
mod push;
mod small;
mod units;
mod xz;
mod xz_index;
mod zstd;
mod zstd_table;

use std::io::Read;

pub use self::hints::hints_at_blocks;
pub use self::{
    blocks::{Block, BlockTable, FIRST_TAIL, Probe, probe},
    error::CodecError,
    small::decode_small,
    zstd_table::{SeekEntry, seek_checksum, seek_table},
};
use self::{input::Input, plain::Plain, push::Pushed, units::Units};
use crate::nix::Compression;

/// A place where decoding can start afresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Checkpoint {
    /// Offset in the packed file.
    pub packed: u64,
    /// Offset in the NAR of the first byte that comes from there.
    pub nar: u64,
}

impl Checkpoint {
    /// The start of the file.
    pub const START: Self = Self { packed: 0, nar: 0 };
}

/// A NAR on its way out of its packing.
///
/// Errors of the source are returned as they are; the codec's own are found by
/// [`CodecError::of`]. After an error the reader stays failed. Give `read` room for 128 KiB or
/// more: decoders write into it directly.
pub trait NarReader: Read + Send {
    /// The last place passed where a later [`stream`] can start, at first the start itself. Its
    /// `nar` is never beyond what was read. For zstd, xz, gzip, bzip2 and lz4 a caller who asks
    /// after every read, the last one included, sees each place that has bytes on both sides, so
    /// it can keep an index of them; for `none` every place will do.
    fn checkpoint(&self) -> Option<Checkpoint>;
}

/// Unpacks `packed`, whose first byte is byte `at.packed` of the packed file, from byte `at.nar` of
/// the NAR up to its end at `nar_size`.
///
/// Reads all streams, frames or members. Fails with `InvalidData` when more than `nar_size` bytes
/// come out, when foreign bytes follow, or when the data is damaged; with `UnexpectedEof` when it
/// breaks off or holds too few bytes.
///
/// `at` is [`Checkpoint::START`], or what [`NarReader::checkpoint`] said; for `none` any offset.
///
/// # Errors
///
/// [`CodecError::Checkpoint`] for an `at` that cannot be; [`CodecError::Setup`] without memory.
pub fn stream(
    format: Compression,
    packed: Box<dyn Read + Send>,
    at: Checkpoint,
    nar_size: u64,
) -> Result<Box<dyn NarReader>, CodecError> {
    open(format, packed, at, Bound::Exactly(nar_size))
}

/// How much may come out of a decoder.
#[derive(Debug, Clone, Copy)]
enum Bound {
    /// So many bytes, as the narinfo says.
    Exactly(u64),
    /// Up to so many bytes.
    AtMost(u64),
}

impl Bound {
    /// How many bytes may follow the first `position` ones.
    fn left(self, position: u64) -> u64 {
        let (Self::Exactly(end) | Self::AtMost(end)) = self;
        end.saturating_sub(position)
    }

    /// The part of `out` that may be filled behind the first `position` bytes.
    fn room(self, position: u64, out: &mut [u8]) -> &mut [u8] {
        let left = usize::try_from(self.left(position)).unwrap_or(usize::MAX);
        let room = out.len().min(left);
        &mut out[..room]
    }

    /// What it means that there are more.
    fn exceeded(self, format: Compression) -> CodecError {
        match self {
            Self::Exactly(nar_size) => CodecError::Long { format, nar_size },
            Self::AtMost(limit) => CodecError::TooLarge { limit },
        }
    }

    /// Whether the data may end after `got` bytes.
    fn check_end(self, format: Compression, got: u64) -> Result<(), CodecError> {
        match self {
            Self::Exactly(nar_size) if got < nar_size => Err(CodecError::Short {
                format,
                got,
                nar_size,
            }),
            _ => Ok(()),
        }
    }
}

fn open<'a>(
    format: Compression,
    packed: Box<dyn Read + Send + 'a>,
    at: Checkpoint,
    bound: Bound,
) -> Result<Box<dyn NarReader + 'a>, CodecError> {
    let Checkpoint {
        packed: position,
        nar,
    } = at;
    let possible = match format {
        Compression::None => position == nar,
        // One unit: there is no second place to start at.
        Compression::Brotli => at == Checkpoint::START,
        // A unit takes at least a byte, and may hold none.
        _ => position > 0 || nar == 0,
    };
    let (Bound::Exactly(end) | Bound::AtMost(end)) = bound;
    if !possible || nar > end {
        return Err(CodecError::Checkpoint {
            format,
            packed: position,
            nar,
        });
    }
    let setup = |_| CodecError::Setup { format };
    let input = |packed| Input::new(packed, position);
    Ok(match format {
        Compression::None => Box::new(Plain::new(packed, position, bound)),
        Compression::Xz => Box::new(Units::new(
            Pushed::new(input(packed), xz::Xz::new()),
            at,
            bound,
        )),
        Compression::Zstd => {
            let decoder = zstd::Zstd::new().map_err(setup)?;
            Box::new(Units::new(Pushed::new(input(packed), decoder), at, bound))
        }
        Compression::Bzip2 => Box::new(Units::new(
            Pushed::new(input(packed), bzip2::Bzip2::new()),
            at,
            bound,
        )),
        Compression::Brotli => Box::new(Units::new(
            Pushed::new(input(packed), brotli::Brotli::new()),
            at,
            bound,
        )),
        Compression::Gzip => Box::new(Units::new(gzip::Gzip::Idle(input(packed)), at, bound)),
        Compression::Lz4 => Box::new(Units::new(lz4::Frames::Idle(input(packed)), at, bound)),
    })
}

#[cfg(test)]
mod blocks_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
