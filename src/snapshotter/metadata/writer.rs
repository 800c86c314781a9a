//! The one thread that changes the database: many callers, one commit.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
};

use redb::Database;
use tokio::sync::oneshot;

use super::{Draft, State, file};
use crate::snapshotter::{
    error::{MetadataError, SnapshotError},
    record::SnapshotId,
};

/// Most changes in one commit: bounds how long the first of them waits for the others.
const MOST_IN_ONE: usize = 256;

/// A change and where its answer goes.
trait Job: Send {
    fn apply(&mut self, draft: &mut Draft);
    fn answer(self: Box<Self>, committed: Result<(), MetadataError>);
}

struct Change<T, F> {
    change: Option<F>,
    outcome: Option<Result<T, SnapshotError>>,
    reply: oneshot::Sender<Result<T, SnapshotError>>,
}

impl<T, F> Job for Change<T, F>
where
    T: Send,
    F: FnOnce(&mut Draft) -> Result<T, SnapshotError> + Send,
{
    fn apply(&mut self, draft: &mut Draft) {
        self.outcome = self.change.take().map(|change| change(draft));
    }

    fn answer(self: Box<Self>, committed: Result<(), MetadataError>) {
        let outcome = match (self.outcome, committed) {
            (Some(Ok(value)), Ok(())) => Ok(value),
            (Some(Ok(_)), Err(e)) => Err(e.into()),
            (Some(Err(e)), _) => Err(e),
            (None, Err(e)) => Err(e.into()),
            (None, Ok(())) => Err(MetadataError::Closed.into()),
        };
        // That nobody waits for it any more does not undo it.
        let _ = self.reply.send(outcome);
    }
}

/// The writing end. Dropped, it lets the thread finish what was submitted, and waits for it.
pub(super) struct Writer {
    next_id: AtomicU64,
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(
        path: &Path,
        database: Database,
        state: Arc<RwLock<Arc<State>>>,
    ) -> Result<Self, MetadataError> {
        let next_id = newest(&state).next_id;
        let (jobs, queue) = mpsc::channel();
        let writing = Writing {
            path: path.into(),
            database: Some(database),
            state,
        };
        let thread = std::thread::Builder::new()
            .name("narfs-snapshots".into())
            .spawn(move || writing.run(&queue))
            .map_err(|e| MetadataError::Failed {
                path: path.into(),
                source: Arc::new(redb::Error::Io(e)),
            })?;
        Ok(Self {
            next_id: AtomicU64::new(next_id),
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    pub(super) fn new_id(&self) -> SnapshotId {
        SnapshotId(self.next_id.fetch_add(1, Relaxed))
    }

    pub(super) fn skip_past(&self, id: SnapshotId) {
        self.next_id.fetch_max(id.0.saturating_add(1), Relaxed);
    }

    pub(super) async fn submit<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Draft) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let (reply, answer) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // If the thread is gone, the job is dropped and with it `reply`: the caller is told.
            let _ = jobs.send(Box::new(Change {
                change: Some(change),
                outcome: None,
                reply,
            }));
        }
        answer.await.unwrap_or(Err(MetadataError::Closed.into()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn newest(state: &RwLock<Arc<State>>) -> Arc<State> {
    state.read().unwrap_or_else(PoisonError::into_inner).clone()
}

struct Writing {
    path: PathBuf,
    /// `None` after a failure from which opening it again has not helped yet.
    database: Option<Database>,
    state: Arc<RwLock<Arc<State>>>,
}

impl Writing {
    fn run(mut self, queue: &mpsc::Receiver<Box<dyn Job>>) {
        while let Ok(first) = queue.recv() {
            let mut jobs = vec![first];
            jobs.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(MOST_IN_ONE - 1));
            let done = self.round(&mut jobs);
            for job in jobs {
                job.answer(done.clone());
            }
        }
    }

    fn round(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<(), MetadataError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.open_again()?,
        };
        let mut draft = Draft::of(&newest(&self.state));
        jobs.iter_mut().for_each(|job| job.apply(&mut draft));
        if !draft.changed.is_empty() {
            // After an I/O error (a full disk is one) redb refuses everything until it is opened
            // again; so it is dropped here.
            file::write(&database, &draft).map_err(|e| file::failed(&self.path, e))?;
            self.replace(draft.state);
        }
        self.database = Some(database);
        Ok(())
    }

    /// Opens it again, and believes the file: whether a commit that failed is in it, nobody knows.
    fn open_again(&self) -> Result<Database, MetadataError> {
        let (database, mut state) = file::open_existing(&self.path)?;
        state.next_id = state.next_id.max(newest(&self.state).next_id);
        self.replace(state);
        Ok(database)
    }

    fn replace(&self, state: State) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
    }
}
