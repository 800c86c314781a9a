//! One pass: a source's file streamed from the front (or a checkpoint) to its end.

use std::{sync::Arc, time::Duration};

use super::{
    Access, Check, Nar, Source,
    decode::{self, Decoding},
    retry::wait_after,
    segments::Segments,
};
use crate::{
    codec::{self, Checkpoint, Probe},
    content::ContentError,
    nix::Compression,
    store::{Core, Lane, StoreError, lanes::Transfer, settings::Verify},
    substituter::{Deadline, FetchError},
    trace,
};

/// NARs below this are streamed even if they could be reached at random: their whole stream
/// costs about what finding the block table does. In bytes.
const RANDOM_ACCESS_FROM: u64 = 1024 * 1024;

/// Bytes that a request has to bring for the failures before it to be forgotten. Were it any byte,
/// a cache that gives a few and stalls would be asked on and on, and its readers would wait.
const GETS_ON: u64 = 64 * 1024;

/// A transfer that brought nothing for so long leaves the link to the lower lanes, until it goes on.
pub(super) const FALLS_SILENT: Duration = Duration::from_millis(500);

/// How a pass ended well.
pub(super) enum End {
    /// The hash is right; everything is on disk.
    Verified,
    /// The hash is right, but not everything could be kept.
    Unkept,
    /// The file has a block table: readers can be served piece by piece.
    RandomAccess,
}

/// How a pass failed.
pub(super) enum PassError {
    /// The network or the cache failed.
    Fetch(FetchError),
    /// The bytes are not those of the narinfo.
    Damaged(String),
    /// The NAR is not laid out as its listing says.
    TreeWrong(String),
    /// What came is right; what was on disk before, from another source, is not.
    OldContentWrong,
    /// What was on disk went in the middle of it, all or a part: another pass brings it back.
    ContentLost,
    /// The fault is on this machine.
    Local(StoreError),
}

impl PassError {
    fn local(error: StoreError) -> Self {
        match error.root() {
            StoreError::Content(
                ContentError::Damaged { .. }
                | ContentError::Discarded { .. }
                | ContentError::Incomplete { .. }
                | ContentError::NotValid { .. },
            ) => Self::ContentLost,
            _ => Self::Local(error),
        }
    }
}

impl Core {
    pub(super) async fn pass(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        source: &Arc<Source>,
        patience: u32,
    ) -> Result<End, PassError> {
        let check = nar.check();
        let at = starting_point(nar, source, &check);
        let indexing = check.tree().is_none();
        let (feed, mut decoding) = Decoding::new({
            let (nar, source) = (nar.clone(), source.clone());
            move |packed| decode::run(&nar, &source, packed, at, check)
        });
        let downloaded = self.download(nar, source, at.packed, feed, patience).await;
        let decoded = decoding.outcome().await;
        let decoded = decoded.unwrap_or(Err(decode::DecodeError::Died));
        if let Ok(Downloaded::RandomAccess) = downloaded {
            return Ok(End::RandomAccess);
        }
        match (downloaded, decoded) {
            (_, Ok(decoded)) => self.judge(nar, decoded, indexing).await,
            (_, Err(decode::DecodeError::Content(e))) => Err(PassError::local(e.into())),
            // It never began.
            (Err(e), Err(decode::DecodeError::Died)) => Err(PassError::Fetch(e)),
            (_, Err(e @ decode::DecodeError::Died)) => {
                tracing::error!(path = %nar.path, error = %e, "bug");
                Err(PassError::Local(StoreError::Stopping))
            }
            (_, Err(decode::DecodeError::TreeWrong(reason))) => Err(PassError::TreeWrong(reason)),
            // A cut-off is the download's fault, and so is what a decoder makes of half a file.
            (Err(e), _) => Err(PassError::Fetch(e)),
            (Ok(_), Err(e)) => Err(PassError::Damaged(e.to_string())),
        }
    }

