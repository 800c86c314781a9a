//! The job of one NAR: which source is streamed, and what follows when it fails.
//!
//! One job runs for a NAR at a time. It ends when nobody waits and the NAR is verified, or when
//! every source failed; then all waiters get the error, nothing is remembered but what the
//! status shows, and the next reader starts a new job.

use std::sync::Arc;

use super::{Access, Check, Nar, Source, pass::End, pass::PassError};
use crate::{
    chunks,
    content::ContentError,
    store::{Core, Event, Lane, StoreError},
};

/// How often a NAR may lose what is kept of it while it is streamed: a disk that does so again and again keeps
/// nothing, and its readers are told.
const MOST_LOSSES: u32 = 3;

impl Core {
    /// Starts the NAR's job unless it runs.
    pub(super) fn start_job(self: &Arc<Self>, nar: &Arc<Nar>) {
        {
            let mut state = nar.state();
            if state.job_runs {
                return;
            }
            state.job_runs = true;
        }
        let (core, nar) = (self.clone(), nar.clone());
        self.runtime.spawn(async move {
            loop {
                core.run_job(&nar).await;
                let mut state = nar.state();
                let wanted = state.complete_in.is_some()
                    && (!nar.file.verified() || state.check.tree().is_none());
                if state.waiters.is_empty() && !wanted {
                    state.job_runs = false;
                    return;
                }
            }
        });
    }

