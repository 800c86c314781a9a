//! Slots that are given while the database can't be written: `narfs.spare`, room that was taken beforehand.
//!
//! A slot is an inode number that the kernel keeps, perhaps longer than this process lives, so it has to be durable
//! before it is answered. Where the disk is full, the database can't do that. This file can: it has all of its
//! blocks from the start, and a record is written over zeros. As soon as the database takes writes again the
//! records go there, with the same numbers, and the file is zeros again.
//!
//! | offset in a record of 256 bytes | bytes | what |
//! |---|---|---|
//! | 0 | 4 | CRC-32 (IEEE) of bytes 4 to 256 |
//! | 4 | 4 | the slot, not 0 |
//! | 8 | 2 | length of the base name |
//! | 10 | 246 | base name of the store path, then zeros |
//!
//! The first record that is not whole ends the list.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use crate::nix::StorePath;

/// Bytes of a record: a base name has 244 at most.
const RECORD: usize = 256;
/// Records there is room for: store paths that can be named first while the disk is full. The file takes 256 KiB.
pub(super) const RECORDS: usize = 1024;

/// The file, and what stands in it.
#[derive(Default)]
pub(super) struct Spare {
    file: Option<File>,
    given: Vec<(u32, StorePath)>,
    /// No slot below this one is free, whatever the database says: it may have been answered, or be in a
    /// transaction under way.
    pub(super) floor: u64,
}

impl Spare {
    /// Reads the file at `path`, or makes it if there is room.
    pub(super) fn open(path: &Path) -> Self {
        let file = match open(path) {
            Ok(file) => file,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "no slots can be given while the disk is full");
                return Self::default();
            }
        };
        let mut spare = Self::default();
        let mut record = [0; RECORD];
        for at in 0..RECORDS {
            match file.read_exact_at(&mut record, (at * RECORD) as u64) {
                Ok(()) => {}
                Err(_) => break,
            }
            let Some((slot, path)) = decode(&record) else {
                break;
            };
            spare.floor = spare.floor.max(u64::from(slot) + 1);
            spare.given.push((slot, path));
        }
        spare.file = Some(file);
        spare
    }

    /// Slots that the database does not have.
    pub(super) fn given(&self) -> &[(u32, StorePath)] {
        &self.given
    }

    /// The slot of a path, if it is one of these; the newest.
    pub(super) fn slot(&self, path: &StorePath) -> Option<u32> {
        let mut newest = self.given.iter().rev();
        newest
            .find(|(_, known)| known == path)
            .map(|(slot, _)| *slot)
    }

    /// Gives a path this slot, durably.
    pub(super) fn give(&mut self, slot: u32, path: &StorePath) -> io::Result<()> {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let file = self.file.as_ref().ok_or_else(full)?;
        if self.given.len() >= RECORDS {
            return Err(full());
        }
        file.write_all_at(&encode(slot, path), (self.given.len() * RECORD) as u64)?;
        // The first time also its size and name.
        file.sync_all()?;
        self.floor = self.floor.max(u64::from(slot) + 1);
        self.given.push((slot, path.clone()));
        Ok(())
    }

    /// The database has the first `count` of them now.
    pub(super) fn settle(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        self.given.drain(..count.min(self.given.len()));
        if let Some(file) = &self.file {
            let mut bytes = vec![0; RECORDS * RECORD];
            for (at, (slot, path)) in self.given.iter().enumerate() {
                bytes[at * RECORD..][..RECORD].copy_from_slice(&encode(*slot, path));
            }
            // Records that stay are given to the database once more, which changes nothing.
            if let Err(error) = file.write_all_at(&bytes, 0).and_then(|()| file.sync_data()) {
                tracing::debug!(%error, "settled slots stay in the file of spare ones");
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let whole = (RECORDS * RECORD) as u64;
    if file.metadata()?.len() < whole {
        // Written, and not only reserved: then a record needs no block, and no change of what the file system knows.
        // The first record is synced, and takes all of it along.
        file.write_all_at(&vec![0; RECORDS * RECORD], 0)
            .inspect_err(|_| drop(file.set_len(0)))?;
    }
    Ok(file)
}

fn encode(slot: u32, path: &StorePath) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let name = path.to_string();
    record[4..8].copy_from_slice(&slot.to_le_bytes());
    record[8..10].copy_from_slice(&(name.len() as u16).to_le_bytes());
    record[10..10 + name.len()].copy_from_slice(name.as_bytes());
    let crc = crc32fast::hash(&record[4..]);
    record[..4].copy_from_slice(&crc.to_le_bytes());
    record
}

fn decode(record: &[u8; RECORD]) -> Option<(u32, StorePath)> {
    let (crc, rest) = record.split_first_chunk::<4>()?;
    let (slot, rest) = rest.split_first_chunk::<4>()?;
    let (len, name) = rest.split_first_chunk::<2>()?;
    let slot = u32::from_le_bytes(*slot);
    let name = name.get(..u16::from_le_bytes(*len).into())?;
    if slot == 0 || crc32fast::hash(&record[4..]) != u32::from_le_bytes(*crc) {
        return None;
    }
    Some((slot, StorePath::from_bytes(name).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::parse(&format!("{}-{name}", "0".repeat(32))).unwrap()
    }

    #[test]
    fn what_was_given_is_there_again_until_it_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("spare");
        let mut spare = Spare::open(&file);
        let longest = path(&"x".repeat(211));
        spare.give(7, &path("a")).unwrap();
        spare.give(8, &longest).unwrap();
        let mut again = Spare::open(&file);
        assert_eq!(again.given(), [(7, path("a")), (8, longest.clone())]);
        assert_eq!((again.floor, again.slot(&longest)), (9, Some(8)));
        again.settle(1);
        assert_eq!(Spare::open(&file).given(), [(8, longest)]);
        again.settle(1);
        let mut empty = Spare::open(&file);
        assert!(empty.given().is_empty());
        for slot in 1..=RECORDS as u32 {
            empty.give(slot, &path("a")).unwrap();
        }
        let full = empty.give(9999, &path("a")).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(Spare::open(&file).given().len(), RECORDS);
    }

    #[test]
    fn a_torn_record_ends_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("spare");
        let mut spare = Spare::open(&file);
        spare.give(7, &path("a")).unwrap();
        spare.give(8, &path("b")).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        for bit in 0..RECORD * 8 {
            let mut bad = bytes.clone();
            bad[RECORD + bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&file, &bad).unwrap();
            assert_eq!(Spare::open(&file).given(), [(7, path("a"))], "bit {bit}");
        }
    }
}
