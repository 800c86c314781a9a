//! What a substituter cost: counted for status, metrics and the tests that guard performance.

use std::sync::Arc;

use super::{error::FetchFailure, health::Health};
use crate::metrics::Counter;

/// Counts of one substituter, since it was made, and how it is.
#[derive(Debug)]
pub struct Counters {
    requests: Counter,
    bytes: Counter,
    failures: [Counter; FetchFailure::SLUGS.len()],
    pub(super) health: Health,
}

impl Counters {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            requests: Counter::new(),
            bytes: Counter::new(),
            failures: [const { Counter::new() }; FetchFailure::SLUGS.len()],
            health: Health::new(name),
        }
    }

    /// Requests put on the wire, or files opened: retries and redirects count as well.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Bytes of bodies received.
    pub fn bytes_received(&self) -> u64 {
        self.bytes.get()
    }

    /// Calls, and bodies under way, that ended with an error.
    pub fn failures(&self) -> u64 {
        self.failures.iter().map(Counter::get).sum()
    }

    /// The same by [`FetchFailure::slug`].
    pub fn failures_by_slug(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.failures.iter().map(Counter::get);
        FetchFailure::SLUGS.iter().copied().zip(counts)
    }

    pub(super) fn request(&self) {
        self.requests.add(1);
    }

    pub(super) fn bytes(&self, n: usize) {
        self.bytes.add(n as u64);
    }

    pub(super) fn failure(&self, failure: &FetchFailure) {
        let slug = failure.slug();
        let at = FetchFailure::SLUGS.iter().position(|s| *s == slug);
        // A slug that is not listed is what a test forbids.
        self.failures[at.unwrap_or(0)].add(1);
    }
}
