//! The answers while no daemon can be started: every request gets an I/O error at once, instead of
//! waiting for ever. The kernel remembers none of them.

use std::{io, os::fd::OwnedFd};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};

use crate::device::{HEADER, Kept, send_again};

/// The kernel gives requests only to buffers with room for the largest write it may send, of which
/// a read-only mount sends none; no daemon agrees on a larger one. Memory is touched as far as
/// requests reach.
const BUFFER: usize = 17 << 20;
/// Requests that are not answered (`FUSE_FORGET`, `FUSE_INTERRUPT`, `FUSE_BATCH_FORGET`).
const UNANSWERED: [u32; 3] = [2, 36, 42];
/// Requests answered before others are looked after.
const AT_ONCE: usize = 256;

/// Who answers. Its device does not block meanwhile, which concerns everybody who has it: it has to
/// be gone before a daemon starts.
pub(crate) struct Refusing {
    device: OwnedFd,
    buffer: Vec<u8>,
}

impl Refusing {
    /// Begins with what the last daemon left unanswered.
    pub fn begin(kept: &Kept) -> io::Result<Self> {
        let device = kept.device.try_clone()?;
        fcntl_setfl(&device, fcntl_getfl(&device)? | OFlags::NONBLOCK)?;
        // Kernels that can't leave them waiting.
        let _ = send_again(&device);
        let buffer = vec![0; BUFFER];
        Ok(Self { device, buffer })
    }

    pub fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// Answers what there is.
    pub fn answer(&mut self) {
        for _ in 0..AT_ONCE {
            match rustix::io::read(&self.device, &mut self.buffer[..]) {
                Ok(size) => {
                    let Some(answer) = refusal(&self.buffer[..size]) else {
                        continue;
                    };
                    // Who asked may be gone.
                    let _ = rustix::io::write(&self.device, &answer);
                }
                Err(Errno::INTR | Errno::NOENT) => {}
                // Nothing more, or no mount.
                Err(_) => return,
            }
        }
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        if let Ok(flags) = fcntl_getfl(&self.device) {
            // Can't fail for a device that took the opposite.
            let _ = fcntl_setfl(&self.device, flags - OFlags::NONBLOCK);
        }
    }
}

/// `EIO` as the answer to a request (`struct fuse_in_header`), if it wants one.
fn refusal(request: &[u8]) -> Option<[u8; HEADER as usize]> {
    let opcode = u32::from_ne_bytes(request.get(4..8)?.try_into().ok()?);
    let unique = request.get(8..16)?;
    if UNANSWERED.contains(&opcode) {
        return None;
    }
    let mut answer = [0; HEADER as usize];
    answer[..4].copy_from_slice(&HEADER.to_ne_bytes());
    answer[4..8].copy_from_slice(&(-libc::EIO).to_ne_bytes());
    answer[8..].copy_from_slice(unique);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wants_an_answer_gets_an_error() {
        let mut request = vec![0; 40];
        request[4..8].copy_from_slice(&15u32.to_ne_bytes());
        request[8..16].copy_from_slice(&(7u64 | 1 << 63).to_ne_bytes());
        let answer = refusal(&request).unwrap();
        assert_eq!(answer[..4], 16u32.to_ne_bytes());
        assert_eq!(answer[4..8], (-5i32).to_ne_bytes());
        assert_eq!(answer[8..], (7u64 | 1 << 63).to_ne_bytes());
        for opcode in UNANSWERED {
            request[4..8].copy_from_slice(&opcode.to_ne_bytes());
            assert_eq!(refusal(&request), None);
        }
        assert_eq!(refusal(&request[..10]), None);
    }
}
