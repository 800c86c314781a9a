//! Which store paths are fetched by a profile, so that nothing is guessed of them: what is read ahead
//! by evidence would come on top of what is known.
//!
//! As long as the profile is right. Readers who wait for what it does not name say that it is not, or
//! is no more; after a few of them all is as if there was none.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use crate::{store::Slot, trace::Ranges};

/// So many waits for what a profile does not name are chance.
const MOST_STRAYS: usize = 16;

/// One profile that is followed.
#[derive(Debug, Default)]
pub(super) struct Guide {
    strays: AtomicUsize,
}

#[derive(Debug)]
struct Guided {
    by: Arc<Guide>,
    named: Ranges,
}

impl Guide {
    /// Whether readers strayed from it: the rest of what it names is not worth the link.
    pub(super) fn is_left(&self) -> bool {
        self.strays.load(Relaxed) >= MOST_STRAYS
    }
}

/// The store paths that are fetched by profiles.
#[derive(Debug, Default)]
pub(in crate::store) struct Guides {
    /// How many they are: nobody takes the lock while there are none.
    count: AtomicUsize,
    paths: RwLock<HashMap<Slot, Guided>>,
}

impl Guides {
    /// A path is fetched by a profile, which names these parts of it.
    pub(super) fn add(&self, slot: Slot, by: &Arc<Guide>, ranges: &[Range<u64>]) {
        let mut named = Ranges::default();
        for range in ranges {
            named.add(range.clone());
        }
        let mut paths = self.paths.write().unwrap_or_else(PoisonError::into_inner);
        let guided = Guided {
            by: by.clone(),
            named,
        };
        paths.insert(slot, guided);
        self.count.store(paths.len(), Relaxed);
    }

    /// Whether nothing is to be guessed of a path.
    pub(in crate::store) fn guides(&self, slot: Slot) -> bool {
        self.look(slot, |_| true)
    }

    /// A reader has to wait for this part of a path's NAR; whether nothing is to be guessed from it.
    pub(in crate::store) fn guides_wait(&self, slot: Slot, range: &Range<u64>) -> bool {
        self.look(slot, |guided| {
            let named = guided.named.len_within(range.clone()) > 0;
            named || guided.by.strays.fetch_add(1, Relaxed) < MOST_STRAYS
        })
    }

    fn look(&self, slot: Slot, asked: impl FnOnce(&Guided) -> bool) -> bool {
        if self.count.load(Relaxed) == 0 {
            return false;
        }
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        paths
            .get(&slot)
            .is_some_and(|guided| !guided.by.is_left() && asked(guided))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_guided_until_readers_stray() {
        let guides = Guides::default();
        let (path, other) = (Slot(1), Slot(2));
        assert!(!guides.guides(path));
        let guide = Arc::new(Guide::default());
        guides.add(path, &guide, &[0..1, 100..110]);
        assert!(guides.guides(path) && !guides.guides(other));
        for _ in 0..2 * MOST_STRAYS {
            assert!(guides.guides_wait(path, &(105..200)), "it is named");
        }
        for _ in 0..MOST_STRAYS {
            assert!(guides.guides_wait(path, &(110..120)));
        }
        assert!(guide.is_left());
        assert!(!guides.guides_wait(path, &(110..120)));
        assert!(!guides.guides(path));
        assert!(!guides.guides_wait(path, &(0..1)));
    }
}
