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
