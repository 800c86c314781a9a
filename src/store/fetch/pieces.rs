//! Random access: ranges of an uncompressed file, blocks of a compressed one.
//!
//! A piece is one request. Pieces under way are listed in the NAR, so that whoever needs an
//! overlapping range waits for the same request (and raises its lane if he is in more hurry);
//! they go on when their reader leaves.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, join_all},
};
use tokio::sync::watch;

use super::{
    Access, Check, Delivered, Nar, Source, Want, on_disk::Seen, pass::FALLS_SILENT,
    retry::wait_after,
};
use crate::{
    codec::BlockTable,
    content::ContentError,
    store::{Core, Lane, StoreError, cannot_keep, lanes::Transfer},
    substituter::{FetchError, FetchFailure},
    trace,
};

/// Requests begin and end on this grid, in bytes of the NAR: neighbours (the next files of a
/// directory) come along, and at most one grid cell is fetched in front of and behind a file.
const GRID: u64 = 64 * 1024;
/// Largest request, in bytes of the NAR. Greater ones would keep their waiters from bytes that
/// are here already; smaller ones cost more round trips.
const LARGEST: u64 = 4 * 1024 * 1024;
/// The same where a chunk index is: what is fetched ahead is often wanted before all of it is here.
const LARGEST_OF_CHUNKS: u64 = 1024 * 1024;
/// A reader that has read so much without a gap reads on, in bytes.
const READS_ON: u64 = 128 * 1024;
/// Requests under way for one NAR that is completed in the background.
const COMPLETING_AT_ONCE: usize = 2;

type Outcome = Result<Option<Arc<Unkept>>, Arc<PieceError>>;

/// A piece that could not be kept on disk.
#[derive(Debug)]
struct Unkept {
    at: u64,
    bytes: Bytes,
}

#[derive(Debug)]
enum PieceError {
    /// This way does not work with this source; the stream does.
    NoRandomAccess,
    Failed(Arc<StoreError>),
}

/// The pieces of a NAR that are under way.
#[derive(Default)]
pub(super) struct InFlight(Vec<Piece>);

struct Piece {
    range: Range<u64>,
    urgency: watch::Sender<Lane>,
    outcome: Shared<BoxFuture<'static, Outcome>>,
}

impl InFlight {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Core {
    /// Fulfils `want` by pieces; `None`: this NAR can only be streamed.
    pub(super) async fn ensure_pieces(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        want: &Want,
        lane: Lane,
    ) -> Option<Result<Delivered, StoreError>> {
        let (Want::Bytes(range) | Want::Checked(range)) = want else {
            return None;
        };
        self.read_index(nar).await;
        if matches!(nar.access(), Access::Stream) || matches!(nar.check(), Check::Index) {
            return None;
        }
        let checked = matches!(want, Want::Checked(_));
        if let Access::Blocks(table, _) = nar.access()
            && table.has_digests()
        {
            self.copy_known(nar, &table, range).await;
            if checked && let Err(error) = self.check_kept(nar, &table, range).await {
                return Some(Err(error));
            }
        }
        let outcomes = self.request(nar, range, lane)?;
        // A piece has no deadline of its own beyond those of its requests.
        let waited = self.settings.read_timeout.min(self.settings.request_cap);
        let Ok(outcomes) = tokio::time::timeout(waited, join_all(outcomes)).await else {
            return Some(Err(self.piece_timed_out(nar, waited)));
        };
        let mut unkept = Vec::new();
        for outcome in outcomes {
            match outcome {
                Ok(None) => {}
                Ok(Some(piece)) => unkept.push(piece),
                Err(e) => match &*e {
                    PieceError::NoRandomAccess => {
                        nar.set_access(Access::Stream);
                        return None;
                    }
                    PieceError::Failed(error) => return Some(Err(error.clone().into())),
                },
            }
        }
        if checked
            && let Access::Blocks(table, _) = nar.access()
            && let Err(error) = self.check_kept(nar, &table, range).await
        {
            return Some(Err(error));
        }
        if nar.file.complete() && !nar.file.verified() {
            self.verify_in_background(nar);
        }
        if unkept.is_empty() {
            return Some(Ok(Delivered::OnDisk));
        }
        Some(assemble(nar, range, &unkept).map(Delivered::Bytes))
    }

    fn piece_timed_out(&self, nar: &Nar, waited: Duration) -> StoreError {
        StoreError::TimedOut {
            path: nar.path.clone(),
            what: "its bytes",
            waited,
        }
    }

