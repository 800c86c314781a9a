//! Making room: what goes first, and what never goes.

use super::{ContentError, ContentStore, shared::Kind};
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

/// A NAR that is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    /// The NAR.
    pub hash: NarHash,
    /// Bytes that become free.
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
    /// Number of NARs.
    pub nars: u64,
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
        let scan = self.shared.usage.exact(self.shared.content())?;
        let mut uses = self.shared.db.uses()?;
        uses.extend(self.shared.persister.pending_uses());
        let mut candidates: Vec<Victim> = scan
            .nars
            .iter()
            .map(|(hash, sizes)| {
                let rank = protected(hash);
                let index = if rank == Rank::Unrooted {
                    sizes.index
                } else {
                    0
                };
                let last_use = uses.get(hash).copied().unwrap_or(0);
                Victim {
                    hash: *hash,
                    bytes: sizes.nar + sizes.map + index,
                    last_use,
                    rank,
                }
            })
            .filter(|v| v.rank < Rank::Keep && v.bytes > 0 && !self.held(&v.hash))
            .collect();
        candidates.sort_by_key(|v| (v.rank, v.last_use, v.hash));
        let wanted = match goal {
            EvictGoal::AtMost(most) => scan.total.saturating_sub(most),
            EvictGoal::Free(bytes) => bytes,
            EvictGoal::Unrooted => {
                candidates.retain(|v| v.rank == Rank::Unrooted);
                u64::MAX
            }
        };
        let mut freed = 0;
        let mut victims = Vec::new();
        for victim in candidates {
            if freed >= wanted {
                break;
            }
            freed += victim.bytes;
            victims.push(victim);
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

    fn held(&self, hash: &NarHash) -> bool {
        self.alive(hash).is_some_and(|nar| nar.held())
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
