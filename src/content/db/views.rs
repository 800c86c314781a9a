//! Views: named subsets of the store, with the numbers their inodes are made of.
//!
//! A number is given in turn, so that one that was given back is not another view's while the kernel may remember it.

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::{Db, META, Pending, writer::Outcome};
use crate::content::ContentError;

/// Name → number, slots in its store, slots in its status directory; slots as 32-bit little-endian numbers.
pub(super) const VIEWS: TableDefinition<&str, (u16, &[u8], &[u8])> = TableDefinition::new("views");
/// The numbers in use → name.
pub(super) const NUMBERS: TableDefinition<u16, &str> = TableDefinition::new("view-numbers");
pub(super) const NEXT: &str = "next_view";

/// Largest number of a view: they have 15 bits of an inode number, and 0 is the whole store.
pub const MAX_VIEW: u16 = (1 << 15) - 1;

/// First number in a database that replaces `damaged` others, whose numbers may still be in a living mount.
pub(super) fn first_view(damaged: u32) -> u64 {
    (u64::from(damaged % 15) << 11) + 1
}

/// A view as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptView {
    /// Its name.
    pub name: String,
    /// Its number, from 1 to [`MAX_VIEW`].
    pub id: u16,
    /// Slots of the paths in its store.
    pub own: Vec<u32>,
    /// Slots of the paths in its status directory.
    pub shown: Vec<u32>,
}

fn encode(slots: &[u32]) -> Vec<u8> {
    slots.iter().flat_map(|slot| slot.to_le_bytes()).collect()
}

fn decode(bytes: &[u8]) -> Result<Vec<u32>, redb::Error> {
    let (slots, rest) = bytes.as_chunks();
    match rest.is_empty() {
        true => Ok(slots.iter().map(|slot| u32::from_le_bytes(*slot)).collect()),
        false => Err(redb::Error::Corrupted(
            "a view's slots end in the middle of one".into(),
        )),
    }
}

pub(super) fn read_all(txn: &ReadTransaction) -> Result<Vec<KeptView>, redb::Error> {
    txn.open_table(VIEWS)?
        .iter()?
        .map(|entry| {
            let (name, view) = entry?;
            let (id, own, shown) = view.value();
            Ok(KeptView {
                name: name.value().to_owned(),
                id,
                own: decode(own)?,
                shown: decode(shown)?,
            })
        })
        .collect()
}

impl Db {
    /// All views, by name.
    pub fn views(&self) -> Result<Vec<KeptView>, ContentError> {
        self.core.read(read_all)
    }

    /// Makes a view and gives it a number. One that has this name and these slots keeps its number; with other slots
    /// it is another view and gets another number.
    pub fn put_view(&self, name: &str, own: &[u32], shown: &[u32]) -> Pending<u16> {
        let (name, own, shown) = (name.to_owned(), encode(own), encode(shown));
        self.writer.submit(move |txn| put(txn, &name, &own, &shown))
    }

    /// Removes a view; its number, if there was one.
    pub fn remove_view(&self, name: &str) -> Pending<Option<u16>> {
        let name = name.to_owned();
        self.writer.submit(move |txn| {
            let mut views = txn.open_table(VIEWS)?;
            let removed = views.remove(name.as_str())?.map(|view| view.value().0);
            if let Some(id) = removed {
                txn.open_table(NUMBERS)?.remove(id)?;
            }
            Ok(Ok(removed))
        })
    }
}

fn put(txn: &WriteTransaction, name: &str, own: &[u8], shown: &[u8]) -> Outcome<u16> {
    let mut views = txn.open_table(VIEWS)?;
    let mut numbers = txn.open_table(NUMBERS)?;
    let mut before = None;
    if let Some(kept) = views.get(name)? {
        let (id, kept_own, kept_shown) = kept.value();
        if (kept_own, kept_shown) == (own, shown) {
            return Ok(Ok(id));
        }
        before = Some(id);
    }
    let mut meta = txn.open_table(META)?;
    let first = meta.get(NEXT)?.map_or(1, |next| next.value());
    // In turn from the last one given, and round.
    let most = u64::from(MAX_VIEW);
    let mut free = None;
    for n in 0..most {
        let id = ((first.max(1) - 1 + n) % most + 1) as u16;
        if numbers.get(id)?.is_none() {
            free = Some(id);
            break;
        }
    }
    let Some(id) = free else {
        return Ok(Err(ContentError::NoViews { limit: MAX_VIEW }));
    };
    if let Some(before) = before {
        numbers.remove(before)?;
    }
    numbers.insert(id, name)?;
    meta.insert(NEXT, u64::from(id) + 1)?;
    views.insert(name, (id, own, shown))?;
    Ok(Ok(id))
}

#[cfg(test)]
impl Db {
    pub(in crate::content) fn set_next_view(&self, next: u64) -> Pending<()> {
        self.writer.submit(move |txn| {
            txn.open_table(META)?.insert(NEXT, next)?;
            Ok(Ok(()))
        })
    }
}
