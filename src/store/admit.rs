//! Admission: a store path becomes known, with a trusted narinfo, a compiled tree and a slot.
//!
//! One admission of a path runs at a time, whoever asks; it runs as a task of its own, so that
//! one who stops waiting does not stop it. The first *touch* of a path admits its whole closure
//! in the background (`closure.rs`): a loader would otherwise pay the round trips for each of
//! its libraries one after the other.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::FutureExt;

use super::{
    Core, Lane, Path, Slot, Store, StoreError,
    fetch::{Source, Want},
    narinfo::Offer,
    path::{Health, LastError},
    single_flight::{self, SingleFlight, Urgency},
    unix_now,
};
use crate::{
    content::PathFacts,
    nix::{NarInfo, StorePath, StorePathHash},
    substituter::Substituter,
    tree::{self, Tree},
};

/// Head start of the reader who touched a path over the admission of its closure, which takes
/// every connection there is. A fraction of any round trip.
pub(super) const GIVE_WAY: Duration = Duration::from_millis(2);
/// Listings above this are compiled on a thread of their own, in bytes: a millisecond's work.
const COMPILE_ELSEWHERE: usize = 64 * 1024;

pub(super) type Outcome = Result<Arc<Path>, Arc<StoreError>>;

/// What is known of a path before anybody was asked.
pub(super) struct Hint {
    /// The cache that most likely has it.
    pub likely: Option<Substituter>,
    /// Somebody named it, and will go on with what is in it.
    pub named: bool,
}

/// Admissions under way.
pub(super) type Admissions = SingleFlight<StorePathHash, Outcome, StorePath>;

impl Store {
    /// The path, if it is known and loaded.
    pub fn known(&self, path: &StorePath) -> Option<Arc<Path>> {
        self.0
            .loaded(&path.hash())
            .filter(|p| p.store_path == *path)
    }

    /// The path, admitted if it was not; waits as long as a lookup does.
    ///
    /// # Errors
    /// [`StoreError::Absent`] when no cache has it, else what went wrong.
    pub async fn admit(&self, path: &StorePath) -> Result<Arc<Path>, StoreError> {
        self.0.admit_in_time(path).await
    }

    /// Admissions under way, with their lanes and for how long, the oldest first.
    pub fn admissions(&self) -> Vec<(StorePath, Lane, Duration)> {
        let mut all = self.0.admissions.under_way();
        all.sort_by_key(|(_, _, age)| std::cmp::Reverse(*age));
        all
    }

    /// The caches are asked again for paths that they did not have: for those who come back because
    /// they were told so, and expect that it was seen to.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn forget_absence<'p>(
        &self,
        paths: impl IntoIterator<Item = &'p StorePath>,
    ) -> Result<(), StoreError> {
        let db = self.0.content.db();
        let forget = |path: &StorePath| db.forget_negative(&path.hash());
        // All of them are under way before the first is waited for, so they share a commit.
        let forgotten: Vec<_> = paths.into_iter().map(forget).collect();
        for one in forgotten {
            one.await?;
        }
        Ok(())
    }
}

impl Core {
    /// Admits a path, within the time that a lookup may take.
    pub(super) async fn admit_in_time(
        self: &Arc<Self>,
        path: &StorePath,
    ) -> Result<Arc<Path>, StoreError> {
        self.admit_hinted(path, false).await
    }

    /// The same for somebody who named it, and will go on with what is in it.
    pub(super) async fn admit_named(
        self: &Arc<Self>,
        path: &StorePath,
    ) -> Result<Arc<Path>, StoreError> {
        self.admit_hinted(path, true).await
    }

    async fn admit_hinted(
        self: &Arc<Self>,
        path: &StorePath,
        named: bool,
    ) -> Result<Arc<Path>, StoreError> {
        let waited = self.settings.lookup_timeout;
        let likely = self.only_cache_of_an_empty_store();
        let admission = self.admission(path, Lane::Demand, Hint { likely, named });
        match tokio::time::timeout(waited, admission.clone()).await {
            Ok(outcome) => Ok(outcome?),
            // Somebody has to stream the NAR to know what is in it: that may take longer.
            Err(_) if self.is_indexing(path) => {
                let longer = self.settings.index_timeout.saturating_sub(waited);
                match tokio::time::timeout(longer, admission).await {
                    Ok(outcome) => Ok(outcome?),
                    Err(_) => Err(timed_out(path, "its NAR to be indexed", waited + longer)),
                }
            }
            Err(_) => Err(timed_out(path, "its narinfo and listing", waited)),
        }
    }

    /// Somebody who names the first path of all most likely knows that it exists: its listing is
    /// asked for together with its narinfo. Later paths mostly come with a closure.
    fn only_cache_of_an_empty_store(&self) -> Option<Substituter> {
        match &*self.caches.all() {
            [only] if self.paths.version() == 0 && !self.first_named.swap(true, Relaxed) => {
                Some(only.substituter.clone())
            }
            _ => None,
        }
    }