    /// A whole NAR came: is it the one that was promised?
    async fn judge(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        decoded: decode::Decoded,
        indexing: bool,
    ) -> Result<End, PassError> {
        let hash = match decoded.hash {
            Some(hash) => hash,
            None if !decoded.kept => return Ok(End::Unkept),
            None => {
                let seen = self.look_at(nar).await.map_err(PassError::local)?;
                match seen.mismatch {
                    Some(reason) if seen.hash == nar.hash => {
                        return Err(PassError::TreeWrong(reason));
                    }
                    _ => seen.hash,
                }
            }
        };
        if hash != nar.hash {
            return Err(PassError::Damaged(format!(
                "its hash is {hash}, the narinfo says {}",
                nar.hash
            )));
        }
        if decoded.mixed
            && decoded.kept
            && self.look_at(nar).await.map_err(PassError::local)?.hash != nar.hash
        {
            return Err(PassError::OldContentWrong);
        }
        if let Some(image) = decoded.index.filter(|_| indexing) {
            self.adopt_index(nar, &image)
                .await
                .map_err(PassError::Local)?;
            nar.answer_satisfied();
        }
        if !decoded.kept {
            return Ok(End::Unkept);
        }
        nar.file
            .mark_verified()
            .map_err(|e| PassError::local(e.into()))?;
        Ok(End::Verified)
    }

    /// Feeds the decoder from the network, in its lane, over as many connections as it takes.
    async fn download(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        source: &Arc<Source>,
        from: u64,
        mut feed: decode::Feed,
        patience: u32,
    ) -> Result<Downloaded, FetchError> {
        let wanted = source.file_size.map(|size| size.saturating_sub(from));
        let mut transfer = self.lanes.enter(nar.lane(), &nar.path, wanted);
        let mut offset = from;
        let mut validator: Option<String> = None;
        let mut failures = 0;
        let mut progress = 0;
        let mut probe = Probing::NotYet;
        loop {
            my_turn(nar, &mut transfer).await;
            tracing::debug!(path = %nar.path, lane = ?nar.lane(), offset, "opening");
            transfer.asks(source.substituter.name(), self.settings.read_timeout);
            let open = Segments::open(
                source,
                offset,
                validator.clone(),
                self.settings.read_timeout,
            );
            let opened = trace::on_behalf(nar.lane().as_str(), &nar.path, open).await;
            let error = match opened {
                Err(error) => error,
                Ok(mut body) => {
                    validator = body.validator().cloned();
                    let mut skip = offset.saturating_sub(body.start());
                    loop {
                        my_turn(nar, &mut transfer).await;
                        match next_chunk(nar, &mut transfer, &mut body).await {
                            Err(error) => break error,
                            Ok(None) => {
                                transfer.set_flows(false);
                                feed.end().await;
                                return Ok(Downloaded::All);
                            }
                            Ok(Some(mut chunk)) => {
                                transfer.set_flows(!body.ends_soon());
                                transfer.received(chunk.len());
                                self.counters.fetched.add(chunk.len() as u64);
                                let cut = skip.min(chunk.len() as u64);
                                bytes::Buf::advance(&mut chunk, cut as usize);
                                skip -= cut;
                                if offset == from {
                                    tracing::debug!(path = %nar.path, "first bytes");
                                }
                                if offset == 0
                                    && probe.is_due(nar, source, &chunk, self.settings.verify)
                                {
                                    probe = Probing::Runs(
                                        self.clone().probe(nar.clone(), source.clone()),
                                    );
                                }
                                offset += chunk.len() as u64;
                                // What was only skipped is no progress.
                                progress += chunk.len() as u64;
                                if progress >= GETS_ON {
                                    failures = 0;
                                }
                                if !chunk.is_empty() && !feed.chunk(chunk).await {
                                    return Ok(Downloaded::All);
                                }
                            }
                        }
                        if probe.found(nar) {
                            return Ok(Downloaded::RandomAccess);
                        }
                    }
                }
            };
            transfer.set_flows(false);
            transfer.failed();
            failures += 1;
            progress = 0;
            let Some(wait) = wait_after(&error, failures, patience) else {
                return Err(error);
            };
            tracing::info!(path = %nar.path, substituter = source.substituter.name(), %error, offset, "resuming");
            tokio::time::sleep(wait).await;
        }
    }

    /// When a request for a NAR must have been answered: a reader that waits gives up then.
    pub(in crate::store) fn open_deadline(&self) -> Deadline {
        Deadline::after(self.settings.read_timeout)
    }

