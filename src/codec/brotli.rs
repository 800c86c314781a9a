//! Brotli: one stream, without a check of its own.

use brotli::{BrotliDecompressStream, BrotliResult, BrotliState, HeapAlloc, HuffmanCode};

use super::{
    push::{Fault, Push, Step},
    units::Between,
};
use crate::nix::Compression;

type State = BrotliState<HeapAlloc<u8>, HeapAlloc<u32>, HeapAlloc<HuffmanCode>>;

/// Decodes a stream. Its window is at most 16 MiB: the "large window" extension, which would
/// allow 1 GiB, is refused.
pub(super) struct Brotli(Box<State>);

impl Brotli {
    pub(super) fn new() -> Self {
        Self(Box::new(BrotliState::new_strict(
            HeapAlloc::default(),
            HeapAlloc::default(),
            HeapAlloc::default(),
        )))
    }
}

impl Push for Brotli {
    const FORMAT: Compression = Compression::Brotli;
    const BETWEEN: Between = Between::Nothing;

    fn begin(&mut self) -> Result<(), Fault> {
        *self = Self::new();
        Ok(())
    }

    fn step(&mut self, packed: &[u8], out: &mut [u8]) -> Result<Step, Fault> {
        let (mut unread, mut read) = (packed.len(), 0);
        let (mut room, mut written, mut total) = (out.len(), 0, 0);
        let result = BrotliDecompressStream(
            &mut unread,
            &mut read,
            packed,
            &mut room,
            &mut written,
            out,
            &mut total,
            &mut self.0,
        );
        match result {
            BrotliResult::ResultFailure => {
                Err(Fault::Damaged("not what a brotli encoder writes".into()))
            }
            result => {
                let ended = matches!(result, BrotliResult::ResultSuccess);
                Ok(Step {
                    read,
                    written,
                    ended,
                })
            }
        }
    }
}
