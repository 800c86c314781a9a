//! Which parts readers ask for while a program starts: ranges of NARs, each byte once, in order.
//!
//! What the kernel's page cache answers is not seen. So only cold starts are recorded, of which it
//! had nothing. A recording ends by itself when nothing new was read for a while.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{
    content::Pending,
    nix::StorePathHash,
    profile::{MAX_RANGES, Profile},
    store::{Core, Path, Slot},
    trace::Ranges,
};

/// A start is over when nothing new was read for so long.
const QUIET: Duration = Duration::from_secs(5);
/// A start is over after so long, whatever is read: what comes then is the program's work.
const LONGEST: Duration = Duration::from_secs(60);
/// How often that is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Starts that are recorded at the same time.
const MOST: usize = 16;

#[derive(Debug)]
struct Recording {
    root: Slot,
    began: Instant,
    last: Instant,
    seen: HashMap<Slot, Ranges>,
    order: Vec<(Slot, Range<u64>)>,
    /// What was fetched by a profile.
    fetched: HashMap<Slot, Ranges>,
    /// The closure of the root as it was known when the table of paths had this version.
    closure: (u64, Arc<HashSet<Slot>>),
}

impl Recording {
    /// How many bytes were fetched by a profile and not read.
    fn unread(&self) -> u64 {
        let unread = |(slot, fetched): (&Slot, &Ranges)| match self.seen.get(slot) {
            None => fetched.len(),
            Some(seen) => fetched
                .iter()
                .flat_map(|part| seen.missing(part))
                .map(|part| part.end - part.start)
                .sum(),
        };
        self.fetched.iter().map(unread).sum()
    }
}

/// The starts that are being recorded.
#[derive(Debug, Default)]
pub(in crate::store) struct Recordings {
    /// How many they are: while there are none, a read costs a load.
    count: AtomicUsize,
    all: Mutex<Vec<Recording>>,
    /// What will be started, and whose profile was followed ahead of that.
    prepared: Mutex<HashSet<Slot>>,
}

impl Recordings {
    fn all(&self) -> MutexGuard<'_, Vec<Recording>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its profile is followed ahead of its start; false if it is already.
    pub(super) fn prepare(&self, root: Slot) -> bool {
        self.prepared().insert(root)
    }

    /// Whether its profile was followed ahead of its start, which begins now.
    pub(super) fn take_prepared(&self, root: Slot) -> bool {
        self.prepared().remove(&root)
    }

    fn prepared(&self) -> MutexGuard<'_, HashSet<Slot>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was room for one more.
    fn begin(&self, root: Slot) -> bool {
        let mut all = self.all();
        if all.len() == MOST || all.iter().any(|recording| recording.root == root) {
            return false;
        }
        let now = Instant::now();
        all.push(Recording {
            root,
            began: now,
            last: now,
            seen: HashMap::new(),
            order: Vec::new(),
            fetched: HashMap::new(),
            closure: Default::default(),
        });
        self.count.store(all.len(), Relaxed);
        true
    }

    /// Somebody reads a part of a path's NAR.
    pub(in crate::store) fn note(&self, slot: Slot, range: &Range<u64>) {
        if self.count.load(Relaxed) == 0 {
            return;
        }
        for recording in self.all().iter_mut() {
            if recording.order.len() >= MAX_RANGES {
                continue;
            }
            let seen = recording.seen.entry(slot).or_default();
            let new = seen.missing(range.clone());
            if !new.is_empty() {
                seen.add(range.clone());
                recording.last = Instant::now();
                let left = MAX_RANGES - recording.order.len();
                recording
                    .order
                    .extend(new.into_iter().take(left).map(|part| (slot, part)));
            }
        }
    }

    /// A profile has this part of a path's NAR fetched, for the start of `root`.
    pub(super) fn note_fetched(&self, root: Slot, slot: Slot, part: Range<u64>) {
        let mut all = self.all();
        if let Some(recording) = all.iter_mut().find(|recording| recording.root == root) {
            recording.fetched.entry(slot).or_default().add(part);
        }
    }

    /// The roots, each with its closure as it was found last, and when.
    fn closures(&self) -> Vec<(Slot, u64, Arc<HashSet<Slot>>)> {
        if self.count.load(Relaxed) == 0 {
            return Vec::new();
        }
        let of = |recording: &Recording| {
            let (version, closure) = &recording.closure;
            (recording.root, *version, closure.clone())
        };
        self.all().iter().map(of).collect()
    }

    fn set_closure(&self, root: Slot, version: u64, closure: Arc<HashSet<Slot>>) {
        let mut all = self.all();
        if let Some(recording) = all.iter_mut().find(|recording| recording.root == root) {
            recording.closure = (version, closure);
        }
    }

    /// Takes out what is over.
    fn over(&self, is_over: impl Fn(&Recording) -> bool) -> Vec<Recording> {
        let mut all = self.all();
        let over = all.extract_if(.., |recording| is_over(recording)).collect();
        self.count.store(all.len(), Relaxed);
        over
    }
}

