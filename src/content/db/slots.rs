//! Slots: the numbers of store paths that inode numbers are made of. Given once, never to another path.

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::{Core, Db, META, Pending, spare::Spare, writer::Outcome};
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
        let mut slots = self.core.read(read_all)?;
        slots.extend_from_slice(self.core.spare().given());
        slots.sort_by_key(|(slot, _)| *slot);
        // One that was settled just now is in both.
        slots.dedup_by_key(|(slot, _)| *slot);
        Ok(slots)
    }

    /// The newest slot of a store path, and its name.
    pub fn slot(&self, hash: &StorePathHash) -> Result<Option<(u32, StorePath)>, ContentError> {
        let spare = |spare: &Spare| {
            let mut newest = spare.given().iter().rev();
            newest.find(|(_, path)| path.hash() == *hash).cloned()
        };
        if let Some(found) = spare(&self.core.spare()) {
            return Ok(Some(found));
        }
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
        let (core, paths) = (self.core.clone(), paths.to_vec());
        self.writer
            .submit(move |txn| allocate(&core, txn, &paths, false))
    }

    /// Gives a store path another slot, which counts from now on: so that its inodes are new ones.
    pub fn reallocate_slot(&self, path: &StorePath) -> Pending<u32> {
        let (core, path) = (self.core.clone(), path.clone());
        self.writer.submit(move |txn| {
            Ok(allocate(&core, txn, std::slice::from_ref(&path), true)?
                // One path, one slot.
                .map(|slots| slots.first().copied().unwrap_or_default()))
        })
    }

    /// The slot of a path, or with `afresh` another one. While the database can't be written because the disk is
    /// full, one that was laid aside for that (`spare.rs`): it lasts as the others do.
    pub async fn slot_for(&self, path: &StorePath, afresh: bool) -> Result<u32, ContentError> {
        let given = match afresh {
            true => self.reallocate_slot(path).await,
            false => self
                .allocate_slots(std::slice::from_ref(path))
                .await
                .map(|slots| slots.first().copied().unwrap_or_default()),
        };
        let Err(error @ (ContentError::NoSpace { .. } | ContentError::ReadOnly { .. })) = given
        else {
            return given;
        };
        let (core, path) = (self.core.clone(), path.clone());
        let spare = tokio::task::spawn_blocking(move || give_spare(&core, &path, afresh)).await;
        match spare {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(why)) => {
                tracing::debug!(error = %why, "no spare slot can be given");
                Err(error)
            }
            Err(_) => Err(error),
        }
    }

    /// Whether slots wait for the database to take writes again.
    pub fn has_spare_slots(&self) -> bool {
        !self.core.spare().given().is_empty()
    }

    /// Writes slots that were given on a full disk to the database, if there are any. Blocks.
    pub fn settle_spare_slots(&self) -> Result<(), ContentError> {
        let _one = self.core.settling();
        let given = self.core.spare().given().to_vec();
        let count = given.len();
        if count == 0 {
            return Ok(());
        }
        let written = self.writer.submit(move |txn| {
            write_given(txn, &given)?;
            Ok(Ok(()))
        });
        written.wait()?;
        self.core.spare().settle(count);
        tracing::info!(
            count,
            "store paths that were named on a full disk are in the database now"
        );
        Ok(())
    }
}

/// A slot out of the file; or the one that the path has.
fn give_spare(core: &Core, path: &StorePath, afresh: bool) -> Result<u32, ContentError> {
    let (known, next) = core.read(|txn| {
        let by_hash = txn.open_table(SLOTS)?;
        let known = by_hash.get(path.hash().as_bytes())?.and_then(|found| {
            let (slot, name) = found.value();
            (name == path.name()).then_some(slot)
        });
        let next = txn.open_table(META)?.get(NEXT)?.map_or(1, |v| v.value());
        Ok((known, next))
    })?;
    let mut spare = core.spare();
    if let Some(slot) = spare.slot(path).or(known).filter(|_| !afresh) {
        return Ok(slot);
    }
    let slot = u32::try_from(next.max(spare.floor)).unwrap_or(u32::MAX);
    if slot > MAX_SLOT {
        return Err(ContentError::NoSlots { limit: MAX_SLOT });
    }
    spare
        .give(slot, path)
        .map_err(|e| ContentError::io("write", &core.path.with_extension("spare"), e))?;
    Ok(slot)
}

/// Slots from the file take their places in the tables.
fn write_given(txn: &WriteTransaction, given: &[(u32, StorePath)]) -> Result<(), redb::Error> {
    let Some(last) = given.iter().map(|(slot, _)| u64::from(*slot)).max() else {
        return Ok(());
    };
    let mut by_hash = txn.open_table(SLOTS)?;
    let mut by_slot = txn.open_table(PATHS)?;
    for (slot, path) in given {
        let newer = by_hash
            .get(path.hash().as_bytes())?
            .is_some_and(|known| known.value().0 > *slot);
        if !newer {
            by_hash.insert(path.hash().as_bytes(), (*slot, path.name()))?;
        }
        by_slot.insert(*slot, path.to_string().as_str())?;
    }
    let mut meta = txn.open_table(META)?;
    let next = meta.get(NEXT)?.map_or(1, |v| v.value());
    meta.insert(NEXT, next.max(last + 1))?;
    Ok(())
}

fn allocate(
    core: &Core,
    txn: &WriteTransaction,
    paths: &[StorePath],
    afresh: bool,
) -> Outcome<Vec<u32>> {
    let mut spare = core.spare();
    let mut meta = txn.open_table(META)?;
    let mut by_hash = txn.open_table(SLOTS)?;
    let mut by_slot = txn.open_table(PATHS)?;
    let first = meta.get(NEXT)?.map_or(1, |v| v.value()).max(spare.floor);
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
        let known = match spare.slot(path) {
            None => existing(&by_hash, path)?,
            known => known,
        };
        let slot = match known {
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
        // If this is not committed, they are lost, and nobody got them.
        spare.floor = next;
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
