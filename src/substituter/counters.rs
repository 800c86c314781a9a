//! What a substituter cost: counted for status, metrics and the tests that guard performance.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of one substituter, since it was made.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
}

impl Counters {
    /// Requests put on the wire, or files opened: retries and redirects count as well.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Bytes of bodies received.
    pub fn bytes_received(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Calls, and bodies under way, that ended with an error.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    pub(super) fn bytes(&self, n: usize) {
        self.bytes.fetch_add(n as u64, Relaxed);
    }

    pub(super) fn failure(&self) {
        self.failures.fetch_add(1, Relaxed);
    }
}
