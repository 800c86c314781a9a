//! Keeping the store: fetching ahead of need, naming what is kept, and what is done now and then.

use std::{collections::HashMap, sync::Arc, time::Duration};

use narfs_state_schema::PathState;

use super::{Core, Lane, Path, Store, StoreError, fetch::Want, path::SlotEntry};
use crate::{
    nix::{NarHash, StorePath},
    tree::EntryIndex,
};

/// How often it is looked for what is to be done. The quota is looked at after every NAR besides, but
/// partial content grows as well.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// After so many looks, answers of caches that no longer count are forgotten: every hour.
const LOOKS_UNTIL_PRUNED: u64 = 360;

impl Store {
    /// Keeps the limits from now on, as long as the store lives, settles what waits for room, and forgets
    /// what caches said too long ago.
    pub fn keep_up(&self) {
        let weak = self.downgrade();
        self.0.runtime.spawn(async move {
            let mut tick = tokio::time::interval(LOOK_EVERY);
            for looks in 1_u64.. {
                tick.tick().await;
                let Some(Store(core)) = weak.upgrade() else {
                    return;
                };
                core.make_room_soon();
                core.settle_soon();
                if looks.is_multiple_of(LOOKS_UNTIL_PRUNED) {
                    core.runtime
                        .clone()
                        .spawn_blocking(move || core.prune_answers());
                }
            }
        });
    }

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

    /// Whether all of the path is here and has the hash that was promised.
    pub fn is_whole(&self, path: &Path) -> bool {
        let (state, _, verified) = self.0.progress(path);
        state == PathState::Complete && verified
    }

    /// Bytes of the path's NAR that are here.
    pub fn fetched_bytes(&self, path: &Path) -> u64 {
        self.0.nar_of(path).map_or(0, |nar| nar.file.valid_bytes())
    }

    /// Roots `paths` under `name`: they are collected last.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn set_roots(&self, name: &str, paths: &[StorePath]) -> Result<(), StoreError> {
        Ok(self.0.content.db().put_root(name, paths).wait()?)
    }

    /// Makes durable what was fetched, and ends what is recorded.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn flush(&self) -> Result<(), StoreError> {
        let recorded = self.end_recordings();
        self.0.content.flush()?;
        recorded
    }

    /// Store paths by the hash of their NAR: all that this state directory ever knew. Local only.
    pub fn paths_by_nar(&self) -> HashMap<NarHash, Vec<StorePath>> {
        let mut by_nar: HashMap<NarHash, Vec<StorePath>> = HashMap::new();
        for (_, entry) in self.0.paths.slots() {
            match self.0.kept_facts(&entry) {
                Ok(Some((nar, _))) => by_nar.entry(nar).or_default().push(entry.store_path),
                Ok(None) => {}
                Err(error) => tracing::debug!(path = %entry.store_path, %error, "not named"),
            }
        }
        by_nar
    }
}

impl Core {
    /// The NAR and the references of a known path, loaded or not. Local only.
    pub(super) fn kept_facts(
        &self,
        entry: &SlotEntry,
    ) -> Result<Option<(NarHash, Vec<StorePath>)>, StoreError> {
        if let Some(path) = &entry.path {
            return Ok(Some((path.nar_hash, path.references.to_vec())));
        }
        let kept = self.kept_narinfo(&entry.store_path)?;
        Ok(kept.map(|(narinfo, _)| (narinfo.nar_hash, narinfo.references)))
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
        Progress {
            fetched: self.fetched_bytes(path),
            size: path.nar_size,
        }
    }

    /// The lane of work that nobody waits for.
    pub const IDLE: Lane = Lane::Background;
}
