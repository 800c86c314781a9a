//! `none`: the NAR as it is, held to the same bounds as the packed formats.

use std::io::{self, Read};

use super::{Bound, Checkpoint, CodecError, NarReader};
use crate::nix::Compression;

/// Hands the source's bytes on and checks that there are as many as promised.
pub(super) struct Plain<'a> {
    source: Box<dyn Read + Send + 'a>,
    position: u64,
    bound: Bound,
    failed: bool,
}

impl<'a> Plain<'a> {
    /// A source whose first byte is byte `position` of the NAR.
    pub(super) fn new(source: Box<dyn Read + Send + 'a>, position: u64, bound: Bound) -> Self {
        Self {
            source,
            position,
            bound,
            failed: false,
        }
    }

    fn next(&mut self, out: &mut [u8]) -> Result<usize, CodecError> {
        if self.failed {
            return Err(CodecError::Failed {
                format: Compression::None,
            });
        }
        let left = self.bound.left(self.position);
        let mut beyond = [0; 1];
        let room = match self.bound.room(self.position, out) {
            [] => &mut beyond[..],
            room => room,
        };
        let n = self.source.read(room)?;
        match n {
            0 => self.bound.check_end(Compression::None, self.position)?,
            _ if left == 0 => return Err(self.bound.exceeded(Compression::None)),
            _ => self.position += n as u64,
        }
        Ok(n)
    }
}

impl Read for Plain<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        self.next(out).map_err(|error| {
            // An interrupted read is to be repeated, it is no failure.
            self.failed = error.kind() != io::ErrorKind::Interrupted;
            error.into()
        })
    }
}

impl NarReader for Plain<'_> {
    fn checkpoint(&self) -> Option<Checkpoint> {
        Some(Checkpoint {
            packed: self.position,
            nar: self.position,
        })
    }
}
