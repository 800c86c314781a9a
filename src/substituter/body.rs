//! The bytes of a NAR as they arrive, with the rules that make a bad server an error.

use std::{ops::Range, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, timeout};

use super::{
    counters::Counters,
    error::{FetchError, FetchFailure},
    health,
};
use crate::trace::Flight;

/// Below this many bytes a second, over a whole stall window, an upstream counts as stalled.
/// Readers would wait longer for a 128 KiB read than the kernel's time-outs allow.
const LOW_SPEED: u64 = 1024;

/// Pieces of a file, in order. A failure says how the source ended, `Truncated` counts here.
pub(super) type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, FetchFailure>> + Send>>;

/// A NAR, or a part of it, on its way.
///
/// Dropping it ends the transfer. Time counts against the server only while [`NarBody::next`]
/// waits: a consumer that takes long between calls holds the server back and is not punished.
pub struct NarBody {
    /// Where in the file the first byte that comes stands. Not what was asked for when the server
    /// ignores ranges: then 0, and what comes before the wanted part is the caller's to skip.
    pub start: u64,
    /// The file's size, in bytes, where it is known.
    pub total: Option<u64>,
    /// What to hand to the next request for the same file, so that parts of two different files
    /// are never joined: a strong `ETag`, or `Last-Modified`.
    pub validator: Option<String>,
    /// The `Content-Encoding` that is still on the bytes (some servers compress although asked not
    /// to). `start` is 0 then, and sizes are of what comes, not of the file.
    pub encoding: Option<String>,
    pieces: Pieces,
    /// How many bytes will come, where that is known.
    expected: Option<u64>,
    got: u64,
    /// When something last came, as the cache's health counts.
    heard: u64,
    ended: bool,
    pace: Pace,
    names: Names,
    /// Its request in the record, if there is one.
    pub(super) flight: Flight,
}

/// What a body needs for its errors and its counters.
#[derive(Clone)]
pub(super) struct Names {
    pub(super) substituter: Arc<str>,
    pub(super) address: Arc<str>,
    pub(super) counters: Arc<Counters>,
}

impl NarBody {
    /// A body of `bytes` of a file, of which the end may be unknown (`None`).
    pub(super) fn new(
        pieces: Pieces,
        start: u64,
        end: Option<u64>,
        stall: Duration,
        names: Names,
    ) -> Self {
        Self {
            start,
            total: None,
            validator: None,
            encoding: None,
            pieces,
            expected: end.map(|end| end.saturating_sub(start)),
            got: 0,
            heard: health::now(),
            ended: false,
            pace: Pace::new(stall),
            names,
            flight: Flight::default(),
        }
    }

