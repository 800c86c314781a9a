//! What is under way: each transfer with its lane, source, bytes and times, for people who look
//! and for the metrics.
//!
//! A transfer writes atomics of its own as it goes. Lock: the table's is a leaf, taken when a
//! transfer begins or ends and when somebody looks.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::Lane;
use crate::{
    metrics::{Counter, Histogram},
    nix::StorePath,
};

/// Milliseconds since the first call, and at least one: zero is for never.
fn now() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

fn since(at: u64) -> Option<Duration> {
    (at > 0).then(|| Duration::from_millis(now().saturating_sub(at)))
}

/// No cache was asked yet.
const NOBODY: usize = usize::MAX;

/// A transfer, as others see it.
#[derive(Debug)]
pub(in crate::store) struct Shown {
    id: u64,
    path: StorePath,
    /// Bytes that it is for, where that is known.
    wanted: Option<u64>,
    entered: u64,
    lane: AtomicU8,
    flows: AtomicU8,
    /// Place of its cache in [`InFlight::caches`].
    cache: AtomicUsize,
    began: AtomicU64,
    asked: AtomicU64,
    /// How long the cache has to answer, in milliseconds from `asked` on.
    patience: AtomicU64,
    first: AtomicU64,
    last: AtomicU64,
    bytes: AtomicU64,
}

impl Shown {
    pub fn set_lane(&self, lane: Lane) {
        self.lane.store(lane as u8, Relaxed);
    }

    pub fn set_flows(&self, flows: bool) {
        self.flows.store(flows.into(), Relaxed);
    }

    fn lane(&self) -> Lane {
        Lane::ALL[usize::from(self.lane.load(Relaxed))]
    }
}

/// What one cache brought in one lane.
#[derive(Debug, Default)]
pub(in crate::store) struct Brought {
    pub requests: Counter,
    pub bytes: Counter,
    pub errors: Counter,
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It waits for its turn.
    Queued,
    /// It waits for a cache's answer, or to ask again.
    Waiting,
    /// Bytes arrive.
    Flowing,
    /// Bytes came, and none for a while.
    Silent,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Queued, Self::Waiting, Self::Flowing, Self::Silent];

    /// Its name in metrics and documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Waiting => "waiting",
            Self::Flowing => "flowing",
            Self::Silent => "silent",
        }
    }
}

/// A transfer that is under way.
#[derive(Debug, Clone, PartialEq)]
pub struct TransferView {
    /// Its number, in the order of their beginning.
    pub id: u64,
    /// The store path; others may share the NAR.
    pub path: StorePath,
    /// The cache that was asked last, without credentials.
    pub substituter: Option<String>,
    /// How urgent it is.
    pub lane: Lane,
    /// How far it is.
    pub stage: Stage,
    /// Bytes that came.
    pub bytes: u64,
    /// Bytes that it is for, as they stand in the cache, where that is known.
    pub wanted: Option<u64>,
    /// Bytes a second since the first came.
    pub rate: f64,
    /// Since it began.
    pub age: Duration,
    /// How long until it gives the cache up, while it waits for an answer.
    pub left: Option<Duration>,
}

/// All transfers of a store.
#[derive(Debug, Default)]
pub struct InFlight {
    next: AtomicU64,
    transfers: Mutex<BTreeMap<u64, Arc<Shown>>>,
    caches: Vec<(String, [Brought; Lane::ALL.len()])>,
    /// How long transfers waited for their turn, by lane.
    queued: [Histogram; Lane::ALL.len()],
}

impl InFlight {
    pub(super) fn over(substituters: impl IntoIterator<Item = String>) -> Self {
        Self {
            caches: substituters
                .into_iter()
                .map(|name| (name, Default::default()))
                .collect(),
            ..Self::default()
        }
    }

