//! When to try again. Pure: the numbers are Nix's (`filetransfer.cc`), so that a cache sees from
//! us what it sees from any other client.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use super::error::FetchFailure;

/// How opening requests are repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all, the first included.
    pub tries: u32,
    /// Wait after the first failure; doubles with each further one.
    pub base: Duration,
    /// No wait is longer, unless the server asks for it.
    pub cap: Duration,
    /// Least wait after 429 from a server that does not say how long.
    pub too_many_requests: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            tries: 5,
            base: Duration::from_millis(100),
            cap: Duration::from_secs(60),
            too_many_requests: Duration::from_secs(5),
        }
    }
}

impl RetryPolicy {
    /// The wait after try `tried` (1 is the first) failed like this, or `None` to give up.
    ///
    /// `jitter` is a number from 0 to 1: up to half of the wait is added, so that the clients of a
    /// server that went away do not come back in step.
    pub fn wait(&self, tried: u32, failure: &FetchFailure, jitter: f64) -> Option<Duration> {
        if tried >= self.tries || !failure.retryable() {
            return None;
        }
        let doubled = self
            .base
            .saturating_mul(1 << (tried - 1).min(20))
            .min(self.cap);
        let backoff = doubled
            .mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 2.0)
            .min(self.cap);
        Some(match failure {
            // Most likely a kept connection that the server had given up meanwhile.
            FetchFailure::Lost(_) if tried == 1 => Duration::ZERO,
            FetchFailure::Status {
                retry_after: Some(asked),
                ..
            } => backoff.max(*asked),
            FetchFailure::Status { status: 429, .. } => backoff.max(self.too_many_requests),
            _ => backoff,
        })
    }
}

/// A number from 0 to 1 that differs from call to call. Needs no quality: the standard library's
/// hash seeds do.
pub fn jitter() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

/// Reads `Retry-After`: seconds, or a date, which counts from the answer's own `Date` so that a
/// wrong clock here does no harm.
pub fn retry_after(value: &str, date: Option<&str>) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = http_date(value)?;
    let now = http_date(date?.trim())?;
    Some(Duration::from_secs(at.saturating_sub(now)))
}

/// Seconds since 1970 of an IMF-fixdate (RFC 9110, 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut parts = text.split_once(", ")?.1.split(' ');
    let day: u64 = parts.next()?.parse().ok()?;
    let month = parts.next()?;
    let month = MONTHS.iter().position(|m| *m == month)? as u64 + 1;
    let year: u64 = parts.next()?.parse().ok()?;
    let mut time = parts.next()?.split(':').map(|n| n.parse::<u64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let sane = (1970..=9999).contains(&year) && (1..=31).contains(&day);
    if !sane || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from 1970 in the proleptic Gregorian calendar, the year begun in March.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after: Option<u64>) -> FetchFailure {
        FetchFailure::Status {
            status,
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    #[test]
    fn doubles_up_to_the_cap_and_stops() {
        let policy = RetryPolicy {
            tries: 12,
            ..RetryPolicy::default()
        };
        let waits: Vec<_> = (1..=12)
            .map_while(|n| policy.wait(n, &status(503, None), 0.0))
            .collect();
        let millis: Vec<_> = waits.iter().map(|w| w.as_millis()).collect();
        assert_eq!(
            millis,
            [
                100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000
            ]
        );
        assert_eq!(
            policy.wait(1, &status(503, None), 1.0),
            Some(Duration::from_millis(150))
        );
        assert_eq!(policy.wait(11, &status(503, None), 1.0), Some(policy.cap));
    }

    #[test]
    fn a_server_that_asks_for_time_gets_it() {
        let policy = RetryPolicy::default();
        let wait = |failure| policy.wait(1, &failure, 0.0);
        assert_eq!(wait(status(429, None)), Some(Duration::from_secs(5)));
        assert_eq!(wait(status(429, Some(90))), Some(Duration::from_secs(90)));
        assert_eq!(wait(status(429, Some(0))), Some(Duration::from_millis(100)));
        assert_eq!(wait(status(503, Some(7))), Some(Duration::from_secs(7)));
        let lost = FetchFailure::Lost("reset".into());
        assert_eq!(wait(lost.clone()), Some(Duration::ZERO));
        assert_eq!(policy.wait(2, &lost, 0.0), Some(Duration::from_millis(200)));
    }

    #[test]
    fn what_is_final_is_not_tried_again() {
        let policy = RetryPolicy::default();
        for final_status in [400, 404, 418, 501, 505, 511] {
            assert_eq!(
                policy.wait(1, &status(final_status, None), 0.0),
                None,
                "{final_status}"
            );
        }
        for passing in [408, 429, 500, 502, 503, 504] {
            assert!(
                policy.wait(1, &status(passing, None), 0.0).is_some(),
                "{passing}"
            );
        }
        assert_eq!(policy.wait(1, &FetchFailure::NotACache("HTML"), 0.0), None);
        assert_eq!(policy.wait(5, &status(503, None), 0.0), None);
    }

    #[test]
    fn reads_retry_after() {
        let now = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(retry_after("120", None), Some(Duration::from_secs(120)));
        let later = retry_after("Sun, 06 Nov 1994 08:50:07 GMT", now);
        assert_eq!(later, Some(Duration::from_secs(30)));
        let past = retry_after("Sat, 05 Nov 1994 08:50:07 GMT", now);
        assert_eq!(past, Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("-1", now), None);
    }

    #[test]
    fn counts_days() {
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(
            http_date("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(784_111_777)
        );
        assert_eq!(
            http_date("Thu, 29 Feb 2024 12:00:00 GMT"),
            Some(1_709_208_000)
        );
        assert_eq!(http_date("Thu, 99 Feb 2024 12:00:00 GMT"), None);
    }
}
