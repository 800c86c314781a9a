//! Any bytes as a packed NAR or document, in every format, cut up in any way. Errors are fine,
//! panics are bugs; never more bytes than promised, and complete means exactly as many. From a
//! checkpoint on comes the same as behind it.
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

/// What comes from `at` on in pieces, whether all of it came, and the last checkpoint.
fn unpack(
    format: Compression,
    packed: &[u8],
    at: Checkpoint,
    size: u64,
    [piece, room]: [usize; 2],
) -> (Vec<u8>, bool, Checkpoint) {
    let source = Box::new(Pieces {
        bytes: packed[at.packed as usize..].to_vec(),
        at: 0,
        piece,
    });
    let mut reader = stream(format, source, at, size).expect("starts where it can");
    let mut room = vec![0; room];
    let mut given = Vec::new();
    let mut last = at;
    loop {
        match reader.read(&mut room) {
            Ok(0) => return (given, true, last),
            Ok(n) => given.extend(&room[..n]),
            Err(_) => return (given, false, last),
        }
        assert!(at.nar + given.len() as u64 <= size);
        if let Some(at) = reader.checkpoint() {
            assert!(at >= last && at.packed <= packed.len() as u64);
            last = at;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [format, piece, room, size, packed @ ..] = data else {
        return;
    };
    let format = Compression::ALL[usize::from(*format) % Compression::ALL.len()];
    let size = u64::from(*size) * 64;
    let cut = [usize::from(*piece) + 1, usize::from(*room) * 16 + 1];
    let (all, complete, last) = unpack(format, packed, Checkpoint::START, size, cut);
    assert!(!complete || all.len() as u64 == size);
    assert!(last.nar <= all.len() as u64);
    if last != Checkpoint::START {
        let (rest, again, _) = unpack(format, packed, last, size, [usize::MAX, 4096]);
        // What comes in front of an error depends on how the input is cut.
        assert_eq!(complete, again);
        let behind = &all[last.nar as usize..];
        let both = rest.len().min(behind.len());
        assert_eq!(rest[..both], behind[..both]);
    }

    let limit = size as usize;
    for encoding in [None, Some(format.as_str())] {
        if let Ok(document) = decode_small(encoding, packed, limit) {
            assert!(document.len() <= limit);
        }
    }
});
