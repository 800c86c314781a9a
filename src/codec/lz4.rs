//! LZ4 frames, skippable ones included.

use std::io::{self, Read};

use lz4_flex::frame::FrameDecoder;

use super::{
    input::Input,
    pull::{Pull, Pulled},
};
use crate::nix::Compression;

/// The first of the 16 magic numbers of skippable frames, LZ4 frame format 1.6.
const SKIPPABLE: u32 = 0x184D_2A50;
/// The magic number of what `lz4 -l` writes: blocks without an end mark or checks, of which nobody
/// can say whether they are complete.
const LEGACY: u32 = 0x184C_2102;

/// Decodes a frame.
pub(super) enum Lz4<'a> {
    /// Nothing read yet.
    Start(Input<'a>),
    /// A frame with data. A new decoder for each: it cannot cope with blocks of another size.
    Frame(Box<FrameDecoder<Input<'a>>>),
}

impl Read for Lz4<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if let Self::Start(input) = self {
            let magic = input.peek(4)?.try_into().map(u32::from_le_bytes);
            match magic {
                Ok(LEGACY) => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a frame of the legacy format, which has no checks; pack it anew",
                    ));
                }
                Ok(magic) if magic & !0xF == SKIPPABLE => return skip(input),
                _ => {}
            }
            let input = std::mem::replace(input, Input::empty());
            *self = Self::Frame(Box::new(FrameDecoder::new(input)));
        }
        match self {
            Self::Frame(decoder) => decoder.read(out),
            Self::Start(_) => Ok(0),
        }
    }
}

/// Takes a skippable frame.
fn skip(input: &mut Input<'_>) -> io::Result<usize> {
    let mut header = [0; 8];
    input.read_exact(&mut header)?;
    let [_, _, _, _, size @ ..] = header;
    let size = u64::from(u32::from_le_bytes(size));
    if io::copy(&mut input.take(size), &mut io::sink())? < size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(0)
}

impl<'a> Pull<'a> for Lz4<'a> {
    const FORMAT: Compression = Compression::Lz4;
    // The decoder takes the end of the input for the end of a frame, and never looks further than
    // a frame's end: a frame during which the input ended is not complete.
    const HIDES_TRUNCATION: bool = true;

    fn open(input: Input<'a>) -> Self {
        Self::Start(input)
    }

    fn input(&mut self) -> &mut Input<'a> {
        match self {
            Self::Start(input) => input,
            Self::Frame(decoder) => decoder.get_mut(),
        }
    }

    fn close(self) -> Input<'a> {
        match self {
            Self::Start(input) => input,
            Self::Frame(decoder) => decoder.into_inner(),
        }
    }
}

/// Decodes one frame after the other.
pub(super) type Frames<'a> = Pulled<'a, Lz4<'a>>;
