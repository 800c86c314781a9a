//! The lanes: everybody gets a turn, and nobody before it is his.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use narfs_interleavings::{
    nix::StorePath,
    store::lanes::{Lane, Lanes, Transfer},
};
use shuttle::{future, thread};

use crate::in_many_orders;

fn enter(lanes: &Lanes, lane: Lane) -> Transfer<'_> {
    let path = StorePath::parse("00000000000000000000000000000000-x").unwrap();
    lanes.enter(lane, &path, None)
}

/// Transfers of all lanes come, flow, change lanes and go; each waits for its turn now and then.
/// That a lost wake-up is a deadlock, which shuttle reports, is half of the test.
#[test]
fn every_transfer_gets_its_turns_whoever_comes_and_goes() {
    in_many_orders(1000, || {
        let lanes = Arc::new(Lanes::default());
        let turns = Arc::new(AtomicUsize::new(0));
        let all = [
            Lane::Demand,
            Lane::Background,
            Lane::ReadAhead,
            Lane::Background,
            Lane::Background,
        ];
        let tasks: Vec<_> = all
            .into_iter()
            .map(|lane| {
                let (lanes, turns) = (lanes.clone(), turns.clone());
                future::spawn(async move {
                    let mut transfer = enter(&lanes, lane);
                    for piece in 0..3 {
                        transfer.turn().await;
                        thread::yield_now();
                        transfer.set_flows(true);
                        future::yield_now().await;
                        turns.fetch_add(1, SeqCst);
                        if piece == 1 {
                            // A reader came, or the last one went.
                            transfer.set_lane(match lane {
                                Lane::Demand => Lane::Background,
                                _ => Lane::Demand,
                            });
                            thread::yield_now();
                        }
                        transfer.set_flows(false);
                        thread::yield_now();
                    }
                })
            })
            .collect();
        future::block_on(async {
            for task in tasks {
                task.await.unwrap();
            }
        });
        assert_eq!(turns.load(SeqCst), 15);
        // Nothing of them is left: with the lanes empty, background work goes at once.
        let mut flowing = enter(&lanes, Lane::Background);
        assert!(flowing.may_go());
        flowing.set_flows(true);
        assert!(enter(&lanes, Lane::Background).may_go());
    });
}

/// While a demand transfer flows, no other one is told that it is its turn.
#[test]
fn nobody_goes_while_a_reader_is_served() {
    in_many_orders(1000, || {
        let lanes = Arc::new(Lanes::default());
        let mut reader = enter(&lanes, Lane::Demand);
        reader.set_flows(true);
        let served = Arc::new(AtomicUsize::new(0));
        let others: Vec<_> = [Lane::ReadAhead, Lane::Background]
            .into_iter()
            .map(|lane| {
                let (lanes, served) = (lanes.clone(), served.clone());
                future::spawn(async move {
                    let transfer = enter(&lanes, lane);
                    transfer.turn().await;
                    assert_eq!(served.load(SeqCst), 1, "{lane:?} went before its turn");
                })
            })
            .collect();
        thread::yield_now();
        served.store(1, SeqCst);
        drop(reader);
        future::block_on(async {
            for other in others {
                other.await.unwrap();
            }
        });
    });
}

/// Of the background only the oldest two run, whoever leaves in which order.
#[test]
fn the_background_does_not_crowd() {
    in_many_orders(1000, || {
        let lanes = Arc::new(Lanes::default());
        let running = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..5)
            .map(|_| {
                let (lanes, running) = (lanes.clone(), running.clone());
                future::spawn(async move {
                    let transfer = enter(&lanes, Lane::Background);
                    transfer.turn().await;
                    let now = running.fetch_add(1, SeqCst) + 1;
                    assert!(now <= 2, "{now} at once");
                    future::yield_now().await;
                    thread::yield_now();
                    running.fetch_sub(1, SeqCst);
                })
            })
            .collect();
        future::block_on(async {
            for task in tasks {
                task.await.unwrap();
            }
        });
    });
}
