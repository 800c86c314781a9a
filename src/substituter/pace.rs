//! How often a cache that fails is asked: by all callers together, not by each.
//!
//! Every caller has its tries and its waits between them. With a thousand readers of a cache that
//! is gone, that alone would be a thousand requests for each try. So from the second failure in a
//! row on that says something of the cache and not of one file (no connection, 503, …) the cache
//! *rests*: requests begin one at a time and ever more rarely, up to [`MOST`] apart. Who waits is
//! told of the failures meanwhile, which use up none of his own tries, but are his answer once the
//! cache [is gone](Pace::is_gone). The first answer, whatever it says, ends the rest, so that
//! whoever comes after a network is back is answered within [`MOST`].
//!
//! Nobody is told of a failure of a request that began before he came: it may be from a time that
//! is over.
//!
//! Lock: `state` is a leaf, held for moments.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{error::FetchFailure, retry::RetryPolicy};

/// Failures in a row from which on a cache rests. The first may be one connection's.
const RESTS_FROM: u32 = 2;

/// Longest time between two requests to a cache that rests: what a reader may have to wait who is
/// the first after a network is back.
const MOST: Duration = Duration::from_secs(2);

/// A cache that failed for so long is gone: one more failure is an answer, and more tries would only
/// keep a reader waiting. What is shorter, tries are there to get over.
const GONE_AFTER: Duration = Duration::from_secs(10);

/// Longest time that is granted to a cache that says itself when to come back (`Retry-After`), to
/// others than the one it was said to.
const MOST_ASKED_FOR: Duration = Duration::from_secs(60);

/// A caller's turn.
#[derive(Debug)]
pub(super) enum Turn {
    /// To send a request, whose outcome is to be told with this number.
    Mine(u64),
    /// Not yet, but a request that began after the caller came failed like this.
    Failed(FetchFailure),
    /// It would come after the deadline. This is how the last request failed.
    TooLate(FetchFailure),
}

/// The pace of one cache.
#[derive(Debug)]
pub(super) struct Pace {
    state: Mutex<State>,
    news: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    /// Failures in a row.
    failures: u32,
    /// When the first of them was.
    since: Instant,
    /// When the next request of a cache that rests may begin.
    next: Instant,
    /// Number of the last request that began.
    begun: u64,
    /// The last failure and the number of its request, since the last answer.
    last: Option<(u64, FetchFailure)>,
}

impl State {
    fn rests(&self) -> bool {
        self.failures >= RESTS_FROM
    }

