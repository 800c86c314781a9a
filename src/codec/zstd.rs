//! Zstandard frames, skippable ones included.

use std::{cell::RefCell, io::Cursor};

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name};

use super::{
    push::{Fault, Push, Step},
    units::Between,
};
use crate::nix::Compression;

/// Base-2 logarithm of the largest window that is accepted: 128 MiB, what `zstd --ultra -22` and
/// `--long` use and what every zstd decoder takes without being asked to. Nix uses 8 MiB.
const WINDOW_LOG_MAX: u32 = 27;

/// zstd's name for the error of a frame whose window is larger than allowed.
const TOO_LARGE_WINDOW: &str = "Frame requires too much memory for decoding";

/// Decodes one frame after the other.
pub(super) struct Zstd(DCtx<'static>);

impl Zstd {
    pub(super) fn new() -> Result<Self, Fault> {
        let mut context = DCtx::try_create().ok_or(Fault::Setup)?;
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .map_err(fault)?;
        Ok(Self(context))
    }
}

fn fault(code: usize) -> Fault {
    match get_error_name(code) {
        TOO_LARGE_WINDOW => Fault::Memory(1 << WINDOW_LOG_MAX),
        name => Fault::Damaged(name.into()),
    }
}

impl Push for Zstd {
    const FORMAT: Compression = Compression::Zstd;
    const BETWEEN: Between = Between::Units;

    fn begin(&mut self) -> Result<(), Fault> {
        self.0.reset(ResetDirective::SessionOnly).map_err(fault)?;
        Ok(())
    }

    fn step(&mut self, packed: &[u8], out: &mut [u8]) -> Result<Step, Fault> {
        let mut from = InBuffer::around(packed);
        let mut to = OutBuffer::around(out);
        let hint = self
            .0
            .decompress_stream(&mut to, &mut from)
            .map_err(fault)?;
        Ok(Step {
            read: from.pos(),
            written: to.pos(),
            ended: hint == 0,
        })
    }
}

thread_local! {
    /// The context of a thread that unpacks blocks: making one takes as long as a small frame does.
    static CONTEXT: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// Appends the `size` bytes that all of `packed` unpacks to, in one step: what is decoded goes
/// straight to its place, and frames refer back to it there. Says no, with `out` as it was, where
/// that is not what `packed` holds; only [`open`](super::open) can say what is wrong with it.
pub(super) fn in_one_step(packed: &[u8], size: usize, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    out.reserve(size);
    let written = CONTEXT.with_borrow_mut(|context| {
        if context.is_none() {
            *context = DCtx::try_create();
        }
        let mut to = Cursor::new(&mut *out);
        to.set_position(start as u64);
        context.as_mut()?.decompress(&mut to, packed).ok()
    });
    let whole = written == Some(size);
    if !whole {
        out.truncate(start);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    fn pack(bytes: &[u8]) -> Vec<u8> {
        testing::zstd_frame(bytes, true)
    }

    #[test]
    fn one_step_takes_frames_that_are_whole_and_of_that_size() {
        let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let (first, second) = bytes.split_at(150_000);
        let two = [pack(first), pack(second)].concat();
        let mut out = b"before".to_vec();
        for packed in [&pack(&bytes), &two] {
            assert!(in_one_step(packed, bytes.len(), &mut out));
        }
        let wanted = [&b"before"[..], &bytes, &bytes].concat();
        assert!(out == wanted, "one behind the other");
    }

    #[test]
    fn one_step_leaves_everything_else_to_who_can_say_what_is_wrong() {
        let bytes = vec![7; 100_000];
        let packed = pack(&bytes);
        let mut damaged = packed.clone();
        *damaged.last_mut().unwrap() ^= 1;
        let mut out = Vec::with_capacity(1 << 20);
        out.extend(b"before");
        let short = packed.len() - 1;
        for (packed, size) in [
            (&packed[..], bytes.len() - 1),
            (&packed, bytes.len() + 1),
            (&packed[..short], bytes.len()),
            (&damaged, bytes.len()),
            (&[], 1),
        ] {
            assert!(!in_one_step(packed, size, &mut out), "{size}");
            assert_eq!(out, b"before");
        }
        assert!(in_one_step(&packed, bytes.len(), &mut out), "and goes on");
    }
}