    /// Joins the admission of a path, or starts it.
    pub(super) fn admission(
        self: &Arc<Self>,
        path: &StorePath,
        lane: Lane,
        hint: Hint,
    ) -> single_flight::Outcome<Outcome> {
        self.admissions
            .join(&path.hash(), path, lane, |urgency, underway| {
                let (core, path) = (self.clone(), path.clone());
                let task = self.runtime.spawn(async move {
                    let _underway = underway;
                    core.run_admission(&path, &urgency, hint).await
                });
                task.map(|j| j.unwrap_or_else(|_| Err(Arc::new(StoreError::Stopping))))
                    .boxed()
            })
    }

    async fn run_admission(
        self: &Arc<Self>,
        path: &StorePath,
        lane: &Urgency,
        hint: Hint,
    ) -> Outcome {
        if let Some(known) = self.loaded(&path.hash()) {
            return match known.store_path == *path {
                true => Ok(known),
                false => Err(Arc::new(StoreError::NoEntry)),
            };
        }
        let outcome = self.admit_now(path, lane, hint).await;
        match &outcome {
            Ok(_) => {
                tracing::debug!(%path, ?lane, "admitted");
                self.counters.admitted.add(1);
            }
            Err(error) if error.is_absence() => {}
            Err(error) => {
                self.counters.admission_failures.add(1);
                self.note_refusal(path, error);
                if !self.is_explained(error) {
                    tracing::warn!(%path, %error, "not admitted");
                }
            }
        }
        outcome.map_err(Arc::new)
    }

    async fn admit_now(
        self: &Arc<Self>,
        path: &StorePath,
        lane: &Urgency,
        hint: Hint,
    ) -> Result<Arc<Path>, StoreError> {
        if let Some(offer) = self.known_offer(path)? {
            self.counters.narinfo_hits.add(1);
            let tree = self.load_tree(&offer.narinfo.nar_hash)?;
            let tree = match tree {
                Some(tree) => tree,
                None => self.fetch_tree(path, &offer, None, lane).await?,
            };
            return self.take_in(path, &offer, tree).await;
        }
        // A referrer came from this cache: it most likely has this path too, so the listing is
        // asked for without waiting for the narinfo.
        let early = async {
            match &hint.likely {
                Some(substituter) => Some((
                    substituter.name(),
                    self.listing_text(substituter, path, lane).await,
                )),
                None => None,
            }
        };
        let offer = async {
            let offer = self.find_offer(path, lane).await?;
            let urgency = *lane.borrow();
            self.ask_early(path, &offer, urgency, hint.named);
            Ok::<_, StoreError>(offer)
        };
        let (offer, early) = tokio::join!(offer, early);
        let offer = offer?;
        let early = early
            .filter(|(name, _)| *name == offer.substituter.name())
            .map(|(_, listing)| listing);
        let tree = match self.load_tree(&offer.narinfo.nar_hash)? {
            Some(tree) => tree,
            None => self.fetch_tree(path, &offer, early, lane).await?,
        };
        self.take_in(path, &offer, tree).await
    }

    /// The tree of a path that has none yet: from its listing, else from its NAR.
    async fn fetch_tree(
        self: &Arc<Self>,
        path: &StorePath,
        offer: &Offer,
        early: Option<Result<Option<Vec<u8>>, StoreError>>,
        lane: &Urgency,
    ) -> Result<Tree, StoreError> {
        let listing = match early {
            Some(Ok(listing)) => listing,
            Some(Err(_)) | None => self.listing_from_any(offer, path, lane).await?,
        };
        if let Some(json) = listing {
            match compile(json, &offer.narinfo).await {
                Ok(image) => return self.keep_tree(&offer.narinfo.nar_hash, &image),
                Err(error) => {
                    let substituter = offer.substituter.name();
                    tracing::warn!(%path, %substituter, %error, "unusable listing; the NAR is indexed instead");
                }
            }
        }
        self.index_nar(path, offer, lane).await
    }

    /// The listing from the cache that gave the narinfo, or from another one if that one fails: it
    /// is compared with the NAR, whoever it comes from.
    async fn listing_from_any(
        &self,
        offer: &Offer,
        path: &StorePath,
        lane: &Urgency,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let failed = match self.listing_text(&offer.substituter, path, lane).await {
            Ok(listing) => return Ok(listing),
            Err(failed) => failed,
        };
        for other in self.caches.usable() {
            if other.name() == offer.substituter.name() {
                continue;
            }
            if let Ok(Some(listing)) = self.listing_text(&other, path, lane).await {
                tracing::info!(%path, substituter = other.name(), error = %failed, "the listing comes from another cache");
                return Ok(Some(listing));
            }
        }
        Err(failed)
    }

    /// Streams the whole NAR to learn what is in it.
    async fn index_nar(
        self: &Arc<Self>,
        path: &StorePath,
        offer: &Offer,
        lane: &Urgency,
    ) -> Result<Tree, StoreError> {
        let (hash, size) = (offer.narinfo.nar_hash, offer.narinfo.nar_size);
        let nar = self.nar(path, hash, size, Arc::new(Source::of(offer)), None)?;
        let lane = *lane.borrow();
        self.ensure(&nar, Want::Indexed, lane).await?;
        if let Some(tree) = self.load_tree(&hash)? {
            return Ok(tree);
        }
        match nar.tree() {
            Some(tree) => Ok(Tree::from_image(tree.image().to_vec())?),
            None => Err(StoreError::Stopping),
        }
    }

