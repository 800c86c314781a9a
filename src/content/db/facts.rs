//! What the status says of a store path besides its bytes.

use redb::{ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::{Db, Pending};
use crate::{content::ContentError, nix::StorePathHash};

pub(super) const FACTS: TableDefinition<&[u8; 20], &[u8]> = TableDefinition::new("facts");

/// Facts of a store path that survive a restart. Times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathFacts {
    /// When the path was first seen.
    pub first_seen: Option<u64>,
    /// When bytes of it last arrived from a cache.
    pub last_fetched: Option<u64>,
    /// The substituter its bytes came from, by the name that is safe to show.
    pub fetched_from: Option<String>,
    /// The last error, until the path recovers.
    pub last_error: Option<PathError>,
    /// What was found to be trusted: a digest of the narinfo and of the keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trusted: Option<String>,
}

/// An error and when it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathError {
    /// What it said.
    pub text: String,
    /// When, in seconds since 1970.
    pub at: u64,
}

impl Db {
    /// Sets the facts of store paths.
    pub fn put_facts(&self, facts: Vec<(StorePathHash, PathFacts)>) -> Pending<()> {
        self.writer.submit(move |txn| {
            let mut table = txn.open_table(FACTS)?;
            for (hash, facts) in &facts {
                table.insert(hash.as_bytes(), encode(facts)?.as_slice())?;
            }
            Ok(Ok(()))
        })
    }

    /// Changes the facts of one store path, whatever they are then.
    pub fn update_facts(
        &self,
        hash: &StorePathHash,
        change: impl FnOnce(&mut PathFacts) + Send + 'static,
    ) -> Pending<()> {
        let hash = *hash;
        self.writer.submit(move |txn| {
            let mut table = txn.open_table(FACTS)?;
            let mut facts = table
                .get(hash.as_bytes())?
                .map(|v| decode(v.value()))
                .unwrap_or_default();
            change(&mut facts);
            table.insert(hash.as_bytes(), encode(&facts)?.as_slice())?;
            Ok(Ok(()))
        })
    }

    /// The facts of a store path; nothing known gives nothing but defaults.
    pub fn facts(&self, hash: &StorePathHash) -> Result<PathFacts, ContentError> {
        self.core.read(|txn| found(&txn.open_table(FACTS)?, hash))
    }

    /// The facts of every store path that has some.
    pub fn all_facts(&self) -> Result<Vec<(StorePathHash, PathFacts)>, ContentError> {
        self.core.read(|txn| {
            txn.open_table(FACTS)?
                .iter()?
                .map(|entry| {
                    let (hash, facts) = entry?;
                    Ok((
                        StorePathHash::from_bytes(*hash.value()),
                        decode(facts.value()),
                    ))
                })
                .collect()
        })
    }
}

pub(super) fn found(
    table: &impl ReadableTable<&'static [u8; 20], &'static [u8]>,
    hash: &StorePathHash,
) -> Result<PathFacts, redb::Error> {
    let found = table.get(hash.as_bytes())?;
    Ok(found.map(|v| decode(v.value())).unwrap_or_default())
}

fn encode(facts: &PathFacts) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(facts).map_err(|e| redb::Error::Io(e.into()))
}

/// Facts are for showing: what does not read is as good as unknown.
fn decode(bytes: &[u8]) -> PathFacts {
    serde_json::from_slice(bytes).unwrap_or_default()
}
