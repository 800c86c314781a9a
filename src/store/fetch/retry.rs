//! How long to wait before a transfer that broke off is taken up again.

use std::time::Duration;

use crate::substituter::{FetchError, RetryPolicy, jitter};

/// The wait after failure number `failures` (1 is the first); `None` to give up.
pub(super) fn wait_after(error: &FetchError, failures: u32, tries: u32) -> Option<Duration> {
    let policy = RetryPolicy {
        tries,
        ..RetryPolicy::default()
    };
    policy.wait(failures, error.failure(), jitter())
}
