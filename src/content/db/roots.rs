//! Roots: named sets of store paths that are to be kept.

use redb::{ReadTransaction, ReadableTable, TableDefinition};

use super::{Db, Pending};
use crate::{content::ContentError, nix::StorePath};

/// Base names, one a line: none of them has a line break in it.
pub(super) const ROOTS: TableDefinition<&str, &str> = TableDefinition::new("roots");

pub(super) fn read_all(
    txn: &ReadTransaction,
) -> Result<Vec<(String, Vec<StorePath>)>, redb::Error> {
    txn.open_table(ROOTS)?
        .iter()?
        .map(|entry| {
            let (name, paths) = entry?;
            let paths = paths
                .value()
                .lines()
                .map(StorePath::parse)
                .collect::<Result<_, _>>();
            Ok((
                name.value().to_owned(),
                paths.map_err(|e| redb::Error::Corrupted(e.to_string()))?,
            ))
        })
        .collect()
}

impl Db {
    /// All roots, by name.
    pub fn roots(&self) -> Result<Vec<(String, Vec<StorePath>)>, ContentError> {
        self.core.read(read_all)
    }

    /// Makes the root `name`, or gives it other paths.
    pub fn put_root(&self, name: &str, paths: &[StorePath]) -> Pending<()> {
        let name = name.to_owned();
        let text = paths.iter().map(|p| format!("{p}\n")).collect::<String>();
        self.writer.submit(move |txn| {
            txn.open_table(ROOTS)?
                .insert(name.as_str(), text.as_str())?;
            Ok(Ok(()))
        })
    }

    /// Removes the root `name`; whether there was one.
    pub fn remove_root(&self, name: &str) -> Pending<bool> {
        let name = name.to_owned();
        self.writer.submit(move |txn| {
            let was = txn.open_table(ROOTS)?.remove(name.as_str())?.is_some();
            Ok(Ok(was))
        })
    }
}
