//! The one thread that writes: many callers, one transaction, one sync.

use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use redb::WriteTransaction;
use tokio::sync::oneshot;

use super::{Core, sheltered};
use crate::content::ContentError;

/// Most writes in one transaction: bounds how long the first of them waits for the others.
const MOST_IN_ONE: usize = 1024;

/// How long a write that can wait does so for one that can't, to share its sync. Longer than what is between a
/// path's narinfo and its slot; short, because until then a restart would ask for it again.
const WAITS_FOR_COMPANY: Duration = Duration::from_millis(10);

/// What a write says when it is done: the inner error is the caller's alone and changed nothing.
pub(super) type Outcome<T> = Result<Result<T, ContentError>, redb::Error>;

/// A write under way. Await it, or [`Pending::wait`]; dropped, it happens nevertheless.
#[must_use = "await it or wait() for it; only then is it known to be durable"]
pub struct Pending<T>(oneshot::Receiver<Result<T, ContentError>>);

const CLOSED: ContentError = ContentError::Closed {
    what: "the write to the database was done",
};

impl<T> Pending<T> {
    /// Blocks until the write is durable. Not for async tasks: those await it.
    pub fn wait(self) -> Result<T, ContentError> {
        self.0.blocking_recv().unwrap_or(Err(CLOSED))
    }
}

impl<T: Send + 'static> IntoFuture for Pending<T> {
    type Output = Result<T, ContentError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async { self.0.await.unwrap_or(Err(CLOSED)) })
    }
}

/// A write and where its answer goes.
trait Job: Send {
    fn can_wait(&self) -> bool;
    fn apply(&mut self, txn: &WriteTransaction) -> Result<(), redb::Error>;
    fn answer(self: Box<Self>, committed: Result<(), ContentError>);
}

struct Op<T, F> {
    can_wait: bool,
    work: Option<F>,
    value: Option<Result<T, ContentError>>,
    reply: oneshot::Sender<Result<T, ContentError>>,
}

impl<T: Send, F: FnOnce(&WriteTransaction) -> Outcome<T> + Send> Job for Op<T, F> {
    fn can_wait(&self) -> bool {
        self.can_wait
    }

    fn apply(&mut self, txn: &WriteTransaction) -> Result<(), redb::Error> {
        if let Some(work) = self.work.take() {
            self.value = Some(work(txn)?);
        }
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<(), ContentError>) {
        let Self { value, reply, .. } = *self;
        // If nobody waits for it any more, that is the caller's choice.
        let _ = reply.send(committed.and_then(|()| value.unwrap_or(Err(CLOSED))));
    }
}

/// The writing end. Dropped, it lets the thread finish what was submitted, and waits for it.
pub(super) struct Writer {
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(core: Arc<Core>) -> Result<Self, ContentError> {
        let (jobs, queue) = mpsc::channel();
        let path = core.path.clone();
        let thread = std::thread::Builder::new()
            .name("narfs-db".into())
            .spawn(move || run(&core, &queue))
            .map_err(|e| ContentError::io("start the writing thread of", &path, e))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    pub(super) fn submit<T, F>(&self, work: F) -> Pending<T>
    where
        T: Send + 'static,
        F: FnOnce(&WriteTransaction) -> Outcome<T> + Send + 'static,
    {
        self.enqueue(work, false)
    }

    /// As [`Writer::submit`], for what nobody waits for.
    pub(super) fn submit_in_company<T, F>(&self, work: F) -> Pending<T>
    where
        T: Send + 'static,
        F: FnOnce(&WriteTransaction) -> Outcome<T> + Send + 'static,
    {
        self.enqueue(work, true)
    }

    fn enqueue<T, F>(&self, work: F, can_wait: bool) -> Pending<T>
    where
        T: Send + 'static,
        F: FnOnce(&WriteTransaction) -> Outcome<T> + Send + 'static,
    {
        let (reply, pending) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // If the thread is gone, the job is dropped and with it `reply`: the caller is told.
            let _ = jobs.send(Box::new(Op {
                can_wait,
                work: Some(work),
                value: None,
                reply,
            }));
        }
        Pending(pending)
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

fn run(core: &Core, queue: &mpsc::Receiver<Box<dyn Job>>) {
    while let Ok(first) = queue.recv() {
        let mut jobs = vec![first];
        let more = |jobs: &mut Vec<_>| {
            let room = MOST_IN_ONE - jobs.len();
            jobs.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(room));
        };
        more(&mut jobs);
        let begun = Instant::now();
        while jobs.len() < MOST_IN_ONE && jobs.iter().all(|job| job.can_wait()) {
            let left = WAITS_FOR_COMPANY.saturating_sub(begun.elapsed());
            match queue.recv_timeout(left) {
                Ok(job) => jobs.push(job),
                Err(_) => break,
            }
        }
        more(&mut jobs);
        let outcome =
            sheltered(|| core.write(|txn| jobs.iter_mut().try_for_each(|job| job.apply(txn))));
        let error = outcome.err().map(|e| ContentError::database(&core.path, e));
        for job in jobs {
            job.answer(error.as_ref().map_or(Ok(()), |e| Err(again(e))));
        }
    }
}

/// The same error for another caller.
fn again(error: &ContentError) -> ContentError {
    match error {
        ContentError::NoSpace { path } => ContentError::NoSpace { path: path.clone() },
        ContentError::ReadOnly { path } => ContentError::ReadOnly { path: path.clone() },
        ContentError::Database { path, source } => ContentError::Database {
            path: path.clone(),
            source: source.clone(),
        },
        // `ContentError::database` makes no others.
        _ => CLOSED,
    }
}
