//! Keeping the store: fetching ahead of need, checking what is kept, making room.

use std::{collections::HashMap, ops::Range, sync::Arc};

use super::{
    Core, Event, Lane, Path, Store, StoreError,
    fetch::{Nar, Want},
};
use crate::{
    content::{EvictGoal, EvictPlan, Evicted, Rank},
    nix::{NarHash, StorePath},
    tree::EntryIndex,
};

/// Something that `check` found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Problem {
    /// The NAR, `sha256:…`.
    pub nar: String,
    /// Store paths that show it, as far as they are known.
    pub paths: Vec<String>,
    /// What is wrong.
    pub what: String,
    /// Whether its content was dropped, to be fetched again when it is read.
    pub dropped: bool,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CheckReport {
    /// NARs looked at.
    pub nars: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl Store {
    /// Fetches the whole of a path, in `lane`; returns when it is verified.
    ///
    /// # Errors
    /// Why it could not be fetched or is not what was promised.
    pub async fn prefetch(&self, path: &Path, lane: Lane) -> Result<(), StoreError> {
        let nar = self.0.nar_of(path)?;
        self.0.complete(&nar, lane);
        self.0.ensure(&nar, Want::Verified, lane).await.map(drop)
    }

    /// Reads a file of a path by its place in the tree, `size` bytes at `offset`.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn read_file(
        &self,
        path: &Arc<Path>,
        entry: EntryIndex,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, StoreError> {
        self.0.read_entry(path, entry, offset, size).await
    }

    /// Bytes of the path's NAR that are here.
    pub fn fetched_bytes(&self, path: &Path) -> u64 {
        self.0.nar_of(path).map_or(0, |nar| nar.file.valid_bytes())
    }

    /// What would have to go to reach `goal`; roots go last.
    ///
    /// # Errors
    /// When the state directory can't be read.
    pub fn plan_gc(&self, goal: EvictGoal) -> Result<EvictPlan, StoreError> {
        let rooted = self.0.rooted()?;
        let rank = |nar: &NarHash| if rooted.contains_key(nar) { Rank::Rooted } else { Rank::Unrooted };
        Ok(self.0.content.plan_eviction(goal, rank)?)
    }

    /// Drops what the plan names.
    ///
    /// # Errors
    /// When a file can't be removed.
    pub fn carry_out_gc(&self, plan: &EvictPlan) -> Result<Evicted, StoreError> {
        Ok(self.0.content.carry_out(plan)?)
    }

    /// Hashes what is kept of `paths` (of all, if none is named) against what was promised;
    /// with `repair`, drops what is damaged, so that it is fetched again when it is read.
    ///
    /// # Errors
    /// When the state directory can't be read.
    pub fn check(
        &self,
        paths: &[StorePath],
        repair: bool,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<CheckReport, StoreError> {
        self.runtime().block_on(self.load_known());
        let names = self.paths_by_nar();
        let of = |nar: &NarHash| names.get(nar).cloned().unwrap_or_default();
        let wanted = |nar: &NarHash| paths.is_empty() || of(nar).iter().any(|p| paths.contains(p));
        let mut bytes = 0;
        let found = self.0.content.check_some(wanted, |p| {
            bytes = p.hashed;
            progress(p.hashed, p.total);
        })?;
        let mut report = CheckReport { nars: found.sound + found.unverified, bytes, problems: Vec::new() };
        for damage in found.damage {
            report.nars += 1;
            if repair {
                self.0.content.repair(&damage)?;
                self.0.emit(Event::ContentDropped(damage.hash));
            }
            report.problems.push(Problem {
                nar: damage.hash.to_string(),
                paths: of(&damage.hash).iter().map(StorePath::absolute).collect(),
                what: damage.kind.to_string(),
                dropped: repair,
            });
        }
        Ok(report)
    }

    /// Roots `paths` under `name`: they are collected last.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn set_roots(&self, name: &str, paths: &[StorePath]) -> Result<(), StoreError> {
        Ok(self.0.content.db().put_root(name, paths).wait()?)
    }

    /// Makes durable what was fetched.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn flush(&self) -> Result<(), StoreError> {
        Ok(self.0.content.flush()?)
    }

    /// Store paths by the hash of their NAR, as far as they are loaded.
    pub fn paths_by_nar(&self) -> HashMap<NarHash, Vec<StorePath>> {
        let mut by_nar: HashMap<NarHash, Vec<StorePath>> = HashMap::new();
        for path in self.0.paths.find(|_| true) {
            by_nar.entry(path.nar_hash).or_default().push(path.store_path.clone());
        }
        by_nar
    }
}

impl Core {
    /// NARs of rooted paths.
    fn rooted(&self) -> Result<HashMap<NarHash, ()>, StoreError> {
        let mut rooted = HashMap::new();
        for (_, paths) in self.content.db().roots()? {
            for path in paths {
                if let Some(known) = self.loaded(&path.hash()) {
                    rooted.insert(known.nar_hash, ());
                }
            }
        }
        Ok(rooted)
    }

    /// The bytes of a file's NAR node in front of its contents, if it is not verified yet: they
    /// tell whether the listing says the truth about this file.
    pub(super) fn header_of(&self, path: &Path, entry: EntryIndex) -> Option<Range<u64>> {
        path.tree.header_before(entry).map(|(range, _)| range)
    }

    /// Holds a file's NAR header against the tree; a difference means that the listing lies, and
    /// the NAR is streamed and indexed instead.
    pub(super) fn check_header(
        self: &Arc<Self>,
        path: &Arc<Path>,
        entry: EntryIndex,
        nar: &Arc<Nar>,
        header: Option<Range<u64>>,
        bytes: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let (Some(range), Some((_, expected))) = (header, path.tree.header_before(entry)) else { return Ok(()) };
        let found = match bytes {
            Some(bytes) => bytes.get(..expected.len()).unwrap_or_default().to_vec(),
            None => {
                let mut found = vec![0; expected.len()];
                nar.file.read_at(&mut found, range.start)?;
                found
            }
        };
        if found == expected {
            return Ok(());
        }
        let name = String::from_utf8_lossy(&path.tree.path_of(entry)).into_owned();
        Err(self.listing_lied(nar, format!("at {name}")))
    }
}

/// Where a prefetch stands; for progress displays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes here.
    pub fetched: u64,
    /// Bytes in all.
    pub size: u64,
}

impl Store {
    /// Where the prefetch of a path stands.
    pub fn progress(&self, path: &Path) -> Progress {
        Progress { fetched: self.fetched_bytes(path), size: path.nar_size }
    }

    /// The lane of work that nobody waits for.
    pub const IDLE: Lane = Lane::Background;
}
