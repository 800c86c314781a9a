//! Getting the bytes of a NAR: who waits for what, and the one fetch that serves them all.
//!
//! A [`Nar`] is one uncompressed archive, shared by every store path with its hash. A reader
//! asks for a range with [`Core::ensure`]; if it is not on disk, the reader becomes a *waiter*
//! and, where none runs, a *job* is started that streams the NAR from its source, or a *piece*
//! is fetched where the format allows random access:
//!
//! ```text
//! waiter ──▶ Nar ──▶ job    (job.rs: which source, when to give up)
//!                     └──▶ pass    (pass.rs: one stream from one source, in its lane)
//!                            └──▶ decode, hash   (decode.rs: two threads, bytes to disk)
//!            └─────▶ pieces (pieces.rs: ranges and blocks)
//! ```
//!
//! Always holds: a waiter is answered when its bytes are readable, when the fetch failed for
//! good, or when its deadline passed; it never answers for the caches ("absent") by itself. A
//! waiter that goes away leaves the fetch to the others. Locks: `Nar::state` is a leaf, held for
//! moments, never across an await or a system call.

mod decode;
mod head;
mod indexed;
mod job;
mod on_disk;
mod pass;
mod pieces;
mod retry;
mod runs;
mod segments;
mod source;

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};

use super::{Core, Lane, Path, StoreError, read_ahead::Kinds, settings::Verify};
use crate::{
    codec::BlockTable,
    content::NarFile,
    nix::{NarHash, StorePath},
    tree::Tree,
};

pub(crate) use decode::channel as packed_channel;
pub(crate) use on_disk::look_at;
pub(crate) use source::{Source, Sources};

/// One NAR and everybody who waits for parts of it.
pub(crate) struct Nar {
    pub hash: NarHash,
    pub size: u64,
    /// The store path that messages name; others may share the NAR.
    pub path: StorePath,
    pub file: Arc<NarFile>,
    pub sources: Sources,
    state: Mutex<State>,
    /// Tells the running job that waiters came or went.
    waiters_changed: Notify,
    /// Milliseconds since `ORIGIN` at which the last piece arrived.
    progress_ms: AtomicU64,
    /// Unix seconds at which the last piece arrived; 0 for never in this process.
    fetched_at: AtomicU64,
    /// Whether the last attempt to get a part of it failed, as the paths' status says.
    pub failing: AtomicBool,
    /// Held by the one that hashes a NAR whose bytes came in pieces.
    verifying: tokio::sync::Mutex<()>,
    /// Small files of it that had to be waited for.
    pub(super) kinds: Kinds,
    /// How far readers that had to be waited for have come.
    runs: Mutex<runs::Runs>,
    /// Held by the one that asks for the chunk index.
    indexing: tokio::sync::Mutex<()>,
    /// What was held against the chunk index on the disk, where nothing else may be read.
    checked: Mutex<indexed::Checked>,
}

struct State {
    waiters: Vec<Waiter>,
    next_id: u64,
    job_runs: bool,
    /// Somebody wants the whole NAR, in this lane, without waiting for it.
    complete_in: Option<Lane>,
    access: Access,
    check: Check,
    pieces: pieces::InFlight,
}

/// How parts of the NAR can be reached.
#[derive(Clone)]
enum Access {
    /// From the front, as the cache serves it.
    Stream,
    /// Any range: the cache keeps it uncompressed.
    Ranges,
    /// Any chunk, once the chunk index is here that this source announced.
    Indexed(Arc<Source>),
    /// Any block of a compressed file whose block table is known.
    Blocks(Arc<BlockTable>, Arc<Source>),
}

/// What the bytes of the NAR are held against while they stream.
#[derive(Clone)]
enum Check {
    /// A tree compiled from a listing: names, kinds and sizes have to be where it says.
    Against(Arc<Tree>),
    /// There is no tree, or it was wrong: compile one from the NAR itself. Readers wait for
    /// its end.
    Index,
}

/// What a reader waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Want {
    /// These bytes of the NAR, readable.
    Bytes(Range<u64>),
    /// These bytes, held against the chunk index on the disk.
    Checked(Range<u64>),
    /// The whole NAR, its hash checked.
    Verified,
    /// Its tree, out of the NAR itself.
    Indexed,
}

/// How a want was fulfilled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// Read it from the NAR's file.
    OnDisk,
    /// The state directory is full: these are the bytes, kept nowhere else.
    Bytes(Vec<u8>),
}

struct Waiter {
    id: u64,
    want: Want,
    lane: Lane,
    unkept: Option<Unkept>,
    answer: oneshot::Sender<Result<Delivered, Arc<StoreError>>>,
}

