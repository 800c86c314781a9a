//! Views: named subsets of the store, each shown as a root directory of its own.
//!
//! A view is a root file system's part: `nix/store` with its *own* paths, and `.nix-snapshotter`
//! with those that it *shows* (a container made of several layers is one view on top of another,
//! and its status is that of all of them). Whatever a view shows is a root: it is collected last.
//!
//! Views are kept in the database and are back, with their numbers, in the next process. In
//! memory a view is two sorted lists of slots; what a slot holds, the path table knows.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{Core, Event, Lane, Slot, Store, StoreError, ViewId, path::PathTable};
use crate::{
    content::{ContentStore, KeptView},
    nix::{StorePath, StorePathHash},
};

/// Longest name of a view, in bytes.
const MAX_NAME: usize = 64;

/// The name of a view: what its directory is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ViewName(String);

/// What is not the name of a view.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} can't be the name of a view: 1 to {MAX_NAME} letters, digits, dots, dashes and underscores, \
     the first of them no dot"
)]
pub struct ViewNameError {
    name: String,
}

impl ViewName {
    /// Checks a name.
    ///
    /// # Errors
    /// When it can't be the name of a directory that is shown, or is too long.
    pub fn parse(name: &str) -> Result<Self, ViewNameError> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let allowed = (1..=MAX_NAME).contains(&name.len())
            && name.bytes().all(fine)
            && !name.starts_with('.');
        match allowed {
            true => Ok(Self(name.to_owned())),
            false => Err(ViewNameError { name: name.into() }),
        }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ViewName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is in a view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ViewContents {
    /// Paths in its store.
    pub own: Vec<StorePath>,
    /// Paths in its status directory.
    pub shown: Vec<StorePath>,
}

/// A view, as it stands in the table: never changed, but replaced.
pub(super) struct View {
    pub name: ViewName,
    pub id: ViewId,
    own: Box<[Slot]>,
    shown: Box<[Slot]>,
}

impl View {
    fn new(name: ViewName, id: ViewId, mut own: Vec<Slot>, mut shown: Vec<Slot>) -> Self {
        for slots in [&mut own, &mut shown] {
            slots.sort_unstable();
            slots.dedup();
        }
        let (own, shown) = (own.into(), shown.into());
        Self {
            name,
            id,
            own,
            shown,
        }
    }

    /// Slots of the paths in its store, ascending.
    pub fn own(&self) -> &[Slot] {
        &self.own
    }

    /// Slots of the paths in its status directory, ascending.
    pub fn shown(&self) -> &[Slot] {
        &self.shown
    }

    /// Whether a path stands in its store.
    pub fn has(&self, slot: Slot) -> bool {
        self.own.binary_search(&slot).is_ok()
    }

    /// Whether a path stands in its status directory.
    pub fn shows(&self, slot: Slot) -> bool {
        self.shown.binary_search(&slot).is_ok()
    }
}

/// All views. The lock is a leaf, held for one access.
#[derive(Default)]
pub(super) struct Views {
    table: RwLock<Table>,
    version: AtomicU64,
}

#[derive(Default)]
struct Table {
    by_id: HashMap<ViewId, Arc<View>>,
    by_name: BTreeMap<ViewName, ViewId>,
}

impl Views {
    /// The views of earlier runs.
    pub fn load(content: &ContentStore, paths: &PathTable) -> Result<Self, StoreError> {
        let views = Self::default();
        for kept in content.db().views()? {
            let KeptView {
                name,
                id,
                own,
                shown,
            } = kept;
            let Ok(name) = ViewName::parse(&name) else {
                tracing::warn!(%name, "a view with a name that none can have is left out");
                continue;
            };
            // A path whose tree was replaced since has another slot now.
            let newest = |slots: Vec<u32>| {
                let newest = |slot| paths.newest(Slot(slot)).unwrap_or(Slot(slot));
                slots.into_iter().map(newest).collect()
            };
            views.put(View::new(name, ViewId(id), newest(own), newest(shown)));
        }
        Ok(views)
    }

