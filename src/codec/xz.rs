//! xz streams: the sequential decoder. Random access is in `xz_index`.

use liblzma::stream::{Action, Error, Status, Stream, TELL_UNSUPPORTED_CHECK};

use super::{
    push::{Fault, Push, Step},
    units::Between,
};
use crate::nix::Compression;

/// Memory in bytes that a decoder may use. `xz -9` needs 65 MiB; twice that also takes the
/// dictionaries of up to 96 MiB that people choose by hand.
pub(super) const MEMORY_MAX: u64 = 128 << 20;

/// Decodes one stream after the other.
pub(super) struct Xz(Option<Stream>);

impl Xz {
    pub(super) fn new() -> Self {
        Self(None)
    }
}

fn fault(error: Error) -> Fault {
    match error {
        Error::MemLimit => Fault::Memory(MEMORY_MAX),
        Error::Mem => Fault::Setup,
        // Bytes whose check nobody can verify are not worth having.
        Error::UnsupportedCheck => Fault::Damaged("its kind of check is unknown to liblzma".into()),
        Error::Options => Fault::Damaged("it uses a filter that liblzma does not know".into()),
        other => Fault::Damaged(other.to_string()),
    }
}

impl Push for Xz {
    const FORMAT: Compression = Compression::Xz;
    const BETWEEN: Between = Between::PaddedUnits;

    fn begin(&mut self) -> Result<(), Fault> {
        let stream = Stream::new_stream_decoder(MEMORY_MAX, TELL_UNSUPPORTED_CHECK);
        self.0 = Some(stream.map_err(fault)?);
        Ok(())
    }

    fn step(&mut self, packed: &[u8], out: &mut [u8]) -> Result<Step, Fault> {
        let stream = self.0.as_mut().ok_or(Fault::Setup)?;
        let (read, written) = (stream.total_in(), stream.total_out());
        let status = stream.process(packed, out, Action::Run).map_err(fault)?;
        Ok(Step {
            // Differences of one call are at most the lengths of its buffers.
            read: (stream.total_in() - read) as usize,
            written: (stream.total_out() - written) as usize,
            ended: status == Status::StreamEnd,
        })
    }
}
