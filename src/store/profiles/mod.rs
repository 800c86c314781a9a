//! Access profiles at work: recording what a cold start reads, and fetching it ahead of the next one.
//!
//! ```text
//! record.rs   which parts readers ask for while a program starts
//! replay.rs   fetching what a profile names, in its order, as fast as the link allows
//! guide.rs    which store paths are fetched by a profile, so that nothing is guessed of them
//! ```
//!
//! A *start* begins when a store path of which nothing is here is touched first, or looked up first in
//! a view, and is in the closure of nothing that starts: its program is about to be run. What comes of it is kept under that path, in the database.

mod guide;
mod record;
mod replay;

use std::{collections::HashSet, sync::Arc};

use super::{Core, Path, Slot, Store, StoreError, unix_now};
use crate::{
    nix::{StorePath, StorePathHash},
    profile::Profile,
};

pub(super) use guide::Guides;
pub(super) use record::Recordings;

/// Programs of one view whose starts are prepared: each may cost a request.
const MOST_PREPARED: usize = 4;

/// Where profiles come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profiles {
    /// Recorded here, and published beside the caches that say so of a path.
    #[default]
    On,
    /// Recorded here, or imported.
    Local,
    /// Nothing is recorded, nothing fetched by a profile.
    Off,
}

impl Core {
    /// A path was touched first: if nothing of it is here, and no start brought it up, a program starts.
    pub(super) fn start_begins(self: &Arc<Self>, root: &Arc<Path>) {
        let is_alone = root.references.iter().all(|r| *r == root.store_path);
        if self.settings.profiles == Profiles::Off || is_alone || self.is_of_a_start(root) {
            return;
        }
        // What a profile brought, nobody has read yet.
        let is_prepared = self.recordings.take_prepared(root.slot);
        if !is_prepared && !self.nothing_is_here(root) {
            return;
        }
        // Who looks at very many paths starts none of them.
        if self.begin_recording(root) && !is_prepared {
            self.replay_soon(root);
        }
    }

    /// A view was made of these paths: something of it will be started, most likely what no other of its
    /// paths needs. What its profile names comes while the rest of a container is made.
    pub(super) fn prepare_starts(self: &Arc<Self>, own: &[Slot]) {
        if self.settings.profiles == Profiles::Off {
            return;
        }
        let own: Vec<_> = own
            .iter()
            .filter_map(|slot| self.paths.loaded(*slot))
            .collect();
        let needed: HashSet<_> = own
            .iter()
            .flat_map(|path| path.references.iter().filter(|r| **r != path.store_path))
            .collect();
        let is_top = |path: &&Arc<Path>| {
            let is_alone = path.references.iter().all(|r| *r == path.store_path);
            !is_alone && !needed.contains(&path.store_path)
        };
        for top in own.iter().filter(is_top).take(MOST_PREPARED) {
            if self.nothing_is_here(top) && self.recordings.prepare(top.slot) {
                self.replay_soon(top);
            }
        }
    }

    fn nothing_is_here(&self, path: &Path) -> bool {
        self.nar_of(path)
            .is_ok_and(|nar| nar.file.valid_bytes() == 0)
    }

    fn replay_soon(self: &Arc<Self>, root: &Arc<Path>) {
        let (core, root) = (self.clone(), root.clone());
        self.runtime.spawn(async move {
            if let Some(profile) = core.find_profile(&root).await {
                core.replay(profile, root).await;
            }
        });
    }

    /// Whether the cache said lately that it has no profile of this path.
    pub(super) fn has_no_profile(&self, path: &StorePathHash, cache: &str) -> bool {
        let ttl = self.settings.negative_ttl.as_secs();
        let known = self
            .content
            .db()
            .has_no_profile(path, cache, unix_now(), ttl);
        known.unwrap_or(false)
    }

    /// The profile of a path that is kept, or that lies beside the cache it comes from.
    async fn find_profile(self: &Arc<Self>, root: &Arc<Path>) -> Option<Profile> {
        let hash = root.store_path.hash();
        let parse = |text: &[u8], from: &str| match Profile::parse(text) {
            Ok(profile) if profile.root == root.store_path => Some(profile),
            Ok(profile) => {
                tracing::warn!(path = %root.store_path, of = %profile.root, from, "its profile is another one's");
                None
            }
            Err(error) => {
                tracing::warn!(path = %root.store_path, from, %error, "its profile is not used");
                None
            }
        };
        if let Ok(Some(text)) = self.content.db().profile(&hash) {
            return parse(&text, "the state directory");
        }
        // A small file, such as a script that sets the stage for a program, has no use for its index.
        if self.settings.profiles != Profiles::On || !root.source.chunks {
            return None;
        }
        let cache = &root.source.substituter;
        let db = self.content.db();
        if self.has_no_profile(&hash, cache.name()) {
            return None;
        }
        let text = match self.profile_of(&root.source, &root.store_path).await {
            Ok(Some(text)) => text,
            Ok(None) => {
                let ttl = self.settings.negative_ttl.as_secs();
                // Not awaited: lost in a crash, it is asked for again.
                drop(db.put_no_profile(&hash, cache.name(), unix_now(), ttl));
                return None;
            }
            Err(error) => {
                tracing::debug!(path = %root.store_path, %error, "no profile");
                return None;
            }
        };
        let profile = parse(&text, cache.name())?;
        // Not awaited: the next start asks again.
        drop(db.put_profile(&hash, text));
        Some(profile)
    }
}

impl Store {
    /// A program of this path is about to be run: all that it needs becomes known.
    pub fn touch(&self, path: &Arc<Path>) {
        self.0.touch(path);
    }

    /// What is being recorded is kept as it is now. Blocks.
    ///
    /// # Errors
    /// When it can't be written.
    pub(super) fn end_recordings(&self) -> Result<(), StoreError> {
        for kept in self.0.finish_recordings() {
            kept.wait()?;
        }
        Ok(())
    }

    /// All profiles that are kept, by the names of their programs' store paths.
    ///
    /// # Errors
    /// When the database can't be read.
    pub fn profiles(&self) -> Result<Vec<Profile>, StoreError> {
        self.end_recordings()?;
        let texts = self.0.content.db().profiles()?;
        let mut all: Vec<_> = texts
            .iter()
            .filter_map(|text| Profile::parse(text).ok())
            .collect();
        all.sort_by_key(|profile| profile.root.to_string());
        Ok(all)
    }

    /// The profile that is kept of a program's store path.
    ///
    /// # Errors
    /// When the database can't be read.
    pub fn profile(&self, path: &StorePathHash) -> Result<Option<Profile>, StoreError> {
        self.end_recordings()?;
        let text = self.0.content.db().profile(path)?;
        Ok(text.and_then(|text| Profile::parse(&text).ok()))
    }

    /// Keeps a profile, in the place of the one that there was.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn keep_profile(&self, profile: &Profile) -> Result<(), StoreError> {
        let (hash, text) = (profile.root.hash(), profile.text().into_bytes());
        Ok(self.0.content.db().put_profile(&hash, text).wait()?)
    }

    /// Forgets the profile of a path; whether there was one.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn forget_profile(&self, path: &StorePath) -> Result<bool, StoreError> {
        self.end_recordings()?;
        Ok(self.0.content.db().remove_profile(&path.hash()).wait()?)
    }
}
