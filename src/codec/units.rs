//! Packed files are rows of self-contained units: frames, streams, members. This is the part that
//! all formats share: unit after unit, exact boundaries, exact bounds.
//!
//! What always holds: no byte beyond the bound is given out, and `Ok(0)` comes only when the packed
//! data ended at a unit's end with exactly the promised number of bytes.

use std::io::{self, BufRead, Read};

use super::{Bound, Checkpoint, CodecError, NarReader, input::Input};
use crate::nix::Compression;

/// What may stand between and behind the units of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Between {
    /// Further units, one directly behind the other.
    Units,
    /// Further units and zero bytes in multiples of four (xz "stream padding").
    PaddedUnits,
    /// Nothing: the format has one unit.
    Nothing,
}

/// The units of one format, read from an [`Input`].
pub(super) trait Source<'a>: Send {
    /// The format.
    const FORMAT: Compression;
    /// What may follow a unit.
    const BETWEEN: Between;
    /// The input; asked for between two units only.
    fn input(&mut self) -> &mut Input<'a>;
    /// Makes ready for the first or the next unit, which has at least one byte.
    fn begin(&mut self) -> Result<(), CodecError>;
    /// Decodes into `out`, which is not empty. Returns how many bytes, and whether the unit is
    /// complete: all of it given and checked. No bytes of an incomplete unit is not allowed.
    fn pull(&mut self, out: &mut [u8]) -> Result<(usize, bool), CodecError>;
}

enum Stage {
    /// Behind a unit, or at the start.
    Between,
    /// In the unit that starts at this packed offset.
    Inside { start: u64 },
    /// Everything was given and checked.
    Done,
    /// An error was reported.
    Failed,
}

/// Reads the units of a [`Source`] one behind the other.
pub(super) struct Units<S> {
    source: S,
    bound: Bound,
    /// Offset in the NAR of the next byte to give.
    position: u64,
    /// What callers are told: the last place between two units that was passed, or the start.
    checkpoint: Checkpoint,
    /// A place passed in the same read as `checkpoint`, to be told after the next one, so that a
    /// caller who looks after every read sees all of them.
    passed: Option<Checkpoint>,
    /// Offset in the NAR where the current unit begins.
    unit: u64,
    /// A unit stands before the next one, in this input or before it.
    follows: bool,
    stage: Stage,
}

impl<S> Units<S> {
    /// Reads `source` from `at`, where its input stands.
    pub(super) fn new(source: S, at: Checkpoint, bound: Bound) -> Self {
        Self {
            source,
            bound,
            position: at.nar,
            checkpoint: at,
            passed: None,
            unit: at.nar,
            follows: at != Checkpoint::START,
            stage: Stage::Between,
        }
    }

    fn next<'a>(&mut self, out: &mut [u8]) -> Result<usize, CodecError>
    where
        S: Source<'a>,
    {
        let mut told = false;
        if let Some(passed) = self.passed.take() {
            self.checkpoint = passed;
            told = true;
        }
        loop {
            match self.stage {
                Stage::Done => return Ok(0),
                Stage::Failed => return Err(CodecError::Failed { format: S::FORMAT }),
                Stage::Between => self.begin()?,
                Stage::Inside { start } => {
                    let left = self.bound.left(self.position);
                    let mut beyond = [0; 1];
                    let room = match self.bound.room(self.position, out) {
                        [] => &mut beyond[..],
                        room => room,
                    };
                    let (n, ended) = self
                        .source
                        .pull(room)
                        .map_err(|error| self.foreign(error, start))?;
                    if n > 0 && left == 0 {
                        return Err(self.bound.exceeded(S::FORMAT));
                    }
                    self.position += n as u64;
                    if ended {
                        let packed = self.source.input().position();
                        let place = Checkpoint {
                            packed,
                            nar: self.position,
                        };
                        if S::BETWEEN == Between::Nothing {
                            // Where nothing may follow nothing can start either.
                        } else if told && place.nar > self.checkpoint.nar {
                            self.passed = Some(place);
                        } else {
                            self.checkpoint = place;
                            told = true;
                        }
                        self.unit = self.position;
                        self.follows = true;
                        self.stage = Stage::Between;
                    }
                    if n > 0 {
                        return Ok(n);
                    }
                }
            }
        }
    }

    /// Goes on to the next unit, or finds that there is none.
    fn begin<'a>(&mut self) -> Result<(), CodecError>
    where
        S: Source<'a>,
    {
        let input = self.source.input();
        if self.follows && S::BETWEEN == Between::PaddedUnits {
            skip_padding(input, S::FORMAT)?;
        }
        let at = input.position();
        if !input.peek(1)?.is_empty() {
            if self.follows && S::BETWEEN == Between::Nothing {
                return Err(CodecError::Trailing {
                    format: S::FORMAT,
                    at,
                });
            }
            self.source.begin()?;
            self.stage = Stage::Inside { start: at };
        } else if self.follows {
            self.bound.check_end(S::FORMAT, self.position)?;
            self.stage = Stage::Done;
        } else {
            return Err(CodecError::Truncated {
                format: S::FORMAT,
                at,
            });
        }
        Ok(())
    }

    /// What cannot be decoded behind complete data is no damage in it, it does not belong to it.
    fn foreign(&self, error: CodecError, start: u64) -> CodecError {
        match error {
            CodecError::Damaged { format, .. }
                if self.follows
                    && self.position == self.unit
                    && self.bound.left(self.position) == 0 =>
            {
                CodecError::Trailing { format, at: start }
            }
            other => other,
        }
    }
}

/// Takes zero bytes, a multiple of four of them.
fn skip_padding(input: &mut Input<'_>, format: Compression) -> Result<(), CodecError> {
    let start = input.position();
    loop {
        let bytes = input.fill_buf()?;
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        let more = zeros == bytes.len() && zeros > 0;
        input.consume(zeros);
        if !more {
            break;
        }
    }
    let at = input.position();
    if !(at - start).is_multiple_of(4) {
        let what = format!(
            "{} zero bytes behind a stream, no multiple of four",
            at - start
        );
        return Err(CodecError::Damaged { format, at, what });
    }
    Ok(())
}

impl<'a, S: Source<'a>> Read for Units<S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        self.next(out).map_err(|error| {
            self.stage = Stage::Failed;
            error.into()
        })
    }
}

impl<'a, S: Source<'a>> NarReader for Units<S> {
    fn checkpoint(&self) -> Option<Checkpoint> {
        Some(self.checkpoint)
    }
}