    /// The next bytes, as many as the source gives; `None` after the last of them.
    ///
    /// Never a short file: an end before the announced size is [`FetchFailure::Truncated`]. After
    /// an error there is nothing more to be had. Dropping the future loses no bytes.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        self.advance().await.map_err(|failure| {
            self.names.counters.failure(&failure);
            self.names.counters.health.failed(&failure, self.heard);
            failure.at(&self.names.substituter, self.names.address.clone())
        })
    }

    async fn advance(&mut self) -> Result<Option<Bytes>, FetchFailure> {
        if self.ended {
            return Ok(None);
        }
        let step = self.step().await;
        self.ended = !matches!(step, Ok(Some(_)));
        match &step {
            Ok(Some(piece)) => {
                self.flight.bytes(piece.len());
                // Who has got what he asked for does not look for more.
                if self.expected == Some(self.got) {
                    self.flight.done();
                }
            }
            Ok(None) => self.flight.done(),
            Err(failure) => self.flight.failed(failure.slug()),
        }
        step
    }

    async fn step(&mut self) -> Result<Option<Bytes>, FetchFailure> {
        let piece = match self.pace.next(&mut self.pieces).await? {
            Some(Ok(piece)) => piece,
            Some(Err(FetchFailure::Truncated { detail, .. })) => {
                return Err(FetchFailure::Truncated {
                    got: self.got,
                    detail,
                });
            }
            Some(Err(failure)) => return Err(failure),
            None => match self.expected {
                Some(expected) if self.got < expected => {
                    let detail = format!("{expected} were announced");
                    return Err(FetchFailure::Truncated {
                        got: self.got,
                        detail,
                    });
                }
                _ => return Ok(None),
            },
        };
        self.got += piece.len() as u64;
        self.names.counters.bytes(piece.len());
        self.heard = health::now();
        self.names.counters.health.heard();
        match self.expected {
            Some(expected) if self.got > expected => Err(FetchFailure::Protocol(format!(
                "sends more than the {expected} bytes it announced"
            ))),
            _ => Ok(Some(piece)),
        }
    }

    /// Everything, up to `limit` bytes. Failures are not counted: this may be tried again.
    pub(super) async fn collect(mut self, limit: u64) -> Result<Vec<u8>, FetchFailure> {
        if self.expected.is_some_and(|expected| expected > limit) {
            return Err(FetchFailure::TooLarge { limit });
        }
        let mut all = Vec::with_capacity(self.expected.unwrap_or(0) as usize);
        while let Some(piece) = self.advance().await? {
            if all.len() as u64 + piece.len() as u64 > limit {
                return Err(FetchFailure::TooLarge { limit });
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    /// It is fetched in this lane from now on.
    pub fn in_lane(&mut self, lane: &'static str) {
        self.flight.in_lane(lane);
    }

    /// The bytes of the file that will come, where the end is known.
    pub fn coming(&self) -> Option<Range<u64>> {
        self.expected
            .map(|expected| self.start..self.start + expected)
    }
}

impl std::fmt::Debug for NarBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NarBody")
            .field("address", &self.names.address)
            .field("start", &self.start)
            .field("total", &self.total)
            .field("expected", &self.expected)
            .field("got", &self.got)
            .finish_non_exhaustive()
    }
}

/// Watches how fast bytes come while somebody waits for them. Keeps no clock of its own.
#[derive(Debug)]
struct Pace {
    window: Duration,
    /// Waited in the current window.
    waited: Duration,
    /// Came in the current window.
    bytes: u64,
    /// Waited since the last byte.
    silent: Duration,
}

impl Pace {
    fn new(window: Duration) -> Self {
        Self {
            window,
            waited: Duration::ZERO,
            bytes: 0,
            silent: Duration::ZERO,
        }
    }

    /// How long the next wait may be before it has to be judged.
    fn patience(&self) -> Duration {
        self.window.saturating_sub(self.waited.max(self.silent))
    }

    /// Takes note of a wait and of what it brought; `Stalled` if that is too little.
    fn note(&mut self, waited: Duration, bytes: usize) -> Result<(), FetchFailure> {
        self.waited += waited;
        self.bytes += bytes as u64;
        if bytes > 0 {
            self.silent = Duration::ZERO;
        } else {
            self.silent += waited;
        }
        if self.silent < self.window && self.waited < self.window {
            return Ok(());
        }
        let least = (LOW_SPEED as f64 * self.window.as_secs_f64()) as u64;
        if self.silent >= self.window || self.bytes < least {
            return Err(FetchFailure::Stalled {
                bytes: self.bytes,
                window: self.window,
            });
        }
        self.waited = Duration::ZERO;
        self.bytes = 0;
        Ok(())
    }

