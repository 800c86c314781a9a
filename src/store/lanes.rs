//! Who may use the link now: three lanes with strict priority.
//!
//! A transfer is in one lane at a time and asks for its turn before every piece it takes from
//! the network. A transfer that a reader waits for never waits here. Read-ahead waits while such
//! a transfer *flows*, that is, has begun to bring bytes; background work waits for both. While
//! the others only wait for their first byte the link would be idle, so the lower lanes go on.
//!
//! Of the transfers of a lower lane only the oldest few run: what they have in flight stands in
//! front of the next reader's first byte, and what began first is needed first. How much read-ahead
//! has in flight is bounded in bytes, by what keeps the link busy (`window.rs`).
//!
//! Acts: any number of tasks. One lock, inside the watch channel, never held across an await.
//! Each transfer is on show in the [`InFlight`] table from here on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    inflight::{InFlight, Shown},
    window::Window,
};
use crate::nix::StorePath;

/// Background transfers that run side by side. Two keep a link busy over the gaps between
/// requests; each more is a receive window's worth of bytes in front of a reader.
const BACKGROUND_AT_ONCE: usize = 2;
/// Read-ahead transfers that run side by side, if all are small: each may be a connection.
const READ_AHEAD_AT_ONCE: usize = 32;
/// A stream has no end that is near. Many are of small NARs, whose time is the round trip; so many
/// of them fill the window.
const STREAMS_AT_ONCE: u64 = 8;

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
    /// What each still has to bring, in bytes; of a stream that is not known.
    read_ahead: BTreeMap<u64, Option<u64>>,
    background: BTreeSet<u64>,
    window: Window,
}

impl Traffic {
    fn may_go(&self, id: u64, lane: Lane) -> bool {
        match lane {
            Lane::Demand => true,
            Lane::ReadAhead => {
                self.demand_flowing == 0 && self.in_window().any(|running| running == id)
            }
            Lane::Background => {
                self.demand_flowing == 0
                    && self.read_ahead_flowing == 0
                    && oldest(&self.background, BACKGROUND_AT_ONCE, id)
            }
        }
    }

    /// The oldest transfers of read-ahead, as many as the window holds.
    fn in_window(&self) -> impl Iterator<Item = u64> {
        let mut left = Some(self.window.bytes());
        let share = self.window.bytes() / STREAMS_AT_ONCE;
        let running = move |(id, to_bring): (&u64, &Option<u64>)| {
            let id = left.map(|_| *id);
            // The last one may reach over the edge.
            left = left.and_then(|left| left.checked_sub(to_bring.unwrap_or(share).max(1)));
            left = left.filter(|left| *left > 0);
            id
        };
        self.read_ahead
            .iter()
            .take(READ_AHEAD_AT_ONCE)
            .map_while(running)
    }

    fn join(&mut self, lane: Lane, id: u64, to_bring: Option<u64>) {
        match lane {
            Lane::Demand => {}
            Lane::ReadAhead => drop(self.read_ahead.insert(id, to_bring)),
            Lane::Background => drop(self.background.insert(id)),
        }
    }

    /// Whether it was in that lane.
    fn leave(&mut self, lane: Lane, id: u64) -> bool {
        match lane {
            Lane::Demand => false,
            Lane::ReadAhead => self.read_ahead.remove(&id).is_some(),
            Lane::Background => self.background.remove(&id),
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

    /// A transfer of a stream of `what`, so many bytes in all if that is known, begins in `lane`.
    pub fn enter(&self, lane: Lane, what: &StorePath, bytes: Option<u64>) -> Transfer<'_> {
        self.begin(lane, what, bytes, None)
    }

    /// A transfer of a piece of `what`, which is one request of so many bytes, begins in `lane`.
    pub fn enter_piece(&self, lane: Lane, what: &StorePath, bytes: u64) -> Transfer<'_> {
        self.begin(lane, what, Some(bytes), Some(bytes))
    }