    /// Puts a view in its place; the number of the one that had its name, if that was another.
    fn put(&self, view: View) -> Option<ViewId> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let before = table.by_name.insert(view.name.clone(), view.id);
        let before = before.filter(|id| *id != view.id);
        if let Some(id) = &before {
            table.by_id.remove(id);
        }
        table.by_id.insert(view.id, Arc::new(view));
        self.version.fetch_add(1, Relaxed);
        before
    }

    fn remove(&self, name: &ViewName) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = table.by_name.remove(name) {
            table.by_id.remove(&id);
            self.version.fetch_add(1, Relaxed);
        }
    }

    /// The view with this number.
    pub fn get(&self, id: ViewId) -> Option<Arc<View>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.by_id.get(&id).cloned()
    }

    /// The view with this name.
    pub fn named(&self, name: &str) -> Option<Arc<View>> {
        let name = ViewName::parse(name).ok()?;
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.by_id.get(table.by_name.get(&name)?).cloned()
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<View>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let ids = table.by_name.values();
        ids.filter_map(|id| table.by_id.get(id).cloned()).collect()
    }

    /// Changes whenever a view comes or goes.
    pub fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// A path has another slot now, in every view that has it; numbers of those in whose stores it stands.
    pub fn replace_slot(&self, old: Slot, new: Slot) -> Vec<ViewId> {
        let mut changed = Vec::new();
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let with_it = table.by_id.values_mut();
        for view in with_it.filter(|view| view.has(old) || view.shows(old)) {
            if view.has(old) {
                changed.push(view.id);
            }
            let swapped = |slots: &[Slot]| {
                let swap = |slot: &Slot| if *slot == old { new } else { *slot };
                slots.iter().map(swap).collect()
            };
            *view = Arc::new(View::new(
                view.name.clone(),
                view.id,
                swapped(&view.own),
                swapped(&view.shown),
            ));
        }
        changed
    }
}

impl Store {
    /// Admits exactly these paths, many at a time.
    pub async fn admit_all(&self, paths: &[StorePath], lane: Lane) -> super::ClosureReport {
        self.0.admit_all(paths, lane).await
    }

    /// Makes a view, durably: `own` stand in its store, `own` and `shown` in its status directory
    /// and among the roots. All of them have to be admitted. Nothing happens where there is just
    /// this view already; one of the same name with other contents is replaced.
    ///
    /// # Errors
    /// [`StoreError::NoEntry`] if one of the paths is not known, and when it can't be written.
    pub async fn make_view(
        &self,
        name: &ViewName,
        own: &[StorePath],
        shown: &[StorePath],
    ) -> Result<(), StoreError> {
        let core = &self.0;
        let slots = |paths: &[StorePath]| {
            let slot = |path: &StorePath| core.slot_of(path).ok_or(StoreError::NoEntry);
            paths.iter().map(slot).collect::<Result<Vec<Slot>, _>>()
        };
        let own = slots(own)?;
        let mut shown = slots(shown)?;
        shown.extend(&own);
        let mut view = View::new(name.clone(), ViewId::WHOLE, own, shown);
        let numbers = |slots: &[Slot]| slots.iter().map(|slot| slot.0).collect::<Vec<_>>();
        let db = core.content.db();
        let id = db.put_view(name.as_str(), &numbers(&view.own), &numbers(&view.shown));
        view.id = ViewId(id.await?);
        let own = view.own.clone();
        if core.views.put(view).is_some() {
            core.emit(Event::ViewGone(name.clone()));
        }
        core.prepare_starts(&own);
        Ok(())
    }

