//! Pages that the kernel has twice: of what was read through a mount it keeps the mount's pages, and
//! those of the file in the state directory that the bytes came from. The second ones are of no use,
//! until the first ones are gone; so they are given back, a moment after they were read.
//!
//! Bytes that are not on the disk yet can't be given back: each part is tried twice, and they are
//! written in between. Nor can a part of a folio, in which the kernel keeps up to some MiB of a file, so what was
//! read of a NAR before is tried again with what was read now. What was fetched and not read keeps its pages,
//! as somebody may be about to.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use super::{Core, fetch::Nar};
use crate::{content::NarFile, nix::NarHash, trace::Ranges};

/// How long pages stay: new bytes are durable by then, and a reader who comes back at once finds them.
const STAY: Duration = Duration::from_secs(4);

/// Parts that are as near to each other are given back together with what lies between them, in
/// bytes: files have a few words of the archive between them.
const BETWEEN: u64 = 64 << 10;

/// What was read through mounts.
#[derive(Default)]
pub(super) struct Served(Mutex<State>);

#[derive(Default)]
struct State {
    /// Files that nobody holds are closed; what there is of their pages is not worth a thought.
    parts: HashMap<NarHash, (Weak<NarFile>, Ranges)>,
    /// Of which something was read since the last sweep.
    lately: HashSet<NarHash>,
    sweeping: bool,
}

impl Served {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was read since the last sweep; `None` if nothing is left to be swept.
    fn begin_sweep(&self, before: &HashSet<NarHash>) -> Option<HashSet<NarHash>> {
        let mut state = self.state();
        let lately = std::mem::take(&mut state.lately);
        state.sweeping = !(lately.is_empty() && before.is_empty());
        state.sweeping.then_some(lately)
    }
}

impl Core {
    /// A part of a NAR was read from the disk, for the kernel, which keeps it.
    pub(super) fn note_served(self: &Arc<Self>, nar: &Arc<Nar>, range: &Range<u64>) {
        let mut state = self.served.state();
        let (_, ranges) = state
            .parts
            .entry(nar.hash)
            .or_insert_with(|| (Arc::downgrade(&nar.file), Ranges::default()));
        ranges.add(range.start.saturating_sub(BETWEEN / 2)..range.end + BETWEEN / 2);
        state.lately.insert(nar.hash);
        if !std::mem::replace(&mut state.sweeping, true) {
            let core = Arc::downgrade(self);
            self.runtime.spawn(async move {
                let mut before = HashSet::new();
                loop {
                    tokio::time::sleep(STAY).await;
                    let Some(core) = core.upgrade() else { return };
                    let Some(lately) = core.served.begin_sweep(&before) else {
                        return;
                    };
                    let both: Vec<_> = before.union(&lately).copied().collect();
                    let swept = tokio::task::spawn_blocking(move || core.give_back(&both));
                    if swept.await.is_err() {
                        return;
                    }
                    before = lately;
                }
            });
        }
    }

    /// Blocks.
    fn give_back(&self, nars: &[NarHash]) {
        for nar in nars {
            let (file, ranges) = match self.served.state().parts.get(nar) {
                Some((file, ranges)) => (file.upgrade(), ranges.clone()),
                None => continue,
            };
            let Some(file) = file else {
                self.served.state().parts.remove(nar);
                continue;
            };
            for range in ranges.iter() {
                file.give_pages_back(&range);
            }
        }
    }
}
