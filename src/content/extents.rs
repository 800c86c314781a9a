//! Which bytes of a file are there: sorted ranges that neither overlap nor touch.

use std::ops::Range;

/// A set of byte offsets, as ranges.
///
/// Always sorted, no range empty, and between two of them lies at least one byte that is not in the set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extents {
    ranges: Vec<Range<u64>>,
    covered: u64,
}

impl Extents {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The set of these ranges; `None` if they are not sorted, or one is empty, or two touch.
    pub fn from_sorted(ranges: Vec<Range<u64>>) -> Option<Self> {
        let apart = ranges.windows(2).all(|w| w[0].end < w[1].start);
        let filled = ranges.iter().all(|r| r.start < r.end);
        let covered = ranges.iter().map(|r| r.end.saturating_sub(r.start)).sum();
        (apart && filled).then_some(Self { ranges, covered })
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Number of bytes in the set.
    pub fn covered(&self) -> u64 {
        self.covered
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Adds the bytes of `range`.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        // Every range in first..last overlaps or touches the new one.
        let first = self.ranges.partition_point(|r| r.end < range.start);
        let last = first + self.ranges[first..].partition_point(|r| r.start <= range.end);
        let merged = match self.ranges.get(first..last) {
            Some([head, .., tail]) => head.start.min(range.start)..tail.end.max(range.end),
            Some([only]) => only.start.min(range.start)..only.end.max(range.end),
            _ => range,
        };
        let before: u64 = self.ranges[first..last]
            .iter()
            .map(|r| r.end - r.start)
            .sum();
        self.covered += (merged.end - merged.start) - before;
        if last == first + 1 {
            self.ranges[first] = merged;
        } else {
            self.ranges.splice(first..last, [merged]);
        }
    }

    /// Takes the bytes of `range` out.
    pub fn remove(&mut self, range: &Range<u64>) {
        // Every range in first..last loses something.
        let first = self.ranges.partition_point(|r| r.end <= range.start);
        let last = first + self.ranges[first..].partition_point(|r| r.start < range.end);
        if range.start >= range.end || first == last {
            return;
        }
        let before: u64 = self.ranges[first..last]
            .iter()
            .map(|r| r.end - r.start)
            .sum();
        let head = self.ranges[first].start..range.start;
        let tail = range.end..self.ranges[last - 1].end;
        let left: Vec<_> = [head, tail]
            .into_iter()
            .filter(|r| r.start < r.end)
            .collect();
        self.covered -= before - left.iter().map(|r| r.end - r.start).sum::<u64>();
        self.ranges.splice(first..last, left);
    }

    /// Whether every byte of `range` is in the set; an empty range is.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        range.start >= range.end || self.around(range).is_some()
    }

    /// The range of the set that every byte of `range` lies in; there is none around an empty one.
    pub fn around(&self, range: &Range<u64>) -> Option<&Range<u64>> {
        if range.start >= range.end {
            return None;
        }
        let i = self.ranges.partition_point(|r| r.end <= range.start);
        self.ranges
            .get(i)
            .filter(|r| r.start <= range.start && range.end <= r.end)
    }

    /// The parts of `range` that are in the set, in order.
    pub fn within(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let first = self.ranges.partition_point(|r| r.end <= range.start);
        self.ranges[first..]
            .iter()
            .take_while(|r| r.start < range.end)
            .map(|r| r.start.max(range.start)..r.end.min(range.end))
            .filter(|r| r.start < r.end)
            .collect()
    }

    /// The parts of `range` that are not in the set, in order.
    pub fn missing(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        let first = self.ranges.partition_point(|r| r.end <= range.start);
        for r in self.ranges[first..]
            .iter()
            .take_while(|r| r.start < range.end)
        {
            if at < r.start {
                gaps.push(at..r.start);
            }
            at = r.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Size of the space that the naive twin covers.
    const SPACE: u64 = 96;

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0..SPACE, 0..24u64).prop_map(|(start, len)| start..(start + len).min(SPACE))
    }

    proptest! {
        #[test]
        fn is_what_a_bitmap_is(
            changed in prop::collection::vec((range(), prop::bool::weighted(0.7)), 0..24),
            asked in range(),
        ) {
            let mut extents = Extents::new();
            let mut bitmap = [false; SPACE as usize];
            for (r, comes) in changed {
                bitmap[r.start as usize..r.end as usize].fill(comes);
                match comes {
                    true => extents.insert(r),
                    false => extents.remove(&r),
                }
                prop_assert_eq!(Some(extents.clone()), Extents::from_sorted(extents.ranges().to_vec()));
            }
            prop_assert_eq!(extents.covered(), bitmap.iter().filter(|b| **b).count() as u64);
            for (i, set) in bitmap.iter().enumerate() {
                prop_assert_eq!(extents.contains(&(i as u64..i as u64 + 1)), *set);
            }
            let want = bitmap[asked.start as usize..asked.end as usize].iter().all(|b| *b);
            prop_assert_eq!(extents.contains(&asked), want);
            let missing = extents.missing(&asked);
            prop_assert!(missing.windows(2).all(|w| w[0].end < w[1].start));
            let mut gaps = [false; SPACE as usize];
            for gap in missing {
                prop_assert!(gap.start < gap.end);
                gaps[gap.start as usize..gap.end as usize].fill(true);
            }
            let mut here = [false; SPACE as usize];
            for part in extents.within(&asked) {
                here[part.start as usize..part.end as usize].fill(true);
            }
            for i in 0..SPACE {
                prop_assert_eq!(gaps[i as usize], asked.contains(&i) && !bitmap[i as usize]);
                prop_assert_eq!(here[i as usize], asked.contains(&i) && bitmap[i as usize]);
            }
        }
    }

    #[test]
    fn touching_ranges_become_one() {
        let mut extents = Extents::new();
        for r in [0..10, 20..30, 10..20] {
            extents.insert(r);
        }
        assert_eq!(extents.ranges().to_vec(), vec![0..30]);
        assert_eq!(extents.covered(), 30);
    }

    #[test]
    fn refuses_what_is_not_in_order() {
        for bad in [
            vec![5..5, 6..7],
            vec![3..9, 9..12],
            vec![8..9, 1..2],
            vec![Range { start: 9, end: 3 }],
        ] {
            assert_eq!(Extents::from_sorted(bad), None);
        }
    }
}
