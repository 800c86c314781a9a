//! Who may use the link now: three lanes with strict priority.
//!
//! A transfer is in one lane at a time and asks for its turn before every piece it takes from
//! the network. A transfer that a reader waits for never waits here. Read-ahead waits while such
//! a transfer *flows*, that is, has begun to bring bytes; background work waits for both. While
//! the others only wait for their first byte the link would be idle, so the lower lanes go on.
//!
//! Of the transfers of a lower lane only the oldest few run: what they have in flight stands in
//! front of the next reader's first byte, and what began first is needed first.
//!
//! Acts: any number of tasks. One lock, inside the watch channel, never held across an await.
//! Each transfer is on show in the [`InFlight`] table from here on.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::inflight::{InFlight, Shown};
use crate::nix::StorePath;

/// Background transfers that run side by side. Two keep a link busy over the gaps between
/// requests; each more is a receive window's worth of bytes in front of a reader.
const BACKGROUND_AT_ONCE: usize = 2;
/// Read-ahead transfers that run side by side. Many are of small NARs, whose time is the round
/// trip; eight of those keep a link busy.
const READ_AHEAD_AT_ONCE: usize = 8;

/// How urgent a transfer is; the greater, the more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Nobody waits: completing what was begun, prefetching.
    Background,
    /// Likely to be asked for next by a reader that is active.
    ReadAhead,
    /// A reader waits.
    Demand,
}

impl Lane {
    /// All of them, the most urgent last.
    pub const ALL: [Self; 3] = [Self::Background, Self::ReadAhead, Self::Demand];

    /// Its name in metrics and documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Background => "background",
            Self::ReadAhead => "read-ahead",
            Self::Demand => "demand",
        }
    }
}

#[derive(Debug, Default)]
struct Traffic {
    next_id: u64,
    demand_flowing: usize,
    read_ahead_flowing: usize,
    read_ahead: BTreeSet<u64>,
    background: BTreeSet<u64>,
}

impl Traffic {
    fn may_go(&self, id: u64, lane: Lane) -> bool {
        match lane {
            Lane::Demand => true,
            Lane::ReadAhead => {
                self.demand_flowing == 0 && oldest(&self.read_ahead, READ_AHEAD_AT_ONCE, id)
            }
            Lane::Background => {
                self.demand_flowing == 0
                    && self.read_ahead_flowing == 0
                    && oldest(&self.background, BACKGROUND_AT_ONCE, id)
            }
        }
    }

    /// The transfers that are in a lower lane.
    fn queue(&mut self, lane: Lane) -> Option<&mut BTreeSet<u64>> {
        match lane {
            Lane::Demand => None,
            Lane::ReadAhead => Some(&mut self.read_ahead),
            Lane::Background => Some(&mut self.background),
        }
    }

    fn flowing(&mut self, lane: Lane) -> Option<&mut usize> {
        match lane {
            Lane::Demand => Some(&mut self.demand_flowing),
            Lane::ReadAhead => Some(&mut self.read_ahead_flowing),
            Lane::Background => None,
        }
    }
}

fn oldest(queue: &BTreeSet<u64>, at_once: usize, id: u64) -> bool {
    queue.iter().take(at_once).any(|other| *other == id)
}

/// The lanes of one store.
#[derive(Debug)]
pub struct Lanes {
    traffic: watch::Sender<Traffic>,
    in_flight: InFlight,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            traffic: watch::Sender::new(Traffic::default()),
            in_flight: InFlight::default(),
        }
    }
}

impl Lanes {
    /// Whether somebody waits for bytes that come just now.
    pub fn demand_flows(&self) -> bool {
        self.traffic.borrow().demand_flowing > 0
    }

    /// Lanes whose transfers are counted by these caches.
    pub fn over(substituters: impl IntoIterator<Item = String>) -> Self {
        Self {
            in_flight: InFlight::over(substituters),
            ..Self::default()
        }
    }

    /// What is under way.
    pub fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// A transfer of `what`, so many bytes of it, begins in `lane`.
    pub fn enter(&self, lane: Lane, what: &StorePath, bytes: Option<u64>) -> Transfer<'_> {
        let mut id = 0;
        self.traffic.send_modify(|t| {
            id = t.next_id;
            t.next_id += 1;
            if let Some(queue) = t.queue(lane) {
                queue.insert(id);
            }
        });
        Transfer {
            lanes: self,
            id,
            lane,
            flows: false,
            shown: self.in_flight.enter(lane, what, bytes),
        }
    }
}

/// One transfer's place in the lanes; leaves them when dropped.
#[derive(Debug)]
pub struct Transfer<'a> {
    lanes: &'a Lanes,
    id: u64,
    lane: Lane,
    flows: bool,
    shown: Arc<Shown>,
}

