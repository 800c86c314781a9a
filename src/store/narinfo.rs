//! Which cache has a store path, and whether what it says is trusted.
//!
//! Caches are asked in their order. The next one is asked when the one before does not have the
//! path, failed, or did not answer within [`Settings::hedge_after`]; the first trusted answer
//! wins. "No cache has it" is only said when all of them said so: an error in between is an
//! error, and is not remembered.
//!
//! [`Settings::hedge_after`]: super::Settings::hedge_after

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{SemaphorePermit, watch};

use super::{Core, Lane, StoreError, early::Early, single_flight::Urgency, unix_now};
use crate::{
    chunks,
    codec::{self, CodecError},
    content::{NarinfoTtl, PathFacts},
    nix::{MAX_NARINFO, NarInfo, StorePath, Trust},
    substituter::{Deadline, Document, FetchError, FetchFailure, Substituter},
    trace,
};

/// Longest listing that is unpacked, in bytes: one of ten million entries.
const MAX_LISTING: usize = 1 << 30;
/// Packed listings above this are unpacked on a thread of their own, in bytes: a millisecond's work.
const UNPACK_ELSEWHERE: usize = 16 * 1024;

/// A trusted narinfo and the cache that gave it.
pub(super) struct Offer {
    pub narinfo: NarInfo,
    pub substituter: Substituter,
    /// A trusted key says that there is a chunk index.
    pub chunks: bool,
    /// What to remember of its having been found to be trusted; none where only the cache is.
    pub trusted: Option<String>,
    /// The path's facts, where they were looked up for this.
    pub facts: Option<PathFacts>,
    /// What was asked for along with it.
    pub early: Arc<Early>,
}

/// What one cache said.
enum Answer {
    Offer(Box<Offer>),
    Absent,
    Failed(StoreError),
}

impl Core {
    fn ttl(&self) -> NarinfoTtl {
        NarinfoTtl {
            positive: self.settings.positive_ttl.as_secs(),
            negative: self.settings.negative_ttl.as_secs(),
        }
    }

    /// Forgets which caches had no narinfo of a path, where that no longer counts. Waits for the disk.
    pub(super) fn prune_answers(&self) {
        match self.content.db().prune_negative(unix_now(), self.ttl()) {
            Ok(answers) => tracing::debug!(answers, "forgotten, as too old"),
            Err(error) => tracing::debug!(%error, "old answers of caches are not forgotten yet"),
        }
    }

    /// A place among the small requests; background work leaves some to those who wait, and
    /// needs none of its own any more once somebody waits for it.
    async fn small_request(&self, mut lane: Urgency) -> Option<[SemaphorePermit<'_>; 2]> {
        // Neither semaphore is ever closed; were one, the request would just go on unbounded.
        let waited_for = async { lane.wait_for(|lane| *lane == Lane::Demand).await.map(drop) };
        let background = tokio::select! {
            biased;
            _ = waited_for => None,
            place = self.small_background.acquire() => Some(place.ok()?),
        };
        let background = match background {
            Some(place) => place,
            None => self.small_background.acquire_many(0).await.ok()?,
        };
        Some([background, self.small.acquire().await.ok()?])
    }

    /// What is known of a path without asking anybody: the newest trusted narinfo that was kept.
    ///
    /// A stale one counts too: what it says of the NAR never changes, only whether the cache
    /// still has it may.
    pub(super) fn known_offer(&self, path: &StorePath) -> Result<Option<Offer>, StoreError> {
        let mut kept = self
            .content
            .db()
            .narinfos(&path.hash(), unix_now(), self.ttl())?;
        kept.sort_by_key(|k| !k.fresh);
        if kept.iter().all(|k| k.text.is_none()) {
            return Ok(None);
        }
        let facts = self.content.db().facts(&path.hash())?;
        for substituter in &self.caches.usable() {
            let of_this = kept.iter().filter(|k| k.substituter == substituter.name());
            for text in of_this.filter_map(|k| k.text.as_deref()) {
                if let Some(offer) = self.kept_offer(path, substituter, text, &facts) {
                    return Ok(Some(offer));
                }
            }
        }
        Ok(None)
    }

    /// A narinfo that was kept, if it is of this path and trusted.
    pub(super) fn kept_offer(
        &self,
        path: &StorePath,
        substituter: &Substituter,
        text: &[u8],
        facts: &PathFacts,
    ) -> Option<Offer> {
        match self.judge_narinfo(substituter, path, text, facts.trusted.as_deref()) {
            Answer::Offer(offer) => Some(Offer {
                facts: Some(facts.clone()),
                ..*offer
            }),
            Answer::Absent | Answer::Failed(_) => None,
        }
    }