    /// Starts what is missing of `range` and joins what is under way.
    fn request(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        range: &Range<u64>,
        lane: Lane,
    ) -> Option<Vec<Shared<BoxFuture<'static, Outcome>>>> {
        let access = nar.access();
        let grown = match &access {
            Access::Stream | Access::Indexed(_) => return None,
            Access::Ranges => on_grid(range, nar.size),
            Access::Blocks(table, _) => on_blocks(table, range),
        };
        let mut state = nar.state();
        let mut start = Vec::new();
        for gap in nar.file.missing(grown) {
            for free in without_in_flight(gap, &state.pieces) {
                start.extend(split(free, &access));
            }
        }
        for piece in start {
            // A cell that nobody asked for is not worth a request of its own.
            if overlap(&piece, range) {
                let piece = self.start_piece(nar, access.clone(), piece, lane);
                state.pieces.0.push(piece);
            }
        }
        let needed = state.pieces.0.iter().filter(|p| overlap(&p.range, range));
        Some(
            needed
                .map(|p| {
                    p.urgency
                        .send_if_modified(|l| std::mem::replace(l, (*l).max(lane)) < lane);
                    p.outcome.clone()
                })
                .collect(),
        )
    }

    fn start_piece(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        access: Access,
        range: Range<u64>,
        lane: Lane,
    ) -> Piece {
        let (urgency, lane) = watch::channel(lane);
        let (core, owner, piece) = (self.clone(), nar.clone(), range.clone());
        let task = self.runtime.spawn(async move {
            let outcome = core.fetch_piece(&owner, &access, &piece, lane).await;
            owner.state().pieces.0.retain(|p| p.range != piece);
            outcome
        });
        let stopping = |_| Err(Arc::new(PieceError::Failed(Arc::new(StoreError::Stopping))));
        let outcome = task
            .map(move |joined| joined.unwrap_or_else(stopping))
            .boxed()
            .shared();
        Piece {
            range,
            urgency,
            outcome,
        }
    }

    /// One request, tried at every source that can serve it.
    async fn fetch_piece(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        access: &Access,
        range: &Range<u64>,
        lane: watch::Receiver<Lane>,
    ) -> Outcome {
        let no_way = || Err(Arc::new(PieceError::NoRandomAccess));
        let failed = |e: StoreError| Err(Arc::new(PieceError::Failed(Arc::new(e))));
        let (sources, packed) = match access {
            Access::Stream | Access::Indexed(_) => return no_way(),
            Access::Ranges => (nar.sources.usable(), range.clone()),
            Access::Blocks(table, source) => {
                let blocks = table.covering(range.clone());
                let Some((first, last)) = blocks.first().zip(blocks.last()) else {
                    return no_way();
                };
                (vec![source.clone()], first.packed.start..last.packed.end)
            }
        };
        let size = packed.end - packed.start;
        let mut transfer = self.lanes.enter_piece(*lane.borrow(), &nar.path, size);
        let mut last_error = None;
        let mut failed_at = Vec::new();
        for source in sources {
            if matches!(access, Access::Ranges) && !matches!(source.first_access(), Access::Ranges)
            {
                continue;
            }
            failed_at.push(source.clone());
            let generation = nar.file.generation();
            match self
                .get_range(nar, &source, packed.clone(), &mut transfer, lane.clone())
                .await
            {
                Ok(None) => return no_way(),
                Ok(Some(bytes)) => match access {
                    Access::Blocks(table, _) => {
                        let table = table.clone();
                        let (blocks, from) = (range.clone(), packed.start);
                        let decoded = tokio::task::spawn_blocking(move || {
                            decode_blocks(&table, blocks, from, &bytes)
                        })
                        .await;
                        match decoded {
                            Ok(Ok(bytes)) => {
                                return self.keep(nar, generation, range.start, bytes.into());
                            }
                            Ok(Err(reason)) => {
                                let substituter = source.substituter.name().to_owned();
                                let path = nar.path.clone();
                                let error = StoreError::Damaged {
                                    path,
                                    substituter,
                                    reason,
                                };
                                self.quarantine(nar, &source, &error);
                                return match self.others_than(nar, &[source]).await {
                                    true => no_way(),
                                    false => failed(error),
                                };
                            }
                            Err(_) => return failed(StoreError::Stopping),
                        }
                    }
                    _ => return self.keep(nar, generation, range.start, bytes),
                },
                Err(error) => last_error = Some(error),
            }
        }
        match last_error {
            Some(error) if self.others_than(nar, &failed_at).await => {
                tracing::info!(path = %nar.path, %error, "streamed from another cache");
                // Else the stream would find the same way again, and it leads nowhere.
                failed_at.iter().for_each(|source| source.set_no_ranges());
                no_way()
            }
            Some(error) => {
                let error = StoreError::Fetch {
                    path: nar.path.clone(),
                    source: Arc::new(error),
                };
                self.note_nar_failure(nar, &error);
                failed(error)
            }
            None => no_way(),
        }
    }

