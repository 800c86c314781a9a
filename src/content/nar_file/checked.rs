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

/// Bytes that are read and then checked, before the next: few enough to be in the processor's cache still.
const STEP: u64 = 8 * BLOCK;

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
    let mut edges = [0; 2 * BLOCK as usize];
    let (mut before, mut after) = edges[..head + tail].split_at_mut(head);
    let (mut middle, mut at) = (buf, wide.start);
    let mut wrong = Vec::new();
    while at < wide.end {
        // Up to a boundary of cells, so that none is in two steps.
        let end = wide.end.min((at / STEP + 1) * STEP);
        let mut left = (end - at) as usize;
        let mut found = [&mut before, &mut middle, &mut after]
            .map(|rest| IoSliceMut::new(take(rest, &mut left)));
        if rustix::io::preadv(file, &mut found, at)? as u64 != end - at {
            // Rare enough for three more calls.
            let mut from = at;
            for piece in &mut found {
                file.read_exact_at(piece, from)?;
                from += piece.len() as u64;
            }
        }
        let [first, second, third] = &found;
        wrong.extend(expected.wrong(at..end, [first, second, third]));
        at = end;
    }
    Ok(match wrong.is_empty() {
        true => Read::Right,
        false => Read::Wrong(wrong),
    })
}

/// The first `left` bytes of `rest`, or all if it has fewer; both lose them.
fn take<'a>(rest: &mut &'a mut [u8], left: &mut usize) -> &'a mut [u8] {
    let all = std::mem::take(rest);
    let now = all.len().min(*left);
    let (first, later) = all.split_at_mut(now);
    *rest = later;
    *left -= now;
    first
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::content::sums::{Summed, Sums};

    /// More than two steps, and an end that is no boundary.
    const SIZE: u64 = 2 * STEP + 3 * BLOCK + 77;

    #[test]
    fn every_way_of_cutting_a_read_gives_the_bytes_and_finds_what_is_wrong() {
        let bytes: Vec<u8> = (0..SIZE).map(|at| (at * 7 + at / 251) as u8).collect();
        let mut sums = Sums::new(SIZE);
        sums.insert(Summed::of(&bytes, 0).collect());
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&bytes).expect("written");
        let spots = [
            0,
            1,
            BLOCK,
            STEP - 1,
            STEP,
            STEP + 1,
            STEP + BLOCK,
            2 * STEP,
            SIZE - 1,
        ];
        for flipped in [None, Some(3), Some(STEP - 1), Some(STEP), Some(SIZE - 1)] {
            if let Some(at) = flipped {
                file.write_all_at(&[!bytes[at as usize]], at)
                    .expect("written");
            }
            for (i, start) in spots.iter().enumerate() {
                for end in spots[i + 1..].iter().chain([&SIZE]) {
                    let expected = Expected::new(&sums, &(*start..*end), &(0..SIZE));
                    let mut buf = vec![0; (end - start) as usize];
                    let cell = flipped.map(|at| at / BLOCK * BLOCK);
                    let cell = cell.map(|at| at..(at + BLOCK).min(SIZE));
                    let hit = cell.filter(|cell| expected.range().contains(&cell.start));
                    match (read(&file, &expected, &mut buf, *start).expect("read"), hit) {
                        (Read::Right, None) => {
                            assert!(buf == bytes[*start as usize..*end as usize])
                        }
                        (Read::Wrong(found), Some(cell)) => assert_eq!(found, [cell]),
                        (Read::Right, Some(cell)) => panic!("{cell:?} is wrong in {start}..{end}"),
                        (Read::Wrong(found), None) => panic!("{found:?} in {start}..{end}"),
                    }
                }
            }
            if let Some(at) = flipped {
                file.write_all_at(&bytes[at as usize..][..1], at)
                    .expect("written");
            }
        }
        file.set_len(SIZE - 1).expect("shorter");
        let expected = Expected::new(&sums, &(0..SIZE), &(0..SIZE));
        let error = read(&file, &expected, &mut vec![0; SIZE as usize], 0).err();
        assert!(error.is_some_and(|e| is_loss(&e)));
    }
}
