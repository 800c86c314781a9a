//! Narinfos as they were fetched, and that a substituter has none: each for a time.

use redb::{ReadableTable, TableDefinition};

use super::{Db, Pending, profiles::NO_PROFILES};
use crate::{content::ContentError, nix::StorePathHash};

/// Digest of a store path, substituter.
type Key = (&'static [u8; 20], &'static str);
/// Seconds since 1970, the narinfo or none.
type Value = (u64, Option<&'static [u8]>);

pub(super) const NARINFOS: TableDefinition<Key, Value> = TableDefinition::new("narinfos");

/// Answers that are forgotten in one transaction: nobody else writes for so long.
const PRUNED_AT_ONCE: usize = 10_000;

/// How long an answer counts, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarinfoTtl {
    /// For a narinfo.
    pub positive: u64,
    /// For the answer that there is none.
    pub negative: u64,
}

/// What a substituter answered once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedNarinfo {
    /// Who.
    pub substituter: String,
    /// When, in seconds since 1970.
    pub fetched_at: u64,
    /// The narinfo as it came; `None`: the substituter does not have the path.
    pub text: Option<Vec<u8>>,
    /// Whether it still counts.
    pub fresh: bool,
}

impl Db {
    /// Keeps what `substituter` answered at `now`; `None` for "does not have it".
    pub fn put_narinfos(
        &self,
        substituter: &str,
        answers: Vec<(StorePathHash, Option<Vec<u8>>)>,
        now: u64,
    ) -> Pending<()> {
        let substituter = substituter.to_owned();
        self.writer.submit_in_company(move |txn| {
            let mut table = txn.open_table(NARINFOS)?;
            for (hash, text) in &answers {
                table.insert(
                    (hash.as_bytes(), substituter.as_str()),
                    (now, text.as_deref()),
                )?;
            }
            Ok(Ok(()))
        })
    }

    /// What `substituter` answered for a store path, fresh or not.
    ///
    /// An answer from the future (the clock was set back) counts as one of `now`, and is kept as such.
    pub fn narinfo(
        &self,
        substituter: &str,
        hash: &StorePathHash,
        now: u64,
        ttl: NarinfoTtl,
    ) -> Result<Option<CachedNarinfo>, ContentError> {
        let all = self.narinfo_batch(substituter, std::slice::from_ref(hash), now, ttl)?;
        Ok(all.into_iter().next().flatten())
    }

    /// As [`Db::narinfo`] for many store paths, in their order, from one look at the database.
    pub fn narinfo_batch(
        &self,
        substituter: &str,
        hashes: &[StorePathHash],
        now: u64,
        ttl: NarinfoTtl,
    ) -> Result<Vec<Option<CachedNarinfo>>, ContentError> {
        let mut all = self.core.read(|txn| {
            let table = txn.open_table(NARINFOS)?;
            let one = |hash: &StorePathHash| {
                let found = table.get((hash.as_bytes(), substituter))?;
                Ok(found.map(|v| {
                    let (fetched_at, text) = v.value();
                    answer(substituter, fetched_at, text, now, ttl)
                }))
            };
            hashes
                .iter()
                .map(one)
                .collect::<Result<Vec<_>, redb::Error>>()
        })?;
        for (hash, found) in hashes.iter().zip(&mut all) {
            if let Some(found) = found.as_mut().filter(|a| a.fetched_at > now) {
                self.clamp(*hash, substituter.to_owned(), now);
                found.fetched_at = now;
            }
        }
        Ok(all)
    }

    /// What all substituters answered for a store path.
    pub fn narinfos(
        &self,
        hash: &StorePathHash,
        now: u64,
        ttl: NarinfoTtl,
    ) -> Result<Vec<CachedNarinfo>, ContentError> {
        let found: Vec<CachedNarinfo> = self.core.read(|txn| {
            let table = txn.open_table(NARINFOS)?;
            let mut all = Vec::new();
            for entry in table.range((hash.as_bytes(), "")..)? {
                let (key, value) = entry?;
                let ((digest, substituter), (fetched_at, text)) = (key.value(), value.value());
                if digest != hash.as_bytes() {
                    break;
                }
                all.push(answer(substituter, fetched_at, text, now, ttl));
            }
            Ok(all)
        })?;
        for future in found.iter().filter(|a| a.fetched_at > now) {
            self.clamp(*hash, future.substituter.clone(), now);
        }
        Ok(found
            .into_iter()
            .map(|a| CachedNarinfo {
                fetched_at: a.fetched_at.min(now),
                ..a
            })
            .collect())
    }