    /// What is kept of a path, whichever cache said it, with that cache's name: for showing and
    /// naming what is here. Bytes are never fetched by it: the cache may no longer be configured.
    pub(super) fn kept_narinfo(
        &self,
        path: &StorePath,
    ) -> Result<Option<(NarInfo, String)>, StoreError> {
        if let Some(offer) = self.known_offer(path)? {
            return Ok(Some((offer.narinfo, offer.substituter.name().to_owned())));
        }
        let kept = self
            .content
            .db()
            .narinfos(&path.hash(), unix_now(), self.ttl())?;
        Ok(kept.into_iter().find_map(|k| {
            let narinfo = NarInfo::parse(&k.text?, &path.hash()).ok()?;
            (narinfo.store_path == *path).then_some((narinfo, k.substituter))
        }))
    }

    /// Asks the caches for a path.
    ///
    /// # Errors
    /// [`StoreError::Absent`] when all of them said that they do not have it; otherwise what
    /// the most important cache that failed said.
    pub(super) async fn find_offer(
        self: &Arc<Self>,
        path: &StorePath,
        lane: &Urgency,
    ) -> Result<Offer, StoreError> {
        let kept = self
            .content
            .db()
            .narinfos(&path.hash(), unix_now(), self.ttl())?;
        let known_absent = |s: &Substituter| {
            kept.iter()
                .filter(|k| k.fresh && k.substituter == s.name())
                .any(|k| match &k.text {
                    // The narinfo may be that of another name with this digest.
                    Some(text) => {
                        matches!(self.judge_narinfo(s, path, text, None), Answer::Absent)
                    }
                    None => true,
                })
        };
        let absent = || StoreError::Absent {
            path: path.clone(),
            caches: self.cache_names(),
        };
        let usable = self.caches.usable();
        if !usable.is_empty() && usable.iter().all(known_absent) {
            self.counters.narinfo_hits.add(1);
            return Err(absent());
        }
        let caches = self.ordered_caches().await;
        if let (true, Some(cache)) = (caches.is_empty(), self.caches.all().first()) {
            return Err(StoreError::ForeignStore {
                path: path.clone(),
                substituter: cache.substituter.name().to_owned(),
                store_dir: cache.foreign.clone().unwrap_or_default(),
            });
        }
        let mut left = caches.iter().filter(|s| !known_absent(s));
        let mut asked = FuturesUnordered::new();
        let mut failed: Option<StoreError> = None;
        loop {
            if asked.is_empty() {
                match left.next() {
                    Some(next) => asked.push(self.ask(next, path, lane)),
                    None => break,
                }
            }
            let hedge = tokio::time::sleep(self.settings.hedge_after);
            tokio::select! {
                answer = asked.next() => match answer {
                    Some(Answer::Offer(offer)) => return Ok(*offer),
                    Some(Answer::Failed(error)) => failed = Some(failed.unwrap_or(error)),
                    Some(Answer::Absent) | None => {}
                },
                () = hedge => asked.extend(left.next().map(|next| self.ask(next, path, lane))),
            }
        }
        Err(failed.unwrap_or_else(absent))
    }

    /// The cache of this name.
    pub(super) fn substituter_named(&self, name: &str) -> Option<Substituter> {
        self.caches.usable().into_iter().find(|s| s.name() == name)
    }

    fn cache_names(&self) -> String {
        self.caches
            .usable()
            .iter()
            .map(Substituter::name)
            .collect::<Vec<_>>()
            .join(", ")
    }

    async fn ask(&self, substituter: &Substituter, path: &StorePath, lane: &Urgency) -> Answer {
        let _place = self.small_request(lane.clone()).await;
        self.counters.narinfo_misses.add(1);
        let (lane, ask) = (lane.borrow().as_str(), self.narinfo_text(substituter, path));
        let text = match trace::on_behalf(lane, path, ask).await {
            Ok(text) => text,
            Err(e) => return Answer::Failed(self.fetch_error(path, e)),
        };
        let answer = match &text {
            Some(text) => self.judge_narinfo(substituter, path, text, None),
            None => Answer::Absent,
        };
        if !matches!(answer, Answer::Failed(_)) {
            let kept = self.content.db().put_narinfos(
                substituter.name(),
                vec![(path.hash(), text)],
                unix_now(),
            );
            // Not awaited: a narinfo that is lost in a crash is asked for again.
            drop(kept);
        }
        answer
    }

    pub(super) async fn narinfo_text(
        &self,
        substituter: &Substituter,
        path: &StorePath,
    ) -> Result<Option<Vec<u8>>, FetchError> {
        let deadline = Deadline::after(self.small_deadline());
        let document = substituter.narinfo(&path.hash(), deadline).await?;
        Ok(document.map(|d| {
            match codec::decode_small(d.encoding.as_deref(), &d.bytes, MAX_NARINFO) {
                Ok(text) => text,
                Err(_) => d.bytes,
            }
        }))
    }

