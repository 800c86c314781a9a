//! What the kernel asks, counted, and who waits for an answer.
//!
//! Lock: `waiting` is a leaf, taken for a moment by a request that can't be answered at once, when
//! it begins to wait and when it ends. What is answered at once touches atomics alone.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use fuser::{Errno, Request};

use crate::{
    metrics::{Counter, Histogram, Label, Metric, Scrape, Source, Unit},
    store::NodeId,
    trace::{self, Outcome},
};

const OPCODE: Label = Label {
    name: "opcode",
    bound: "the 13 requests that narfs answers",
};

static REQUESTS: Metric =
    Metric::counter("narfs_fuse_requests", Unit::None, "Requests of the kernel").labels(&[OPCODE]);
static ERRORS: Metric = Metric::counter(
    "narfs_fuse_errors",
    Unit::None,
    "Requests of the kernel that were answered with an error of the store; an absent name is none",
)
.labels(&[Label {
    name: "errno",
    bound: "EIO, ENOSPC, ESTALE, other",
}]);
static WAITING: Metric = Metric::gauge(
    "narfs_fuse_waiting",
    Unit::None,
    "Requests of the kernel whose answer has to be fetched or loaded",
)
.labels(&[OPCODE]);
static READ_TIME: Metric = Metric::times(
    "narfs_fuse_read_duration",
    "Time from a read's coming to its answer, for bytes that were here and bytes that were not",
)
.labels(&[Label {
    name: "result",
    bound: "hit, miss",
}]);
static TAKEOVERS: Metric = Metric::counter(
    "narfs_takeovers",
    Unit::None,
    "Mounts that were taken over from an earlier process",
);

/// All of them.
pub static METRICS: &[&Metric] = &[&REQUESTS, &ERRORS, &WAITING, &READ_TIME, &TAKEOVERS];

/// Requests of the kernel that are answered by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// A name in a directory.
    Lookup,
    /// Attributes.
    Getattr,
    /// A link's target.
    Readlink,
    /// Asked once, then never again.
    Open,
    /// Bytes.
    Read,
    /// Asked once, then never again.
    Opendir,
    /// Names.
    Readdir,
    /// Names and attributes.
    Readdirplus,
    /// What `df` shows.
    Statfs,
    /// An extended attribute.
    Getxattr,
    /// The names of these.
    Listxattr,
    /// Mostly: is it a terminal?
    Ioctl,
    /// Data or hole; asked once.
    Lseek,
}

impl Opcode {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Lookup,
        Self::Getattr,
        Self::Readlink,
        Self::Open,
        Self::Read,
        Self::Opendir,
        Self::Readdir,
        Self::Readdirplus,
        Self::Statfs,
        Self::Getxattr,
        Self::Listxattr,
        Self::Ioctl,
        Self::Lseek,
    ];

    /// Its name, as the kernel has it, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Getattr => "getattr",
            Self::Readlink => "readlink",
            Self::Open => "open",
            Self::Read => "read",
            Self::Opendir => "opendir",
            Self::Readdir => "readdir",
            Self::Readdirplus => "readdirplus",
            Self::Statfs => "statfs",
            Self::Getxattr => "getxattr",
            Self::Listxattr => "listxattr",
            Self::Ioctl => "ioctl",
            Self::Lseek => "lseek",
        }
    }
}

/// The errors that are told apart; all others count as one.
const ERRNOS: [(&str, Errno); 3] = [
    ("EIO", Errno::EIO),
    ("ENOSPC", Errno::ENOSPC),
    ("ESTALE", Errno::ESTALE),
];

/// What a request is about.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    opcode: Opcode,
    pid: u32,
    node: NodeId,
    /// A name in the node, of a lookup.
    name: Option<Vec<u8>>,
    /// Offset and size, of a read.
    range: Option<(u64, u32)>,
    since: Instant,
    outcome: Outcome,
}

impl Asked {
    pub(super) fn named(mut self, name: &[u8]) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// The name that it asks for is not there.
    pub(super) fn absent(&mut self) {
        self.outcome = Outcome::Absent;
    }

    /// The answer is an error.
    pub(super) fn failed(&mut self) {
        self.outcome = Outcome::Failed("error");
    }

    pub(super) fn range(mut self, offset: u64, size: u32) -> Self {
        self.range = Some((offset, size));
        self
    }
}

/// A request that waits for its answer.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// What it asks.
    pub opcode: Opcode,
    /// Who asks: a thread, in the namespace of the mount's maker; 0 where the kernel does not say.
    pub pid: u32,
    /// What it is about.
    pub node: NodeId,
    /// Of a lookup, the name in `node`.
    pub name: Option<Vec<u8>>,
    /// Of a read, offset and size.
    pub range: Option<(u64, u32)>,
    /// Since it came.
    pub age: Duration,
}