    fn begin(
        &self,
        lane: Lane,
        what: &StorePath,
        shown: Option<u64>,
        to_bring: Option<u64>,
    ) -> Transfer<'_> {
        let mut id = 0;
        self.traffic.send_modify(|t| {
            id = t.next_id;
            t.next_id += 1;
            t.join(lane, id, to_bring);
        });
        Transfer {
            lanes: self,
            id,
            lane,
            flows: false,
            asked: None,
            to_bring,
            shown: self.in_flight.enter(lane, what, shown),
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
    /// When it asked, until the first byte comes.
    asked: Option<Instant>,
    /// What is left of a piece, in bytes.
    to_bring: Option<u64>,
    shown: Arc<Shown>,
}

impl Transfer<'_> {
    /// This cache is asked for the next piece, and has so long to answer.
    pub fn asks(&mut self, substituter: &str, patience: Duration) {
        self.asked = Some(Instant::now());
        self.lanes
            .in_flight
            .asks(&self.shown, substituter, patience);
    }

    /// So many bytes came.
    pub fn received(&mut self, bytes: usize) {
        self.lanes.in_flight.received(&self.shown, bytes);
        let now = Instant::now();
        let answered_in = self.asked.take().map(|asked| now - asked);
        self.to_bring = self.to_bring.map(|left| left.saturating_sub(bytes as u64));
        let (id, lane, to_bring) = (self.id, self.lane, self.to_bring);
        self.lanes.traffic.send_if_modified(|t| {
            let before = t.in_window().count();
            t.window.received(bytes as u64, answered_in, now);
            if lane == Lane::ReadAhead {
                t.join(lane, id, to_bring);
            }
            // Others wait for their turn only.
            t.in_window().count() > before
        });
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
        let (from, id, flows, to_bring) = (self.lane, self.id, self.flows, self.to_bring);
        self.lanes.traffic.send_modify(|t| {
            if flows {
                if let Some(n) = t.flowing(from) {
                    *n -= 1;
                }
                if let Some(n) = t.flowing(lane) {
                    *n += 1;
                }
            }
            t.leave(from, id);
            t.join(lane, id, to_bring);
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
        self.lanes.traffic.send_if_modified(|t| t.leave(lane, id));
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

    #[test]
    fn no_more_is_asked_for_ahead_than_keeps_the_link_busy() {
        let lanes = Lanes::default();
        let path = StorePath::parse("00000000000000000000000000000000-x").unwrap();
        let window = Window::default().bytes();
        let piece = |bytes| lanes.enter_piece(Lane::ReadAhead, &path, bytes);
        let mut first = piece(window / 2);
        let [second, third] = [piece(window), piece(1)];
        assert!(goes(&first) && goes(&second), "the last one reaches over");
        assert!(!goes(&third));
        // Less than a sample: the window stays as it is.
        first.received((window / 2) as usize);
        assert!(!goes(&third), "the second fills it alone");
        drop(second);
        assert!(goes(&third));
        drop((first, third));
        let small: Vec<_> = (0..2 * READ_AHEAD_AT_ONCE).map(|_| piece(1)).collect();
        let running = |all: &[Transfer]| all.iter().filter(|t| goes(t)).count();
        assert_eq!(running(&small), READ_AHEAD_AT_ONCE);
        drop(small);
        let streams: Vec<_> = (0..20).map(|_| enter(&lanes, Lane::ReadAhead)).collect();
        assert_eq!(running(&streams), STREAMS_AT_ONCE as usize);
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

    #[tokio::test]
    async fn what_came_makes_room_for_what_is_next() {
        let lanes = Lanes::default();
        let path = StorePath::parse("00000000000000000000000000000000-x").unwrap();
        let window = Window::default().bytes();
        let mut first = lanes.enter_piece(Lane::ReadAhead, &path, window);
        let next = lanes.enter_piece(Lane::ReadAhead, &path, window);
        let turn = next.turn();
        tokio::pin!(turn);
        assert!(turn.as_mut().now_or_never().is_none());
        first.received(1);
        turn.await;
    }
}
