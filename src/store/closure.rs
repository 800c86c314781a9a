//! Admission of many store paths at a time: closures, breadth first, and what a layer names.
//!
//! What is known already comes from the database and from files, tens of microseconds for each path: too little
//! to make a task of each. It is taken in by a few threads at once (*hands*), each with one look at the database
//! for many paths. What is not all there then goes the way of [`Core::admission`], one by one.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::available_parallelism,
};

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};

use super::{
    Core, Lane, Path, Store, StoreError,
    admit::{Hint, Outcome},
};
use crate::{
    content::KeptOfPath,
    nix::{StorePath, StorePathHash},
    substituter::Substituter,
};

/// Fewer known paths than this are admitted one by one, on the runtime's own threads.
const FEW: usize = 8;
/// Hands for each processor: a disk that nothing was read from yet answers several at once.
const HANDS: usize = 4;
/// Paths that a hand takes in with one look at the database: a few milliseconds' work, so that hands end together.
const HANDFUL: usize = 64;

/// What came of admitting a closure.
#[derive(Debug, Default)]
pub struct ClosureReport {
    /// Paths admitted, in breadth-first order.
    pub admitted: Vec<StorePath>,
    /// Paths that could not be, with the reason.
    pub failed: Vec<(StorePath, Arc<StoreError>)>,
}

/// A path that is wanted, and the cache that most likely has it.
type Wanted = (StorePath, Option<Substituter>);

/// What came of some of them.
#[derive(Default)]
struct Came {
    done: Vec<(StorePath, Outcome)>,
    /// These are not all here.
    left: Vec<Wanted>,
}

impl Store {
    /// Admits paths and everything they refer to.
    pub async fn admit_closure(&self, roots: &[StorePath], lane: Lane) -> ClosureReport {
        self.0.admit_closure(roots, lane).await
    }
}

impl Core {
    pub(super) async fn admit_closure(
        self: &Arc<Self>,
        roots: &[StorePath],
        lane: Lane,
    ) -> ClosureReport {
        self.admit_many(roots, None, lane, true).await
    }

    /// Admits paths, but nothing that they refer to.
    pub(super) async fn admit_all(
        self: &Arc<Self>,
        paths: &[StorePath],
        lane: Lane,
    ) -> ClosureReport {
        // Who names them has them from somebody who knew them; with one cache, it is this one.
        let likely = match &*self.caches.usable() {
            [only] => Some(only.clone()),
            _ => None,
        };
        self.admit_many(paths, likely, lane, false).await
    }

    pub(super) async fn admit_many(
        self: &Arc<Self>,
        roots: &[StorePath],
        likely: Option<Substituter>,
        lane: Lane,
        references_too: bool,
    ) -> ClosureReport {
        let mut report = ClosureReport::default();
        let mut seen: HashSet<StorePathHash> = HashSet::new();
        let roots = roots.iter().filter(|root| seen.insert(root.hash()));
        let mut wanted: Vec<Wanted> = roots.map(|root| (root.clone(), likely.clone())).collect();
        let mut done: VecDeque<(StorePath, Outcome)> = VecDeque::new();
        let mut running: FuturesUnordered<BoxFuture<'_, Came>> = FuturesUnordered::new();
        loop {
            let mut known = Vec::new();
            for (path, likely) in wanted.drain(..) {
                match self.paths.slot(&path.hash()) {
                    Some((_, entry)) if entry.store_path == path => match entry.path {
                        Some(loaded) => done.push_back((path, Ok(loaded))),
                        None => known.push((path, likely)),
                    },
                    _ => running.push(self.admit_one(path, likely, lane)),
                }
            }
            match known.len() {
                0..FEW => running.extend(
                    known
                        .into_iter()
                        .map(|(path, likely)| self.admit_one(path, likely, lane)),
                ),
                _ => running.push(self.admit_known(known)),
            }
            while let Some((path, outcome)) = done.pop_front() {
                match outcome {
                    Ok(admitted) => {
                        // Its references are looked after here; no need to do it again for each.
                        admitted.touch();
                        let references = admitted.references.iter().filter(|_| references_too);
                        let new = references.filter(|reference| seen.insert(reference.hash()));
                        let likely = || Some(admitted.source.substituter.clone());
                        wanted.extend(new.map(|reference| (reference.clone(), likely())));
                        report.admitted.push(path);
                    }
                    Err(error) => report.failed.push((path, error)),
                }
            }
            if !wanted.is_empty() {
                continue;
            }
            match running.next().await {
                Some(came) => {
                    done.extend(came.done);
                    let left = came.left.into_iter();
                    running.extend(left.map(|(path, likely)| self.admit_one(path, likely, lane)));
                }
                None if done.is_empty() => return report,
                None => {}
            }
        }
    }

