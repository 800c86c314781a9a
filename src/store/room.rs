//! Making room: what `narfs gc` drops, and the quota.
//!
//! What goes first is what no root keeps and was not read for longest. What is being read or
//! fetched is held ([`crate::content::NarFile::hold`]) and stays.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use super::{Core, Store, StoreError, Verify, path::SlotEntry};
use crate::{
    content::{EvictGoal, EvictPlan, Evicted, Limits, Parts, Rank, Victim},
    nix::{NarHash, StorePath, StorePathHash},
};

/// Over the limit, this share of it is freed in advance (one in so many parts), because finding
/// out what goes means looking at every file that is kept.
const SLACK: u64 = 20;
/// Most that is freed in advance, in bytes.
const MOST_SLACK: u64 = 1 << 30;

/// What the names of roots begin with that a user pinned: their content never goes.
const PIN: &str = "pin/";

/// The name of the root that a pin is.
fn pin(path: &StorePath) -> String {
    format!("{PIN}{path}")
}

/// What is kept beside the content, can be made again from it, and so goes first.
pub trait Beside: Send + Sync {
    /// Bytes of disk that it takes.
    fn bytes(&self) -> u64;

    /// Frees at least so many, if it has them; how many it freed.
    fn free(&self, bytes: u64) -> u64;
}

/// Whether room is being made.
#[derive(Default)]
pub(super) struct Room {
    busy: AtomicBool,
    beside: OnceLock<Arc<dyn Beside>>,
}

impl Room {
    fn beside(&self) -> u64 {
        self.beside.get().map_or(0, |beside| beside.bytes())
    }
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
        let rank = |nar: &NarHash| match rooted.get(nar) {
            // Goes anyway: out of the way of the rest of the plan.
            _ if first.contains(nar) => Rank::Keep,
            Some(rank) => *rank,
            None => Rank::Unrooted,
        };
        // Readers that only get verified bytes have nothing of a part.
        let parts = match self.0.settings.verify {
            Verify::Stream => Parts::Alone,
            Verify::BeforeRead => Parts::Never,
        };
        let rest = match goal {
            EvictGoal::AtMost(most) => EvictGoal::AtMost(most.saturating_add(bytes)),
            EvictGoal::Free(wanted) => EvictGoal::Free(wanted.saturating_sub(bytes)),
            EvictGoal::Unrooted => EvictGoal::Unrooted,
        };
        let mut plan = self.0.content.plan_eviction_of(rest, parts, rank)?;
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

    /// The most that may be kept now, by these limits.
    ///
    /// # Errors
    /// When the state directory can't be read.
    pub fn most_kept(&self, limits: &Limits) -> Result<Option<u64>, StoreError> {
        Ok(self.0.content.room(limits, self.0.room.beside())?.1)
    }

    /// Says what is kept beside the content; the first to say so counts.
    pub fn set_beside(&self, beside: Arc<dyn Beside>) {
        let _ = self.0.room.beside.set(beside);
    }

    /// Whether so many bytes more may be kept by the limits.
    pub fn room_for(&self, bytes: u64) -> bool {
        let limits = &self.0.settings.limits;
        let room = self.0.content.room(limits, self.0.room.beside());
        let fits = |(usage, most): (u64, Option<u64>)| {
            most.is_none_or(|most| usage.saturating_add(bytes) <= most)
        };
        room.is_ok_and(fits)
    }

    /// Pins paths: what is kept of them and of everything that they refer to never goes to make room.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn pin(&self, paths: &[StorePath]) -> Result<(), StoreError> {
        let pins: Vec<_> = paths
            .iter()
            .map(|path| {
                self.0
                    .content
                    .db()
                    .put_root(&pin(path), std::slice::from_ref(path))
            })
            .collect();
        Ok(pins.into_iter().try_for_each(|pin| pin.wait())?)
    }

    /// Takes a pin away; whether there was one.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn unpin(&self, path: &StorePath) -> Result<bool, StoreError> {
        Ok(self.0.content.db().remove_root(&pin(path)).wait()?)
    }

    /// The pinned paths, in order.
    ///
    /// # Errors
    /// When the state directory can't be read.
    pub fn pins(&self) -> Result<Vec<StorePath>, StoreError> {
        let roots = self.0.content.db().roots()?.into_iter();
        let pins = roots.filter(|(name, _)| name.starts_with(PIN));
        Ok(pins.flat_map(|(_, paths)| paths).collect())
    }

    /// The paths that this one refers to, directly or through others, with itself, as far as is
    /// known here, and the bytes of disk that are taken by what is kept of them.
    ///
    /// # Errors
    /// When the state directory can't be read.
    pub fn closure_usage(&self, path: &StorePath) -> Result<(u64, u64), StoreError> {
        let nars = self.0.closure_nars(vec![path.clone()])?;
        let kept = nars.iter().map(|nar| self.0.content.usage_of(nar)).sum();
        Ok((nars.len() as u64, kept))
    }
}