    fn is_indexing(&self, path: &StorePath) -> bool {
        let nars = self.nars.lock().unwrap_or_else(PoisonError::into_inner);
        nars.values()
            .filter_map(std::sync::Weak::upgrade)
            .any(|n| n.path == *path && n.is_fetching())
    }

    /// Gives the path its slot and its place in the table.
    async fn take_in(
        self: &Arc<Self>,
        path: &StorePath,
        offer: &Offer,
        tree: Tree,
    ) -> Result<Arc<Path>, StoreError> {
        let db = self.content.db();
        let (slot, known) = match self.paths.slot(&path.hash()) {
            Some((slot, entry)) if entry.store_path == *path => (slot, true),
            _ => (Slot(db.slot_for(path, false).await?), false),
        };
        let now = unix_now();
        let facts = match (known, &offer.facts) {
            (true, Some(facts)) => facts.clone(),
            (true, None) => db.facts(&path.hash())?,
            (false, _) => PathFacts::default(),
        };
        if !known {
            let facts = PathFacts {
                first_seen: Some(now),
                trusted: offer.trusted.clone(),
                ..PathFacts::default()
            };
            // Not awaited: lost in a crash, it is written again.
            drop(db.put_facts(vec![(path.hash(), facts)]));
        } else {
            self.note_trust(path, offer, &facts);
        }
        let admitted = self.enter(path, slot, offer, tree, facts);
        let admitted = self.with_right_tree(admitted).await?;
        if !known && admitted.source.has_index() {
            self.read_index_soon(&admitted);
        }
        Ok(admitted)
    }

    /// Keeps what was found of a narinfo's signatures, so that they need not be looked at again.
    pub(super) fn note_trust(&self, path: &StorePath, offer: &Offer, facts: &PathFacts) {
        if offer.trusted.is_some() && offer.trusted != facts.trusted {
            let trusted = offer.trusted.clone();
            // Not awaited: lost in a crash, it is found anew.
            let db = self.content.db();
            drop(db.update_facts(&path.hash(), |facts| facts.trusted = trusted));
        }
    }

    /// Puts a path into the table; if another was faster, his is the one.
    pub(super) fn enter(
        &self,
        path: &StorePath,
        slot: Slot,
        offer: &Offer,
        tree: Tree,
        facts: PathFacts,
    ) -> Arc<Path> {
        let narinfo = &offer.narinfo;
        self.paths.insert(Arc::new(Path {
            slot,
            store_path: path.clone(),
            nar_hash: narinfo.nar_hash,
            nar_size: narinfo.nar_size,
            references: narinfo.references.clone().into(),
            tree: Arc::new(tree),
            source: Arc::new(Source::of(offer)),
            nar: OnceLock::new(),
            touched: false.into(),
            looked_up: false.into(),
            trust: Default::default(),
            health: Mutex::new(Health {
                failing: false,
                last: facts.last_error.map(|e| LastError {
                    message: e.text,
                    at: e.at,
                    substituter: None,
                }),
            }),
            first_seen: facts.first_seen.unwrap_or_else(unix_now),
        }))
    }

    /// The first touch of a path admits its closure in the background.
    pub(super) fn touch(self: &Arc<Self>, path: &Arc<Path>) {
        if !path.touch() || path.references.iter().all(|r| *r == path.store_path) {
            return;
        }
        self.start_begins(path);
        let (core, path) = (self.clone(), path.clone());
        self.runtime.spawn(async move {
            // Whoever touched it reads it next: the connection that is open is for him.
            tokio::time::sleep(GIVE_WAY).await;
            let report = core
                .admit_closure(std::slice::from_ref(&path.store_path), Lane::ReadAhead)
                .await;
            tracing::debug!(
                path = %path.store_path,
                admitted = report.admitted.len(),
                failed = report.failed.len(),
                "closure admitted"
            );
        });
    }
}

fn timed_out(path: &StorePath, what: &'static str, waited: Duration) -> StoreError {
    StoreError::TimedOut {
        path: path.clone(),
        what,
        waited,
    }
}

/// Compiles a listing, off the runtime's threads if it is large.
pub(super) async fn compile(json: Vec<u8>, narinfo: &NarInfo) -> Result<Vec<u8>, StoreError> {
    let (hash, size) = (narinfo.nar_hash, narinfo.nar_size);
    let listing_error = |source| StoreError::Listing {
        path: narinfo.store_path.clone(),
        source: Box::new(source),
    };
    if json.len() <= COMPILE_ELSEWHERE {
        return tree::compile_listing(&json, hash, size).map_err(listing_error);
    }
    match tokio::task::spawn_blocking(move || tree::compile_listing(&json, hash, size)).await {
        Ok(image) => image.map_err(listing_error),
        Err(_) => Err(StoreError::Stopping),
    }
}