    async fn run_job(self: &Arc<Self>, nar: &Arc<Nar>) {
        // What arrives stays until it is whole and verified, however full it gets.
        let _hold = nar.file.hold();
        match self.try_sources(nar).await {
            Ok(Done::Verified) => {
                nar.state().complete_in = None;
                nar.answer_satisfied();
            }
            Ok(Done::NobodyWaits) => {}
            Ok(Done::RandomAccess) => {
                // Dropping the answers tells the readers to ask for pieces.
                nar.release_readers();
                if nar.state().complete_in.is_some() || !nar.state().waiters.is_empty() {
                    self.complete_by_pieces(nar).await;
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                nar.state().complete_in = None;
                self.note_nar_failure(nar, &error);
                nar.answer_error(&error);
            }
        }
    }

    async fn try_sources(self: &Arc<Self>, nar: &Arc<Nar>) -> Result<Done, StoreError> {
        let mut last = None;
        loop {
            let sources = nar.sources.usable();
            for (failed, source) in sources.iter().enumerate() {
                // With another cache at hand, one that fails is left at once.
                let patience = if sources.len() > failed + 1 {
                    1
                } else {
                    self.tries
                };
                match self.one_source(nar, source, patience).await {
                    Ok(done) => return Ok(done),
                    Err(SourceFailed::Try(error)) => last = Some(error),
                    Err(SourceFailed::Stop(error)) => return Err(error),
                }
            }
            if nar.sources.ask_others() && self.find_sources(nar).await {
                continue;
            }
            return Err(last.unwrap_or_else(|| quarantine_error(nar)));
        }
    }

    /// Streams from one source until the NAR is verified or the source is given up.
    async fn one_source(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        source: &Arc<Source>,
        patience: u32,
    ) -> Result<Done, SourceFailed> {
        let mut lost = 0;
        loop {
            if nar.file.verified() {
                if !nar.doubts() {
                    return Ok(Done::Verified);
                }
                self.index_on_disk(nar).await.map_err(SourceFailed::Stop)?;
                continue;
            }
            if !matches!(nar.access(), Access::Stream) {
                return Ok(Done::RandomAccess);
            }
            let substituter = source.substituter.name();
            match self.pass(nar, source, patience).await {
                Ok(End::Verified) => {
                    nar.sources.prefer(source);
                    self.note_success(nar, substituter);
                    return Ok(Done::Verified);
                }
                Ok(End::RandomAccess) => return Ok(Done::RandomAccess),
                Ok(End::Unkept) => {
                    nar.state().complete_in = None;
                    nar.answer_unkeepable();
                    if nar.state().waiters.is_empty() {
                        return Ok(Done::NobodyWaits);
                    }
                }
                Err(PassError::TreeWrong(reason)) => {
                    drop(self.distrust_tree(nar, substituter, reason))
                }
                Err(PassError::Damaged(reason)) => {
                    let error = StoreError::Damaged {
                        path: nar.path.clone(),
                        substituter: substituter.to_owned(),
                        reason,
                    };
                    self.quarantine(nar, source, &error);
                    return Err(SourceFailed::Try(error));
                }
                Err(PassError::OldContentWrong) => {
                    tracing::error!(path = %nar.path, "content kept earlier is damaged; dropped and fetched again");
                    nar.file
                        .discard()
                        .map_err(|e| SourceFailed::Stop(e.into()))?;
                    self.emit(Event::ContentDropped(nar.hash));
                }
                Err(PassError::ContentLost) if lost < MOST_LOSSES => lost += 1,
                Err(PassError::ContentLost) => {
                    return Err(SourceFailed::Stop(StoreError::Content(
                        ContentError::Discarded { hash: nar.hash },
                    )));
                }
                Err(PassError::Fetch(error)) => {
                    return Err(SourceFailed::Try(StoreError::Fetch {
                        path: nar.path.clone(),
                        source: Arc::new(error),
                    }));
                }
                Err(PassError::Local(error)) => return Err(SourceFailed::Stop(error)),
            }
        }
    }

    /// The tree came from a listing that the NAR contradicts: from now on the NAR is indexed.
    pub(super) fn distrust_tree(
        &self,
        nar: &Nar,
        substituter: &str,
        reason: String,
    ) -> Arc<StoreError> {
        let path = nar.path.clone();
        let error = Arc::new(StoreError::ListingLies {
            path,
            substituter: substituter.to_owned(),
            reason,
        });
        self.note_nar_failure(nar, &error);
        nar.set_check(Check::Index);
        nar.set_access(Access::Stream);
        // Who waits for bytes waits on: if the NAR is damaged and not the listing, another cache
        // serves them; else they are refused when the right tree is there.
        error
    }

    /// As found by a reader of a piece; starts the stream that finds out.
    pub(crate) fn listing_lied(self: &Arc<Self>, nar: &Arc<Nar>, reason: String) -> StoreError {
        let source = nar.sources.first();
        let name = source.as_ref().map_or("", |s| s.substituter.name());
        let error = self.distrust_tree(nar, name, reason);
        self.complete(nar, Lane::ReadAhead);
        error.into()
    }

    /// Drops what a cache sent, tells the front ends, and does not ask it again for a while.
    pub(super) fn quarantine(&self, nar: &Nar, source: &Source, error: &StoreError) {
        let reason = match error {
            StoreError::Damaged { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        source.quarantine(&reason);
        nar.leave_blocks_of(source);
        if let Err(error) = nar.file.discard() {
            tracing::error!(path = %nar.path, %error, "damaged content could not be dropped");
        }
        self.counters.quarantined.add(1);
        tracing::error!(path = %nar.path, substituter = source.substituter.name(), %reason, "quarantined");
        self.note_nar_failure(nar, error);
        self.emit(Event::ContentDropped(nar.hash));
    }

    /// Whether the NAR can be had from another source than `these`.
    pub(super) async fn others_than(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        these: &[Arc<Source>],
    ) -> bool {
        let others = || {
            nar.sources
                .usable()
                .iter()
                .any(|s| !these.iter().any(|t| Arc::ptr_eq(s, t)))
        };
        others() || (nar.sources.ask_others() && self.find_sources(nar).await && others())
    }

    /// Asks the caches that were not asked yet whether they have the NAR; true if one does.
    async fn find_sources(self: &Arc<Self>, nar: &Arc<Nar>) -> bool {
        let mut found = false;
        for substituter in &self.caches.usable() {
            if nar.sources.has(substituter) {
                continue;
            }
            match self.narinfo_from(substituter, &nar.path).await {
                Ok(Some(narinfo))
                    if narinfo.nar_hash == nar.hash && narinfo.nar_size == nar.size =>
                {
                    nar.sources.add(Arc::new(Source::new(
                        substituter.clone(),
                        &narinfo,
                        chunks::announced(&narinfo, &self.settings.keys),
                    )));
                    found = true;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(path = %nar.path, %error, "asked for another source");
                    nar.sources.ask_others_again();
                }
            }
        }
        found
    }
}

enum Done {
    Verified,
    RandomAccess,
    NobodyWaits,
}

enum SourceFailed {
    /// Another source may do.
    Try(StoreError),
    /// No source can help: the fault is here.
    Stop(StoreError),
}

fn quarantine_error(nar: &Nar) -> StoreError {
    let (substituter, reason) = nar
        .sources
        .quarantine_reason()
        .unwrap_or_else(|| ("no cache".into(), "no source is known".into()));
    StoreError::Damaged {
        path: nar.path.clone(),
        substituter,
        reason,
    }
}
