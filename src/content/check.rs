//! Looking after what is kept: what there is, and whether it is still what it was.

use std::fmt;

use super::{ContentError, ContentStore, shared::OnDisk, usage::Sizes};
use crate::nix::NarHash;

/// What is kept of one NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The NAR.
    pub hash: NarHash,
    /// Its size in bytes, if a map says so.
    pub nar_size: Option<u64>,
    /// Number of its bytes that are here.
    pub valid: u64,
    /// Whether it was complete and hashed, rightly.
    pub verified: bool,
    /// Bytes allocated for the bytes and the map.
    pub allocated: u64,
    /// Bytes allocated for the compiled tree; 0 for none.
    pub index_allocated: u64,
}

/// Something is wrong with what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The NAR.
    pub hash: NarHash,
    /// What is wrong.
    pub kind: DamageKind,
}

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DamageKind {
    /// The bytes were right once and no longer have the hash.
    WrongHash {
        /// The hash they have.
        found: NarHash,
    },
    /// The map does not read, or does not fit the NAR file: its bytes count as absent.
    Map(String),
    /// The disk does not give the bytes back.
    Unreadable(String),
}

impl DamageKind {
    /// A word for machines; never changes.
    pub fn slug(&self) -> &'static str {
        match self {
            Self::WrongHash { .. } => "wrong-hash",
            Self::Map(_) => "bad-map",
            Self::Unreadable(_) => "unreadable",
        }
    }
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongHash { found } => {
                write!(f, "its bytes changed on the disk; they hash to {found}")
            }
            Self::Map(why) => write!(f, "its map is not usable: {why}"),
            Self::Unreadable(why) => write!(f, "its bytes cannot be read: {why}"),
        }
    }
}

/// How far a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckProgress {
    /// Bytes hashed so far.
    pub hashed: u64,
    /// Bytes to hash.
    pub total: u64,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// NARs that were hashed and are right.
    pub sound: u64,
    /// NARs that are partial, or complete but were never verified: nothing to compare with yet.
    pub unverified: u64,
    /// What is wrong, ordered by hash.
    pub damage: Vec<Damage>,
}

impl ContentStore {
    /// Everything that is kept, ordered by hash.
    pub fn list(&self) -> Result<Vec<Kept>, ContentError> {
        self.look().map(|(kept, _)| kept)
    }

    /// Hashes every verified NAR again; `progress` is called after each piece. Changes nothing.
    pub fn check(&self, progress: impl FnMut(CheckProgress)) -> Result<CheckReport, ContentError> {
        self.check_some(|_| true, progress)
    }

    /// As [`ContentStore::check`], of the NARs that are `wanted` alone.
    pub fn check_some(
        &self,
        wanted: impl Fn(&NarHash) -> bool,
        mut progress: impl FnMut(CheckProgress),
    ) -> Result<CheckReport, ContentError> {
        let (mut kept, mut damage) = self.look()?;
        kept.retain(|k| wanted(&k.hash));
        damage.retain(|d| wanted(&d.hash));
        let mut report = CheckReport {
            damage,
            ..CheckReport::default()
        };
        let total = kept.iter().filter(|k| k.verified).map(|k| k.valid).sum();
        let mut hashed = 0;
        for kept in &kept {
            let Some(size) = kept.nar_size.filter(|_| kept.verified) else {
                report.unverified += u64::from(kept.valid > 0);
                continue;
            };
            let found = self.nar(&kept.hash, size).and_then(|nar| {
                let _hold = nar.hold();
                nar.hash_with(|bytes| {
                    hashed += bytes;
                    progress(CheckProgress { hashed, total });
                })
            });
            let kind = match found {
                Ok((found, _)) if found == kept.hash => {
                    report.sound += 1;
                    continue;
                }
                Ok((found, _)) => DamageKind::WrongHash { found },
                // Somebody dropped it meanwhile: nothing is kept that could be wrong.
                Err(
                    ContentError::Discarded { .. }
                    | ContentError::Incomplete { .. }
                    | ContentError::NotValid { .. },
                ) => {
                    continue;
                }
                Err(e) => DamageKind::Unreadable(e.to_string()),
            };
            report.damage.push(Damage {
                hash: kept.hash,
                kind,
            });
        }
        report.damage.sort_by_key(|d| d.hash);
        Ok(report)
    }

    /// Drops what is damaged, so that it is fetched again; the bytes that became free.
    pub fn repair(&self, damage: &Damage) -> Result<u64, ContentError> {
        self.drop_bytes(&damage.hash, true)
            .map(Option::unwrap_or_default)
    }

    fn look(&self) -> Result<(Vec<Kept>, Vec<Damage>), ContentError> {
        // What is in memory only would look as if it were not there.
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "the newest kept bytes are not durable and not in this listing");
        }
        let scan = self.shared.usage.exact(self.shared.content())?;
        let mut damage = Vec::new();
        let mut all = Vec::with_capacity(scan.nars.len());
        for (hash, sizes) in scan.nars {
            let Sizes { nar, map, index } = sizes;
            let mut kept = Kept {
                hash,
                nar_size: None,
                valid: 0,
                verified: false,
                allocated: nar + map,
                index_allocated: index,
            };
            let wrong = match self.shared.read_map(&hash) {
                Ok(OnDisk::Absent) => None,
                Ok(OnDisk::Unusable(why)) => Some(DamageKind::Map(why)),
                Err(e) => Some(DamageKind::Unreadable(e.to_string())),
                Ok(OnDisk::Map(map, _)) => {
                    kept.nar_size = Some(map.nar_size);
                    match self.shared.backing(&map) {
                        Ok(Ok(_)) => {
                            kept.valid = map.extents.covered();
                            kept.verified = map.verified;
                            None
                        }
                        Ok(Err(why)) => Some(DamageKind::Map(why.into())),
                        Err(e) => Some(DamageKind::Unreadable(e.to_string())),
                    }
                }
            };
            damage.extend(wrong.map(|kind| Damage { hash, kind }));
            all.push(kept);
        }
        all.sort_by_key(|k| k.hash);
        Ok((all, damage))
    }
}