    /// Forgets that substituters do not have this store path, or a profile of it.
    pub fn forget_negative(&self, hash: &StorePathHash) -> Pending<()> {
        let hash = *hash;
        self.writer.submit(move |txn| {
            let mut table = txn.open_table(NARINFOS)?;
            let mut negative = Vec::new();
            for entry in table.range((hash.as_bytes(), "")..)? {
                let (key, value) = entry?;
                let (digest, substituter) = key.value();
                if digest != hash.as_bytes() {
                    break;
                }
                if value.value().1.is_none() {
                    negative.push(substituter.to_owned());
                }
            }
            for substituter in &negative {
                table.remove((hash.as_bytes(), substituter.as_str()))?;
            }
            txn.open_table(NO_PROFILES)?
                .retain(|(digest, _), _| digest != hash.as_bytes())?;
            Ok(Ok(()))
        })
    }

    /// Forgets what one substituter answered for a store path: it was wrong.
    pub fn forget_narinfo(&self, substituter: &str, hash: &StorePathHash) -> Pending<()> {
        let (substituter, hash) = (substituter.to_owned(), *hash);
        self.writer.submit(move |txn| {
            txn.open_table(NARINFOS)?
                .remove((hash.as_bytes(), substituter.as_str()))?;
            Ok(Ok(()))
        })
    }

    /// Forgets the answers "does not have it" that no longer count, without which they would pile up,
    /// up to 10,000 of them; how many there were. Waits for the disk.
    pub fn prune_negative(&self, now: u64, ttl: NarinfoTtl) -> Result<usize, ContentError> {
        let is_old = move |at: u64, text: Option<&[u8]>| {
            text.is_none() && now.saturating_sub(at) >= ttl.negative
        };
        // Found beside those who write: there is a narinfo for each path that was ever known.
        let old = self.core.read(|txn| {
            let mut old = Vec::new();
            for entry in txn.open_table(NARINFOS)?.iter()? {
                let (key, value) = entry?;
                let (at, text) = value.value();
                if is_old(at, text) {
                    let (hash, substituter) = key.value();
                    old.push((*hash, substituter.to_owned()));
                }
                if old.len() == PRUNED_AT_ONCE {
                    break;
                }
            }
            Ok(old)
        })?;
        if old.is_empty() {
            return Ok(0);
        }
        let forgotten = self.writer.submit(move |txn| {
            let (mut table, mut forgotten) = (txn.open_table(NARINFOS)?, 0);
            for (hash, substituter) in &old {
                let key = (hash, substituter.as_str());
                // Somebody may have asked again meanwhile.
                let said = table.get(key)?;
                if said.is_some_and(|v| is_old(v.value().0, v.value().1)) {
                    table.remove(key)?;
                    forgotten += 1;
                }
            }
            Ok(Ok(forgotten))
        });
        forgotten.wait()
    }

    /// Sets the time of an answer from the future to `now`.
    fn clamp(&self, hash: StorePathHash, substituter: String, now: u64) {
        // Nobody has to wait for it: until it is done, the answer is found to be from the future again.
        let _ = self.writer.submit(move |txn| {
            let mut table = txn.open_table(NARINFOS)?;
            let key = (hash.as_bytes(), substituter.as_str());
            let text = match table.get(key)? {
                Some(v) if v.value().0 > now => v.value().1.map(<[u8]>::to_vec),
                _ => return Ok(Ok(())),
            };
            table.insert(key, (now, text.as_deref()))?;
            Ok(Ok(()))
        });
    }
}

fn answer(
    substituter: &str,
    fetched_at: u64,
    text: Option<&[u8]>,
    now: u64,
    ttl: NarinfoTtl,
) -> CachedNarinfo {
    let ttl = if text.is_some() {
        ttl.positive
    } else {
        ttl.negative
    };
    CachedNarinfo {
        substituter: substituter.into(),
        fetched_at,
        text: text.map(<[u8]>::to_vec),
        fresh: now.saturating_sub(fetched_at) < ttl,
    }
}
