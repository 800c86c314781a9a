//! Looking after what is kept: what there is, and whether it is still what it was.

use std::{fmt, ops::Range, sync::Arc};

use super::{ContentError, ContentStore, NarFile, nar_file::Survey, shared::OnDisk, usage::Sizes};
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
    /// The disk gives back other bytes than were kept, or none, at some places; the rest is what it was.
    Blocks(Vec<Range<u64>>),
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
            Self::Blocks(_) => "wrong-blocks",
            Self::WrongHash { .. } => "wrong-hash",
            Self::Map(_) => "bad-map",
            Self::Unreadable(_) => "unreadable",
        }
    }
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocks(ranges) => {
                let bytes: u64 = ranges.iter().map(|r| r.end - r.start).sum();
                let (n, first) = (ranges.len(), ranges.first().map_or(0, |r| r.start));
                write!(
                    f,
                    "{bytes} bytes at {n} places changed on the disk, the first at {first}"
                )
            }
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
    /// NARs that are partial, or complete but were never verified: what is here of them is what came, and there is
    /// no hash yet to compare it with.
    pub unverified: u64,
    /// What is wrong, ordered by hash.
    pub damage: Vec<Damage>,
}

impl ContentStore {
    /// Everything that is kept, ordered by hash.
    pub fn list(&self) -> Result<Vec<Kept>, ContentError> {
        self.look().map(|(kept, _)| kept)
    }

    /// Compares all that is kept with its sums, and hashes every verified NAR again; `progress` is called after each
    /// piece. Changes nothing, but that sums are made where an older narfs made none.
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
        let total = kept.iter().map(|k| k.valid).sum();
        let mut hashed = 0;
        for kept in &kept {
            let Some(size) = kept.nar_size.filter(|_| kept.valid > 0) else {
                continue;
            };
            let found = self.nar(&kept.hash, size).and_then(|nar| {
                let _hold = nar.hold();
                nar.survey(|bytes| {
                    hashed += bytes;
                    progress(CheckProgress { hashed, total });
                    true
                })
            });
            let kind = match found {
                Ok(Survey { bad, .. }) if !bad.is_empty() => DamageKind::Blocks(bad),
                Ok(Survey { hash, .. }) if kept.verified => match hash {
                    Some(found) if found != kept.hash => DamageKind::WrongHash { found },
                    Some(_) => {
                        report.sound += 1;
                        continue;
                    }
                    // Some of it went meanwhile.
                    None => continue,
                },
                Ok(_) => {
                    report.unverified += 1;
                    continue;
                }
                // Somebody dropped it meanwhile: nothing is kept that could be wrong.
                Err(ContentError::Discarded { .. }) => continue,
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
        if let DamageKind::Blocks(ranges) = &damage.kind
            && let Some(nar) = self.kept_nar(&damage.hash)?
        {
            for range in ranges {
                // A read drops what it finds wrong; of what is right by now nothing has to go.
                let mut buf = vec![0; (range.end - range.start) as usize];
                let found = nar.read_at(&mut buf, range.start);
                tracing::debug!(nar = %damage.hash, from = range.start, ?found, "repaired");
            }
            return Ok(0);
        }
        self.drop_bytes(&damage.hash, true)
            .map(Option::unwrap_or_default)
    }

    /// What is kept of a NAR whose size only its map knows, perhaps.
    fn kept_nar(&self, hash: &NarHash) -> Result<Option<Arc<NarFile>>, ContentError> {
        if let Some(nar) = self.alive(hash) {
            return Ok(Some(nar));
        }
        match self.shared.read_map(hash)? {
            OnDisk::Map(map, _) => self.nar(hash, map.nar_size).map(Some),
            _ => Ok(None),
        }
    }

    /// Looks through one NAR at the pace that `progress` sets, as [`ContentStore::check`] does; what is damaged.
    pub(crate) fn scrub(
        &self,
        kept: &Kept,
        progress: impl FnMut(u64) -> bool,
    ) -> Result<Option<Damage>, ContentError> {
        let Some(size) = kept.nar_size.filter(|_| kept.valid > 0) else {
            return Ok(None);
        };
        let nar = self.nar(&kept.hash, size)?;
        let kind = match nar.survey(progress) {
            Ok(Survey { bad, .. }) if !bad.is_empty() => DamageKind::Blocks(bad),
            Ok(Survey {
                hash: Some(found), ..
            }) if nar.verified() && found != kept.hash => DamageKind::WrongHash { found },
            Ok(_) | Err(ContentError::Discarded { .. }) => return Ok(None),
            Err(e) => DamageKind::Unreadable(e.to_string()),
        };
        Ok(Some(Damage {
            hash: kept.hash,
            kind,
        }))
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
