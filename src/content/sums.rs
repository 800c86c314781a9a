//! Sums of what is kept, block by block: what the disk gives back is held against them. Pure.
//!
//! The valid bytes of a NAR, cut at every multiple of [`BLOCK`], are its *cells*: whole blocks, and at the edges of
//! extents parts of one. Each cell has a CRC-32 that was computed from the bytes as they came, before they were
//! written. Parts that meet in one block become one cell, and their sums one sum, without looking at the disk.

use std::{collections::BTreeMap, ops::Range};

use crc32fast::Hasher;

use super::Extents;

/// Bytes of a block. A read that begins or ends inside of one has to read all of it, so it is small beside the
/// 128 KiB that the kernel asks for at least; a sum for each costs 1/4096 of what is kept.
pub const BLOCK: u64 = 16 << 10;

/// Stands where there is no sum: bytes that an older narfs kept. A cell whose sum happens to be this, one in four
/// thousand million, is not checked.
pub const NONE: u32 = 0;

/// Sums of whole blocks that are allocated together: those of 4 MiB.
const GROUP: usize = 256;

/// The sum of some bytes.
fn sum_of(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The parts of a range that lie in one block each, in order.
pub(super) fn cells(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = ((at / BLOCK + 1) * BLOCK).min(range.end);
        let cell = at..end;
        at = end;
        (cell.start < cell.end).then_some(cell)
    })
}

/// The cells that a range touches, as one range, inside of the extent that it lies in.
pub(super) fn widened(range: &Range<u64>, extent: &Range<u64>) -> Range<u64> {
    let start = (range.start / BLOCK * BLOCK).max(extent.start);
    let end = (range.end.div_ceil(BLOCK).saturating_mul(BLOCK)).min(extent.end);
    start..end
}

/// A cell, or a part of one, and its sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Summed {
    range: Range<u64>,
    sum: u32,
}

impl Summed {
    /// The sums of bytes that stand at `at`.
    pub(super) fn of(bytes: &[u8], at: u64) -> impl Iterator<Item = Self> {
        cells(at..at + bytes.len() as u64).map(move |range| {
            let part = (range.start - at) as usize..(range.end - at) as usize;
            let sum = sum_of(&bytes[part]);
            Self { range, sum }
        })
    }

    /// This and what follows it at once.
    fn and(self, next: &Self) -> Self {
        let len = |of: &Self| of.range.end - of.range.start;
        let mut both = Hasher::new_with_initial_len(self.sum, len(&self));
        both.combine(&Hasher::new_with_initial_len(next.sum, len(next)));
        Self {
            range: self.range.start..next.range.end,
            sum: both.finalize(),
        }
    }
}

/// The sums of a NAR's cells.
#[derive(Debug, Clone)]
pub(super) struct Sums {
    size: u64,
    /// Of whole blocks, by number.
    whole: Vec<Option<Box<[u32; GROUP]>>>,
    /// Of parts, by the number of the block; sorted, none touches another.
    parts: BTreeMap<u64, Vec<Summed>>,
}