    /// Small requests may take longer than a lookup waits: the next lookup finds the answer.
    fn small_deadline(&self) -> Duration {
        self.settings.lookup_timeout * 4
    }

    pub(super) fn fetch_error(&self, path: &StorePath, source: FetchError) -> StoreError {
        StoreError::Fetch {
            path: path.clone(),
            source: Arc::new(source),
        }
    }

    /// What a cache's narinfo is worth; `remembered` is what was found of it in an earlier run, which
    /// counts if it is of this very text and of these keys.
    fn judge_narinfo(
        &self,
        substituter: &Substituter,
        path: &StorePath,
        text: &[u8],
        remembered: Option<&str>,
    ) -> Answer {
        let name = || substituter.name().to_owned();
        let narinfo = match NarInfo::parse(text, &path.hash()) {
            Ok(narinfo) => narinfo,
            Err(source) => {
                let source = Box::new(source);
                return Answer::Failed(StoreError::NarInfo {
                    path: path.clone(),
                    substituter: name(),
                    source,
                });
            }
        };
        if narinfo.store_path != *path {
            // The digest is that of another name: this very path does not exist.
            return Answer::Absent;
        }
        let trusted = substituter.trusted() || !self.settings.require_signatures;
        let judgement = self.settings.keys.judgement(text);
        let proven = remembered == Some(&*judgement)
            || narinfo.trust(&self.settings.keys) != Trust::Untrusted;
        match proven || trusted {
            false => Answer::Failed(StoreError::Untrusted {
                path: path.clone(),
                substituter: name(),
            }),
            true => Answer::Offer(Box::new(Offer {
                trusted: proven.then_some(judgement),
                facts: None,
                early: Arc::default(),
                chunks: chunks::announced(&narinfo, &self.settings.keys),
                narinfo,
                substituter: substituter.clone(),
            })),
        }
    }

    /// The trusted narinfo of this one cache, kept or asked for.
    pub(super) async fn narinfo_from(
        &self,
        substituter: &Substituter,
        path: &StorePath,
    ) -> Result<Option<NarInfo>, StoreError> {
        let kept =
            self.content
                .db()
                .narinfo(substituter.name(), &path.hash(), unix_now(), self.ttl())?;
        let answer = match kept.filter(|k| k.fresh).map(|k| k.text) {
            Some(None) => Answer::Absent,
            Some(Some(text)) => self.judge_narinfo(substituter, path, &text, None),
            None => {
                self.ask(substituter, path, &watch::channel(Lane::Demand).1)
                    .await
            }
        };
        match answer {
            Answer::Offer(offer) => Ok(Some(offer.narinfo)),
            Answer::Absent => Ok(None),
            Answer::Failed(error) => Err(error),
        }
    }

    /// The listing of a path as JSON; `None` if the cache has none.
    pub(super) async fn listing_text(
        &self,
        substituter: &Substituter,
        path: &StorePath,
        lane: &Urgency,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let _place = self.small_request(lane.clone()).await;
        let deadline = Deadline::after(self.small_deadline());
        let asked_in = lane.borrow().as_str();
        let hash = path.hash();
        let ask = substituter.listing(&hash, deadline);
        let document = match trace::on_behalf(asked_in, path, ask).await {
            Ok(Some(document)) => document,
            Ok(None) => return Ok(None),
            Err(error) if of_this_listing(error.failure()) => {
                tracing::warn!(%path, %error, "listing can't be had");
                return Ok(None);
            }
            Err(e) => return Err(self.fetch_error(path, e)),
        };
        match unpack(document).await {
            Some(Ok(text)) => Ok(Some(text)),
            None => Err(StoreError::Stopping),
            Some(Err(error)) => {
                // The path can still be had: from its NAR.
                tracing::warn!(%path, substituter = substituter.name(), %error, "listing can't be unpacked");
                Ok(None)
            }
        }
    }
}

/// Whether it is this listing that can't be had, for good, and not the cache: then the path's NAR
/// tells what is in it.
fn of_this_listing(failure: &FetchFailure) -> bool {
    matches!(
        failure,
        FetchFailure::TooLarge { .. }
            | FetchFailure::Protocol(_)
            | FetchFailure::RedirectLoop { .. }
            | FetchFailure::BadAddress(_)
            | FetchFailure::Downgrade(_)
    )
}

/// Unpacks a listing, off the runtime's threads if it is large; `None` when the runtime ends.
async fn unpack(document: Document) -> Option<Result<Vec<u8>, CodecError>> {
    let unpack = |d: Document| codec::decode_small(d.encoding.as_deref(), &d.bytes, MAX_LISTING);
    match document.bytes.len() {
        0..UNPACK_ELSEWHERE => Some(unpack(document)),
        _ => tokio::task::spawn_blocking(move || unpack(document))
            .await
            .ok(),
    }
}
