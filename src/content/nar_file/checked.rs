//! What the disk gives back is held against the sums that were made when the bytes came.
//!
//! Every read is checked, not only a block's first: pages go and come again without anybody being told, so whether a
//! page was checked before says nothing about what is in it now. A read of the mount reaches this only when the
//! kernel has no page of the file, so what is read often is checked seldom.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    ops::Range,
    os::unix::fs::FileExt,
    sync::atomic::Ordering,
};

use rustix::io::Errno;

use super::{NarFile, State};
use crate::content::{
    ContentError,
    sums::{BLOCK, Expected, widened},
};

/// How a read went that the system did not refuse.
pub(super) enum Read {
    /// All of it is what was kept.
    Right,
    /// These cells are not.
    Wrong(Vec<Range<u64>>),
}

/// Reads the bytes from `offset` on into `buf`, and around them what is needed to check them.
pub(super) fn read(
    file: &File,
    expected: &Expected,
    buf: &mut [u8],
    offset: u64,
) -> io::Result<Read> {
    let wide = expected.range();
    let head = (offset - wide.start) as usize;
    let tail = (wide.end - offset) as usize - buf.len();
    if head + tail == 0 {
        file.read_exact_at(buf, offset)?;
        return Ok(judged(expected.wrong([&[], buf, &[]])));
    }
    let mut edges = [0; 2 * BLOCK as usize];
    let (before, after) = edges[..head + tail].split_at_mut(head);
    let wanted = head + buf.len() + tail;
    let mut pieces = [
        IoSliceMut::new(before),
        IoSliceMut::new(buf),
        IoSliceMut::new(after),
    ];
    // One call; a short read is rare enough for three more.
    if rustix::io::preadv(file, &mut pieces, wide.start)? != wanted {
        file.read_exact_at(before, wide.start)?;
        file.read_exact_at(buf, offset)?;
        file.read_exact_at(after, wide.end - tail as u64)?;
    }
    Ok(judged(expected.wrong([before, buf, after])))
}

fn judged(wrong: Vec<Range<u64>>) -> Read {
    match wrong.is_empty() {
        true => Read::Right,
        false => Read::Wrong(wrong),
    }
}

/// Whether it is the disk that lost the bytes, and not the system that is short of something.
pub(super) fn is_loss(e: &io::Error) -> bool {
    e.raw_os_error() == Some(Errno::IO.raw_os_error())
        || e.kind() == io::ErrorKind::UnexpectedEof
        || e.kind() == io::ErrorKind::NotFound
}

impl State {
    /// What a read of `range` has to find; `None` if not all of it is here.
    pub(super) fn expected(&self, range: &Range<u64>) -> Option<Expected> {
        let extent = self.extents.around(range)?;
        Some(Expected::new(&self.sums, range, extent))
    }

    /// Takes bytes out: from now on they are not here. Whole cells only.
    pub(super) fn take_out(&mut self, range: &Range<u64>) {
        self.extents.remove(range);
        self.sums.remove(range);
        self.verified = false;
        self.removals += 1;
        self.changes += 1;
    }
}

impl NarFile {
    /// These cells are not what was kept: they are no longer valid, and whoever needs them fetches them again.
    ///
    /// Not at once on the disk: should the process die now, the next one finds the same difference.
    pub(super) fn lose(&self, as_of: (u64, u64), cells: &[Range<u64>]) -> ContentError {
        let around = cells.first().map_or(0, |c| c.start)..cells.last().map_or(0, |c| c.end);
        let lost = {
            let mut state = self.state_mut();
            // Else they went meanwhile, and perhaps came again.
            let same = (state.generation, state.removals) == as_of;
            if same {
                cells.iter().for_each(|cell| state.take_out(cell));
            }
            same
        };
        if lost {
            let bytes: u64 = cells.iter().map(|c| c.end - c.start).sum();
            self.shared.damaged.fetch_add(bytes, Ordering::Relaxed);
            tracing::warn!(nar = %self.hash, from = around.start, to = around.end, bytes,
                "the disk gave back other bytes than were kept; they are dropped and fetched again");
            self.shared.persister.mark(self.arc(), true);
        }
        ContentError::Damaged {
            hash: self.hash,
            range: around,
        }
    }

    /// The disk does not give these bytes back.
    pub(super) fn lose_unreadable(
        &self,
        as_of: (u64, u64),
        range: &Range<u64>,
        e: &io::Error,
    ) -> ContentError {
        if e.raw_os_error() == Some(Errno::IO.raw_os_error()) {
            let wide = self
                .state()
                .extents
                .around(range)
                .map(|extent| widened(range, extent));
            tracing::warn!(nar = %self.hash, error = %e, "the disk does not give back what was kept");
            return self.lose(as_of, wide.as_slice());
        }
        // The file is shorter than it was, or gone: nothing in it can be relied on.
        tracing::warn!(nar = %self.hash, error = %e, "the file of this NAR was cut off or removed; its bytes are fetched again");
        self.shared
            .damaged
            .fetch_add(range.end - range.start, Ordering::Relaxed);
        if self.generation() == as_of.0
            && let Err(e) = self.discard_if(|_| true)
        {
            return e;
        }
        ContentError::Discarded { hash: self.hash }
    }
}
