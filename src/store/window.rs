//! How many bytes of read-ahead may be under way: what keeps the link busy, and no more, since a
//! reader's next request is answered behind all of them. Pure.
//!
//! A link holds what it carries in a round trip. The rate is the greatest that was seen lately, and
//! the round trip the shortest time between a request and its first byte; twice their product lets
//! the rate show that it can grow, so it starts small and doubles with each round trip.

use std::time::{Duration, Instant};

/// Never less, in bytes: with round trips so short, latency is not what a reader waits for.
const LEAST: u64 = 1 << 20;
/// Never more, in bytes: 50 ms of a link of 1 Gbit/s, twice and a bit.
const MOST: u64 = 16 << 20;
/// A rate is measured over so long at least.
const SAMPLE: Duration = Duration::from_millis(50);
/// How long a rate and a round trip count: links change.
const COUNTS: Duration = Duration::from_secs(10);

/// The greatest or smallest of the last samples: that of the present period and of the one before.
#[derive(Debug, Clone, Copy, Default)]
struct Best {
    now: Option<f64>,
    before: Option<f64>,
}

impl Best {
    fn note(&mut self, value: f64, better: fn(f64, f64) -> f64) {
        self.now = Some(self.now.map_or(value, |known| better(known, value)));
    }

    fn next_period(&mut self) {
        self.before = self.now.take();
    }

    fn get(self, better: fn(f64, f64) -> f64) -> Option<f64> {
        match (self.now, self.before) {
            (Some(a), Some(b)) => Some(better(a, b)),
            (a, b) => a.or(b),
        }
    }
}

/// The window of one store's link.
#[derive(Debug)]
pub(super) struct Window {
    bytes: u64,
    /// Bytes a second.
    rate: Best,
    /// Seconds.
    round_trip: Best,
    period: Option<Instant>,
    sample: Option<Instant>,
    in_sample: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            bytes: LEAST,
            rate: Best::default(),
            round_trip: Best::default(),
            period: None,
            sample: None,
            in_sample: 0,
        }
    }
}

impl Window {
    /// How many bytes may be under way.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So many bytes came; the first ones of an answer came so long after its request.
    pub fn received(&mut self, bytes: u64, answered_in: Option<Duration>, now: Instant) {
        let since = |then: Option<Instant>| then.map(|then| now.saturating_duration_since(then));
        if since(self.period).is_none_or(|age| age > COUNTS) {
            self.period = Some(now);
            self.rate.next_period();
            self.round_trip.next_period();
        }
        if let Some(took) = answered_in {
            self.round_trip.note(took.as_secs_f64(), f64::min);
        }
        match since(self.sample) {
            Some(age) if age < SAMPLE => self.in_sample += bytes,
            age => {
                // A pause is no rate: what it was between two answers.
                if let Some(age) = age.filter(|age| *age < 2 * SAMPLE) {
                    self.rate
                        .note(self.in_sample as f64 / age.as_secs_f64(), f64::max);
                }
                self.sample = Some(now);
                self.in_sample = bytes;
            }
        }
        let held = self
            .rate
            .get(f64::max)
            .zip(self.round_trip.get(f64::min))
            .map_or(0.0, |(rate, trip)| rate * trip);
        self.bytes = ((2.0 * held) as u64).clamp(LEAST, MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that carries `rate` bytes a second with a round trip of `trip`, kept full for `time`.
    fn after(rate: u64, trip: Duration, time: Duration) -> u64 {
        let mut window = Window::default();
        let (start, step) = (Instant::now(), Duration::from_millis(1));
        let mut now = Duration::ZERO;
        while now < time {
            now += step;
            // No more comes than was asked for a round trip ago.
            let asked = window.bytes() as f64 / trip.as_secs_f64();
            let bytes = (rate as f64).min(asked) * step.as_secs_f64();
            window.received(bytes as u64, Some(trip), start + now);
        }
        window.bytes()
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn is_twice_what_the_link_holds() {
        let near = |bytes: u64, wanted: u64| bytes.abs_diff(wanted) <= wanted / 10;
        let second = 1000 * MS;
        assert!(near(after(50_000_000, 50 * MS, second), 5_000_000));
        assert!(near(after(25_000_000, 100 * MS, 3 * second), 5_000_000));
        assert_eq!(after(25_000_000, 10 * MS, second), LEAST);
        assert_eq!(after(1_000_000_000, MS, second), 2_000_000.max(LEAST));
        assert_eq!(after(1_000_000_000, 100 * MS, 10 * second), MOST);
    }

    #[test]
    fn what_a_link_once_did_is_forgotten() {
        let mut window = Window::default();
        let start = Instant::now();
        let mut at = Duration::ZERO;
        let mut carry = |rate: u64, time: Duration| {
            let end = at + time;
            while at < end {
                at += 10 * MS;
                window.received(rate / 100, Some(50 * MS), start + at);
            }
            window.bytes()
        };
        assert!(carry(50_000_000, 1000 * MS) > 4_000_000);
        assert_eq!(carry(1_000_000, 25 * 1000 * MS), LEAST);
    }

    #[test]
    fn a_pause_is_no_rate() {
        let mut window = Window::default();
        let start = Instant::now();
        for second in 0..5 {
            window.received(10 << 20, Some(50 * MS), start + second * 1000 * MS);
        }
        assert_eq!(window.bytes(), LEAST);
    }
}
