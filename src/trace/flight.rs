//! One request to a cache on its way.

use std::{future::Future, sync::Arc};

use super::{
    Recorder,
    record::{Outcome, Request, recorder},
};

/// For whom a request is made: the lane and the store path.
#[derive(Debug, Clone)]
pub struct Behalf {
    lane: &'static str,
    store_path: Arc<str>,
}

tokio::task_local! {
    static BEHALF: Behalf;
}

/// Does `work`, whose requests are for this store path in this lane.
pub async fn on_behalf<T>(
    lane: &'static str,
    store_path: &impl ToString,
    work: impl Future<Output = T>,
) -> T {
    match recorder() {
        None => work.await,
        Some(_) => {
            let store_path = store_path.to_string().into();
            BEHALF.scope(Behalf { lane, store_path }, work).await
        }
    }
}

/// For whom the requests of this moment are made, to [`carry_on`] in another task.
pub fn behalf() -> Option<Behalf> {
    recorder()?;
    BEHALF.try_with(Clone::clone).ok()
}

/// Does `work` for whom [`behalf`] said.
pub async fn carry_on<T>(behalf: Option<Behalf>, work: impl Future<Output = T>) -> T {
    match behalf {
        None => work.await,
        Some(behalf) => BEHALF.scope(behalf, work).await,
    }
}

/// A request, from its sending until this is dropped; nothing while nothing is recorded.
#[derive(Debug, Default)]
pub struct Flight(Option<Box<InFlight>>);

#[derive(Debug)]
struct InFlight {
    recorder: &'static Recorder,
    request: Request,
}

impl Flight {
    /// A cache is asked just now for a file, or for that range of it.
    pub fn of(
        cache: &Arc<str>,
        address: impl FnOnce() -> Arc<str>,
        range: impl FnOnce() -> Option<String>,
    ) -> Self {
        let Some(recorder) = recorder() else {
            return Self(None);
        };
        let (at, behalf) = (recorder.now(), behalf());
        let request = Request {
            at,
            answered: None,
            first_byte: None,
            end: at,
            cache: cache.clone(),
            address: address(),
            range: range(),
            lanes: behalf.iter().map(|behalf| (at, behalf.lane)).collect(),
            store_path: behalf.map(|behalf| behalf.store_path),
            status: None,
            bytes: 0,
            outcome: Outcome::CutOff,
        };
        Self(Some(Box::new(InFlight { recorder, request })))
    }

    fn note(&mut self, what: impl FnOnce(&mut Request, u64)) {
        if let Some(flight) = &mut self.0 {
            what(&mut flight.request, flight.recorder.now());
        }
    }

    /// The answer's head came.
    pub fn answered(&mut self, status: u16) {
        self.note(|request, now| {
            request.answered = Some(now);
            request.status = Some(status);
            request.outcome = match status {
                200..400 => Outcome::CutOff,
                403 | 404 | 410 => Outcome::Absent,
                _ => Outcome::Failed("status"),
            };
        });
    }

    /// Bytes of its body came.
    pub fn bytes(&mut self, bytes: usize) {
        self.note(|request, now| {
            request.first_byte.get_or_insert(now);
            request.bytes += bytes as u64;
        });
    }

    /// All came that was asked for.
    pub fn done(&mut self) {
        self.note(|request, _| request.outcome = Outcome::Done);
    }

    /// It failed.
    pub fn failed(&mut self, kind: &'static str) {
        self.note(|request, _| request.outcome = Outcome::Failed(kind));
    }

    /// It is in this lane from now on.
    pub fn in_lane(&mut self, lane: &'static str) {
        self.note(|request, now| match request.lanes.last() {
            Some((_, before)) if *before == lane => {}
            Some(_) => request.lanes.push((now, lane)),
            None => request.lanes.push((request.at, lane)),
        });
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(mut flight) = self.0.take() {
            flight.request.end = flight.recorder.now();
            flight.recorder.request(flight.request);
        }
    }
}