    /// The bytes of `packed`; `None` when the cache does not serve ranges.
    async fn get_range(
        &self,
        nar: &Nar,
        source: &Source,
        packed: Range<u64>,
        transfer: &mut Transfer<'_>,
        mut lane: watch::Receiver<Lane>,
    ) -> Result<Option<Bytes>, FetchError> {
        let wanted = (packed.end - packed.start) as usize;
        let mut failures = 0;
        loop {
            let error = match self
                .try_range(nar, source, &packed, wanted, transfer, &mut lane)
                .await
            {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            transfer.set_flows(false);
            transfer.failed();
            if no_use_of_ranges(error.failure()) {
                tracing::info!(path = %nar.path, %error, "streamed from now on");
                source.set_no_ranges();
                return Ok(None);
            }
            failures += 1;
            let Some(wait) = wait_after(&error, failures, self.tries) else {
                return Err(error);
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn try_range(
        &self,
        nar: &Nar,
        source: &Source,
        packed: &Range<u64>,
        wanted: usize,
        transfer: &mut Transfer<'_>,
        lane: &mut watch::Receiver<Lane>,
    ) -> Result<Option<Bytes>, FetchError> {
        wait_turn(transfer, lane).await;
        transfer.asks(source.substituter.name(), self.settings.read_timeout);
        let open = source.substituter.nar(
            &source.url,
            Some(packed.clone()),
            None,
            self.open_deadline(),
        );
        let asked_in = lane.borrow().as_str();
        let mut body = trace::on_behalf(asked_in, &nar.path, open).await?;
        if body.start != packed.start || body.encoding.is_some() {
            source.set_no_ranges();
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(wanted);
        while bytes.len() < wanted {
            wait_turn(transfer, lane).await;
            body.in_lane(lane.borrow().as_str());
            let chunk = {
                let next = body.next();
                tokio::pin!(next);
                match tokio::time::timeout(FALLS_SILENT, &mut next).await {
                    Ok(chunk) => chunk,
                    Err(_) => {
                        transfer.set_flows(false);
                        next.await
                    }
                }
            };
            let Some(chunk) = chunk? else { break };
            transfer.set_flows(true);
            transfer.received(chunk.len());
            nar.note_progress();
            self.counters.fetched.add(chunk.len() as u64);
            bytes.extend_from_slice(&chunk);
        }
        transfer.set_flows(false);
        bytes.truncate(wanted);
        if bytes.len() < wanted {
            return Err(source
                .substituter
                .cut_off(&source.url, bytes.len() as u64, wanted as u64));
        }
        Ok(Some(bytes.into()))
    }

    fn keep(&self, nar: &Nar, generation: u64, at: u64, bytes: Bytes) -> Outcome {
        match nar.file.write_at_generation(generation, &bytes, at) {
            Ok(()) => {
                nar.record_arrival(at, bytes.len());
                self.note_arrival(nar);
                nar.answer_satisfied();
                Ok(None)
            }
            // What came is of a source that was found to be damaged meanwhile: asked for anew.
            Err(ContentError::Discarded { .. }) => Ok(None),
            Err(e) if cannot_keep(&e) => {
                tracing::warn!(path = %nar.path, error = %e, "served without being kept");
                Ok(Some(Arc::new(Unkept { at, bytes })))
            }
            Err(e) => Err(Arc::new(PieceError::Failed(Arc::new(e.into())))),
        }
    }

    /// Fetches on behind a reader that reads on: as much as lies in front of it without a gap.
    pub(crate) fn read_ahead(self: &Arc<Self>, nar: &Arc<Nar>, range: &Range<u64>, end: u64) {
        let before = match nar.is_indexed() {
            true => nar.passed(range),
            false => valid_before(nar, range.start),
        };
        if before < READS_ON {
            return;
        }
        let ahead = range.end..(range.end + before.min(self.settings.read_ahead)).min(end);
        self.fetch_ahead(nar, ahead);
    }

    /// Fetches a part of a NAR that nobody waits for yet.
    pub(in crate::store) fn fetch_ahead(self: &Arc<Self>, nar: &Arc<Nar>, ahead: Range<u64>) {
        self.fetch_in(nar, ahead, Lane::ReadAhead);
    }

    /// The same, in another lane.
    pub(in crate::store) fn fetch_in(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        ahead: Range<u64>,
        lane: Lane,
    ) {
        if ahead.is_empty() || nar.file.is_valid(ahead.clone()) {
            return;
        }
        match nar.access() {
            Access::Blocks(table, _) if table.has_digests() => {
                let (core, nar) = (self.clone(), nar.clone());
                self.runtime.spawn(async move {
                    core.copy_known(&nar, &table, &ahead).await;
                    drop(core.request(&nar, &ahead, lane));
                });
            }
            // Started pieces run by themselves.
            _ => drop(self.request(nar, &ahead, lane)),
        }
    }

    /// Brings the rest of a NAR in the background and verifies it.
    pub(super) async fn complete_by_pieces(self: &Arc<Self>, nar: &Arc<Nar>) {
        let lane = nar.state().complete_in.unwrap_or(Lane::Background);
        loop {
            let gaps = nar.file.missing(0..nar.size);
            let Some(first) = gaps.first() else { break };
            let next =
                first.start..(first.start + LARGEST * COMPLETING_AT_ONCE as u64).min(first.end);
            match self.ensure_pieces(nar, &Want::Bytes(next), lane).await {
                Some(Ok(Delivered::OnDisk)) => {}
                // Not kept, or failed: nothing that trying again at once would change. The
                // status shows why, and who asks next starts the fetch anew.
                Some(Ok(Delivered::Bytes(_))) => {
                    nar.state().complete_in = None;
                    nar.answer_unkeepable();
                    return;
                }
                Some(Err(error)) => {
                    nar.state().complete_in = None;
                    nar.answer_error(&Arc::new(error));
                    return;
                }
                // The stream takes over in the next run of the job.
                None => {
                    nar.set_access(Access::Stream);
                    return;
                }
            }
        }
        nar.state().complete_in = None;
        self.verify_complete(nar).await;
    }

    fn verify_in_background(self: &Arc<Self>, nar: &Arc<Nar>) {
        let (core, nar) = (self.clone(), nar.clone());
        self.runtime
            .spawn(async move { core.verify_complete(&nar).await });
    }

    /// Hashes a NAR whose bytes all came by pieces.
    async fn verify_complete(self: &Arc<Self>, nar: &Arc<Nar>) {
        let _one = nar.verifying.lock().await;
        // Not evicted while it is hashed.
        let _hold = nar.file.hold();
        if nar.file.verified() || !nar.file.complete() {
            return;
        }
        match self.look_at(nar).await {
            // All of it is right, but the tree: compiled anew, from the disk.
            Ok(Seen {
                hash,
                mismatch: Some(reason),
            }) if hash == nar.hash => {
                let source = nar.sources.first();
                let name = source.as_ref().map_or("", |s| s.substituter.name());
                drop(self.distrust_tree(nar, name, reason));
                if let Err(error) = nar.file.mark_verified() {
                    tracing::warn!(path = %nar.path, %error, "verified, but that could not be kept");
                }
                self.complete(nar, Lane::ReadAhead);
            }
            Ok(Seen { hash, .. }) if hash == nar.hash => {
                if let Err(error) = nar.file.mark_verified() {
                    tracing::warn!(path = %nar.path, %error, "verified, but that could not be kept");
                }
                let from = nar.sources.first();
                self.note_success(nar, from.as_ref().map_or("", |s| s.substituter.name()));
            }
            Ok(Seen { hash, .. }) => {
                // Pieces may come from several caches; the first is the one that is blamed. A job
                // that runs goes on with the next; else the next reader starts one.
                let source = match nar.access() {
                    Access::Blocks(_, source) => Some(source),
                    _ => nar.sources.usable().into_iter().next(),
                };
                let Some(source) = source else { return };
                let error = StoreError::Damaged {
                    path: nar.path.clone(),
                    substituter: source.substituter.name().to_owned(),
                    reason: format!("its hash is {hash}, the narinfo says {}", nar.hash),
                };
                self.quarantine(nar, &source, &error);
            }
            Err(error) => tracing::warn!(path = %nar.path, %error, "not verified"),
        }
        nar.answer_satisfied();
    }
}

/// Whether a cache gives something else than the part that was asked for: the whole may be right.
fn no_use_of_ranges(failure: &FetchFailure) -> bool {
    matches!(
        failure,
        FetchFailure::NoRanges
            | FetchFailure::OutOfRange { .. }
            | FetchFailure::Protocol(_)
            | FetchFailure::Changed
    )
}

async fn wait_turn(transfer: &mut Transfer<'_>, lane: &mut watch::Receiver<Lane>) {
    loop {
        transfer.set_lane(*lane.borrow_and_update());
        tokio::select! {
            biased;
            () = transfer.turn() => return,
            changed = lane.changed() => if changed.is_err() { return },
        }
    }
}

/// Bytes that are here without a gap up to `offset`.
fn valid_before(nar: &Nar, offset: u64) -> u64 {
    let last_gap = nar.file.missing(0..offset).last().map_or(0, |gap| gap.end);
    offset - last_gap
}

/// The parts of `range` that are here.
fn valid_parts(nar: &Nar, range: &Range<u64>) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    let mut from = range.start;
    for gap in nar.file.missing(range.clone()) {
        parts.push(from..gap.start);
        from = gap.end;
    }
    parts.push(from..range.end);
    parts.retain(|p| p.start < p.end);
    parts
}

/// `range` grown to the grid, within the NAR.
fn on_grid(range: &Range<u64>, size: u64) -> Range<u64> {
    range.start / GRID * GRID..(range.end.div_ceil(GRID) * GRID).min(size)
}

fn on_blocks(table: &BlockTable, range: &Range<u64>) -> Range<u64> {
    let blocks = table.covering(range.clone());
    match blocks.first().zip(blocks.last()) {
        Some((first, last)) => first.nar.start..last.nar.end,
        None => range.clone(),
    }
}

fn without_in_flight(gap: Range<u64>, pieces: &InFlight) -> Vec<Range<u64>> {
    let mut free = vec![gap];
    for piece in &pieces.0 {
        free = free
            .into_iter()
            .flat_map(|f| {
                [
                    f.start..f.end.min(piece.range.start),
                    f.start.max(piece.range.end)..f.end,
                ]
            })
            .filter(|f| f.start < f.end)
            .collect();
    }
    free
}

/// Cuts a range into requests of at most [`LARGEST`] bytes; blocks are never cut.
fn split(range: Range<u64>, access: &Access) -> Vec<Range<u64>> {
    match access {
        Access::Blocks(table, _) => {
            let mut runs: Vec<Range<u64>> = Vec::new();
            let largest = match table.has_digests() {
                true => LARGEST_OF_CHUNKS,
                false => LARGEST,
            };
            for block in table.covering(range) {
                match runs.last_mut() {
                    Some(run) if block.nar.end - run.start <= largest => run.end = block.nar.end,
                    _ => runs.push(block.nar.clone()),
                }
            }
            runs
        }
        _ => (range.start..range.end)
            .step_by(LARGEST as usize)
            .map(|start| start..(start + LARGEST).min(range.end))
            .collect(),
    }
}

fn decode_blocks(
    table: &BlockTable,
    range: Range<u64>,
    from: u64,
    bytes: &[u8],
) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity((range.end - range.start) as usize);
    for block in table.covering(range) {
        let packed = (block.packed.start - from) as usize..(block.packed.end - from) as usize;
        let packed = bytes
            .get(packed)
            .ok_or("its block table points outside the file")?;
        let decoded = table.decode_onto(block, packed, &mut out);
        decoded.map_err(|e| e.to_string())?;
    }
    Ok(out)
}

/// `range` out of pieces that could not be kept and what is on disk.
fn assemble(nar: &Nar, range: &Range<u64>, unkept: &[Arc<Unkept>]) -> Result<Vec<u8>, StoreError> {
    let mut out = vec![0; (range.end - range.start) as usize];
    for gap in valid_parts(nar, range) {
        let into = (gap.start - range.start) as usize..(gap.end - range.start) as usize;
        nar.file.read_at(&mut out[into], gap.start)?;
    }
    for piece in unkept {
        let (from, to) = (
            range.start.max(piece.at),
            range.end.min(piece.at + piece.bytes.len() as u64),
        );
        if from < to {
            let into = (from - range.start) as usize..(to - range.start) as usize;
            out[into].copy_from_slice(
                &piece.bytes[(from - piece.at) as usize..(to - piece.at) as usize],
            );
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_lie_on_the_grid_and_inside_the_nar() {
        assert_eq!(on_grid(&(70_000..70_001), 1 << 20), 65_536..131_072);
        assert_eq!(on_grid(&(0..10), 100), 0..100);
        assert_eq!(on_grid(&(65_536..131_072), 1 << 20), 65_536..131_072);
    }

    #[test]
    fn large_ranges_are_cut() {
        let cut = split(10..10 + 2 * LARGEST + 1, &Access::Ranges);
        assert_eq!(cut.len(), 3);
        assert_eq!((cut[0].start, cut[2].end), (10, 10 + 2 * LARGEST + 1));
        assert!(cut.windows(2).all(|w| w[0].end == w[1].start));
    }
}