    fn admit_one(
        self: &Arc<Self>,
        path: StorePath,
        likely: Option<Substituter>,
        lane: Lane,
    ) -> BoxFuture<'_, Came> {
        async move {
            let named = false;
            let outcome = self.admission(&path, lane, Hint { likely, named }).await;
            Came {
                done: vec![(path, outcome)],
                ..Came::default()
            }
        }
        .boxed()
    }

    /// Admits paths that have a slot, from what is kept of them.
    fn admit_known(self: &Arc<Self>, wanted: Vec<Wanted>) -> BoxFuture<'_, Came> {
        async move {
            let mut paths: Vec<StorePath> = wanted.iter().map(|(path, _)| path.clone()).collect();
            // As the database has them.
            paths.sort_unstable();
            let (paths, next) = (Arc::new(paths), Arc::new(AtomicUsize::new(0)));
            let hands = available_parallelism().map_or(1, usize::from) * HANDS;
            let hands = (0..hands.min(paths.len().div_ceil(HANDFUL))).map(|_| {
                let (core, paths, next) = (self.clone(), paths.clone(), next.clone());
                self.runtime.spawn_blocking(move || {
                    while let Some(some) = paths.chunks(HANDFUL).nth(next.fetch_add(1, Relaxed)) {
                        core.take_in_kept(some);
                    }
                })
            });
            // A hand that failed left its paths, which are asked for one by one.
            join_all(hands).await;
            let mut came = Came::default();
            for (path, likely) in wanted {
                match self.loaded(&path.hash()).filter(|p| p.store_path == path) {
                    Some(loaded) => {
                        let outcome = self.with_right_tree(loaded).await.map_err(Arc::new);
                        came.done.push((path, outcome));
                    }
                    None => came.left.push((path, likely)),
                }
            }
            came
        }
        .boxed()
    }

    /// Takes in those of these paths of which all is here. What goes wrong with the others is found again, and
    /// told, when they are admitted by themselves.
    fn take_in_kept(&self, paths: &[StorePath]) {
        let caches = self.caches.usable();
        let names: Vec<&str> = caches.iter().map(Substituter::name).collect();
        let hashes: Vec<StorePathHash> = paths.iter().map(StorePath::hash).collect();
        let Ok(kept) = self.content.db().kept_of(&hashes, &names) else {
            return;
        };
        for (path, kept) in paths.iter().zip(kept) {
            if self.take_in_one(path, &caches, kept).is_some() {
                tracing::debug!(%path, "admitted again");
                self.counters.narinfo_hits.add(1);
                self.counters.admitted.add(1);
            }
        }
    }

    fn take_in_one(
        &self,
        path: &StorePath,
        caches: &[Substituter],
        kept: KeptOfPath,
    ) -> Option<Arc<Path>> {
        let (slot, entry) = self.paths.slot(&path.hash())?;
        if entry.path.is_some() || entry.store_path != *path {
            return None;
        }
        let of_caches = caches.iter().zip(&kept.narinfos);
        let offer = of_caches
            .filter_map(|(cache, text)| Some((cache, text.as_deref()?)))
            .find_map(|(cache, text)| self.kept_offer(path, cache, text, &kept.facts))?;
        let tree = self.load_tree(&offer.narinfo.nar_hash).ok()??;
        self.note_trust(path, &offer, &kept.facts);
        Some(self.enter(path, slot, &offer, tree, kept.facts))
    }
}