impl Sums {
    /// Of a NAR of `size` bytes of which nothing is here.
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            whole: Vec::new(),
            parts: BTreeMap::new(),
        }
    }

    /// Sums as a map lists them: one for each cell of `extents`, in order. A list of another length is none.
    pub(super) fn from_list(size: u64, extents: &Extents, list: &[u32]) -> Self {
        let mut sums = Self::new(size);
        if list.len() as u64 == count(extents) {
            let all = extents.ranges().iter().cloned().flat_map(cells);
            for (range, sum) in all.zip(list) {
                sums.put(Summed { range, sum: *sum });
            }
        }
        sums
    }

    /// One sum for each cell of `extents`, in order.
    pub(super) fn list(&self, extents: &Extents) -> Vec<u32> {
        let all = extents.ranges().iter().cloned().flat_map(cells);
        all.map(|cell| self.get(&cell)).collect()
    }

    fn block(&self, number: u64) -> Range<u64> {
        number * BLOCK..((number + 1) * BLOCK).min(self.size)
    }

    /// Sums of cells that have none yet.
    pub(super) fn complete(&mut self, found: &[Summed]) {
        for cell in found {
            if self.get(&cell.range) == NONE {
                self.put(cell.clone());
            }
        }
    }

    /// The sum of a cell; [`NONE`] if it is not known.
    pub(super) fn get(&self, cell: &Range<u64>) -> u32 {
        let number = cell.start / BLOCK;
        if *cell == self.block(number) {
            let (group, at) = (number as usize / GROUP, number as usize % GROUP);
            let group = self.whole.get(group).and_then(Option::as_ref);
            return group.map_or(NONE, |sums| sums[at]);
        }
        let parts = self.parts.get(&number).into_iter().flatten();
        parts
            .filter(|part| part.range == *cell)
            .map(|part| part.sum)
            .next()
            .unwrap_or(NONE)
    }

    /// These bytes came; none of them was here.
    pub(super) fn insert(&mut self, new: Vec<Summed>) {
        for part in new {
            let number = part.range.start / BLOCK;
            let Some(before) = self.parts.remove(&number) else {
                self.put(part);
                continue;
            };
            let at = before.partition_point(|p| p.range.start < part.range.start);
            let mut joined = Vec::with_capacity(before.len() + 1);
            joined.extend_from_slice(&before[..at]);
            joined.push(part);
            joined.extend_from_slice(&before[at..]);
            let mut merged: Vec<Summed> = Vec::with_capacity(joined.len());
            for part in joined {
                match merged.pop() {
                    Some(last) if last.range.end == part.range.start => {
                        merged.push(last.and(&part));
                    }
                    last => {
                        merged.extend(last);
                        merged.push(part);
                    }
                }
            }
            merged.into_iter().for_each(|part| self.put(part));
        }
    }

    fn put(&mut self, part: Summed) {
        let number = part.range.start / BLOCK;
        if part.range == self.block(number) {
            return self.set_whole(number, part.sum);
        }
        if part.sum == NONE {
            return;
        }
        self.parts.entry(number).or_default().push(part);
    }

    fn set_whole(&mut self, number: u64, sum: u32) {
        let (group, at) = (number as usize / GROUP, number as usize % GROUP);
        if self.whole.len() <= group {
            if sum == NONE {
                return;
            }
            self.whole.resize(group + 1, None);
        }
        match (&mut self.whole[group], sum) {
            (None, NONE) => {}
            (known, sum) => known.get_or_insert_with(|| Box::new([NONE; GROUP]))[at] = sum,
        }
    }

    /// These bytes are gone, and with them every sum that they are part of.
    pub(super) fn remove(&mut self, range: &Range<u64>) {
        for cell in cells(range.clone()) {
            let number = cell.start / BLOCK;
            self.set_whole(number, NONE);
            if let Some(parts) = self.parts.get_mut(&number) {
                parts.retain(|p| p.range.end <= cell.start || cell.end <= p.range.start);
                if parts.is_empty() {
                    self.parts.remove(&number);
                }
            }
        }
    }
}

/// Number of cells.
pub(super) fn count(extents: &Extents) -> u64 {
    let of = |r: &Range<u64>| r.end.div_ceil(BLOCK) - r.start / BLOCK;
    extents.ranges().iter().map(of).sum()
}

/// What a read of whole cells has to find.
pub(super) struct Expected {
    /// From the first cell's first byte to the last one's end.
    range: Range<u64>,
    /// One for each cell.
    sums: Vec<u32>,
}

impl Expected {
    /// For a read of `range`, which lies in `extent`.
    pub(super) fn new(sums: &Sums, range: &Range<u64>, extent: &Range<u64>) -> Self {
        let wide = widened(range, extent);
        let sums: Vec<u32> = cells(wide.clone()).map(|cell| sums.get(&cell)).collect();
        match sums.iter().all(|sum| *sum == NONE) {
            // Nothing to hold the bytes against: no need to read more of them.
            true => Self {
                range: range.clone(),
                sums: Vec::new(),
            },
            false => Self { range: wide, sums },
        }
    }

    /// Whether there is nothing to hold some of the bytes against.
    pub(super) fn is_partial(&self) -> bool {
        self.sums.is_empty() || self.sums.contains(&NONE)
    }

    /// What has to be read.
    pub(super) fn range(&self) -> &Range<u64> {
        &self.range
    }

