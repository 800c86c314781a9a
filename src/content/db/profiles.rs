//! Access profiles of store paths, as text: what a start of a program read; and that a substituter has none, for a time.

use redb::{ReadableTable, TableDefinition, TableError};

use super::{Db, Pending};
use crate::{content::ContentError, nix::StorePathHash};

/// Digest of the program's store path, the profile's text.
pub(super) const PROFILES: TableDefinition<&[u8; 20], &[u8]> = TableDefinition::new("profiles");

/// Digest of the program's store path, substituter.
type AbsentKey = (&'static [u8; 20], &'static str);
/// Seconds since 1970 when the substituter said that it has none.
pub(super) const NO_PROFILES: TableDefinition<AbsentKey, u64> = TableDefinition::new("no-profiles");

impl Db {
    /// Keeps that `substituter` said at `now` that it has no profile of a store path. What was said more than
    /// `ttl` seconds before goes.
    pub fn put_no_profile(
        &self,
        path: &StorePathHash,
        substituter: &str,
        now: u64,
        ttl: u64,
    ) -> Pending<()> {
        let (path, substituter) = (*path, substituter.to_owned());
        self.writer.submit(move |txn| {
            let mut table = txn.open_table(NO_PROFILES)?;
            table.retain(|_, at| counts(at, now, ttl))?;
            table.insert((path.as_bytes(), substituter.as_str()), now)?;
            Ok(Ok(()))
        })
    }

    /// Whether `substituter` said within the last `ttl` seconds that it has no profile of a store path.
    pub fn has_no_profile(
        &self,
        path: &StorePathHash,
        substituter: &str,
        now: u64,
        ttl: u64,
    ) -> Result<bool, ContentError> {
        self.core.read(|txn| {
            let table = match txn.open_table(NO_PROFILES) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(false),
                Err(e) => return Err(e.into()),
            };
            let said = table.get((path.as_bytes(), substituter))?;
            Ok(said.is_some_and(|at| counts(at.value(), now, ttl)))
        })
    }

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

/// What was said in the future was said by a clock that was wrong.
fn counts(at: u64, now: u64, ttl: u64) -> bool {
    now.checked_sub(at).is_some_and(|age| age < ttl)
}
