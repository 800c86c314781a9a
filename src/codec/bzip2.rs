//! bzip2 streams.

use bzip2::{Decompress, Status};

use super::{
    push::{Fault, Push, Step},
    units::Between,
};
use crate::nix::Compression;

/// Decodes one stream after the other. Needs at most 4 MB, whatever the data says.
pub(super) struct Bzip2(Decompress);

impl Bzip2 {
    pub(super) fn new() -> Self {
        Self(Decompress::new(false))
    }
}

impl Push for Bzip2 {
    const FORMAT: Compression = Compression::Bzip2;
    const BETWEEN: Between = Between::Units;

    fn begin(&mut self) -> Result<(), Fault> {
        *self = Self::new();
        Ok(())
    }

    fn step(&mut self, packed: &[u8], out: &mut [u8]) -> Result<Step, Fault> {
        let (read, written) = (self.0.total_in(), self.0.total_out());
        let status = self
            .0
            .decompress(packed, out)
            .map_err(|error| Fault::Damaged(error.to_string()))?;
        match status {
            Status::MemNeeded => Err(Fault::Setup),
            status => Ok(Step {
                // Differences of one call are at most the lengths of its buffers.
                read: (self.0.total_in() - read) as usize,
                written: (self.0.total_out() - written) as usize,
                ended: status == Status::StreamEnd,
            }),
        }
    }
}