    pub(super) fn enter(&self, lane: Lane, path: &StorePath, wanted: Option<u64>) -> Arc<Shown> {
        let shown = Arc::new(Shown {
            id: self.next.fetch_add(1, Relaxed),
            path: path.clone(),
            wanted,
            entered: now(),
            lane: AtomicU8::new(lane as u8),
            flows: AtomicU8::new(0),
            cache: AtomicUsize::new(NOBODY),
            began: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            patience: AtomicU64::new(0),
            first: AtomicU64::new(0),
            last: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        self.table().insert(shown.id, shown.clone());
        shown
    }

    pub(super) fn leave(&self, shown: &Shown) {
        self.table().remove(&shown.id);
    }

    /// It is its turn; the first time that is so counts.
    pub(super) fn began(&self, shown: &Shown) {
        if shown.began.load(Relaxed) == 0 && shown.began.swap(now(), Relaxed) == 0 {
            let waited = Duration::from_millis(shown.began.load(Relaxed) - shown.entered);
            self.queued[shown.lane() as usize].observe(waited);
        }
    }

    /// It asks a cache, which has so long to answer.
    pub(super) fn asks(&self, shown: &Shown, substituter: &str, patience: Duration) {
        let at = self.caches.iter().position(|(name, _)| name == substituter);
        shown.cache.store(at.unwrap_or(NOBODY), Relaxed);
        let patience = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        shown.patience.store(patience, Relaxed);
        shown.asked.store(now(), Relaxed);
        self.count(shown, |brought| brought.requests.add(1));
    }

    /// So many bytes came.
    pub(super) fn received(&self, shown: &Shown, bytes: usize) {
        let now = now();
        if shown.first.load(Relaxed) == 0 {
            shown.first.store(now, Relaxed);
        }
        shown.last.store(now, Relaxed);
        shown.asked.store(0, Relaxed);
        shown.bytes.fetch_add(bytes as u64, Relaxed);
        self.count(shown, |brought| brought.bytes.add(bytes as u64));
    }

    /// What it asked for did not come, or not all of it.
    pub(super) fn failed(&self, shown: &Shown) {
        shown.asked.store(0, Relaxed);
        self.count(shown, |brought| brought.errors.add(1));
    }

    fn count(&self, shown: &Shown, how: impl Fn(&Brought)) {
        if let Some((_, lanes)) = self.caches.get(shown.cache.load(Relaxed)) {
            how(&lanes[shown.lane() as usize]);
        }
    }

    /// What is under way now, the oldest first.
    pub fn transfers(&self) -> Vec<TransferView> {
        let all: Vec<_> = self.table().values().cloned().collect();
        all.iter().map(|shown| self.view(shown)).collect()
    }

    fn view(&self, shown: &Shown) -> TransferView {
        let bytes = shown.bytes.load(Relaxed);
        let stage = match () {
            () if shown.flows.load(Relaxed) > 0 => Stage::Flowing,
            () if shown.began.load(Relaxed) == 0 => Stage::Queued,
            () if shown.asked.load(Relaxed) > 0 || bytes == 0 => Stage::Waiting,
            () => Stage::Silent,
        };
        let flowed = since(shown.first.load(Relaxed)).map_or(0.0, |d| d.as_secs_f64());
        let patience = Duration::from_millis(shown.patience.load(Relaxed));
        let asked = since(shown.asked.load(Relaxed));
        TransferView {
            id: shown.id,
            path: shown.path.clone(),
            substituter: self
                .caches
                .get(shown.cache.load(Relaxed))
                .map(|(name, _)| name.clone()),
            lane: shown.lane(),
            stage,
            bytes,
            wanted: shown.wanted,
            rate: if flowed > 0.0 {
                bytes as f64 / flowed
            } else {
                0.0
            },
            age: since(shown.entered).unwrap_or_default(),
            left: asked.map(|asked| patience.saturating_sub(asked)),
        }
    }

    /// What each cache brought, by lane.
    pub(super) fn brought(&self) -> impl Iterator<Item = (&str, Lane, &Brought)> {
        self.caches.iter().flat_map(|(name, lanes)| {
            let lanes = Lane::ALL.into_iter().zip(lanes);
            lanes.map(move |(lane, brought)| (name.as_str(), lane, brought))
        })
    }

    /// How long transfers waited for their turn, by lane.
    pub(super) fn queued(&self) -> impl Iterator<Item = (Lane, &Histogram)> {
        Lane::ALL.into_iter().zip(&self.queued)
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Shown>>> {
        self.transfers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_on_show_while_it_lasts() {
        let in_flight = InFlight::over(["a".to_owned(), "b".to_owned()]);
        let path = StorePath::parse("00000000000000000000000000000000-x").unwrap();
        let shown = in_flight.enter(Lane::ReadAhead, &path, Some(10));
        let stage = || in_flight.transfers()[0].stage;
        assert_eq!(stage(), Stage::Queued);
        in_flight.began(&shown);
        in_flight.began(&shown);
        assert_eq!(stage(), Stage::Waiting);
        in_flight.asks(&shown, "b", Duration::from_secs(60));
        let view = &in_flight.transfers()[0];
        assert_eq!(view.substituter.as_deref(), Some("b"));
        assert!(view.left.is_some_and(|left| left > Duration::from_secs(50)));
        in_flight.received(&shown, 4);
        shown.set_flows(true);
        assert_eq!(stage(), Stage::Flowing);
        shown.set_flows(false);
        assert_eq!(stage(), Stage::Silent);
        in_flight.failed(&shown);
        in_flight.leave(&shown);
        assert!(in_flight.transfers().is_empty());
        let counted: Vec<_> = in_flight
            .brought()
            .map(|(_, _, b)| (b.requests.get(), b.bytes.get(), b.errors.get()))
            .filter(|counts| *counts != (0, 0, 0))
            .collect();
        assert_eq!(counted, [(1, 4, 1)]);
        let waits: Vec<_> = in_flight.queued().map(|(_, h)| h.count()).collect();
        assert_eq!(waits, [0, 1, 0]);
    }
}
