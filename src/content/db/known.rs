//! All that is kept of many store paths, from one look at the database.

use super::{Db, facts::FACTS, narinfos::NARINFOS};
use crate::{
    content::{ContentError, PathFacts},
    nix::StorePathHash,
};

/// What is kept of a store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptOfPath {
    /// The narinfo that each of the substituters gave, fresh or not; `None` where it has none, or was not asked.
    pub narinfos: Vec<Option<Vec<u8>>>,
    /// Its facts.
    pub facts: PathFacts,
}

impl Db {
    /// What is kept of these store paths, in their order, as far as it comes from these substituters.
    ///
    /// Unlike [`Db::narinfos`] it does not say how old an answer is, so answers from the future stay as they are.
    pub fn kept_of(
        &self,
        hashes: &[StorePathHash],
        substituters: &[&str],
    ) -> Result<Vec<KeptOfPath>, ContentError> {
        self.core.read(|txn| {
            let (narinfos, facts) = (txn.open_table(NARINFOS)?, txn.open_table(FACTS)?);
            let narinfo = |hash: &StorePathHash, substituter: &str| {
                let found = narinfos.get((hash.as_bytes(), substituter))?;
                Ok::<_, redb::Error>(found.and_then(|v| v.value().1.map(<[u8]>::to_vec)))
            };
            let one = |hash: &StorePathHash| {
                Ok(KeptOfPath {
                    narinfos: substituters
                        .iter()
                        .map(|substituter| narinfo(hash, substituter))
                        .collect::<Result<_, redb::Error>>()?,
                    facts: super::facts::found(&facts, hash)?,
                })
            };
            hashes.iter().map(one).collect()
        })
    }
}
