//! Decoders that are given packed bytes and room for unpacked ones: zstd, xz, bzip2, brotli.

use std::io::BufRead;

use super::{
    CodecError,
    input::Input,
    units::{Between, Source},
};
use crate::nix::Compression;

/// What a decoder did with what it was given.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Step {
    /// Packed bytes taken.
    pub(super) read: usize,
    /// Unpacked bytes given.
    pub(super) written: usize,
    /// The unit is complete: all of it taken, given and checked.
    pub(super) ended: bool,
}

/// What a decoder dislikes.
#[derive(Debug)]
pub(super) enum Fault {
    /// The data is not what the format allows.
    Damaged(String),
    /// The unit asks for more memory than this many bytes.
    Memory(u64),
    /// The decoder could not be made.
    Setup,
}

impl Fault {
    fn at(self, format: Compression, at: u64) -> CodecError {
        match self {
            Self::Damaged(what) => CodecError::Damaged { format, at, what },
            Self::Memory(limit) => CodecError::Memory { format, limit },
            Self::Setup => CodecError::Setup { format },
        }
    }
}

/// A decoder of one format.
pub(super) trait Push: Send {
    /// The format.
    const FORMAT: Compression;
    /// What may follow a unit.
    const BETWEEN: Between;
    /// Makes ready for the first or the next unit.
    fn begin(&mut self) -> Result<(), Fault>;
    /// Decodes what is possible. Doing nothing at all means that it needs more input.
    fn step(&mut self, packed: &[u8], out: &mut [u8]) -> Result<Step, Fault>;
}

/// A [`Push`] decoder and the input that feeds it.
pub(super) struct Pushed<'a, P> {
    input: Input<'a>,
    decoder: P,
    /// The last step filled all the room it had: the decoder may hold more bytes, which a reader
    /// must not wait for the network to get.
    holds: bool,
}

impl<'a, P> Pushed<'a, P> {
    pub(super) fn new(input: Input<'a>, decoder: P) -> Self {
        Self {
            input,
            decoder,
            holds: false,
        }
    }
}

impl<'a, P: Push> Source<'a> for Pushed<'a, P> {
    const FORMAT: Compression = P::FORMAT;
    const BETWEEN: Between = P::BETWEEN;

    fn input(&mut self) -> &mut Input<'a> {
        &mut self.input
    }

    fn begin(&mut self) -> Result<(), CodecError> {
        self.holds = false;
        let at = self.input.position();
        self.decoder
            .begin()
            .map_err(|fault| fault.at(P::FORMAT, at))
    }

    fn pull(&mut self, out: &mut [u8]) -> Result<(usize, bool), CodecError> {
        let mut stalls = 0;
        loop {
            let at = self.input.position();
            let packed = if self.holds {
                self.input.buffered()
            } else {
                self.input.fill_buf()?
            };
            let (had, ended) = (packed.len(), packed.is_empty() && !self.holds);
            let step = self
                .decoder
                .step(packed, out)
                .map_err(|f| f.at(P::FORMAT, at))?;
            self.input.consume(step.read.min(had));
            self.holds = step.written == out.len();
            if step.written > 0 || step.ended {
                return Ok((step.written, step.ended));
            }
            if ended {
                return Err(CodecError::Truncated {
                    format: P::FORMAT,
                    at,
                });
            }
            // Twice nothing with input at hand and room to fill: the decoder will never go on.
            stalls = if step.read == 0 && had > 0 {
                stalls + 1
            } else {
                0
            };
            if stalls > 1 {
                return Err(
                    Fault::Damaged("the decoder makes no progress".into()).at(P::FORMAT, at)
                );
            }
        }
    }
}