    fn begin(&mut self) -> Turn {
        self.begun += 1;
        Turn::Mine(self.begun)
    }
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                failures: 0,
                since: Instant::now(),
                next: Instant::now(),
                begun: 0,
                last: None,
            }),
            news: watch::Sender::new(()),
        }
    }

    /// Whether the cache failed lately and did not answer since.
    pub(super) fn rests(&self) -> bool {
        self.state().rests()
    }

    /// Whether it has failed for so long that who was told of a failure need not try again.
    pub(super) fn is_gone(&self) -> bool {
        let state = self.state();
        state.rests() && state.since.elapsed() >= GONE_AFTER
    }

    /// Begins a request to a cache that rests, if it is time for one; for somebody who would not
    /// wait for it.
    pub(super) fn turn_now(&self, policy: &RetryPolicy) -> Option<u64> {
        let mut state = self.state();
        if !state.rests() || Instant::now() < state.next {
            return None;
        }
        state.next = Instant::now() + gap(&state, policy);
        match state.begin() {
            Turn::Mine(number) => Some(number),
            Turn::Failed(_) | Turn::TooLate(_) => None,
        }
    }

    /// Waits for the caller's turn; who could not have it before `deadline` is told so at once.
    pub(super) async fn turn(&self, policy: &RetryPolicy, deadline: Instant) -> Turn {
        let came = self.state().begun;
        loop {
            let mut news = self.news.subscribe();
            let next = {
                let mut state = self.state();
                if !state.rests() {
                    return state.begin();
                }
                let told = |(number, _): &&(u64, FetchFailure)| *number > came;
                if let Some((_, failure)) = state.last.as_ref().filter(told) {
                    return Turn::Failed(failure.clone());
                }
                if Instant::now() >= state.next {
                    state.next = Instant::now() + gap(&state, policy);
                    return state.begin();
                }
                if state.next >= deadline
                    && let Some((_, failure)) = &state.last
                {
                    return Turn::TooLate(failure.clone());
                }
                state.next
            };
            tokio::select! {
                () = sleep_until(next) => {}
                // The sender lives as long as `self`.
                _ = news.changed() => {}
            }
        }
    }

    /// How the request of this number went.
    pub(super) fn note(&self, number: u64, failure: Option<&FetchFailure>, policy: &RetryPolicy) {
        let mut state = self.state();
        match failure.filter(|failure| failure.is_of_the_cache()) {
            Some(failure) => {
                if state.failures == 0 {
                    state.since = Instant::now();
                }
                state.failures = state.failures.saturating_add(1);
                if asked_for(failure).is_some() {
                    state.failures = state.failures.max(RESTS_FROM);
                }
                state.last = Some((number, failure.clone()));
                state.next = state.next.max(Instant::now() + gap(&state, policy));
            }
            None => {
                state.failures = 0;
                state.last = None;
                state.next = Instant::now();
            }
        }
        drop(state);
        self.news.send_replace(());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Time between two requests.
fn gap(state: &State, policy: &RetryPolicy) -> Duration {
    let doublings = state.failures.saturating_sub(1).min(20);
    let backoff = policy.base.saturating_mul(1 << doublings).min(MOST);
    let last = state.last.as_ref().map(|(_, failure)| failure);
    match last {
        Some(FetchFailure::Status { status: 429, .. }) => {
            let asked = last.and_then(asked_for).unwrap_or(policy.too_many_requests);
            backoff.max(asked)
        }
        _ => backoff.max(last.and_then(asked_for).unwrap_or_default()),
    }
}

/// For how long the cache wants to be left alone, as far as it gets its will.
fn asked_for(failure: &FetchFailure) -> Option<Duration> {
    match failure {
        FetchFailure::Status {
            retry_after: Some(asked),
            ..
        } => Some((*asked).min(MOST_ASKED_FOR)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const LONG: Duration = Duration::from_secs(60);

    fn policy() -> RetryPolicy {
        RetryPolicy {
            base: Duration::from_millis(50),
            ..RetryPolicy::default()
        }
    }

    fn gone() -> FetchFailure {
        FetchFailure::Connect("refused".into())
    }

    fn fail(pace: &Pace) {
        fail_with(pace, &gone());
    }

    fn fail_with(pace: &Pace, failure: &FetchFailure) {
        let turn = pace.turn(&policy(), Instant::now() + LONG).now_or_never();
        let Some(Turn::Mine(number)) = turn else {
            panic!("{turn:?}")
        };
        pace.note(number, Some(failure), &policy());
    }

    #[tokio::test]
    async fn one_failure_is_nothing_and_an_answer_ends_the_rest() {
        let pace = Pace::new();
        fail(&pace);
        assert!(!pace.rests());
        fail(&pace);
        assert!(pace.rests());
        let deadline = Instant::now() + LONG;
        assert!(pace.turn(&policy(), deadline).now_or_never().is_none());
        let Turn::Mine(number) = pace.turn(&policy(), deadline).await else {
            panic!("nothing failed since")
        };
        pace.note(number, Some(&FetchFailure::Missing), &policy());
        assert!(!pace.rests(), "404 is an answer");
        assert!(pace.turn(&policy(), deadline).now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_waits_shares_the_next_failure_and_who_comes_later_does_not() {
        let pace = std::sync::Arc::new(Pace::new());
        fail(&pace);
        fail(&pace);
        let waiting = [(); 50].map(|()| {
            let pace = pace.clone();
            tokio::spawn(async move {
                match pace.turn(&policy(), Instant::now() + LONG).await {
                    Turn::Failed(_) | Turn::TooLate(_) => 0,
                    Turn::Mine(number) => {
                        pace.note(number, Some(&gone()), &policy());
                        1
                    }
                }
            })
        });
        let mut sent = 0;
        for one in waiting {
            sent += one.await.unwrap();
        }
        assert_eq!(sent, 1, "of 50 who waited");
        let later = pace.turn(&policy(), Instant::now() + LONG).await;
        assert!(matches!(later, Turn::Mine(_)), "{later:?}");
    }

    #[tokio::test]
    async fn a_cache_that_asks_for_time_gets_it_from_everybody() {
        let pace = Pace::new();
        let busy = FetchFailure::Status {
            status: 503,
            retry_after: Some(Duration::from_secs(30)),
        };
        fail_with(&pace, &busy);
        let soon = Instant::now() + Duration::from_secs(5);
        let turn = pace.turn(&policy(), soon).now_or_never();
        assert!(matches!(turn, Some(Turn::TooLate(_))), "{turn:?}");
        let late = Instant::now() + LONG;
        assert!(pace.turn(&policy(), late).now_or_never().is_none());
    }

    #[test]
    fn requests_become_rarer_up_to_a_bound() {
        let pace = Pace::new();
        let mut gaps = Vec::new();
        for number in 0..12 {
            pace.note(number, Some(&gone()), &policy());
            gaps.push(gap(&pace.state(), &policy()));
        }
        assert_eq!(gaps[0], Duration::from_millis(50));
        assert_eq!(gaps[1], Duration::from_millis(100));
        assert_eq!(gaps[11], MOST);
    }
}
