//! Any bytes as a packed NAR or document, in every format, cut up in any way. Errors are fine,
//! panics are bugs; never more bytes than promised, and complete means exactly as many.
#![no_main]

use std::io::{self, Read};

use libfuzzer_sys::fuzz_target;
use narfs::{
    codec::{Checkpoint, decode_small, stream},
    nix::Compression,
};

/// Gives `piece` bytes at a time.
struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    piece: usize,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.piece.min(out.len()).min(self.bytes.len() - self.at);
        out[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

fuzz_target!(|data: &[u8]| {
    let [format, piece, room, size, packed @ ..] = data else {
        return;
    };
    let format = Compression::ALL[usize::from(*format) % Compression::ALL.len()];
    let size = u64::from(*size) * 64;
    let bytes = packed.to_vec();
    let source = Box::new(Pieces {
        bytes,
        at: 0,
        piece: usize::from(*piece) + 1,
    });
    let mut reader = stream(format, source, Checkpoint::START, size).expect("starts at the start");
    let mut room = vec![0; usize::from(*room) * 16 + 1];
    let mut given = 0;
    let complete = loop {
        match reader.read(&mut room) {
            Ok(0) => break true,
            Ok(n) => given += n as u64,
            Err(_) => break false,
        }
        assert!(given <= size);
        if let Some(at) = reader.checkpoint() {
            assert!(at.nar <= given && at.packed <= packed.len() as u64);
        }
    };
    assert!(!complete || given == size);

    let limit = size as usize;
    for encoding in [None, Some(format.as_str())] {
        if let Ok(document) = decode_small(encoding, packed, limit) {
            assert!(document.len() <= limit);
        }
    }
});
