//! Where it is counted: atomics that any thread may touch at any time.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::Value;

/// One number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// What was counted since the process started.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// So much more, or less.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// What it is now.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the buckets of every histogram, in seconds: from an answer out of memory to a
/// reader that gives up (`read-timeout` is two minutes).
pub const LATENCY: [f64; 14] = [
    0.000_01, 0.000_05, 0.000_25, 0.001, 0.005, 0.02, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 120.0,
];

/// How long something took, each time.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last is for what is beyond all bounds.
    buckets: [AtomicU64; LATENCY.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// It took so long once more.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = LATENCY.iter().position(|bound| seconds <= *bound);
        self.buckets[bucket.unwrap_or(LATENCY.len())].fetch_add(1, Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    /// How often.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }

    pub(super) fn value(&self) -> Value {
        let bounds = LATENCY.iter().copied().chain([f64::INFINITY]);
        let counts = self.buckets.iter().map(|bucket| bucket.load(Relaxed));
        Value::Buckets {
            sum: Duration::from_nanos(self.nanoseconds.load(Relaxed)).as_secs_f64(),
            buckets: bounds.zip(counts).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_the_first_bucket_that_holds_them() {
        let histogram = Histogram::default();
        for micros in [1, 10, 11, 1_000, 500_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        assert_eq!(histogram.count(), 5);
        let Value::Buckets { sum, buckets } = histogram.value() else {
            panic!("a histogram is buckets")
        };
        assert!((sum - 500.001_022).abs() < 1e-9, "{sum}");
        let filled: Vec<_> = buckets.iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(
            filled,
            [
                &(0.000_01, 2),
                &(0.000_05, 1),
                &(0.001, 1),
                &(f64::INFINITY, 1)
            ]
        );
    }
}