    /// Removes a view, and with it what it rooted; whether there was one.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn remove_view(&self, name: &ViewName) -> Result<bool, StoreError> {
        let removed = self.0.content.db().remove_view(name.as_str()).await?;
        self.0.views.remove(name);
        self.0.emit(Event::ViewGone(name.clone()));
        Ok(removed.is_some())
    }

    /// What is in a view, if there is one of this name.
    pub fn view(&self, name: &ViewName) -> Option<ViewContents> {
        let view = self.0.views.named(name.as_str())?;
        let paths = |slots: &[Slot]| {
            let path = |slot: &Slot| Some(self.0.paths.entry(*slot)?.store_path);
            slots.iter().filter_map(path).collect()
        };
        Some(ViewContents {
            own: paths(&view.own),
            shown: paths(&view.shown),
        })
    }

    /// Names of all views, in order.
    pub fn views(&self) -> Vec<ViewName> {
        self.0.views.all().iter().map(|v| v.name.clone()).collect()
    }

    /// Bytes of disk that is taken by what is kept of a view's own paths. A path that stands in
    /// several views counts in the one with the lowest number alone, so that the sum is right.
    ///
    /// # Errors
    /// [`StoreError::NoEntry`] if there is no such view, and when the state directory can't be read.
    pub fn view_usage(&self, name: &ViewName) -> Result<u64, StoreError> {
        let core = &self.0;
        let views = core.views.all();
        let view = views.iter().find(|view| view.name == *name);
        let view = view.ok_or(StoreError::NoEntry)?;
        let older: Vec<_> = views.iter().filter(|v| v.id < view.id).collect();
        let mut nars = HashSet::new();
        for slot in view.own() {
            if older.iter().any(|view| view.has(*slot)) {
                continue;
            }
            if let Some(entry) = core.paths.entry(*slot)
                && let Some((nar, _)) = core.kept_facts(&entry)?
            {
                nars.insert(nar);
            }
        }
        Ok(nars.iter().map(|nar| core.content.usage_of(nar)).sum())
    }
}

impl Core {
    fn slot_of(&self, path: &StorePath) -> Option<Slot> {
        let (slot, entry) = self.paths.slot(&path.hash())?;
        (entry.store_path == *path).then_some(slot)
    }

    /// Every path that a view shows.
    pub(super) fn viewed(&self) -> HashMap<StorePathHash, StorePath> {
        let slots: HashSet<Slot> = self
            .views
            .all()
            .iter()
            .flat_map(|view| view.shown.iter().copied())
            .collect();
        let entries = slots.iter().filter_map(|slot| self.paths.entry(*slot));
        entries
            .map(|entry| (entry.store_path.hash(), entry.store_path))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_shown_directories() {
        for name in ["s1", "a.b-c_d", &"x".repeat(64)] {
            assert_eq!(ViewName::parse(name).unwrap().as_str(), name);
        }
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(ViewName::parse(name).is_err(), "{name}");
        }
    }

    fn view(name: &str, id: u16, own: &[u32], shown: &[u32]) -> View {
        let slots = |slots: &[u32]| slots.iter().copied().map(Slot).collect();
        View::new(
            ViewName::parse(name).unwrap(),
            ViewId(id),
            slots(own),
            slots(shown),
        )
    }

    #[test]
    fn a_name_leads_to_the_view_that_came_last() {
        let views = Views::default();
        assert_eq!(views.put(view("a", 1, &[3, 1], &[3, 1, 2])), None);
        assert_eq!(views.put(view("b", 2, &[1], &[1])), None);
        assert_eq!(views.put(view("a", 3, &[4], &[4])), Some(ViewId(1)));
        assert!(views.get(ViewId(1)).is_none());
        assert_eq!(views.named("a").unwrap().id, ViewId(3));
        views.remove(&ViewName::parse("a").unwrap());
        assert!(views.get(ViewId(3)).is_none() && views.named("a").is_none());
        assert_eq!(views.all().len(), 1);
    }

    #[test]
    fn a_replaced_path_stays_in_its_views() {
        let views = Views::default();
        views.put(view("a", 1, &[1, 5], &[1, 5]));
        views.put(view("b", 2, &[1], &[1, 5]));
        views.put(view("c", 3, &[2], &[2]));
        assert_eq!(views.replace_slot(Slot(5), Slot(9)), [ViewId(1)]);
        let a = views.get(ViewId(1)).unwrap();
        assert!(a.has(Slot(9)) && a.has(Slot(1)) && !a.has(Slot(5)) && a.shows(Slot(9)));
        assert!(views.get(ViewId(2)).unwrap().shows(Slot(9)));
    }
}
