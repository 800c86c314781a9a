//! Making room: what goes first, and what never goes.
//!
//! What was not used for longest goes first, and of a NAR that somebody has the parts that were not used since
//! ([`super::PIECE`]): a NAR as a whole is as old as the newest of them.

use std::{collections::HashMap, ops::Range};

use super::{ContentError, ContentStore, shared::Kind, usage::Sizes};
use crate::nix::NarHash;

/// How much room is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvictGoal {
    /// At most this many bytes stay allocated.
    AtMost(u64),
    /// At least this many bytes become free.
    Free(u64),
    /// Everything that no root keeps.
    Unrooted,
}

/// How dear a NAR is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// No root keeps it: goes first, with its compiled tree.
    Unrooted,
    /// A root keeps it: goes next, because it can be fetched again; its tree stays.
    Rooted,
    /// Never goes.
    Keep,
}

/// Whether a part of a NAR may go while the rest stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// What was not used for longest goes alone.
    Alone,
    /// Never: a part is of no use to anybody without the rest.
    Never,
}

/// A NAR that is to go, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    /// The NAR.
    pub hash: NarHash,
    /// What goes of it; all, if none is named.
    pub ranges: Vec<Range<u64>>,
    /// Bytes that become free; of a part, about.
    pub bytes: u64,
    /// When it was used last, in seconds since 1970; 0 for not that anybody knows.
    pub last_use: u64,
    /// Its rank.
    pub rank: Rank,
}

/// What is to go, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvictPlan {
    /// Least dear and least recently used first.
    pub victims: Vec<Victim>,
    /// Bytes allocated now.
    pub usage: u64,
    /// Bytes that become free.
    pub freed: u64,
    /// Whether the goal is reached by it.
    pub enough: bool,
}

/// What went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Number of NARs that went as a whole.
    pub nars: u64,
    /// Number of NARs that lost a part.
    pub parts: u64,
    /// Bytes that became free.
    pub bytes: u64,
    /// NARs that somebody began to use after the plan was made; they stayed.
    pub spared: u64,
}

impl ContentStore {
    /// What [`ContentStore::evict`] would do.
    pub fn plan_eviction(
        &self,
        goal: EvictGoal,
        protected: impl Fn(&NarHash) -> Rank,
    ) -> Result<EvictPlan, ContentError> {
        self.plan_eviction_of(goal, Parts::Alone, protected)
    }

    /// As [`ContentStore::plan_eviction`], with a say in whether parts of a NAR go alone.
    pub fn plan_eviction_of(
        &self,
        goal: EvictGoal,
        parts: Parts,
        protected: impl Fn(&NarHash) -> Rank,
    ) -> Result<EvictPlan, ContentError> {
        let scan = self.shared.usage.exact(self.shared.content())?;
        let mut uses = self.shared.db.uses()?;
        uses.extend(self.shared.persister.pending_uses());
        let mut candidates: Vec<Victim> = Vec::new();
        for (hash, sizes) in &scan.nars {
            let rank = protected(hash);
            if rank == Rank::Keep {
                continue;
            }
            let last_use = uses.get(hash).copied().unwrap_or(0);
            let by_parts = parts == Parts::Alone && goal != EvictGoal::Unrooted;
            candidates.extend(self.candidates(*hash, sizes, rank, last_use, by_parts));
        }
        // Of one age, parts before a whole.
        candidates.sort_by_key(|v| (v.rank, v.last_use, v.ranges.is_empty(), v.hash));
        let wanted = match goal {
            EvictGoal::AtMost(most) => scan.total.saturating_sub(most),
            EvictGoal::Free(bytes) => bytes,
            EvictGoal::Unrooted => {
                candidates.retain(|v| v.rank == Rank::Unrooted);
                u64::MAX
            }
        };
        let mut freed = 0;
        let mut victims: Vec<Victim> = Vec::new();
        let mut chosen: HashMap<NarHash, usize> = HashMap::new();
        for victim in candidates {
            if freed >= wanted {
                break;
            }
            match chosen.get(&victim.hash).map(|at| &mut victims[*at]) {
                None => {
                    freed += victim.bytes;
                    chosen.insert(victim.hash, victims.len());
                    victims.push(victim);
                }
                // The whole is never older than a part of it.
                Some(before) if victim.ranges.is_empty() => {
                    freed += victim.bytes.saturating_sub(before.bytes);
                    *before = victim;
                }
                Some(before) => {
                    freed += victim.bytes;
                    before.bytes += victim.bytes;
                    before.ranges.extend(victim.ranges);
                }
            }
        }
        let enough = freed >= wanted || goal == EvictGoal::Unrooted;
        Ok(EvictPlan {
            victims,
            usage: scan.total,
            freed,
            enough,
        })
    }