/// What the kernel asked of one process's mounts.
#[derive(Debug, Default)]
pub struct Upcalls {
    requests: [Counter; Opcode::ALL.len()],
    errors: [Counter; ERRNOS.len() + 1],
    hits: Histogram,
    misses: Histogram,
    pub(super) takeovers: Counter,
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Asked>>,
}

impl Upcalls {
    /// A request came.
    pub(super) fn comes(&self, opcode: Opcode, request: &Request, node: NodeId) -> Asked {
        self.requests[opcode as usize].add(1);
        Asked {
            opcode,
            pid: request.pid(),
            node,
            name: None,
            range: None,
            since: Instant::now(),
            outcome: Outcome::Done,
        }
    }

    /// How many requests came, by kind.
    pub fn requests(&self) -> impl Iterator<Item = (Opcode, u64)> {
        let counts = self.requests.iter().map(Counter::get);
        Opcode::ALL.into_iter().zip(counts)
    }

    /// A request came that is answered whatever it is about.
    pub(super) fn counts(&self, opcode: Opcode) {
        self.requests[opcode as usize].add(1);
        if let Some(recorder) = trace::recorder() {
            recorder.counts(opcode.as_str());
        }
    }

    /// A read was answered at once.
    pub(super) fn hit(&self, asked: &Asked) {
        self.hits.observe(asked.since.elapsed());
    }

    /// A request was answered, for the record if there is one.
    pub(super) fn answered(&self, asked: Asked, waited: bool) {
        let Some(recorder) = trace::recorder() else {
            return;
        };
        recorder.upcall(trace::Upcall {
            at: recorder.time(asked.since),
            end: recorder.now(),
            opcode: asked.opcode.as_str(),
            pid: asked.pid,
            node: asked.node.0,
            name: asked.name.map(Vec::into_boxed_slice),
            range: asked.range,
            waited,
            outcome: asked.outcome,
        });
    }

    /// A request was answered with an error.
    pub(super) fn error(&self, errno: Errno) {
        if errno == Errno::ENOENT {
            return;
        }
        let at = ERRNOS.iter().position(|(_, e)| *e == errno);
        self.errors[at.unwrap_or(ERRNOS.len())].add(1);
    }

    /// The request waits until what comes back is dropped.
    pub(super) fn waits(self: &Arc<Self>, asked: Asked) -> Waits {
        let id = self.next.fetch_add(1, Relaxed);
        let read = (asked.opcode == Opcode::Read).then_some(asked.since);
        self.table().insert(id, asked);
        Waits {
            upcalls: self.clone(),
            id,
            read,
            outcome: Outcome::Done,
        }
    }

    /// Who waits now, the longest first.
    pub fn waiting(&self) -> Vec<Waiting> {
        let all: Vec<Asked> = self.table().values().cloned().collect();
        let one = |asked: Asked| Waiting {
            opcode: asked.opcode,
            pid: asked.pid,
            node: asked.node,
            name: asked.name,
            range: asked.range,
            age: asked.since.elapsed(),
        };
        all.into_iter().map(one).collect()
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<u64, Asked>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that waits, until this is dropped.
pub(super) struct Waits {
    upcalls: Arc<Upcalls>,
    id: u64,
    /// Of a read: when it came.
    read: Option<Instant>,
    outcome: Outcome,
}

impl Waits {
    /// The answer is an error.
    pub(super) fn error(&mut self, errno: Errno) {
        self.outcome = Outcome::Failed("error");
        self.upcalls.error(errno);
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let asked = self.upcalls.table().remove(&self.id);
        if let Some(since) = self.read {
            self.upcalls.misses.observe(since.elapsed());
        }
        if let Some(asked) = asked {
            let outcome = self.outcome;
            self.upcalls.answered(Asked { outcome, ..asked }, true);
        }
    }
}

impl Source for Upcalls {
    fn collect(&self, into: &mut Scrape) {
        for (opcode, requests) in Opcode::ALL.iter().zip(&self.requests) {
            into.count(&REQUESTS, &[opcode.as_str()], requests.get());
        }
        let names = ERRNOS.iter().map(|(name, _)| *name).chain(["other"]);
        for (name, errors) in names.zip(&self.errors) {
            into.count(&ERRORS, &[name], errors.get());
        }
        let waiting = self.waiting();
        for opcode in Opcode::ALL {
            let these = waiting.iter().filter(|w| w.opcode == opcode).count();
            into.level(&WAITING, &[opcode.as_str()], these as i64);
        }
        into.times(&READ_TIME, &["hit"], &self.hits);
        into.times(&READ_TIME, &["miss"], &self.misses);
        into.count(&TAKEOVERS, &[], self.takeovers.get());
    }
}