/// Bytes collected for one waiter while nothing can be kept on disk.
struct Unkept {
    bytes: Vec<u8>,
    have: Vec<Range<u64>>,
}

fn now_ms() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_millis() as u64
}

impl Nar {
    pub fn new(
        path: StorePath,
        file: Arc<NarFile>,
        source: Arc<Source>,
        tree: Option<Arc<Tree>>,
    ) -> Self {
        // Without a tree nobody knows which part of the NAR to ask for.
        let access = tree
            .as_ref()
            .map_or(Access::Stream, |_| source.first_access());
        Self {
            hash: file.hash(),
            size: file.size(),
            path,
            file,
            sources: Sources::new(source),
            state: Mutex::new(State {
                waiters: Vec::new(),
                next_id: 0,
                job_runs: false,
                complete_in: None,
                access,
                check: tree.map_or(Check::Index, Check::Against),
                pieces: pieces::InFlight::default(),
            }),
            waiters_changed: Notify::new(),
            progress_ms: AtomicU64::new(0),
            fetched_at: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            verifying: tokio::sync::Mutex::default(),
            kinds: Kinds::default(),
            runs: Mutex::default(),
            indexing: tokio::sync::Mutex::default(),
            checked: Mutex::default(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic while the lock is held is a bug in one fetch; the data stays consistent
        // because every critical section is a handful of assignments.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn satisfied(&self, want: &Want) -> bool {
        match want {
            Want::Checked(range) if !self.file.verified() => {
                !self.doubts() && self.is_checked(range)
            }
            want => fulfilled(&self.file, want, self.doubts()),
        }
    }

    /// Whether its tree is unknown or in question: then an offset says nothing.
    pub fn doubts(&self) -> bool {
        self.state().check.tree().is_none()
    }

    /// Its tree, if there is one that is not in question.
    pub fn tree(&self) -> Option<Arc<Tree>> {
        self.check().tree().cloned()
    }

    /// Unix seconds at which bytes last arrived in this process.
    pub fn fetched_at(&self) -> Option<u64> {
        Some(self.fetched_at.load(Relaxed)).filter(|at| *at > 0)
    }

    /// The most urgent lane that anybody needs this NAR in.
    fn lane(&self) -> Lane {
        let state = self.state();
        state
            .waiters
            .iter()
            .map(|w| w.lane)
            .max()
            .or(state.complete_in)
            .unwrap_or(Lane::Background)
    }

    /// Whether bytes are being fetched now.
    pub fn is_fetching(&self) -> bool {
        let state = self.state();
        state.job_runs || !state.pieces.is_empty()
    }

    /// Whether any chunk of it can be had, and checked, by itself.
    pub fn is_indexed(&self) -> bool {
        match self.access() {
            Access::Indexed(_) => true,
            Access::Blocks(table, _) => table.has_digests(),
            Access::Stream | Access::Ranges => false,
        }
    }

    /// How many bytes a reader passed without a jump before this read.
    fn passed(&self, range: &Range<u64>) -> u64 {
        let mut runs = self
            .runs
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        runs.passed(range, |between| self.file.is_valid(between))
    }

    /// Whether a chunk index that somebody trusted signed says that its tree is right.
    pub fn is_proven(&self) -> bool {
        matches!(self.access(), Access::Blocks(table, _) if table.has_digests())
    }

    /// Whether it can only be had from the front.
    pub fn is_streamed(&self) -> bool {
        matches!(self.access(), Access::Stream)
    }

    fn access(&self) -> Access {
        self.state().access.clone()
    }

    fn check(&self) -> Check {
        self.state().check.clone()
    }

    fn set_check(&self, check: Check) {
        self.state().check = check;
    }

    fn set_access(&self, access: Access) {
        self.state().access = access;
    }

    /// Blocks of this source's file are no longer asked for.
    fn leave_blocks_of(&self, source: &Source) {
        let mut state = self.state();
        if matches!(&state.access, Access::Blocks(_, of) if std::ptr::eq(&**of, source)) {
            state.access = Access::Stream;
        }
    }

    /// The NAR turned out to be this tree.
    pub fn adopt_tree(&self, tree: Arc<Tree>) {
        self.set_check(Check::Against(tree));
    }

    fn note_progress(&self) {
        self.progress_ms.store(now_ms(), Relaxed);
        self.fetched_at.store(super::unix_now(), Relaxed);
    }

    /// Bytes came from a cache, were unpacked and are on disk: for the record, if there is one.
    fn record_arrival(&self, at: u64, bytes: usize) {
        if let Some(recorder) = crate::trace::recorder() {
            recorder.arrived(self.hash.as_bytes(), at..at + bytes as u64);
        }
    }

    /// Answers everybody whose want is fulfilled by what is on disk now.
    fn answer_satisfied(&self) {
        let done: Vec<Waiter> = {
            let mut state = self.state();
            let doubts = state.check.tree().is_none();
            state
                .waiters
                .extract_if(.., |w| fulfilled(&self.file, &w.want, doubts))
                .collect()
        };
        self.answer(done, |_| Ok(Delivered::OnDisk));
    }

    /// Hands a piece that could not be kept to those who wait for it.
    fn answer_unkept(&self, at: u64, piece: &[u8]) {
        let done: Vec<Waiter> = {
            let mut state = self.state();
            state
                .waiters
                .extract_if(.., |w| w.collect(at, piece, &self.file))
                .collect()
        };
        self.answer(done, |w| {
            let Some(unkept) = w.unkept.take() else {
                return Ok(Delivered::OnDisk);
            };
            Ok(Delivered::Bytes(unkept.bytes))
        });
    }

    fn take_readers(&self) -> Vec<Waiter> {
        self.state()
            .waiters
            .extract_if(.., |w| matches!(w.want, Want::Bytes(_)))
            .collect()
    }

    /// The tree of a path is wrong: who waits for bytes through it waits for the wrong ones.
    pub fn answer_wrong_tree(&self, path: &Path) {
        let error = Arc::new(StoreError::ListingLies {
            path: path.store_path.clone(),
            substituter: path.source.substituter.name().to_owned(),
            reason: "its tree was replaced".into(),
        });
        self.answer(self.take_readers(), |_| Err(error.clone()));
    }

    /// Sends everybody who waits for bytes to ask again, another way.
    fn release_readers(&self) {
        drop(self.take_readers());
        self.waiters_changed.notify_one();
    }

    /// Nothing can be kept now: who waits for a verified NAR on disk waits in vain.
    fn answer_unkeepable(&self) {
        let in_vain: Vec<Waiter> = {
            let mut state = self.state();
            state
                .waiters
                .extract_if(.., |w| w.want == Want::Verified)
                .collect()
        };
        let error = Arc::new(StoreError::Unkept {
            path: self.path.clone(),
        });
        self.answer(in_vain, |_| Err(error.clone()));
    }

    /// Answers everybody with this error.
    fn answer_error(&self, error: &Arc<StoreError>) {
        let all = std::mem::take(&mut self.state().waiters);
        self.answer(all, |_| Err(error.clone()));
    }

    fn answer(
        &self,
        waiters: Vec<Waiter>,
        mut with: impl FnMut(&mut Waiter) -> Result<Delivered, Arc<StoreError>>,
    ) {
        if waiters.is_empty() {
            return;
        }
        for mut waiter in waiters {
            let answer = with(&mut waiter);
            // A waiter that is gone needs no answer.
            let _ = waiter.answer.send(answer);
        }
        self.waiters_changed.notify_one();
    }
}

fn fulfilled(file: &NarFile, want: &Want, doubts: bool) -> bool {
    !doubts
        && match want {
            Want::Bytes(range) => file.is_valid(range.clone()),
            // Nobody waits so for a stream; see `Nar::satisfied`.
            Want::Checked(_) | Want::Verified => file.verified(),
            Want::Indexed => true,
        }
}

impl Waiter {
    /// Takes what this waiter needs from `piece`; true when it has everything.
    fn collect(&mut self, at: u64, piece: &[u8], file: &NarFile) -> bool {
        let Want::Bytes(want) = &self.want else {
            return false;
        };
        let end = at + piece.len() as u64;
        let (from, to) = (want.start.max(at), want.end.min(end));
        if from >= to {
            return false;
        }
        let unkept = self.unkept.get_or_insert_with(|| Unkept {
            bytes: vec![0; (want.end - want.start) as usize],
            have: Vec::new(),
        });
        let into = (from - want.start) as usize..(to - want.start) as usize;
        unkept.bytes[into].copy_from_slice(&piece[(from - at) as usize..(to - at) as usize]);
        unkept.have.push(from..to);
        // What was kept before the disk was full comes from the disk.
        let mut needed = want.start;
        unkept.have.sort_by_key(|r| r.start);
        for have in &unkept.have {
            if have.start > needed {
                let gap = needed..have.start;
                let into = (gap.start - want.start) as usize..(gap.end - want.start) as usize;
                if !file.is_valid(gap.clone())
                    || file.read_at(&mut unkept.bytes[into], gap.start).is_err()
                {
                    return false;
                }
            }
            needed = needed.max(have.end);
        }
        if needed < want.end {
            let into = (needed - want.start) as usize..;
            return file.is_valid(needed..want.end)
                && file.read_at(&mut unkept.bytes[into], needed).is_ok();
        }
        true
    }
}

/// Takes the waiter off the list when its reader goes away first.
struct Enlisted<'a> {
    nar: &'a Nar,
    id: u64,
}

impl Drop for Enlisted<'_> {
    fn drop(&mut self) {
        let gone = {
            let mut state = self.nar.state();
            let before = state.waiters.len();
            state.waiters.retain(|w| w.id != self.id);
            state.waiters.len() != before
        };
        if gone {
            self.nar.waiters_changed.notify_one();
        }
    }
}

