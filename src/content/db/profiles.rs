//! Access profiles of store paths, as text: what a start of a program read.

use redb::{ReadableTable, TableDefinition, TableError};

use super::{Db, Pending};
use crate::{content::ContentError, nix::StorePathHash};

/// Digest of the program's store path, the profile's text.
pub(super) const PROFILES: TableDefinition<&[u8; 20], &[u8]> = TableDefinition::new("profiles");

impl Db {
    /// Keeps the profile of a store path, in the place of the one before.
    pub fn put_profile(&self, path: &StorePathHash, text: Vec<u8>) -> Pending<()> {
        let path = *path;
        self.writer.submit(move |txn| {
            let mut table = txn.open_table(PROFILES)?;
            table.insert(path.as_bytes(), text.as_slice())?;
            Ok(Ok(()))
        })
    }

    /// Forgets the profile of a store path; whether there was one.
    pub fn remove_profile(&self, path: &StorePathHash) -> Pending<bool> {
        let path = *path;
        self.writer.submit(move |txn| {
            let was = txn.open_table(PROFILES)?.remove(path.as_bytes())?.is_some();
            Ok(Ok(was))
        })
    }

    /// The profile of a store path.
    pub fn profile(&self, path: &StorePathHash) -> Result<Option<Vec<u8>>, ContentError> {
        self.core.read(|txn| {
            let table = match txn.open_table(PROFILES) {
                Ok(table) => table,
                // Not there until one is written.
                Err(TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(e) => return Err(e.into()),
            };
            Ok(table
                .get(path.as_bytes())?
                .map(|text| text.value().to_vec()))
        })
    }

    /// All of them.
    pub fn profiles(&self) -> Result<Vec<Vec<u8>>, ContentError> {
        self.core.read(|txn| {
            let table = match txn.open_table(PROFILES) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(e) => return Err(e.into()),
            };
            table
                .iter()?
                .map(|entry| Ok(entry?.1.value().to_vec()))
                .collect()
        })
    }
}
