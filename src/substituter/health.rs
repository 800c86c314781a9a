//! Whether a cache can be reached: said once when it goes, once when it is back.
//!
//! A cache is *offline* from a call on that failed for good in a way that any other call would
//! have, such as no connection, if nothing came from it while that call ran: one slow file of a
//! cache that answers otherwise says nothing of the cache. The next answer, whatever it says,
//! puts it online again. Nothing is decided by this: an offline cache is asked as before.
//!
//! Lock: `outage` is a leaf, held for moments, and not touched as long as everything works.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use super::error::FetchFailure;

/// How a cache is.
#[derive(Debug)]
pub struct Health {
    name: Arc<str>,
    /// When something last came from it, as [`now`] counts; 0 for never.
    heard: AtomicU64,
    offline: AtomicBool,
    outage: Mutex<Outage>,
}

#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    failed: u64,
    unsaid: u64,
    last: Option<LastFailure>,
}

/// The last failure of a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastFailure {
    /// What happened, without secrets.
    pub message: String,
    /// When.
    pub at: SystemTime,
}

/// Milliseconds since the first call, and at least one.
pub(super) fn now() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

impl Health {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            heard: AtomicU64::new(0),
            offline: AtomicBool::new(false),
            outage: Mutex::default(),
        }
    }

    /// Whether it could not be reached when it was last tried.
    pub fn is_offline(&self) -> bool {
        self.offline.load(Relaxed)
    }

    /// For how long it has been offline.
    pub fn offline_for(&self) -> Option<Duration> {
        self.outage().since.map(|since| since.elapsed())
    }

    /// What last went wrong with it; kept after it came back.
    pub fn last_failure(&self) -> Option<LastFailure> {
        self.outage().last.clone()
    }

    /// Somebody has an error to log whose cause is this cache. True while it is offline: that was
    /// said already, and the error only counts.
    pub fn explains_one_more(&self) -> bool {
        if !self.is_offline() {
            return false;
        }
        self.outage().unsaid += 1;
        true
    }

    /// Something came from it.
    pub(super) fn heard(&self) {
        self.heard.store(now(), Relaxed);
        if self.offline.load(Relaxed) && self.offline.swap(false, Relaxed) {
            let outage = {
                let mut outage = self.outage();
                let last = outage.last.clone();
                std::mem::replace(
                    &mut *outage,
                    Outage {
                        last,
                        ..Outage::default()
                    },
                )
            };
            tracing::info!(
                substituter = %self.name,
                seconds = outage.since.map_or(0, |since| since.elapsed().as_secs()),
                failed_calls = outage.failed,
                suppressed = outage.unsaid,
                "cache online again"
            );
        }
    }

    /// A call that began at `begun`, as [`now`] counts, failed for good.
    pub(super) fn failed(&self, failure: &FetchFailure, begun: u64) {
        let goes = {
            let mut outage = self.outage();
            outage.last = Some(LastFailure {
                message: failure.to_string(),
                at: SystemTime::now(),
            });
            outage.failed += u64::from(outage.since.is_some());
            let goes = failure.is_of_the_cache()
                && outage.since.is_none()
                && self.heard.load(Relaxed) <= begun;
            if goes {
                outage.since = Some(Instant::now());
                outage.failed = 1;
            }
            goes
        };
        if goes {
            self.offline.store(true, Relaxed);
            tracing::warn!(substituter = %self.name, error = %failure, "cache offline");
        }
    }

    fn outage(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        Health::new("https://cache.example.org/".into())
    }

    #[test]
    fn a_cache_is_offline_from_its_first_failure_to_its_next_answer() {
        let health = health();
        assert!(!health.explains_one_more());
        health.failed(&FetchFailure::Connect("refused".into()), now());
        assert!(health.is_offline() && health.offline_for().is_some());
        assert!(health.explains_one_more() && health.explains_one_more());
        health.failed(&FetchFailure::Connect("refused".into()), now());
        let counted = {
            let outage = health.outage();
            (outage.failed, outage.unsaid)
        };
        assert_eq!(counted, (2, 2));
        health.heard();
        assert!(!health.is_offline() && health.offline_for().is_none());
        let last = health.last_failure().expect("it stays");
        assert_eq!(last.message, "cannot connect: refused");
    }

    #[test]
    fn one_slow_file_says_nothing_of_a_cache_that_answers() {
        let health = health();
        let begun = now();
        std::thread::sleep(Duration::from_millis(3));
        health.heard();
        health.failed(&FetchFailure::Deadline, begun);
        assert!(!health.is_offline() && health.last_failure().is_some());
    }

    #[test]
    fn what_is_wrong_with_one_file_is_not_wrong_with_the_cache() {
        let health = health();
        for failure in [
            FetchFailure::Missing,
            FetchFailure::NoRanges,
            FetchFailure::Status {
                status: 400,
                retry_after: None,
            },
        ] {
            health.failed(&failure, now());
            assert!(!health.is_offline(), "{failure}");
        }
    }
}
