//! What binary caches said of themselves: their `nix-cache-info`.

use redb::{TableDefinition, TableError};

use super::{Db, Pending};
use crate::content::ContentError;

/// Seconds since 1970, the text; empty for a cache that has none.
type Value = (u64, &'static [u8]);

/// Directories of earlier versions do not have this table until something is written to it.
pub(super) const CACHE_INFOS: TableDefinition<&str, Value> = TableDefinition::new("cache-infos");

impl Db {
    /// Keeps the `nix-cache-info` that `substituter` gave at `now` (seconds since 1970).
    pub fn put_cache_info(&self, substituter: &str, text: Vec<u8>, now: u64) -> Pending<()> {
        let substituter = substituter.to_owned();
        self.writer.submit(move |txn| {
            let mut table = txn.open_table(CACHE_INFOS)?;
            table.insert(substituter.as_str(), (now, text.as_slice()))?;
            Ok(Ok(()))
        })
    }

    /// The `nix-cache-info` that `substituter` gave last, with the time (seconds since 1970).
    pub fn cache_info(&self, substituter: &str) -> Result<Option<(u64, Vec<u8>)>, ContentError> {
        self.core.read(|txn| {
            let table = match txn.open_table(CACHE_INFOS) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(e) => return Err(e.into()),
            };
            let found = table.get(substituter)?;
            Ok(found.map(|v| {
                let (at, text) = v.value();
                (at, text.to_vec())
            }))
        })
    }
}