    /// The next piece of the stream, or `Stalled`. Cancelled calls count for nothing.
    async fn next(
        &mut self,
        pieces: &mut Pieces,
    ) -> Result<Option<Result<Bytes, FetchFailure>>, FetchFailure> {
        loop {
            let begun = Instant::now();
            match timeout(self.patience(), pieces.next()).await {
                Ok(Some(Ok(piece))) => {
                    self.note(begun.elapsed(), piece.len())?;
                    if !piece.is_empty() {
                        return Ok(Some(Ok(piece)));
                    }
                }
                Ok(end) => return Ok(end),
                // At least what was allowed: the clock here may be a little behind the timer's.
                Err(_) => self.note(begun.elapsed().max(self.patience()), 0)?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(30);

    fn body(pieces: Pieces, expected: Option<u64>, stall: Duration) -> NarBody {
        let names = Names {
            substituter: "https://h".into(),
            address: "https://h/x".into(),
            counters: Arc::new(Counters::new("https://cache.example.org/".into())),
        };
        NarBody::new(pieces, 0, expected, stall, names)
    }

    fn three_tens() -> Pieces {
        Box::pin(stream::iter(vec![Ok(Bytes::from_static(&[7; 10])); 3]))
    }

    async fn drain(mut body: NarBody) -> Result<u64, FetchError> {
        let mut sum = 0;
        while let Some(piece) = body.next().await? {
            sum += piece.len() as u64;
        }
        Ok(sum)
    }

    /// Waits of `pause` that bring `bytes` each, until the server counts as stalled: how long.
    fn stalls_after(pause: Duration, bytes: usize, waits: u32) -> Option<Duration> {
        let mut pace = Pace::new(WINDOW);
        (1..=waits)
            .find(|_| pace.note(pause, bytes).is_err())
            .map(|n| pause * n)
    }

    #[test]
    fn one_byte_a_second_is_an_error_inside_the_bound() {
        assert_eq!(stalls_after(Duration::from_secs(1), 1, 1000), Some(WINDOW));
        assert_eq!(
            stalls_after(Duration::from_secs(1), 1000, 1000),
            Some(WINDOW)
        );
    }

    #[test]
    fn slow_but_alive_is_served() {
        assert_eq!(stalls_after(Duration::from_secs(2), 4096, 1000), None);
        assert_eq!(stalls_after(Duration::from_secs(29), 1 << 20, 1000), None);
    }

    #[test]
    fn a_slow_consumer_is_no_stall() {
        // Ten bytes an hour, but they were there when they were asked for.
        assert_eq!(stalls_after(Duration::from_micros(10), 10, 10_000), None);
    }

    #[test]
    fn silence_counts_from_the_last_byte() {
        let mut pace = Pace::new(WINDOW);
        assert_eq!(pace.note(Duration::from_secs(29), 1 << 20), Ok(()));
        assert_eq!(pace.patience(), Duration::from_secs(1));
        assert_eq!(
            pace.note(pace.patience(), 0),
            Ok(()),
            "the window was fast enough"
        );
        assert_eq!(pace.patience(), Duration::from_secs(29));
        let stalled = FetchFailure::Stalled {
            bytes: 0,
            window: WINDOW,
        };
        assert_eq!(pace.note(pace.patience(), 0), Err(stalled));
    }

    #[tokio::test]
    async fn silence_is_an_error_and_the_end() {
        let window = Duration::from_millis(20);
        let mut body = body(Box::pin(stream::pending()), None, window);
        let error = body.next().await.unwrap_err();
        assert_eq!(error.failure(), &FetchFailure::Stalled { bytes: 0, window });
        assert_eq!(body.next().await.unwrap(), None);
        assert_eq!(body.names.counters.failures(), 1);
    }

    #[tokio::test]
    async fn short_and_long_bodies_are_errors() {
        let short = drain(body(three_tens(), Some(31), WINDOW))
            .await
            .unwrap_err();
        assert!(
            matches!(short.failure(), FetchFailure::Truncated { got: 30, .. }),
            "{short}"
        );
        let long = drain(body(three_tens(), Some(29), WINDOW))
            .await
            .unwrap_err();
        assert_eq!(long.slug(), "protocol");
        assert_eq!(
            drain(body(three_tens(), Some(30), WINDOW)).await.unwrap(),
            30
        );
        let limited = body(three_tens(), None, WINDOW)
            .collect(29)
            .await
            .unwrap_err();
        assert_eq!(limited, FetchFailure::TooLarge { limit: 29 });
        assert_eq!(
            body(three_tens(), None, WINDOW)
                .collect(30)
                .await
                .unwrap()
                .len(),
            30
        );
    }
}