    /// Drops the bytes of a plan's NARs. Those that are in use by now stay.
    pub fn carry_out(&self, plan: &EvictPlan) -> Result<Evicted, ContentError> {
        let mut evicted = Evicted::default();
        let mut gone = Vec::new();
        for victim in &plan.victims {
            if !victim.ranges.is_empty() {
                let nar = self.alive(&victim.hash);
                let dropped = nar.map(|nar| nar.drop_pieces(&victim.ranges, |nar| !nar.held()));
                match dropped.transpose()?.flatten() {
                    None => evicted.spared += 1,
                    Some(bytes) => {
                        evicted.parts += 1;
                        evicted.bytes += bytes;
                    }
                }
                continue;
            }
            match self.drop_bytes(&victim.hash, false)? {
                None => evicted.spared += 1,
                Some(bytes) => {
                    evicted.nars += 1;
                    evicted.bytes += bytes;
                    if victim.rank == Rank::Unrooted {
                        evicted.bytes += self.shared.remove_counted(&victim.hash, Kind::Index)?;
                        evicted.bytes += self.shared.remove_counted(&victim.hash, Kind::Chunks)?;
                    }
                    gone.push(victim.hash);
                }
            }
        }
        self.shared.db.forget_uses(gone).wait()?;
        Ok(evicted)
    }

    /// Makes room: least recently used first, what no root keeps before what one keeps, never what `protected`
    /// ranks as [`Rank::Keep`] and never what is held ([`super::NarFile::hold`]).
    pub fn evict(
        &self,
        goal: EvictGoal,
        protected: impl Fn(&NarHash) -> Rank,
    ) -> Result<Evicted, ContentError> {
        self.carry_out(&self.plan_eviction(goal, protected)?)
    }

    /// What may go of a NAR: all of it, and before that its parts, unless it is held.
    fn candidates(
        &self,
        hash: NarHash,
        sizes: &Sizes,
        rank: Rank,
        mut last_use: u64,
        by_parts: bool,
    ) -> Vec<Victim> {
        let living = self.alive(&hash);
        let index = match rank {
            Rank::Unrooted => sizes.index,
            _ => 0,
        };
        let bytes = sizes.nar + sizes.map + index;
        if bytes == 0 || living.as_ref().is_some_and(|nar| nar.held()) {
            return Vec::new();
        }
        let victim = |ranges, bytes, last_use| Victim {
            hash,
            ranges,
            bytes,
            last_use,
            rank,
        };
        let mut candidates = Vec::new();
        if let Some(nar) = living.filter(|_| by_parts && sizes.nar > 0) {
            let mut parts = nar.parts();
            // What was used last goes with the whole.
            if let Some(newest) = parts.pop() {
                last_use = last_use.max(newest.last_use);
            }
            let parts = parts.into_iter();
            candidates.extend(parts.map(|p| victim(p.ranges, p.bytes, p.last_use)));
        }
        candidates.push(victim(Vec::new(), bytes, last_use));
        candidates
    }

    /// Drops the bytes of a NAR; the bytes that became free, or `None` if it is held and that counts.
    pub(super) fn drop_bytes(
        &self,
        hash: &NarHash,
        even_if_held: bool,
    ) -> Result<Option<u64>, ContentError> {
        let living = self.shared.living(hash);
        if let Some(nar) = living.get(hash).and_then(std::sync::Weak::upgrade) {
            drop(living);
            return nar.discard_if(|nar| even_if_held || !nar.held());
        }
        // Nobody has it, and with the table locked nobody begins to.
        let map = self.shared.remove_counted(hash, Kind::Map)?;
        let nar = self.shared.remove_counted(hash, Kind::Nar)?;
        drop(living);
        Ok(Some(map + nar))
    }
}
