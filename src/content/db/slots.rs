//! Slots: the numbers of store paths that inode numbers are made of. Given once, never to another path.

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::{Db, META, Pending, writer::Outcome};
use crate::{
    content::ContentError,
    nix::{StorePath, StorePathHash},
};

pub(super) const SLOTS: TableDefinition<&[u8; 20], (u32, &str)> = TableDefinition::new("slots");
pub(super) const PATHS: TableDefinition<u32, &str> = TableDefinition::new("paths");
pub(super) const NEXT: &str = "next_slot";

/// Largest slot: they have 24 bits of an inode number.
pub const MAX_SLOT: u32 = (1 << 24) - 1;

/// First slot of a database that replaces `damaged` others: the lost ones' slots may still be inode numbers in a
/// living mount, and each of the 15 parts has room for ten times the store paths that narfs is planned for.
pub(super) fn first_slot(damaged: u32) -> u64 {
    (u64::from(damaged % 15) << 20) + 1
}

pub(super) fn read_all(txn: &ReadTransaction) -> Result<Vec<(u32, StorePath)>, redb::Error> {
    txn.open_table(PATHS)?
        .iter()?
        .map(|entry| {
            let (slot, base) = entry?;
            let path = StorePath::parse(base.value())
                .map_err(|e| redb::Error::Corrupted(e.to_string()))?;
            Ok((slot.value(), path))
        })
        .collect()
}

impl Db {
    /// Every slot that was given away, ascending. A path can have several: the last one is its newest.
    pub fn slots(&self) -> Result<Vec<(u32, StorePath)>, ContentError> {
        self.core.read(read_all)
    }

    /// The newest slot of a store path, and its name.
    pub fn slot(&self, hash: &StorePathHash) -> Result<Option<(u32, StorePath)>, ContentError> {
        self.core.read(|txn| {
            let table = txn.open_table(SLOTS)?;
            let Some(found) = table.get(hash.as_bytes())? else {
                return Ok(None);
            };
            let (slot, name) = found.value();
            let path = StorePath::parse(&format!("{hash}-{name}"))
                .map_err(|e| redb::Error::Corrupted(e.to_string()))?;
            Ok(Some((slot, path)))
        })
    }

    /// The slots of these paths, in their order; a path without one gets the next. From 1 to [`MAX_SLOT`].
    ///
    /// A path under another name than it is known by gets a slot of its own.
    pub fn allocate_slots(&self, paths: &[StorePath]) -> Pending<Vec<u32>> {
        let paths = paths.to_vec();
        self.writer.submit(move |txn| allocate(txn, &paths, false))
    }

    /// Gives a store path another slot, which counts from now on: so that its inodes are new ones.
    pub fn reallocate_slot(&self, path: &StorePath) -> Pending<u32> {
        let path = path.clone();
        self.writer.submit(move |txn| {
            Ok(allocate(txn, std::slice::from_ref(&path), true)?
                // One path, one slot.
                .map(|slots| slots.first().copied().unwrap_or_default()))
        })
    }
}

fn allocate(txn: &WriteTransaction, paths: &[StorePath], afresh: bool) -> Outcome<Vec<u32>> {
    let mut meta = txn.open_table(META)?;
    let mut by_hash = txn.open_table(SLOTS)?;
    let mut by_slot = txn.open_table(PATHS)?;
    let first = meta.get(NEXT)?.map_or(1, |v| v.value());
    // Checked before anything is written: an error of one caller must leave nothing in the common transaction.
    if first + paths.len() as u64 > u64::from(MAX_SLOT) + 1 {
        let mut known = 0;
        for path in paths {
            known += u64::from(!afresh && existing(&by_hash, path)?.is_some());
        }
        if first + paths.len() as u64 - known > u64::from(MAX_SLOT) + 1 {
            return Ok(Err(ContentError::NoSlots { limit: MAX_SLOT }));
        }
    }
    let mut next = first;
    let mut slots = Vec::with_capacity(paths.len());
    for path in paths {
        let slot = match existing(&by_hash, path)? {
            Some(slot) if !afresh => slot,
            _ => {
                // Fits: checked above.
                let slot = next as u32;
                next += 1;
                by_hash.insert(path.hash().as_bytes(), (slot, path.name()))?;
                by_slot.insert(slot, path.to_string().as_str())?;
                slot
            }
        };
        slots.push(slot);
    }
    if next != first {
        meta.insert(NEXT, next)?;
    }
    Ok(Ok(slots))
}

fn existing(
    table: &redb::Table<'_, &'static [u8; 20], (u32, &'static str)>,
    path: &StorePath,
) -> Result<Option<u32>, redb::Error> {
    Ok(table.get(path.hash().as_bytes())?.and_then(|found| {
        let (slot, name) = found.value();
        (name == path.name()).then_some(slot)
    }))
}

#[cfg(test)]
impl Db {
    pub(in crate::content) fn set_next_slot(&self, next: u64) -> Pending<()> {
        self.writer.submit(move |txn| {
            txn.open_table(META)?.insert(NEXT, next)?;
            Ok(Ok(()))
        })
    }
}