    /// Reads the file's tail for a block table, beside the stream.
    fn probe(self: Arc<Self>, nar: Arc<Nar>, source: Arc<Source>) -> tokio::task::JoinHandle<()> {
        let runtime = self.runtime.clone();
        runtime.spawn(async move {
            let mut tail = PROBE_TAIL;
            loop {
                let ask = source
                    .substituter
                    .nar_tail(&source.url, tail, self.open_deadline());
                let (size, bytes) =
                    match trace::on_behalf(nar.lane().as_str(), &nar.path, ask).await {
                        Ok(found) => found,
                        Err(error) => {
                            tracing::debug!(path = %nar.path, %error, "no tail, no random access");
                            return;
                        }
                    };
                match codec::probe(source.compression, size, &bytes) {
                    Ok(Probe::Need { tail: more }) if more > tail => tail = more,
                    Ok(Probe::Table(table))
                        if table.nar_size() == nar.size && table.blocks().len() > 1 =>
                    {
                        nar.set_access(Access::Blocks(Arc::new(table), source));
                        nar.waiters_changed.notify_one();
                        return;
                    }
                    Ok(_) => return,
                    Err(error) => {
                        tracing::debug!(path = %nar.path, %error, "unusable block table");
                        return;
                    }
                }
            }
        })
    }
}

/// First bytes of a file's end that are asked for; holds the table of a few hundred blocks.
const PROBE_TAIL: u64 = 12 * 1024;

enum Downloaded {
    All,
    RandomAccess,
}

enum Probing {
    NotYet,
    Runs(tokio::task::JoinHandle<()>),
}

impl Probing {
    fn is_due(&self, nar: &Nar, source: &Source, head: &[u8], verify: Verify) -> bool {
        matches!(self, Probing::NotYet)
            && verify == Verify::Stream
            && nar.size >= RANDOM_ACCESS_FROM
            && nar.check().tree().is_some()
            && !source.no_ranges()
            && codec::hints_at_blocks(source.compression, head, nar.size)
    }

    fn found(&self, nar: &Nar) -> bool {
        matches!(self, Probing::Runs(_)) && matches!(nar.access(), Access::Blocks(..))
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        if let Probing::Runs(task) = self {
            task.abort();
        }
    }
}

/// Waits for the lanes, changing over when waiters come or go.
async fn my_turn(nar: &Nar, transfer: &mut Transfer<'_>) {
    loop {
        transfer.set_lane(nar.lane());
        tokio::select! {
            biased;
            () = transfer.turn() => return,
            () = nar.waiters_changed.notified() => {}
        }
    }
}

async fn next_chunk(
    nar: &Nar,
    transfer: &mut Transfer<'_>,
    body: &mut Segments,
) -> Result<Option<bytes::Bytes>, FetchError> {
    // One call until it is done: the time of one that is dropped does not count as a stall, and
    // readers may come and go more often than a stall lasts.
    let ahead = transfer.may_go();
    body.in_lane(nar.lane());
    let chunk = body.next(ahead, nar.lane() == Lane::Demand);
    let silence = tokio::time::sleep(FALLS_SILENT);
    tokio::pin!(chunk, silence);
    let mut silent = false;
    loop {
        tokio::select! {
            biased;
            chunk = &mut chunk => return chunk,
            () = nar.waiters_changed.notified() => transfer.set_lane(nar.lane()),
            () = &mut silence, if !silent => {
                silent = true;
                transfer.set_flows(false);
            }
        }
    }
}

/// The best place to begin: where the first missing byte is, if decoding can start there.
fn starting_point(nar: &Nar, source: &Source, check: &Check) -> Checkpoint {
    if check.tree().is_none() {
        return Checkpoint::START;
    }
    let first_missing = nar
        .file
        .missing(0..nar.size)
        .first()
        .map_or(0, |gap| gap.start);
    match source.compression {
        Compression::None if !source.no_ranges() => Checkpoint {
            packed: first_missing,
            nar: first_missing,
        },
        _ => source.checkpoint_before(&nar.file, first_missing),
    }
}
