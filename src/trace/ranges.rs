//! A set of byte ranges, merged as they come.

use std::{collections::BTreeMap, ops::Range};

/// Bytes of one file, as few ranges as there can be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// These bytes belong to it from now on.
    pub fn add(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Every range that touches this one becomes a part of it.
        while let Some((&from, &to)) = self.0.range(..=end).next_back()
            && to >= start
        {
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.0.insert(start, end);
    }

    /// The parts of a range that do not belong to it.
    pub fn missing(&self, of: Range<u64>) -> Vec<Range<u64>> {
        let (mut missing, mut from) = (Vec::new(), of.start);
        let before = self.0.range(..of.start).next_back();
        for (&start, &end) in before.into_iter().chain(self.0.range(of.clone())) {
            if start > from {
                missing.push(from..start);
            }
            from = from.max(end);
        }
        if from < of.end {
            missing.push(from..of.end);
        }
        missing
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(from, to)| *from..*to)
    }

    /// How many bytes they are.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(from, to)| to - from).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many of its bytes are in `within`.
    pub fn len_within(&self, within: Range<u64>) -> u64 {
        let before = self.0.range(..within.start).next_back();
        let inside = self.0.range(within.clone());
        let overlap =
            |(&from, &to): (&u64, &u64)| to.min(within.end).saturating_sub(from.max(within.start));
        before.into_iter().chain(inside).map(overlap).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_one() {
        let mut ranges = Ranges::default();
        for range in [10..20, 30..40, 20..30, 5..6, 12..13, 50..60, 7..7] {
            ranges.add(range);
        }
        assert_eq!(
            ranges.0.clone().into_iter().collect::<Vec<_>>(),
            [(5, 6), (10, 40), (50, 60)]
        );
        assert_eq!(ranges.len(), 41);
        assert_eq!(ranges.len_within(0..100), 41);
        assert_eq!(ranges.len_within(15..55), 30);
        assert_eq!(ranges.len_within(41..50), 0);
        assert_eq!(ranges.len_within(11..12), 1);
        ranges.add(0..100);
        assert_eq!((ranges.len(), ranges.0.len()), (100, 1));
    }

    #[test]
    fn any_order_is_as_good_as_a_bitmap() {
        let (mut ranges, mut map) = (Ranges::default(), [false; 256]);
        let mut seed = 7u64;
        for _ in 0..500 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let from = (seed >> 33) % 250;
            let to = from + (seed >> 50) % 6;
            ranges.add(from..to);
            map[from as usize..to as usize].fill(true);
            let count = |part: &[bool]| part.iter().filter(|set| **set).count() as u64;
            assert_eq!(ranges.len(), count(&map));
            assert_eq!(ranges.len_within(40..90), count(&map[40..90]));
            let mut missing = [true; 256];
            missing[..40].fill(false);
            missing[90..].fill(false);
            for part in ranges.missing(40..90) {
                assert!(
                    missing[part.start as usize..part.end as usize]
                        .iter()
                        .all(|m| *m)
                );
                missing[part.start as usize..part.end as usize].fill(false);
            }
            assert!((40..90).all(|at| missing[at] == map[at]));
        }
    }
}
