//! Single flight: one at a time, an answer for everybody, nothing left behind.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use futures_util::FutureExt;
use narfs_interleavings::store::{
    lanes::Lane,
    single_flight::{SingleFlight, Underway, Urgency},
};
use shuttle::{future, thread};

use crate::in_many_orders;

#[derive(Default)]
struct World {
    flight: SingleFlight<&'static str, usize>,
    running: AtomicUsize,
    started: AtomicUsize,
}

impl World {
    /// One who asks, and leaves after he was `patient` for so many steps, if at all.
    async fn ask(self: Arc<Self>, lane: Lane, patience: Option<usize>) -> Option<usize> {
        let world = self.clone();
        let work = move |urgency: Urgency, underway: Underway<_, _>| {
            let world = world.clone();
            let task = future::spawn(async move {
                let _underway = underway;
                let at_once = world.running.fetch_add(1, SeqCst);
                assert_eq!(at_once, 0, "two at once");
                let number = world.started.fetch_add(1, SeqCst);
                future::yield_now().await;
                let _ = *urgency.borrow();
                thread::yield_now();
                world.running.fetch_sub(1, SeqCst);
                number
            });
            task.map(Result::unwrap).boxed()
        };
        let mut outcome = self.flight.join(&"path", &(), lane, work);
        match patience {
            None => Some(outcome.await),
            Some(steps) => {
                for _ in 0..steps {
                    if let Some(done) = (&mut outcome).now_or_never() {
                        return Some(done);
                    }
                    future::yield_now().await;
                }
                None
            }
        }
    }
}

#[test]
fn one_at_a_time_and_an_answer_for_everybody() {
    in_many_orders(1000, || {
        let world = Arc::new(World::default());
        let askers: Vec<_> = [
            (Lane::Background, None),
            (Lane::Demand, Some(1)),
            (Lane::Demand, None),
            (Lane::ReadAhead, Some(0)),
            (Lane::Demand, None),
        ]
        .into_iter()
        .map(|(lane, patience)| future::spawn(world.clone().ask(lane, patience)))
        .collect();
        let answers = future::block_on(async {
            let mut answers = Vec::new();
            for asker in askers {
                answers.push(asker.await.unwrap());
            }
            answers
        });
        for patient in [0, 2, 4] {
            assert!(answers[patient].is_some(), "who waits gets an answer");
        }
        // Whoever left may have left work behind; once it is over, nothing is on the list, and
        // the next one starts anew.
        let before = world.started.load(SeqCst);
        let next = future::block_on(world.clone().ask(Lane::Demand, None)).unwrap();
        assert!(next + 1 >= before);
        while world.running.load(SeqCst) > 0 || !world.flight.is_empty() {
            thread::yield_now();
        }
        let again = future::block_on(world.clone().ask(Lane::Demand, None)).unwrap();
        assert!(again > next, "an outcome that was over was given out");
    });
}

/// The work learns that somebody waits for it, whenever he came.
#[test]
fn one_in_a_hurry_makes_it_urgent() {
    in_many_orders(1000, || {
        let flight = Arc::new(SingleFlight::<&str, ()>::default());
        let work = |urgency: Urgency, underway: Underway<_, _>| {
            let task = future::spawn(async move {
                let mut urgency = urgency;
                // Goes on only when it is urgent: a hurry that gets lost is a deadlock.
                let urgent = urgency.wait_for(|lane| *lane == Lane::Demand).await;
                urgent.map(drop).unwrap();
                drop(underway);
            });
            task.map(Result::unwrap).boxed()
        };
        let background = flight.join(&"path", &(), Lane::Background, work);
        let hurried = {
            let flight = flight.clone();
            thread::spawn(move || drop(flight.join(&"path", &(), Lane::Demand, work)))
        };
        future::block_on(background);
        hurried.join().unwrap();
    });
}

/// Work that dies takes itself off the list.
#[test]
fn work_that_is_dropped_is_over() {
    in_many_orders(1000, || {
        let flight = Arc::new(SingleFlight::<&str, u8>::default());
        let dying = flight.join(&"path", &(), Lane::Demand, |_, underway| {
            let task = future::spawn(async move {
                let _underway = underway;
                future::yield_now().await;
                0
            });
            task.abort();
            task.map(|outcome| outcome.unwrap_or(9)).boxed()
        });
        let other = {
            let flight = flight.clone();
            thread::spawn(move || {
                let outcome = flight.join(&"path", &(), Lane::Demand, |_, underway| {
                    async move {
                        let _underway = underway;
                        1
                    }
                    .boxed()
                });
                future::block_on(outcome)
            })
        };
        let ended = [future::block_on(dying), other.join().unwrap()];
        assert!(ended.iter().all(|end| [0, 1, 9].contains(end)), "{ended:?}");
        while !flight.is_empty() {
            thread::yield_now();
        }
    });
}
