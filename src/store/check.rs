//! Hashing what is kept again, dropping what is damaged, fetching it anew.

use std::sync::Arc;

use super::{Core, Event, Lane, Store, StoreError, fetch::look_at};
use crate::{
    content::{Damage, DamageKind, Kept},
    nix::{NarHash, StorePath},
    tree::{Tree, TreeError},
};

/// In which condition something that is kept was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// All of it is here and has the hash that was signed.
    Sound,
    /// A part of it is here; nothing contradicts it, and its hash can't be known yet.
    Partial,
    /// It was not what it should be, and was dropped.
    Damaged,
    /// It was damaged, and was fetched again and verified.
    Repaired,
}

/// What a check found of one NAR.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checked {
    /// The NAR, `sha256:…`.
    pub nar: String,
    /// Store paths that show it, as far as they are known; absolute.
    pub store_paths: Vec<String>,
    /// Its condition.
    pub condition: Condition,
    /// Bytes of it that were kept.
    pub bytes: u64,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Why it could not be repaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CheckReport {
    /// Everything that was looked at, ordered by store path and hash.
    pub checked: Vec<Checked>,
    /// Bytes that were hashed.
    pub hashed: u64,
}

impl CheckReport {
    /// Those in this condition.
    pub fn of(&self, condition: Condition) -> impl Iterator<Item = &Checked> {
        self.checked
            .iter()
            .filter(move |c| c.condition == condition)
    }
}

impl Store {
    /// Holds what is kept of `paths` (of all, if none is named) against its sums and, where it is
    /// complete, against the hash that was promised, and drops what is damaged: no reader gets it any more, it is fetched again when it is read.
    ///
    /// # Errors
    /// When the state directory can't be read, or what is damaged can't be dropped.
    pub fn check(
        &self,
        paths: &[StorePath],
        mut progress: impl FnMut(u64, u64),
    ) -> Result<CheckReport, StoreError> {
        let core = &self.0;
        let names = self.paths_by_nar();
        let of = |nar: &NarHash| names.get(nar).cloned().unwrap_or_default();
        let wanted = |nar: &NarHash| paths.is_empty() || of(nar).iter().any(|p| paths.contains(p));
        let mut kept = core.content.list()?;
        kept.retain(|k| wanted(&k.hash));
        let mut report = CheckReport::default();
        let found = core.content.check_some(wanted, |p| {
            report.hashed = p.hashed;
            progress(p.hashed, p.total);
        })?;
        for kept in &kept {
            let damage = found.damage.iter().find(|d| d.hash == kept.hash);
            let problem = core.problem_of(kept, damage, &mut report.hashed)?;
            if problem.is_none() && kept.valid == 0 {
                continue;
            }
            let condition = match &problem {
                Some(_) => Condition::Damaged,
                None if kept.nar_size == Some(kept.valid) => Condition::Sound,
                None => Condition::Partial,
            };
            let store_paths = of(&kept.hash).iter().map(StorePath::absolute).collect();
            let nar = kept.hash.to_string();
            report.checked.push(Checked {
                nar,
                store_paths,
                condition,
                bytes: kept.valid,
                problem,
                error: None,
            });
        }
        report
            .checked
            .sort_by(|a, b| (&a.store_paths, &a.nar).cmp(&(&b.store_paths, &b.nar)));
        Ok(report)
    }

    /// Fetches again, whole, what a check found damaged and dropped. Returns the first error,
    /// with all of them in the report; what no path names needs no repair.
    pub async fn repair(&self, report: &mut CheckReport) -> Result<(), StoreError> {
        let mut first = None;
        for checked in report
            .checked
            .iter_mut()
            .filter(|c| c.condition == Condition::Damaged)
        {
            let path = checked
                .store_paths
                .first()
                .and_then(|p| StorePath::parse_with_rest(p).ok());
            let outcome = match path {
                Some((path, _)) => match self.admit(&path).await {
                    Ok(known) => self.prefetch(&known, Lane::ReadAhead).await,
                    Err(error) => Err(error),
                },
                None => Ok(()),
            };
            match outcome {
                Ok(()) => checked.condition = Condition::Repaired,
                Err(error) => {
                    checked.error = Some(error.to_string());
                    first.get_or_insert(error);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }
}

impl Core {
    /// What is wrong with something that is kept; drops it if anything is.
    fn problem_of(
        &self,
        kept: &Kept,
        damage: Option<&Damage>,
        hashed: &mut u64,
    ) -> Result<Option<String>, StoreError> {
        if let Some(damage) = damage {
            self.content.repair(damage)?;
            // Single blocks never reached a reader: what the kernel has is right.
            if !matches!(damage.kind, DamageKind::Blocks(_)) {
                self.emit(Event::ContentDropped(kept.hash));
            }
            return Ok(Some(damage.kind.to_string()));
        }
        if let Some(size) = kept
            .nar_size
            .filter(|size| !kept.verified && *size == kept.valid)
        {
            // All of it came in pieces, and nobody has hashed it yet.
            let file = self.content.nar(&kept.hash, size)?;
            *hashed += size;
            let tree = Tree::open(&self.content.tree_path(&kept.hash))
                .ok()
                .map(Arc::new);
            let seen = look_at(&file, tree.as_ref())?;
            let problem = match seen.mismatch {
                _ if seen.hash != kept.hash => {
                    "its bytes are here and do not have the hash that was signed".into()
                }
                Some(reason) => format!("the listing that its tree was made of is wrong: {reason}"),
                None => {
                    file.mark_verified()?;
                    return Ok(None);
                }
            };
            file.discard()?;
            self.content.drop_tree(&kept.hash)?;
            self.emit(Event::ContentDropped(kept.hash));
            return Ok(Some(problem));
        }
        match Tree::open(&self.content.tree_path(&kept.hash)) {
            Err(error) if !error.is_missing() && !matches!(error, TreeError::Io { .. }) => {
                self.content.drop_tree(&kept.hash)?;
                Ok(Some(format!("its compiled tree is damaged: {error}")))
            }
            _ => Ok(None),
        }
    }
}
