//! The record of one process, once it was begun.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use super::Ranges;

/// Requests of the kernel that are kept one by one; 64 bytes each, and a name.
pub const MOST_UPCALLS: usize = 200_000;
/// Requests to caches that are kept one by one; 200 bytes each, and an address.
pub const MOST_REQUESTS: usize = 50_000;
/// Files whose reads are told apart; more are only counted.
const MOST_FILES: usize = 200_000;

static RECORDER: OnceLock<Recorder> = OnceLock::new();

/// The record, if one was begun.
pub fn recorder() -> Option<&'static Recorder> {
    RECORDER.get()
}

/// Begins the record of this process; it goes on until its end.
pub fn begin() -> &'static Recorder {
    RECORDER.get_or_init(Recorder::new)
}

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With what was asked for.
    Done,
    /// What was asked for is not there.
    Absent,
    /// Nobody wanted the rest.
    CutOff,
    /// It failed; for what kind of reason.
    Failed(&'static str),
}

/// A request of the kernel. Times are microseconds from the record's beginning.
#[derive(Debug, Clone)]
pub struct Upcall {
    /// When it came.
    pub at: u64,
    /// When it was answered.
    pub end: u64,
    /// `lookup`, `read`, …
    pub opcode: &'static str,
    /// The thread that asked.
    pub pid: u32,
    /// The inode that it is about.
    pub node: u64,
    /// Of a lookup, the name in it.
    pub name: Option<Box<[u8]>>,
    /// Of a read: offset and size.
    pub range: Option<(u64, u32)>,
    /// Whether it had to wait.
    pub waited: bool,
    /// How it ended.
    pub outcome: Outcome,
}

/// A request to a cache. Times are microseconds from the record's beginning.
#[derive(Debug, Clone)]
pub struct Request {
    /// When it was sent.
    pub at: u64,
    /// When the answer's head came.
    pub answered: Option<u64>,
    /// When the first byte of its body came.
    pub first_byte: Option<u64>,
    /// When it was over.
    pub end: u64,
    /// The cache, without credentials.
    pub cache: Arc<str>,
    /// The file's address, without credentials.
    pub address: Arc<str>,
    /// What of the file was asked for, as HTTP says it.
    pub range: Option<String>,
    /// The store path it is for, if it is for one.
    pub store_path: Option<Arc<str>>,
    /// Its lanes, and from when on.
    pub lanes: Vec<(u64, &'static str)>,
    /// What HTTP says, or would say.
    pub status: Option<u16>,
    /// Bytes of its body.
    pub bytes: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// What was read of one file.
#[derive(Debug, Clone, Default)]
pub struct Read {
    /// Which bytes the kernel asked for.
    pub touched: Ranges,
    /// In how many requests.
    pub reads: u64,
    /// Microseconds that they waited, altogether.
    pub waited: u64,
}

/// Requests of the kernel of one kind, those included that are not kept one by one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// All of them.
    pub all: u64,
    /// Those that waited.
    pub waited: u64,
    /// Microseconds spent on those that did not.
    pub at_once: u64,
}

/// All that was recorded.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// Requests of the kernel, in the order of their ends.
    pub upcalls: Vec<Upcall>,
    /// How many more there were.
    pub upcalls_dropped: u64,
    /// Requests of the kernel by kind.
    pub counted: HashMap<&'static str, Counted>,
    /// Requests to caches, in the order of their ends.
    pub requests: Vec<Request>,
    /// How many more there were, and how many bytes those brought.
    pub requests_dropped: (u64, u64),
    /// What was read, by inode.
    pub reads: HashMap<u64, Read>,
    /// What was unpacked, by the hash of the NAR.
    pub arrived: HashMap<[u8; 32], Ranges>,
}

/// What is recorded.
#[derive(Debug)]
pub struct Recorder {
    origin: Instant,
    recorded: Mutex<Recorded>,
}

impl Recorder {
    fn new() -> Self {
        Self {
            origin: Instant::now(),
            recorded: Mutex::default(),
        }
    }

    /// Microseconds from the beginning to `instant`.
    pub fn time(&self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.origin).as_micros() as u64
    }

    /// Microseconds from the beginning to now.
    pub fn now(&self) -> u64 {
        self.time(Instant::now())
    }

    /// A request of the kernel was answered just now.
    pub fn upcall(&self, upcall: Upcall) {
        let mut recorded = self.recorded();
        let took = upcall.end.saturating_sub(upcall.at);
        let counted = recorded.counted.entry(upcall.opcode).or_default();
        counted.all += 1;
        match upcall.waited {
            true => counted.waited += 1,
            false => counted.at_once += took,
        }
        if let Some((offset, size)) = upcall.range
            && (recorded.reads.len() < MOST_FILES || recorded.reads.contains_key(&upcall.node))
        {
            let read = recorded.reads.entry(upcall.node).or_default();
            read.touched.add(offset..offset + u64::from(size));
            read.reads += 1;
            read.waited += if upcall.waited { took } else { 0 };
        }
        if recorded.upcalls.len() < MOST_UPCALLS {
            recorded.upcalls.push(upcall);
        } else {
            recorded.upcalls_dropped += 1;
        }
    }

    /// A request of the kernel came that is the same whatever it is about.
    pub fn counts(&self, opcode: &'static str) {
        self.recorded().counted.entry(opcode).or_default().all += 1;
    }

    /// A request to a cache is over.
    pub(super) fn request(&self, request: Request) {
        let mut recorded = self.recorded();
        if recorded.requests.len() < MOST_REQUESTS {
            recorded.requests.push(request);
        } else {
            recorded.requests_dropped.0 += 1;
            recorded.requests_dropped.1 += request.bytes;
        }
    }

    /// These bytes of a NAR came from a cache and were unpacked.
    pub fn arrived(&self, nar: &[u8; 32], range: Range<u64>) {
        self.recorded().arrived.entry(*nar).or_default().add(range);
    }

    /// All of it, until now.
    pub fn so_far(&self) -> Recorded {
        self.recorded().clone()
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(at: u64, waited: bool) -> Upcall {
        Upcall {
            at,
            end: at + 10,
            opcode: "read",
            pid: 1,
            node: 7,
            name: None,
            range: Some((at, 20)),
            waited,
            outcome: Outcome::Done,
        }
    }

    #[test]
    fn memory_is_bounded_and_counts_are_not() {
        let recorder = Recorder::new();
        let all = MOST_UPCALLS as u64 + 5;
        for at in 0..all {
            recorder.upcall(read(at, at % 2 == 0));
        }
        let recorded = recorder.so_far();
        assert_eq!(recorded.upcalls.len(), MOST_UPCALLS);
        assert_eq!(recorded.upcalls_dropped, 5);
        let counted = recorded.counted["read"];
        assert_eq!((counted.all, counted.waited), (all, all / 2 + 1));
        let read = &recorded.reads[&7];
        assert_eq!((read.reads, read.touched.len()), (all, all + 19));
        assert_eq!(read.waited, 10 * (all / 2 + 1));
    }

    #[test]
    fn nothing_is_recorded_that_nobody_asked_for() {
        assert!(recorder().is_none());
    }
}