impl Core {
    /// What a reader of `range` has to wait for under the store's policy.
    pub(crate) fn want(&self, nar: &Nar, range: Range<u64>) -> Want {
        match self.settings.verify {
            Verify::Stream => Want::Bytes(range),
            Verify::BeforeRead if nar.is_indexed() => Want::Checked(range),
            Verify::BeforeRead => Want::Verified,
        }
    }

    /// Whether a reader of `range` can be served from disk now.
    pub(crate) fn can_serve(&self, nar: &Nar, range: Range<u64>) -> bool {
        nar.satisfied(&self.want(nar, range))
    }

    /// Returns when `want` is fulfilled.
    ///
    /// # Errors
    /// What made the fetch fail for good, or [`StoreError::TimedOut`]; the next call tries anew.
    pub(crate) async fn ensure(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        mut want: Want,
        lane: Lane,
    ) -> Result<Delivered, StoreError> {
        let begun = Instant::now();
        let _hold = nar.file.hold();
        loop {
            if matches!(want, Want::Checked(_)) && !nar.is_indexed() {
                // The index is of no use: nothing but the whole NAR will do.
                want = Want::Verified;
            }
            if nar.satisfied(&want) {
                return Ok(Delivered::OnDisk);
            }
            if let Some(answer) = self.ensure_pieces(nar, &want, lane).await {
                return answer.inspect(|_| self.note_delivery(nar));
            }
            if matches!(want, Want::Checked(_)) {
                continue;
            }
            // No random access, or it was just lost: the stream serves everything.
            if let Some(answer) = self.ensure_streamed(nar, &want, lane, begun).await? {
                self.note_delivery(nar);
                return Ok(answer);
            }
        }
    }