impl Core {
    /// Whether a path is in the closure of something that starts just now, as far as that is known.
    pub(super) fn is_of_a_start(&self, path: &Arc<Path>) -> bool {
        self.recordings.closures().iter().any(|(slot, then, last)| {
            let now = self.paths.version();
            if last.contains(&path.slot) || *then == now {
                return last.contains(&path.slot);
            }
            let Some(root) = self.paths.loaded(*slot) else {
                return false;
            };
            let closure: HashSet<Slot> = self.loaded_closure(&root).into_keys().collect();
            let is_in_it = closure.contains(&path.slot);
            self.recordings.set_closure(*slot, now, closure.into());
            is_in_it
        })
    }

    /// Records what is read from now on, until the start of this path's program is over. Says whether there
    /// was room for one more.
    pub(super) fn begin_recording(self: &Arc<Self>, root: &Arc<Path>) -> bool {
        if !self.recordings.begin(root.slot) {
            return false;
        }
        let (core, root) = (Arc::downgrade(self), root.slot);
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let Some(core) = core.upgrade() else { return };
                let over = core.recordings.over(|recording| {
                    recording.root == root
                        && (recording.last.elapsed() > QUIET || recording.began.elapsed() > LONGEST)
                });
                if !over.is_empty() || !core.recordings.all().iter().any(|r| r.root == root) {
                    // Lost in a crash, it is recorded at the next cold start.
                    return drop(core.keep_recorded(over));
                }
            }
        });
        true
    }

    /// Ends all recordings now, and says when they are kept.
    pub(in crate::store) fn finish_recordings(&self) -> Vec<Pending<()>> {
        self.keep_recorded(self.recordings.over(|_| true))
    }

    fn keep_recorded(&self, over: Vec<Recording>) -> Vec<Pending<()>> {
        let mut kept = Vec::new();
        for recording in over {
            self.counters.profile_unread.add(recording.unread());
            let Some(profile) = self.recorded(&recording) else {
                continue;
            };
            let (paths, parts, bytes) = profile.extent();
            tracing::debug!(path = %profile.root, paths, parts, bytes, "a start was recorded");
            let text = profile.text().into_bytes();
            kept.push(self.content.db().put_profile(&profile.root.hash(), text));
        }
        kept
    }

    /// What was read of the root's closure; `None` if nothing.
    fn recorded(&self, recording: &Recording) -> Option<Profile> {
        let root = self.paths.loaded(recording.root)?;
        let closure = self.loaded_closure(&root);
        let mut profile = Profile {
            root: root.store_path.clone(),
            reads: Vec::new(),
        };
        for (slot, range) in &recording.order {
            if let Some(path) = closure.get(slot) {
                profile.add(&path.store_path, range.clone());
            }
        }
        (!profile.reads.is_empty()).then_some(profile)
    }

    fn loaded_closure(&self, root: &Arc<Path>) -> HashMap<Slot, Arc<Path>> {
        let mut closure = HashMap::new();
        let mut seen: HashSet<StorePathHash> = HashSet::new();
        let mut left = vec![root.clone()];
        while let Some(path) = left.pop() {
            for reference in &path.references {
                if seen.insert(reference.hash()) {
                    left.extend(self.loaded(&reference.hash()));
                }
            }
            closure.insert(path.slot, path);
        }
        closure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_noted_once_and_in_order() {
        let recordings = Recordings::default();
        let (a, b) = (Slot(1), Slot(2));
        recordings.note(a, &(0..1));
        assert!(recordings.begin(a));
        assert!(!recordings.begin(a), "it is recorded");
        recordings.note(b, &(5..7));
        recordings.note(a, &(0..10));
        recordings.note(a, &(0..1));
        recordings.note(b, &(0..20));
        recordings.note(a, &(0..0));
        let over = recordings.over(|_| true);
        assert_eq!(
            over[0].order,
            [(b, 5..7), (a, 0..10), (b, 0..5), (b, 7..20)]
        );
        recordings.note(a, &(0..1));
        assert!(recordings.over(|_| true).is_empty());
    }

    #[test]
    fn what_a_profile_brought_and_nobody_read_is_counted() {
        let recordings = Recordings::default();
        let (a, b, c) = (Slot(1), Slot(2), Slot(3));
        assert!(recordings.begin(a));
        recordings.note_fetched(a, a, 0..100);
        recordings.note_fetched(a, b, 0..10);
        recordings.note_fetched(b, c, 0..1000);
        recordings.note(a, &(50..200));
        recordings.note(c, &(0..10));
        assert_eq!(recordings.over(|_| true)[0].unread(), 50 + 10);
    }

    #[test]
    fn there_is_an_end_to_it() {
        let recordings = Recordings::default();
        for root in 0..2 * MOST as u32 {
            assert_eq!(recordings.begin(Slot(root)), (root as usize) < MOST);
        }
        for part in 0..2 * MAX_RANGES as u64 {
            recordings.note(Slot(0), &(2 * part..2 * part + 1));
        }
        for recording in recordings.over(|_| true) {
            assert_eq!(recording.order.len(), MAX_RANGES);
        }
    }
}
