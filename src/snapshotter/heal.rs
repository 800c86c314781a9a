//! What a kill, a power cut or a restored backup left: found at the start, put right as far as it
//! can be without the network, and said in the log.
//!
//! | found | done |
//! |---|---|
//! | an active snapshot or a view without its directory | made again, empty; a power cut took what was in it |
//! | a committed Nix layer without its directory | made again: its view has all that it shows |
//! | another committed snapshot without its directory | kept, and refused as a parent: only pulling the image again helps |
//! | a snapshot without its parent | the same |
//! | a directory without a snapshot | deleted in the background |
//! | a view without a snapshot | removed |
//! | a Nix layer without its view | made again from the record; where the store has forgotten the paths, they are admitted again as soon as a cache answers |

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use super::{
    closures::Closures,
    directories::{Directories, Found},
    error::SnapshotError,
    layer::Wanted,
    metadata::{Metadata, State},
    record::{Kind, NixLayer, Record, SnapshotId},
    snapshots::{Core, Options, Snapshots},
};

/// How long to wait before views are tried again that could not be restored.
const AGAIN: Duration = Duration::from_secs(30);

/// What was found at the start.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Healed {
    /// Snapshots whose directories were made again.
    pub made_again: Vec<String>,
    /// Committed snapshots that can't be used: their directory or their parent is gone.
    pub damaged: Vec<String>,
    /// Directories and other files that belong to no snapshot.
    pub leavings: usize,
    /// Views that belonged to no snapshot.
    pub views_removed: usize,
    /// Nix layers whose views were made again.
    pub views_made: Vec<String>,
    /// Nix layers whose paths have to be admitted again first.
    pub views_missing: Vec<String>,
}

impl Snapshots {
    /// Opens the snapshots of a state directory and puts right what it can, without the network.
    ///
    /// # Errors
    /// When the database can't be used, or the directories can't be made.
    pub async fn open(
        root: &Path,
        directories: Directories,
        closures: Arc<dyn Closures>,
        options: Options,
    ) -> Result<(Self, Healed), SnapshotError> {
        let found = directories.open()?;
        let metadata = Metadata::open(&root.join("snapshots.redb"), found.snapshots.len())?;
        let views = closures.views();
        // What is left of an earlier run keeps its number to itself.
        let newest = found.snapshots.iter().chain(&views).max().copied();
        metadata.skip_past(newest);
        let snapshots = Self::with(metadata, directories, closures, options);
        let healed = snapshots.0.heal(&found, views).await?;
        Ok((snapshots, healed))
    }

    /// Goes on with what takes longer or needs the network.
    pub fn heal_in_the_background(&self, healed: &Healed) {
        if healed.leavings > 0 {
            self.clean_in_the_background();
        }
        if healed.views_missing.is_empty() {
            return;
        }
        let core = Arc::downgrade(&self.0);
        let mut missing = healed.views_missing.clone();
        tokio::spawn(async move {
            while !missing.is_empty() {
                let Some(core) = core.upgrade() else { return };
                let mut still = Vec::new();
                for key in missing {
                    let Some(record) = core.metadata.state().get(&key).cloned() else {
                        continue;
                    };
                    if core.closures.view(record.id).is_some() {
                        continue;
                    }
                    match core.restore_view(&key, &record).await {
                        Ok(()) => tracing::info!(snapshot = key, "its view is there again"),
                        Err(error) => {
                            tracing::warn!(snapshot = key, %error, "its view is still missing");
                            still.push(key);
                        }
                    }
                }
                missing = still;
                drop(core);
                tokio::time::sleep(AGAIN).await;
            }
        });
    }
}

impl Core {
    async fn heal(&self, found: &Found, views: Vec<SnapshotId>) -> Result<Healed, SnapshotError> {
        let state = self.metadata.state();
        let mut healed = Healed::default();
        for (key, record) in state.iter() {
            self.heal_directory(&state, key, record, found, &mut healed)?;
            if let Some(nix) = &record.nix {
                self.heal_view(key, record.id, nix, &mut healed).await;
            }
        }
        let known: HashMap<_, _> = state
            .iter()
            .map(|(_, record)| (record.id, record))
            .collect();
        for id in views {
            if known.get(&id).is_some_and(|record| record.nix.is_some()) {
                continue;
            }
            tracing::info!(snapshot = %id, "its view belongs to no snapshot and is removed");
            match self.closures.remove_view(id).await {
                Ok(_) => healed.views_removed += 1,
                Err(error) => tracing::warn!(snapshot = %id, %error, "its view can't be removed"),
            }
        }
        let strays = found.snapshots.iter().filter(|id| !known.contains_key(id));
        healed.leavings = strays.count() + found.strangers.len();
        if healed.leavings > 0 {
            let count = healed.leavings;
            tracing::info!(
                count,
                "directories of no snapshot are deleted in the background"
            );
        }
        Ok(healed)
    }

    fn heal_directory(
        &self,
        state: &State,
        key: &str,
        record: &Record,
        found: &Found,
        healed: &mut Healed,
    ) -> Result<(), SnapshotError> {
        if let Some(parent) = &record.parent
            && state.get(parent).is_none()
        {
            tracing::error!(
                snapshot = key,
                parent,
                "its parent is missing: remove the images that use it and pull them again"
            );
            healed.damaged.push(key.into());
        }
        if found.snapshots.contains(&record.id) && self.directories.exists(record.id) {
            return Ok(());
        }
        if record.kind == Kind::Committed && record.nix.is_none() {
            tracing::error!(
                snapshot = key,
                number = %record.id,
                "its directory is missing: remove the images that use it and pull them again"
            );
            healed.damaged.push(key.into());
            return Ok(());
        }
        let parent = record.parent.as_ref().and_then(|parent| state.get(parent));
        let owner = parent.and_then(|parent| self.directories.owner(parent.id).ok());
        self.directories.make(record.id, record.kind, owner)?;
        tracing::warn!(
            snapshot = key,
            number = %record.id,
            kind = record.kind.name(),
            "its directory was missing and is made again, empty"
        );
        healed.made_again.push(key.into());
        Ok(())
    }

    async fn heal_view(&self, key: &str, id: SnapshotId, nix: &NixLayer, healed: &mut Healed) {
        if self.closures.view(id).is_some_and(|view| same(&view, nix)) {
            return;
        }
        match self.closures.make_view(id, nix).await {
            Ok(()) => {
                tracing::info!(snapshot = key, number = %id, "its view was missing and is made again");
                healed.views_made.push(key.into());
            }
            Err(error) => {
                tracing::warn!(
                    snapshot = key, number = %id, %error,
                    "its view is missing; its paths are looked up in the caches again"
                );
                healed.views_missing.push(key.into());
            }
        }
    }

    /// Makes the view of a layer again; with the network if its paths are not known any more.
    pub(super) async fn restore_view(
        &self,
        key: &str,
        record: &Record,
    ) -> Result<(), SnapshotError> {
        let Some(nix) = &record.nix else {
            return Ok(());
        };
        if self.closures.make_view(record.id, nix).await.is_ok() {
            return Ok(());
        }
        self.admit(&Wanted::Paths(nix.shown.clone())).await?;
        self.make_view(key, record.id, nix).await
    }
}

fn same(one: &NixLayer, other: &NixLayer) -> bool {
    let sorted = |paths: &[crate::nix::StorePath]| {
        let mut paths = paths.to_vec();
        paths.sort();
        paths.dedup();
        paths
    };
    sorted(&one.own) == sorted(&other.own) && sorted(&one.shown) == sorted(&other.shown)
}
