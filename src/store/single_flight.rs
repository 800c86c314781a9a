//! One piece of work for each key at a time, however many want its outcome.
//!
//! The work is a task of its own, so that one who stops waiting does not stop it. Whoever comes
//! while it is under way shares its outcome, and makes it more urgent if he is; whoever comes after
//! its end starts it anew. Nothing of an outcome is kept here.
//!
//! Lock: `flights` is a leaf, held for moments.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, FutureExt, Shared};
use tokio::sync::watch;

use super::lanes::Lane;

/// What the work comes to, for everybody who waits.
pub type Outcome<T> = Shared<BoxFuture<'static, T>>;

/// The lane of some work, which changes when somebody joins who is in more of a hurry.
pub type Urgency = watch::Receiver<Lane>;

/// Work under way: what it is by (`K`), what it comes to (`T`), and what it is for (`A`), for people
/// who look.
pub struct SingleFlight<K, T, A = ()> {
    flights: Arc<Flights<K, T, A>>,
}

type Flights<K, T, A> = Mutex<HashMap<K, Flight<T, A>>>;

struct Flight<T, A> {
    about: A,
    begun: Instant,
    outcome: Outcome<T>,
    urgency: watch::Sender<Lane>,
}

impl<K, T, A> Default for SingleFlight<K, T, A> {
    fn default() -> Self {
        Self {
            flights: Arc::default(),
        }
    }
}

impl<K, T, A> SingleFlight<K, T, A>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
    A: Clone + Send + 'static,
{
    /// Joins the work of this key, or has it started: `start` gets its urgency and what it has to
    /// keep until it is over, and gives the task that does it.
    pub fn join(
        &self,
        key: &K,
        about: &A,
        lane: Lane,
        start: impl FnOnce(Urgency, Underway<K, T, A>) -> BoxFuture<'static, T>,
    ) -> Outcome<T> {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(key) {
            flight
                .urgency
                .send_if_modified(|l| std::mem::replace(l, (*l).max(lane)) < lane);
            return flight.outcome.clone();
        }
        let (urgency, lane) = watch::channel(lane);
        let underway = Underway {
            flights: self.flights.clone(),
            key: key.clone(),
        };
        // Started before the lock is released, and so before it can be over.
        let outcome = start(lane, underway).shared();
        flights.insert(
            key.clone(),
            Flight {
                about: about.clone(),
                begun: Instant::now(),
                outcome: outcome.clone(),
                urgency,
            },
        );
        outcome
    }

    /// What is under way, with its lane and for how long.
    pub fn under_way(&self) -> Vec<(A, Lane, Duration)> {
        let one = |f: &Flight<T, A>| (f.about.clone(), *f.urgency.borrow(), f.begun.elapsed());
        lock(&self.flights).values().map(one).collect()
    }

    /// Whether nothing is under way.
    #[allow(dead_code, reason = "the tests in tests/interleavings ask")]
    pub fn is_empty(&self) -> bool {
        lock(&self.flights).is_empty()
    }
}

/// Says that the work is under way. Dropped, also when the work dies, the next one who asks starts
/// another.
pub struct Underway<K: Eq + Hash, T, A = ()> {
    flights: Arc<Flights<K, T, A>>,
    key: K,
}

impl<K: Eq + Hash, T, A> Drop for Underway<K, T, A> {
    fn drop(&mut self) {
        let over = lock(&self.flights).remove(&self.key);
        // Its last waiter may be gone, and what it holds then is dropped: not under the lock.
        drop(over);
    }
}

fn lock<K, T, A>(flights: &Flights<K, T, A>) -> MutexGuard<'_, HashMap<K, Flight<T, A>>> {
    flights.lock().unwrap_or_else(PoisonError::into_inner)
}
