//! Lines that repeat are counted and not repeated: "41 more like this in 60 s".
//!
//! Two events are alike if they come from the same place in the program and say the same, numbers
//! aside: a cache that fails in the same way for the same path, say. The first is logged, those
//! within a minute of it are counted, and when the minute is over a line says how many there were.
//! What is logged for debugging is not touched.
//!
//! Lock: `seen` is a leaf, held for moments; nothing is logged under it.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    fmt::{self, Write},
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

/// For how long what is like a logged event is only counted.
const WINDOW: Duration = Duration::from_secs(60);
/// How often it is looked whose time is up.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most kinds of events that are told apart at a time; beyond that all are logged.
const KINDS: usize = 4096;
/// Where the lines of this file come from.
const OWN: &str = "narfs::log::repeats";
/// Fields that tell events apart with every digit.
const NAMES: [&str; 5] = ["path", "substituter", "nar", "key", "mountpoint"];

struct Seen {
    since: Instant,
    more: u64,
    like: String,
}

/// The layer.
#[derive(Clone, Default)]
pub(super) struct Repeats {
    seen: Arc<Mutex<HashMap<u64, Seen>>>,
}

impl Repeats {
    /// A thread that tells what was counted.
    pub(super) fn tell(&self) {
        let repeats = self.clone();
        let teller = std::thread::Builder::new().name("narfs-log".into());
        let started = teller.spawn(move || {
            loop {
                std::thread::sleep(LOOK_EVERY);
                for (more, like) in repeats.take_over(WINDOW) {
                    tracing::warn!(
                        target: OWN,
                        "… {more} more like this in {} s: {like}",
                        WINDOW.as_secs()
                    );
                }
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "repeated log lines are counted, but the counts not logged");
        }
    }

    /// What was counted over a whole window, which then begins anew.
    fn take_over(&self, window: Duration) -> Vec<(u64, String)> {
        let mut seen = self.seen();
        let over = seen.extract_if(|_, seen| seen.since.elapsed() >= window);
        over.map(|(_, seen)| (seen.more, seen.like))
            .filter(|(more, _)| *more > 0)
            .collect()
    }

    /// Whether this is the first of its kind for a while.
    fn is_news(&self, event: &Event<'_>) -> bool {
        let mut said = Said::default();
        event.metadata().callsite().hash(&mut said.hash);
        event.record(&mut said);
        let mut seen = self.seen();
        match seen.get_mut(&said.hash.finish()) {
            Some(seen) => {
                seen.more += 1;
                false
            }
            None => {
                if seen.len() < KINDS {
                    let new = Seen {
                        since: Instant::now(),
                        more: 0,
                        like: said.text,
                    };
                    seen.insert(said.hash.finish(), new);
                }
                true
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<u64, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for Repeats {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        *metadata.level() > Level::INFO || metadata.target() == OWN || self.is_news(event)
    }
}

/// What an event says: for comparing without numbers, and as text.
#[derive(Default)]
struct Said {
    hash: DefaultHasher,
    text: String,
}

impl Said {
    fn text(&mut self, field: &Field, value: &str) {
        field.name().hash(&mut self.hash);
        if NAMES.contains(&field.name()) {
            value.hash(&mut self.hash);
        } else {
            let letters = value.chars().filter(|c| !c.is_ascii_digit());
            letters.for_each(|c| c.hash(&mut self.hash));
        }
        // The message comes first in the text, wherever it stands in the event.
        match field.name() {
            "message" => self.text.insert_str(0, value),
            name => {
                // A string takes everything.
                let _ = write!(self.text, " {name}={value}");
            }
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_u64(&mut self, _: &Field, _: u64) {}
    fn record_i64(&mut self, _: &Field, _: i64) {}
    fn record_u128(&mut self, _: &Field, _: u128) {}
    fn record_i128(&mut self, _: &Field, _: i128) {}
    fn record_f64(&mut self, _: &Field, _: f64) {}
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Count(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn what_says_the_same_is_logged_once_and_counted() {
        let (repeats, count) = (Repeats::default(), Count::default());
        let subscriber = tracing_subscriber::registry()
            .with(repeats.clone())
            .with(count.clone());
        let logged = || count.0.load(SeqCst);
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..42 {
                tracing::warn!(path = "a1", offset = n, "no bytes for {n} s");
            }
            assert_eq!(logged(), 1);
            // Another path, another place, a number inside a name: other events.
            for path in ["a1", "a2"] {
                tracing::warn!(path, "gone");
            }
            assert_eq!(logged(), 3);
            for _ in 0..3 {
                tracing::debug!("as often as it happens");
            }
            assert_eq!(logged(), 6);
        });
        assert!(repeats.take_over(WINDOW).is_empty());
        let told = repeats.take_over(Duration::ZERO);
        assert_eq!(told, [(41, "no bytes for 0 s path=a1".to_owned())]);
    }
}
