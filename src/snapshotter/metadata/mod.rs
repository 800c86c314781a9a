//! The database of snapshots: `snapshots.redb` in the state directory.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | number: `schema` (version of these tables), `next-id` |
//! | `snapshots` | key of a snapshot | JSON, [`Record`] |
//!
//! Not a part of `narfs.redb`: all in there can be had again from the caches, so that one is begun
//! afresh where it is damaged. What stands here can't, so this one never is.
//!
//! All records are in memory too, as an immutable [`State`] that each commit replaces: readers take
//! the newest and never wait for a disk. Changes go through one thread, which gathers those that
//! wait, applies each to a draft of the next state, and answers after one commit for all of them.
//! A change is a function that looks first and then changes: one that fails has changed nothing.
//! No transaction is open while anything else happens.

mod file;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use super::{
    error::{MetadataError, SnapshotError},
    record::{Keyed, Record, SnapshotId},
};

pub use file::SCHEMA;

/// All snapshots at one time.
#[derive(Debug, Clone, Default)]
pub struct State {
    records: BTreeMap<Arc<str>, Arc<Record>>,
    /// How many snapshots have it as their parent.
    children: HashMap<String, usize>,
    next_id: u64,
}

impl State {
    /// The snapshot with this key.
    pub fn get(&self, key: &str) -> Option<&Arc<Record>> {
        self.records.get(key)
    }

    /// As [`State::get`], where it has to be there.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`].
    pub fn expect(&self, key: &str) -> Result<&Arc<Record>, SnapshotError> {
        self.get(key)
            .ok_or_else(|| SnapshotError::NotFound { key: key.into() })
    }

    /// All of them in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Record>)> {
        self.records.iter()
    }

    /// Whether others have it as their parent.
    pub fn has_children(&self, key: &str) -> bool {
        self.children.contains_key(key)
    }

    /// What stands below a snapshot, its parent first.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] where a parent is missing.
    pub fn ancestors(&self, record: &Record) -> Result<Vec<Keyed>, SnapshotError> {
        let mut found: Vec<Keyed> = Vec::new();
        let mut next = record.parent.clone();
        while let Some(key) = next {
            let damaged = |what: String| SnapshotError::Damaged {
                key: found.last().map_or(key.as_str(), |(key, _)| key).into(),
                what,
            };
            let Some((name, parent)) = self.records.get_key_value(key.as_str()) else {
                return Err(damaged(format!("its parent {key} is missing")));
            };
            // A chain is no longer than there are snapshots; a damaged database may hold a ring.
            if found.len() > self.records.len() {
                return Err(damaged("its parents go in a circle".into()));
            }
            found.push((name.clone(), parent.clone()));
            next = parent.parent.clone();
        }
        Ok(found)
    }
}

/// The next state in the making.
#[derive(Debug)]
pub struct Draft {
    state: State,
    changed: BTreeSet<Arc<str>>,
}

impl Draft {
    fn of(state: &State) -> Self {
        Self {
            state: state.clone(),
            changed: BTreeSet::new(),
        }
    }

    /// How it stands so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Adds or replaces a snapshot.
    pub fn put(&mut self, key: &str, record: Record) {
        self.take(key);
        self.state.next_id = self.state.next_id.max(record.id.0.saturating_add(1));
        if let Some(parent) = &record.parent {
            *self.state.children.entry(parent.clone()).or_default() += 1;
        }
        let key = Arc::<str>::from(key);
        self.changed.insert(key.clone());
        self.state.records.insert(key, Arc::new(record));
    }

    /// Takes a snapshot out.
    pub fn take(&mut self, key: &str) -> Option<Arc<Record>> {
        let (key, record) = self.state.records.remove_entry(key)?;
        self.changed.insert(key);
        if let Some(parent) = &record.parent
            && let Some(count) = self.state.children.get_mut(parent)
        {
            *count -= 1;
            if *count == 0 {
                self.state.children.remove(parent);
            }
        }
        Some(record)
    }
}

/// The database while it is open.
pub struct Metadata {
    state: Arc<RwLock<Arc<State>>>,
    writer: writer::Writer,
}

impl Metadata {
    /// Opens the database at `path`, or makes it where there are no snapshots yet. `directories`
    /// is how many snapshots there are beside it.
    ///
    /// # Errors
    /// When it is damaged, missing, or of a version that can't be used. Nothing is changed then.
    pub fn open(path: &Path, directories: usize) -> Result<Self, MetadataError> {
        let (database, state) = file::open(path, directories)?;
        let state = Arc::new(RwLock::new(Arc::new(state)));
        let writer = writer::Writer::start(path, database, state.clone())?;
        Ok(Self { state, writer })
    }

    /// All snapshots as they are now.
    pub fn state(&self) -> Arc<State> {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A number that was never given out, up to the next start; for good once a record has it.
    pub fn new_id(&self) -> SnapshotId {
        self.writer.new_id()
    }

    /// Gives no number up to this one any more.
    pub(super) fn skip_past(&self, id: Option<SnapshotId>) {
        if let Some(id) = id {
            self.writer.skip_past(id);
        }
    }

    /// Changes it; durable when this is answered. `change` fails before it changes anything.
    ///
    /// # Errors
    /// Of `change`, or why it could not be made durable.
    pub async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Draft) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        self.writer.submit(change).await
    }
}
