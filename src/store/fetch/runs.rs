//! Readers that read on: how far each has come without a jump. Pure.
//!
//! What is on the disk says nothing of it where a NAR comes in chunks: who needs a page of a
//! library gets the chunk around it, and a second page nearby would look like a long run.

use std::ops::Range;

/// Runs that are remembered for one NAR.
const MOST: usize = 8;
/// Between two reads that had to be waited for there are some that found their bytes here: as many
/// as a chunk or two has, in bytes.
const REACH: u64 = 512 << 10;

/// The runs of one NAR's readers, the one that went on last at the end.
#[derive(Debug, Default)]
pub(super) struct Runs(Vec<Range<u64>>);

impl Runs {
    /// Notes a read that had to be waited for; says how many bytes its reader has passed before it.
    ///
    /// `here` says of a range whether a reader could pass it without waiting.
    pub(super) fn passed(&mut self, range: &Range<u64>, here: impl Fn(Range<u64>) -> bool) -> u64 {
        let goes_on = self.0.iter().rposition(|run| {
            run.start < range.start
                && range.start <= run.end + REACH
                && (range.start <= run.end || here(run.end..range.start))
        });
        let run = match goes_on {
            Some(at) => {
                let run = self.0.remove(at);
                run.start..run.end.max(range.end)
            }
            None => range.clone(),
        };
        let passed = range.start - run.start;
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push(run);
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 128 << 10;

    #[test]
    fn who_reads_on_is_known_by_what_he_passed() {
        let mut runs = Runs::default();
        let mut read = |page: u64| runs.passed(&(page * PAGE..(page + 1) * PAGE), |_| true);
        assert_eq!(read(0), 0);
        // The page between was here.
        assert_eq!(read(2), 2 * PAGE);
        // Another one reads elsewhere, and nobody loses his place.
        assert_eq!(read(100), 0);
        assert_eq!(read(4), 4 * PAGE);
        assert_eq!(read(102), 2 * PAGE);
        // Back, and far ahead, are jumps.
        assert_eq!(read(0), 0);
        assert_eq!(read(20), 0);
    }

    #[test]
    fn who_would_have_had_to_wait_between_did_not_read_on() {
        let mut runs = Runs::default();
        assert_eq!(runs.passed(&(0..PAGE), |_| false), 0);
        assert_eq!(runs.passed(&(2 * PAGE..3 * PAGE), |_| false), 0);
        assert_eq!(runs.passed(&(3 * PAGE..4 * PAGE), |_| false), PAGE);
    }

    #[test]
    fn few_are_remembered() {
        let mut runs = Runs::default();
        for reader in 0..100 {
            assert_eq!(
                runs.passed(&(reader * 100 * PAGE..reader * 100 * PAGE + 1), |_| true),
                0
            );
        }
        assert_eq!(runs.0.len(), MOST);
    }
}
