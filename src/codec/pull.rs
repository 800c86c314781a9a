//! Decoders that take a reader and are one: gzip, lz4.

use std::{
    io::{self, Read},
    mem,
};

use super::{
    CodecError,
    input::Input,
    units::{Between, Source},
};
use crate::nix::Compression;

/// A decoder of one unit that owns its input while it works.
pub(super) trait Pull<'a>: Read + Send + Sized {
    /// The format; further units may follow directly.
    const FORMAT: Compression;
    /// Starts on the unit at the front of `input`.
    fn open(input: Input<'a>) -> Self;
    /// The input, behind what was read.
    fn input(&mut self) -> &mut Input<'a>;
    /// Gives the input back.
    fn close(self) -> Input<'a>;
    /// Whether `Ok(0)` from the decoder may also mean that the input broke off.
    const HIDES_TRUNCATION: bool;
}

/// A [`Pull`] decoder, or the input between two units.
pub(super) enum Pulled<'a, D> {
    /// Between two units.
    Idle(Input<'a>),
    /// In a unit.
    Busy(D),
}

impl<'a, D: Pull<'a>> Source<'a> for Pulled<'a, D> {
    const FORMAT: Compression = D::FORMAT;
    const BETWEEN: Between = Between::Units;

    fn input(&mut self) -> &mut Input<'a> {
        match self {
            Self::Idle(input) => input,
            Self::Busy(decoder) => decoder.input(),
        }
    }

    fn begin(&mut self) -> Result<(), CodecError> {
        let input = match mem::replace(self, Self::Idle(Input::empty())) {
            Self::Idle(input) => input,
            Self::Busy(decoder) => decoder.close(),
        };
        *self = Self::Busy(D::open(input));
        Ok(())
    }

    fn pull(&mut self, out: &mut [u8]) -> Result<(usize, bool), CodecError> {
        let format = D::FORMAT;
        let Self::Busy(decoder) = self else {
            return Err(CodecError::Failed { format });
        };
        let read = loop {
            match decoder.read(out) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let at = decoder.input().position();
        match read {
            Ok(0) if D::HIDES_TRUNCATION && decoder.input().ended() => {
                Err(CodecError::Truncated { format, at })
            }
            Ok(n) => Ok((n, n == 0)),
            Err(error) if decoder.input().failed() => Err(CodecError::Io(error)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(CodecError::Truncated { format, at })
            }
            Err(error) => Err(CodecError::Damaged {
                format,
                at,
                what: error.to_string(),
            }),
        }
    }
}