    /// The cells of `part` (of whole cells of the range) that are not what they should be, if `found` is what was
    /// read, in pieces.
    pub(super) fn wrong(&self, part: Range<u64>, found: [&[u8]; 3]) -> Vec<Range<u64>> {
        if self.sums.is_empty() {
            return Vec::new();
        }
        let passed = part.start / BLOCK - self.range.start / BLOCK;
        let sums = &self.sums[passed as usize..];
        let mut left = found;
        let mut wrong = Vec::new();
        for (cell, sum) in cells(part).zip(sums) {
            let mut hasher = Hasher::new();
            let mut missing = (cell.end - cell.start) as usize;
            for piece in &mut left {
                let (now, later) = piece.split_at(missing.min(piece.len()));
                hasher.update(now);
                missing -= now.len();
                *piece = later;
            }
            if *sum != NONE && hasher.finalize() != *sum {
                wrong.push(cell);
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 5 * BLOCK + 1234;

    fn bytes() -> Vec<u8> {
        (0..SIZE).map(|at| (at * 7 + at / 251) as u8).collect()
    }

    #[derive(Debug, Clone)]
    enum Op {
        Insert(Range<u64>),
        Remove(Range<u64>),
        Reload,
    }

    fn op() -> impl Strategy<Value = Op> {
        let range = |longest| {
            (0..SIZE, 1..longest).prop_map(|(at, len): (u64, u64)| at..(at + len).min(SIZE))
        };
        prop_oneof![
            6 => range(3 * BLOCK).prop_map(Op::Insert),
            1 => range(2 * BLOCK).prop_map(Op::Remove),
            1 => Just(Op::Reload),
        ]
    }

    proptest! {
        #[test]
        fn every_cell_has_the_sum_of_its_bytes(ops in prop::collection::vec(op(), 1..30)) {
            let bytes = bytes();
            let (mut extents, mut sums) = (Extents::new(), Sums::new(SIZE));
            for op in ops {
                match op {
                    Op::Insert(range) => {
                        for gap in extents.missing(&range) {
                            let part = &bytes[gap.start as usize..gap.end as usize];
                            sums.insert(Summed::of(part, gap.start).collect());
                        }
                        extents.insert(range);
                    }
                    Op::Remove(range) => {
                        // Whole cells go, as they do in a NAR file.
                        let whole = range.start / BLOCK * BLOCK..range.end.div_ceil(BLOCK) * BLOCK;
                        let whole = whole.start..whole.end.min(SIZE);
                        extents.remove(&whole);
                        sums.remove(&whole);
                    }
                    Op::Reload => sums = Sums::from_list(SIZE, &extents, &sums.list(&extents)),
                }
                for cell in extents.ranges().iter().cloned().flat_map(cells) {
                    let want = sum_of(&bytes[cell.start as usize..cell.end as usize]);
                    prop_assert_eq!(sums.get(&cell), want, "{:?}", cell);
                }
                prop_assert_eq!(count(&extents), sums.list(&extents).len() as u64);
            }
        }
    }

    #[test]
    fn what_differs_is_found_wherever_the_read_was_cut() {
        let bytes = bytes();
        let mut sums = Sums::new(SIZE);
        sums.insert(Summed::of(&bytes, 0).collect());
        let range = BLOCK + 10..3 * BLOCK + 10;
        let expected = Expected::new(&sums, &range, &(0..SIZE));
        assert_eq!(*expected.range(), BLOCK..4 * BLOCK);
        let mut found = bytes[BLOCK as usize..4 * BLOCK as usize].to_vec();
        let cut = |found: &[u8]| {
            let (head, rest) = found.split_at(10);
            let (middle, tail) = rest.split_at(2 * BLOCK as usize);
            expected.wrong(BLOCK..4 * BLOCK, [head, middle, tail])
        };
        assert!(cut(&found).is_empty());
        for (at, block) in [(3, 1), (BLOCK as usize, 2), (3 * BLOCK as usize - 1, 3)] {
            found[at] ^= 0x10;
            let wrong = block * BLOCK..(block + 1) * BLOCK;
            assert_eq!(cut(&found), std::slice::from_ref(&wrong));
            // And in a read of some of the cells.
            for part in [1..3, 2..4, 3..4] {
                let bytes =
                    &found[(part.start - 1) * BLOCK as usize..(part.end - 1) * BLOCK as usize];
                let hit = part.contains(&(block as usize));
                let cells = part.start as u64 * BLOCK..part.end as u64 * BLOCK;
                assert_eq!(
                    expected.wrong(cells, [&[], bytes, &[]]).len(),
                    usize::from(hit)
                );
            }
            found[at] ^= 0x10;
        }
    }

    #[test]
    fn what_has_no_sum_is_not_checked() {
        let sums = Sums::new(SIZE);
        let expected = Expected::new(&sums, &(5..10), &(0..SIZE));
        assert_eq!(*expected.range(), 5..10);
        assert!(expected.wrong(5..10, [&[], b"other", &[]]).is_empty());
    }
}
