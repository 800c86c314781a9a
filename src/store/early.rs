//! What is asked for as soon as a narinfo is here, while its listing is still on the way: the chunk
//! index of its NAR, and where somebody named the path, its access profile and what it refers to.
//!
//! Nothing here is asked for that would not be asked for a little later; what was answered early
//! waits here until then.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;

use super::{Core, Lane, Profiles, admit::GIVE_WAY, fetch::Source, narinfo::Offer};
use crate::{
    chunks,
    nix::StorePath,
    profile::{self, MAX_PROFILE},
    substituter::{FetchError, Substituter},
    trace,
};

/// A small file that a cache may have.
type SmallFile = Result<Option<Vec<u8>>, FetchError>;

/// A small file that was asked for; taken by whoever wants it first.
#[derive(Default)]
pub(super) struct Asked(Mutex<Option<JoinHandle<SmallFile>>>);

impl Asked {
    fn put(&self, task: JoinHandle<SmallFile>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// The answer, if it was asked for and nobody has taken it.
    async fn take(&self) -> Option<SmallFile> {
        let task = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        task?.await.ok()
    }
}

/// What was asked of a cache along with a narinfo of it.
#[derive(Default)]
pub(super) struct Early {
    index: Asked,
    profile: Asked,
}

impl Core {
    /// A narinfo has come from a cache. `named`: somebody named the path, and will most likely go on
    /// with what is in it.
    pub(super) fn ask_early(
        self: &Arc<Self>,
        path: &StorePath,
        offer: &Offer,
        lane: Lane,
        named: bool,
    ) {
        let source = Source::of(offer);
        let hash = &offer.narinfo.nar_hash;
        if source.has_index() && self.content.chunks(hash).is_none() {
            let (core, path) = (self.clone(), path.clone());
            let (cache, url) = (offer.substituter.clone(), source.url.clone());
            let asked = async move { core.ask_index(&cache, &url, &path, lane).await };
            offer.early.index.put(self.runtime.spawn(asked));
        }
        if !named {
            return;
        }
        let references = &offer.narinfo.references;
        let others: Vec<_> = references.iter().filter(|r| *r != path).cloned().collect();
        if others.is_empty() {
            return;
        }
        if offer.chunks && self.wants_a_profile(path, &offer.substituter) {
            let (core, path) = (self.clone(), path.clone());
            let cache = offer.substituter.clone();
            let asked = async move {
                // The connection that is open is for the index.
                tokio::time::sleep(GIVE_WAY).await;
                core.ask_profile(&cache, &path).await
            };
            offer.early.profile.put(self.runtime.spawn(asked));
        }
        let (core, likely) = (self.clone(), offer.substituter.clone());
        self.runtime.spawn(async move {
            // And that of the listing for the profile.
            tokio::time::sleep(2 * GIVE_WAY).await;
            core.admit_many(&others, Some(likely), Lane::ReadAhead, true)
                .await;
        });
    }

    fn wants_a_profile(&self, path: &StorePath, cache: &Substituter) -> bool {
        let hash = path.hash();
        self.settings.profiles == Profiles::On
            && matches!(self.content.db().profile(&hash), Ok(None))
            && !self.has_no_profile(&hash, cache.name())
    }

    /// The chunk index of a source's file, if the cache has one.
    pub(super) async fn chunk_index_of(
        &self,
        source: &Source,
        path: &StorePath,
        lane: Lane,
    ) -> SmallFile {
        match source.early.index.take().await {
            Some(answer) => answer,
            None => {
                self.ask_index(&source.substituter, &source.url, path, lane)
                    .await
            }
        }
    }

    async fn ask_index(
        &self,
        cache: &Substituter,
        url: &str,
        path: &StorePath,
        lane: Lane,
    ) -> SmallFile {
        let file = chunks::file_name(url);
        let ask = cache.chunk_index(&file, self.open_deadline());
        self.counted(trace::on_behalf(lane.as_str(), path, ask).await)
    }

    /// The access profile beside a path's narinfo, if the cache has one.
    pub(super) async fn profile_of(&self, source: &Source, path: &StorePath) -> SmallFile {
        match source.early.profile.take().await {
            Some(answer) => answer,
            None => self.ask_profile(&source.substituter, path).await,
        }
    }

    async fn ask_profile(&self, cache: &Substituter, path: &StorePath) -> SmallFile {
        let file = profile::file_name(&path.hash());
        let ask = cache.file_beside(file, MAX_PROFILE, self.open_deadline());
        self.counted(trace::on_behalf(Lane::ReadAhead.as_str(), path, ask).await)
    }

    fn counted(&self, answer: SmallFile) -> SmallFile {
        if let Ok(Some(bytes)) = &answer {
            self.counters.fetched.add(bytes.len() as u64);
        }
        answer
    }
}
