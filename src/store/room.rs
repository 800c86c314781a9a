//! Making room: what `narfs gc` drops, and the quota.
//!
//! What goes first is what no root keeps and was not read for longest. What is being read or
//! fetched is held ([`crate::content::NarFile::hold`]) and stays.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use super::{Core, Store, StoreError, path::SlotEntry};
use crate::{
    content::{EvictGoal, EvictPlan, Evicted, Rank, Victim},
    nix::{NarHash, StorePathHash},
};

/// How often the quota is looked at besides after every NAR: partial content grows as well.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Over the quota, this share of it is freed in advance (one in so many parts), because finding
/// out what goes means looking at every file that is kept.
const SLACK: u64 = 20;

/// Whether room is being made.
#[derive(Default)]
pub(super) struct Room {
    busy: AtomicBool,
}

impl Store {
    /// What would have to go to reach `goal`, rooted content last; with `partial`, all content
    /// that is neither complete nor rooted goes as well.
    ///
    /// # Errors
    /// When the state directory can't be read.
    pub fn plan_gc(&self, goal: EvictGoal, partial: bool) -> Result<EvictPlan, StoreError> {
        let rooted = self.0.rooted()?;
        let partial = match partial {
            true => self.0.partial(&rooted)?,
            false => Vec::new(),
        };
        let first: HashSet<NarHash> = partial.iter().map(|v| v.hash).collect();
        let bytes: u64 = partial.iter().map(|v| v.bytes).sum();
        let rank = |nar: &NarHash| match () {
            // Goes anyway: out of the way of the rest of the plan.
            () if first.contains(nar) => Rank::Keep,
            () if rooted.contains(nar) => Rank::Rooted,
            () => Rank::Unrooted,
        };
        let rest = match goal {
            EvictGoal::AtMost(most) => EvictGoal::AtMost(most.saturating_add(bytes)),
            EvictGoal::Free(wanted) => EvictGoal::Free(wanted.saturating_sub(bytes)),
            EvictGoal::Unrooted => EvictGoal::Unrooted,
        };
        let mut plan = self.0.content.plan_eviction(rest, rank)?;
        plan.freed += bytes;
        plan.victims.splice(0..0, partial);
        Ok(plan)
    }

    /// Drops what the plan names.
    ///
    /// # Errors
    /// When a file can't be removed.
    pub fn carry_out_gc(&self, plan: &EvictPlan) -> Result<Evicted, StoreError> {
        let gone = self.0.content.carry_out(plan)?;
        self.0.counters.evicted.add(gone.nars);
        self.0.counters.evicted_bytes.add(gone.bytes);
        Ok(gone)
    }

    /// Keeps the quota from now on, as long as the store lives.
    pub fn keep_quota(&self) {
        if self.0.settings.quota.is_none() {
            return;
        }
        let weak = self.downgrade();
        self.0.runtime.spawn(async move {
            let mut tick = tokio::time::interval(LOOK_EVERY);
            loop {
                tick.tick().await;
                let Some(store) = weak.upgrade() else { return };
                store.0.make_room_soon();
            }
        });
    }
}

impl Core {
    /// Evicts in the background if more than the quota is kept.
    pub(super) fn make_room_soon(self: &Arc<Self>) {
        let Some(quota) = self.settings.quota else {
            return;
        };
        if !matches!(self.content.usage(), Ok(usage) if usage > quota)
            || self.room.busy.swap(true, SeqCst)
        {
            return;
        }
        let core = self.clone();
        self.runtime.spawn_blocking(move || {
            let store = Store(core);
            let evicted = store
                .plan_gc(EvictGoal::AtMost(quota - quota / SLACK), false)
                .and_then(|plan| store.carry_out_gc(&plan));
            store.0.room.busy.store(false, SeqCst);
            match evicted {
                Ok(evicted) => {
                    tracing::info!(nars = evicted.nars, bytes = evicted.bytes, quota, "evicted")
                }
                Err(error) => tracing::warn!(%error, quota, "the quota can't be kept"),
            }
        });
    }

    /// NARs that roots and views keep: those of their paths and of everything these refer to.
    fn rooted(&self) -> Result<HashSet<NarHash>, StoreError> {
        let mut rooted = HashSet::new();
        let mut seen: HashSet<StorePathHash> = HashSet::new();
        let mut next: Vec<_> = self
            .content
            .db()
            .roots()?
            .into_iter()
            .flat_map(|(_, paths)| paths)
            .chain(self.viewed().into_values())
            .collect();
        while let Some(path) = next.pop() {
            if !seen.insert(path.hash()) {
                continue;
            }
            let entry = match self.paths.slot(&path.hash()) {
                Some((_, entry)) => entry,
                None => SlotEntry {
                    store_path: path,
                    path: None,
                },
            };
            if let Some((nar, references)) = self.kept_facts(&entry)? {
                rooted.insert(nar);
                next.extend(references);
            }
        }
        Ok(rooted)
    }

    /// Content of which a part is here, that no root keeps and nobody uses.
    fn partial(&self, rooted: &HashSet<NarHash>) -> Result<Vec<Victim>, StoreError> {
        let mut kept = self.content.list()?;
        kept.retain(|k| {
            k.allocated > 0
                && k.nar_size.is_none_or(|size| k.valid < size)
                && !rooted.contains(&k.hash)
        });
        let held =
            |hash: &NarHash, size| self.content.nar(hash, size).is_ok_and(|file| file.held());
        kept.retain(|k| k.nar_size.is_none_or(|size| !held(&k.hash, size)));
        let victim = |k: crate::content::Kept| Victim {
            hash: k.hash,
            bytes: k.allocated + k.index_allocated,
            last_use: 0,
            rank: Rank::Unrooted,
        };
        Ok(kept.into_iter().map(victim).collect())
    }
}
