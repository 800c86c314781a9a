//! The thread that makes kept bytes durable: data first, then the map that speaks of it.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{ContentError, NarFile, nar_file::lock, shared::Shared, state_dir::sync_dir};
use crate::nix::NarHash;

/// How long new bytes wait for company. What a kill in this time costs is fetched again; shorter, and the disk
/// does little else than syncing while a NAR streams in.
const GATHER: Duration = Duration::from_millis(500);

/// How long last-use times wait: eviction needs them to the hour, not to the second.
const GATHER_USES: Duration = Duration::from_secs(60);

/// Longest wait before another try when the disk refuses: each try of a full disk costs a little and says so in
/// the log.
const MOST_BACKOFF: Duration = Duration::from_secs(30);

/// Syncs under way at once. One waits for the disk's journal; several wait for the same write of it, so that a
/// thousand small NARs of one closure are durable in seconds.
const SYNCS_AT_ONCE: usize = 8;

/// What is to be made durable.
pub(super) struct Persister {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Held through a round, so that a flush also waits for the round that is under way.
    round: Mutex<()>,
}

#[derive(Default)]
struct Queue {
    dirty: HashMap<NarHash, Arc<NarFile>>,
    /// When the next round is due, if anything is dirty.
    due: Option<Instant>,
    uses: HashMap<NarHash, u64>,
    uses_due: Option<Instant>,
    stop: bool,
}

impl Persister {
    pub(super) fn new() -> Self {
        Self {
            queue: Mutex::default(),
            wake: Condvar::new(),
            round: Mutex::default(),
        }
    }

    /// `nar` has something new; with `urgent` it is not left waiting for company.
    pub(super) fn mark(&self, nar: Arc<NarFile>, urgent: bool) {
        let now = Instant::now();
        let mut queue = lock(&self.queue);
        if queue.stop {
            // Nobody would take it out again, and it would keep the whole store alive.
            return;
        }
        // The one pushed out is the same object, and not the last reference to it.
        queue.dirty.insert(nar.hash(), nar);
        let first = queue.due.is_none();
        if first || urgent {
            queue.due = Some(if urgent { now } else { now + GATHER });
            drop(queue);
            self.wake.notify_one();
        }
    }

    pub(super) fn note_use(&self, hash: NarHash, now: u64) {
        let mut queue = lock(&self.queue);
        queue.uses.insert(hash, now);
        if queue.uses_due.is_none() {
            queue.uses_due = Some(Instant::now() + GATHER_USES);
            drop(queue);
            self.wake.notify_one();
        }
    }

    /// Notes of use that are not in the database yet.
    pub(super) fn pending_uses(&self) -> HashMap<NarHash, u64> {
        lock(&self.queue).uses.clone()
    }

    pub(super) fn stop(&self) {
        lock(&self.queue).stop = true;
        self.wake.notify_one();
    }

    /// Makes everything that is dirty now durable. The first error is returned; what failed stays dirty.
    pub(super) fn round(&self, shared: &Shared, with_uses: bool) -> Result<(), ContentError> {
        let _round = lock(&self.round);
        let (dirty, uses) = {
            let mut queue = lock(&self.queue);
            queue.due = None;
            let uses = match with_uses {
                true => {
                    queue.uses_due = None;
                    std::mem::take(&mut queue.uses)
                }
                false => HashMap::new(),
            };
            (std::mem::take(&mut queue.dirty), uses)
        };
        let mut wrote = false;
        let mut first_error = None;
        for (nar, outcome) in persist_all(dirty.into_values().collect()) {
            match outcome {
                Ok(new) => wrote |= new,
                Err(error) => {
                    first_error.get_or_insert(error);
                    let mut queue = lock(&self.queue);
                    if !queue.stop {
                        queue.dirty.insert(nar.hash(), nar.clone());
                    }
                }
            }
        }
        if wrote && let Err(error) = sync_dir(shared.content()) {
            first_error.get_or_insert(error);
        }
        if !uses.is_empty()
            && let Err(error) = shared.db.put_uses(uses).wait()
        {
            first_error.get_or_insert(error);
        }
        first_error.map_or(Ok(()), Err)
    }

    /// The thread.
    pub(super) fn run(&self, shared: &Shared) {
        let mut backoff = GATHER;
        loop {
            let (stop, uses) = self.wait();
            match self.round(shared, uses || stop) {
                Ok(()) => backoff = GATHER,
                Err(error) => {
                    tracing::warn!(%error, "some kept bytes are not durable yet and would be fetched again after a restart");
                    if stop {
                        return;
                    }
                    backoff = (backoff * 2).min(MOST_BACKOFF);
                    let mut queue = lock(&self.queue);
                    if !queue.dirty.is_empty() {
                        queue.due = Some(Instant::now() + backoff);
                    }
                }
            }
            if stop {
                return;
            }
        }
    }

    /// Waits until a round is due; whether to stop after it, and whether uses are due.
    fn wait(&self) -> (bool, bool) {
        let mut queue = lock(&self.queue);
        loop {
            let now = Instant::now();
            let uses = queue.uses_due.is_some_and(|due| due <= now);
            if queue.stop || uses || queue.due.is_some_and(|due| due <= now) {
                return (queue.stop, uses);
            }
            let next = [queue.due, queue.uses_due].into_iter().flatten().min();
            queue = match next {
                None => self
                    .wake
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let left = at.saturating_duration_since(now);
                    self.wake
                        .wait_timeout(queue, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }
}

type Outcome = (Arc<NarFile>, Result<bool, ContentError>);

fn persist_all(nars: Vec<Arc<NarFile>>) -> Vec<Outcome> {
    let helpers = nars.len().min(SYNCS_AT_ONCE).saturating_sub(1);
    let todo = Mutex::new(nars);
    let done = Mutex::new(Vec::new());
    let work = || {
        loop {
            let Some(nar) = lock(&todo).pop() else { return };
            let outcome = nar.persist();
            lock(&done).push((nar, outcome));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..helpers {
            // One that does not start is not needed: this thread does what is left.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}