impl Core {
    /// Evicts in the background if more is kept than the limits allow.
    pub(super) fn make_room_soon(self: &Arc<Self>) {
        let limits = self.settings.limits;
        if !limits.any() {
            return;
        }
        let Ok((usage, Some(most))) = self.content.room(&limits, self.room.beside()) else {
            return;
        };
        if usage <= most || self.room.busy.swap(true, SeqCst) {
            return;
        }
        let core = self.clone();
        self.runtime.spawn_blocking(move || {
            let store = Store(core);
            let slack = (most / SLACK).min(MOST_SLACK);
            let beside = store.0.room.beside.get();
            let freed = beside.map_or(0, |beside| beside.free(usage - (most - slack)));
            // What went leaves its share to the content.
            let room = store.0.content.room(&limits, store.0.room.beside());
            let most = room.ok().and_then(|(_, most)| most).unwrap_or(most);
            let slack = slack.min(most);
            if usage <= most - slack {
                store.0.room.busy.store(false, SeqCst);
                tracing::info!(
                    bytes = freed,
                    most,
                    "what was kept beside the content went to make room"
                );
                return;
            }
            let evicted = store
                .plan_gc(EvictGoal::AtMost(most - slack), false)
                .and_then(|plan| store.carry_out_gc(&plan));
            store.0.room.busy.store(false, SeqCst);
            match evicted {
                Ok(Evicted {
                    nars, parts, bytes, ..
                }) => {
                    tracing::info!(nars, parts, bytes, most, "evicted")
                }
                Err(error) => {
                    tracing::warn!(%error, most, "what is kept can't be kept within its limits")
                }
            }
        });
    }

    /// Slots that were given on a full disk go to the database, once it takes them.
    pub(super) fn settle_soon(self: &Arc<Self>) {
        if self.content.db().has_spare_slots() {
            let core = self.clone();
            self.runtime.spawn_blocking(move || {
                if let Err(error) = core.content.db().settle_spare_slots() {
                    tracing::debug!(%error, "the disk is still full");
                }
            });
        }
    }

    /// NARs that roots and views keep: those of their paths and of everything these refer to.
    fn rooted(&self) -> Result<HashMap<NarHash, Rank>, StoreError> {
        let roots = self.content.db().roots()?;
        let (pinned, roots): (Vec<_>, Vec<_>) = roots
            .into_iter()
            .partition(|(name, _)| name.starts_with(PIN));
        let paths =
            |roots: Vec<(String, Vec<StorePath>)>| roots.into_iter().flat_map(|(_, paths)| paths);
        let rooted = paths(roots).chain(self.viewed().into_values()).collect();
        let mut ranks = HashMap::new();
        for (roots, rank) in [
            (rooted, Rank::Rooted),
            (paths(pinned).collect(), Rank::Keep),
        ] {
            for nar in self.closure_nars(roots)? {
                ranks.insert(nar, rank);
            }
        }
        Ok(ranks)
    }

    /// The NARs of these paths and of everything that they refer to, as far as is known here.
    fn closure_nars(&self, roots: Vec<StorePath>) -> Result<HashSet<NarHash>, StoreError> {
        let mut nars = HashSet::new();
        let mut seen: HashSet<StorePathHash> = HashSet::new();
        let mut next = roots;
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
                nars.insert(nar);
                next.extend(references);
            }
        }
        Ok(nars)
    }

    /// Content of which a part is here, that no root keeps and nobody uses.
    fn partial(&self, rooted: &HashMap<NarHash, Rank>) -> Result<Vec<Victim>, StoreError> {
        let mut kept = self.content.list()?;
        kept.retain(|k| {
            k.allocated > 0
                && k.nar_size.is_none_or(|size| k.valid < size)
                && !rooted.contains_key(&k.hash)
        });
        let held =
            |hash: &NarHash, size| self.content.nar(hash, size).is_ok_and(|file| file.held());
        kept.retain(|k| k.nar_size.is_none_or(|size| !held(&k.hash, size)));
        let victim = |k: crate::content::Kept| Victim {
            hash: k.hash,
            ranges: Vec::new(),
            bytes: k.allocated + k.index_allocated,
            last_use: 0,
            rank: Rank::Unrooted,
        };
        Ok(kept.into_iter().map(victim).collect())
    }
}
