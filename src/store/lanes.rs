//! Who may use the link now: three lanes with strict priority.
//!
//! A transfer is in one lane at a time and asks for its turn before every piece it takes from
//! the network. A transfer that a reader waits for never waits here. Background work waits while
//! any other *flows*, that is, has begun to bring bytes; read-ahead while a stream does that a reader
//! waits for. While the others only wait for their first byte the link would be idle, so the lower
//! lanes go on.
//!
//! Of the transfers of a lower lane only the oldest few run: what they have in flight stands in
//! front of the next reader's first byte, and what began first is needed first. How much read-ahead
//! has in flight is bounded in bytes, by what keeps the link busy (`window.rs`). Pieces that were asked
//! for in another lane keep it busy as well, until they are here.
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
    /// Those of them of which it is not known how much they will bring.
    demand_streams_flowing: usize,
    read_ahead_flowing: usize,
    /// What the pieces that were asked for still have to bring, in bytes, whatever their lane.
    under_way: BTreeMap<u64, u64>,
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
                self.demand_streams_flowing == 0
                    && match self.read_ahead.get(&id) {
                        Some(Some(_)) if self.under_way.contains_key(&id) => true,
                        Some(Some(_)) => self.has_room() && self.is_in_window(id),
                        _ => self.is_in_window(id),
                    }
            }
            Lane::Background => {
                self.demand_flowing == 0
                    && self.read_ahead_flowing == 0
                    && oldest(&self.background, BACKGROUND_AT_ONCE, id)
            }
        }
    }

    /// Whether the link would be idle soon.
    fn has_room(&self) -> bool {
        self.under_way.values().sum::<u64>() < self.window.bytes()
    }

    fn is_in_window(&self, id: u64) -> bool {
        self.in_window().any(|running| running == id)
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

    /// A piece is asked for: what it has to bring fills the link.
    fn depart(&mut self, id: u64, to_bring: Option<u64>) {
        if let Some(to_bring) = to_bring {
            self.under_way.insert(id, to_bring);
        }
    }

    /// It brings nothing more; whether others may go now.
    fn arrive(&mut self, id: u64) -> bool {
        let had_room = self.has_room();
        self.under_way.remove(&id).is_some() && !had_room && self.has_room()
    }

    /// A transfer of that lane begins to flow, or flows no longer; whether anybody waits for that.
    fn set_flows(&mut self, lane: Lane, is_stream: bool, flows: bool) -> bool {
        let count = |n: &mut usize| *n = if flows { *n + 1 } else { *n - 1 };
        match lane {
            Lane::Demand => {
                count(&mut self.demand_flowing);
                if is_stream {
                    count(&mut self.demand_streams_flowing);
                }
            }
            Lane::ReadAhead => count(&mut self.read_ahead_flowing),
            Lane::Background => return false,
        }
        true
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
    /// How many bytes of read-ahead keep the link busy.
    pub fn window(&self) -> u64 {
        self.traffic.borrow().window.bytes()
    }

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
            let before = (t.in_window().count(), t.has_room());
            t.window.received(bytes as u64, answered_in, now);
            if lane == Lane::ReadAhead {
                t.join(lane, id, to_bring);
            }
            if let (Some(left), Some(to_bring)) = (t.under_way.get_mut(&id), to_bring) {
                *left = to_bring;
            }
            // Others wait for their turn only.
            t.in_window().count() > before.0 || t.has_room() && !before.1
        });
    }

    /// What was asked for did not come, or not all of it.
    pub fn failed(&self) {
        self.lanes.traffic.send_if_modified(|t| t.arrive(self.id));
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
                t.set_flows(from, to_bring.is_none(), false);
                t.set_flows(lane, to_bring.is_none(), true);
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
        let (lane, is_stream) = (self.lane, self.to_bring.is_none());
        self.lanes
            .traffic
            .send_if_modified(|t| t.set_flows(lane, is_stream, flows));
        self.flows = flows;
        self.shown.set_flows(flows);
    }

    /// Whether it is this transfer's turn now.
    pub fn may_go(&self) -> bool {
        self.lanes.traffic.borrow().may_go(self.id, self.lane)
    }

    /// Returns when this transfer may take its next piece. Cancel-safe.
    pub async fn turn(&self) {
        let (id, lane, to_bring) = (self.id, self.lane, self.to_bring);
        let mut traffic = self.lanes.traffic.subscribe();
        loop {
            let mut goes = false;
            // Whoever goes takes his room at once: others are about to look.
            self.lanes.traffic.send_if_modified(|t| {
                goes = t.may_go(id, lane);
                if goes {
                    t.depart(id, to_bring);
                }
                false
            });
            if goes {
                return self.lanes.in_flight.began(&self.shown);
            }
            // The sender lives as long as `self.lanes`, so waiting can not fail.
            let _ = traffic.wait_for(|t| t.may_go(id, lane)).await;
        }
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        self.set_flows(false);
        self.lanes.in_flight.leave(&self.shown);
        let (id, lane) = (self.id, self.lane);
        self.lanes.traffic.send_if_modified(|t| {
            let made_room = t.arrive(id);
            t.leave(lane, id) || made_room
        });
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
    fn pieces_that_readers_wait_for_keep_the_link_busy_too() {
        let lanes = Lanes::default();
        let path = StorePath::parse("00000000000000000000000000000000-x").unwrap();
        let window = Window::default().bytes();
        let mut wanted = lanes.enter_piece(Lane::Demand, &path, window);
        let ahead = lanes.enter_piece(Lane::ReadAhead, &path, 1);
        assert!(goes(&wanted));
        assert!(!goes(&ahead), "nothing more fits");
        wanted.set_flows(true);
        wanted.received(1);
        assert!(goes(&ahead), "its rest fills the window no longer");
        let back = enter(&lanes, Lane::Background);
        assert!(!goes(&back), "the background waits for it all the same");
        wanted.set_lane(Lane::ReadAhead);
        wanted.set_lane(Lane::Demand);
        assert!(goes(&ahead) && !goes(&back));
        wanted.set_flows(false);
        drop(wanted);
        assert!(goes(&ahead) && goes(&back));
    }

    #[test]
    fn older_ones_that_become_read_ahead_wait_for_what_is_under_way() {
        let lanes = Lanes::default();
        let path = StorePath::parse("00000000000000000000000000000000-x").unwrap();
        let window = Window::default().bytes();
        let piece = |bytes| lanes.enter_piece(Lane::Background, &path, bytes);
        let [mut first, mut second, mut third] = [piece(1), piece(window), piece(window)];
        third.set_lane(Lane::ReadAhead);
        assert!(goes(&third));
        second.set_lane(Lane::ReadAhead);
        first.set_lane(Lane::ReadAhead);
        assert!(!goes(&second) && !goes(&first), "the link is full");
        assert!(goes(&third), "what is under way goes on");
        third.failed();
        assert!(goes(&first), "nothing comes of it for now");
        drop(third);
        assert!(goes(&second));
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