    /// Waits for the NAR's stream; `None`: random access was found, ask for pieces instead.
    async fn ensure_streamed(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        want: &Want,
        lane: Lane,
        begun: Instant,
    ) -> Result<Option<Delivered>, StoreError> {
        let (answer, mut answered) = oneshot::channel();
        let id = {
            let mut state = nar.state();
            let id = state.next_id;
            state.next_id += 1;
            state.waiters.push(Waiter {
                id,
                want: want.clone(),
                lane,
                unkept: None,
                answer,
            });
            id
        };
        let _enlisted = Enlisted { nar, id };
        // Between the first look and enlisting, a piece may have arrived.
        nar.answer_satisfied();
        self.start_job(nar);
        nar.waiters_changed.notify_one();
        nar.progress_ms.fetch_max(now_ms(), Relaxed);
        loop {
            let quiet =
                Duration::from_millis(now_ms().saturating_sub(nar.progress_ms.load(Relaxed)));
            let left = self.settings.read_timeout.saturating_sub(quiet);
            let left = left.min(self.settings.request_cap.saturating_sub(begun.elapsed()));
            if left.is_zero() {
                return Err(StoreError::TimedOut {
                    path: nar.path.clone(),
                    what: "its bytes",
                    waited: begun.elapsed(),
                });
            }
            match tokio::time::timeout(left, &mut answered).await {
                Err(_) => continue,
                Ok(Ok(Ok(delivered))) => return Ok(Some(delivered)),
                Ok(Ok(Err(error))) => return Err(error.into()),
                // Released, to ask again another way.
                Ok(Err(_)) => return Ok(None),
            }
        }
    }

    /// Has the whole NAR fetched and verified in `lane` without waiting for it.
    pub(crate) fn complete(self: &Arc<Self>, nar: &Arc<Nar>, lane: Lane) {
        if nar.file.verified() && !nar.doubts() {
            return;
        }
        {
            let mut state = nar.state();
            state.complete_in = state.complete_in.max(Some(lane));
        }
        nar.waiters_changed.notify_one();
        self.start_job(nar);
    }
}