impl Transfer<'_> {
    /// This cache is asked for the next piece, and has so long to answer.
    pub fn asks(&self, substituter: &str, patience: Duration) {
        self.lanes
            .in_flight
            .asks(&self.shown, substituter, patience);
    }

    /// So many bytes came.
    pub fn received(&self, bytes: usize) {
        self.lanes.in_flight.received(&self.shown, bytes);
    }

    /// What was asked for did not come, or not all of it.
    pub fn failed(&self) {
        self.lanes.in_flight.failed(&self.shown);
    }

    /// Changes the lane: a reader came, or the last one went.
    pub fn set_lane(&mut self, lane: Lane) {
        if lane == self.lane {
            return;
        }
        let (from, id, flows) = (self.lane, self.id, self.flows);
        self.lanes.traffic.send_modify(|t| {
            if flows {
                if let Some(n) = t.flowing(from) {
                    *n -= 1;
                }
                if let Some(n) = t.flowing(lane) {
                    *n += 1;
                }
            }
            if let Some(queue) = t.queue(from) {
                queue.remove(&id);
            }
            if let Some(queue) = t.queue(lane) {
                queue.insert(id);
            }
        });
        self.lane = lane;
        self.shown.set_lane(lane);
    }

    /// Says whether bytes arrive; a transfer that waits for an answer does not flow.
    pub fn set_flows(&mut self, flows: bool) {
        if flows == self.flows {
            return;
        }
        let lane = self.lane;
        self.lanes
            .traffic
            .send_if_modified(|t| match t.flowing(lane) {
                Some(n) if flows => {
                    *n += 1;
                    true
                }
                Some(n) => {
                    *n -= 1;
                    true
                }
                None => false,
            });
        self.flows = flows;
        self.shown.set_flows(flows);
    }

    /// Whether it is this transfer's turn now.
    pub fn may_go(&self) -> bool {
        self.lanes.traffic.borrow().may_go(self.id, self.lane)
    }

    /// Returns when this transfer may take its next piece. Cancel-safe.
    pub async fn turn(&self) {
        if self.lane == Lane::Demand {
            return self.lanes.in_flight.began(&self.shown);
        }
        let (id, lane) = (self.id, self.lane);
        // The sender lives as long as `self.lanes`, so waiting can not fail.
        let _ = self
            .lanes
            .traffic
            .subscribe()
            .wait_for(|t| t.may_go(id, lane))
            .await;
        self.lanes.in_flight.began(&self.shown);
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        self.set_flows(false);
        self.lanes.in_flight.leave(&self.shown);
        let (id, lane) = (self.id, self.lane);
        self.lanes
            .traffic
            .send_if_modified(|t| t.queue(lane).is_some_and(|queue| queue.remove(&id)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn enter(lanes: &Lanes, lane: Lane) -> Transfer<'_> {
        let path = StorePath::parse("00000000000000000000000000000000-x").unwrap();
        lanes.enter(lane, &path, None)
    }

    fn goes(t: &Transfer) -> bool {
        t.turn().now_or_never().is_some()
    }

    #[test]
    fn a_flowing_reader_stops_the_rest_and_a_waiting_one_does_not() {
        let lanes = Lanes::default();
        let mut demand = enter(&lanes, Lane::Demand);
        let ahead = enter(&lanes, Lane::ReadAhead);
        let back = enter(&lanes, Lane::Background);
        assert!(
            goes(&demand) && goes(&ahead) && goes(&back),
            "an idle link is used"
        );
        demand.set_flows(true);
        assert!(goes(&demand) && !goes(&ahead) && !goes(&back));
        demand.set_lane(Lane::Background);
        assert!(goes(&ahead) && goes(&back));
        demand.set_lane(Lane::Demand);
        assert!(!goes(&ahead));
        drop(demand);
        assert!(goes(&ahead) && goes(&back));
    }

    #[test]
    fn read_ahead_goes_before_background() {
        let lanes = Lanes::default();
        let mut ahead = enter(&lanes, Lane::ReadAhead);
        let back = enter(&lanes, Lane::Background);
        ahead.set_flows(true);
        assert!(goes(&ahead) && !goes(&back));
    }

    #[test]
    fn the_oldest_background_transfers_run_first() {
        let lanes = Lanes::default();
        let mut all: Vec<_> = (0..5).map(|_| enter(&lanes, Lane::Background)).collect();
        let running = |all: &[Transfer]| all.iter().filter(|t| goes(t)).count();
        assert_eq!(running(&all), BACKGROUND_AT_ONCE);
        assert!(goes(&all[0]) && !goes(&all[4]));
        all.drain(..4);
        assert!(goes(&all[0]));
    }

    #[tokio::test]
    async fn a_waiting_transfer_is_woken() {
        let lanes = Lanes::default();
        let mut demand = enter(&lanes, Lane::Demand);
        demand.set_flows(true);
        let back = enter(&lanes, Lane::Background);
        let turn = back.turn();
        tokio::pin!(turn);
        assert!(turn.as_mut().now_or_never().is_none());
        drop(demand);
        turn.await;
    }
}
