//! What the caches say of store paths, without admitting them: narinfos alone are fetched.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt, stream::FuturesUnordered};

use tokio::sync::watch;

use super::{Core, Lane, Store, StoreError};
use crate::{
    nix::{NarInfo, StorePath, StorePathHash, Trust},
    substituter::Substituter,
};

/// A narinfo, who gave it, and whether it is trusted.
#[derive(Debug, Clone)]
pub struct Description {
    /// The narinfo.
    pub narinfo: NarInfo,
    /// The cache that gave it, by the name that is safe to show.
    pub substituter: String,
    /// What proves it.
    pub trust: Trust,
    /// Whether it is taken although nothing proves it: its cache is trusted, or no signatures are
    /// required.
    pub waived: bool,
}

impl Description {
    /// Whether narfs would serve it.
    pub fn served(&self) -> bool {
        self.waived || !matches!(self.trust, Trust::Untrusted)
    }
}

impl Store {
    /// What the caches say of a path: the first trusted narinfo; if there is none, one that is not
    /// trusted.
    ///
    /// # Errors
    /// As for [`Store::admit`], but for a missing signature.
    pub async fn describe(&self, path: &StorePath) -> Result<Description, StoreError> {
        let core = &self.0;
        match core.find_offer(path, &watch::channel(Lane::Demand).1).await {
            Ok(offer) => Ok(core.described(offer.narinfo, &offer.substituter)),
            Err(error) => match core.untrusted(path, &error).await {
                Some(description) => Ok(description),
                None => Err(error),
            },
        }
    }

    /// What a path refers to, without itself, by its narinfo alone. The caches are asked only where
    /// it is not known already.
    ///
    /// # Errors
    /// As for [`Store::admit`].
    pub async fn references(
        &self,
        path: &StorePath,
        lane: Lane,
    ) -> Result<Vec<StorePath>, StoreError> {
        let core = &self.0;
        let offer = match core.known_offer(path)? {
            Some(known) => known,
            None => core.find_offer(path, &watch::channel(lane).1).await?,
        };
        let mut references = offer.narinfo.references;
        references.retain(|reference| reference != path);
        Ok(references)
    }

    /// As [`Store::describe`], of `roots` and everything they refer to; many at a time. Breadth
    /// first, each path once, in an order that does not depend on which answer came first.
    pub async fn describe_closure(
        &self,
        roots: &[StorePath],
    ) -> Vec<(StorePath, Result<Description, StoreError>)> {
        self.describe_closure_telling(roots, |_, _| {}).await
    }

    /// As [`Store::describe_closure`]; tells after each answer how many there are, and how many
    /// paths are known to belong to it so far.
    pub async fn describe_closure_telling(
        &self,
        roots: &[StorePath],
        mut tell: impl FnMut(usize, usize),
    ) -> Vec<(StorePath, Result<Description, StoreError>)> {
        let mut asked: HashSet<StorePathHash> = HashSet::new();
        let mut answers: HashMap<StorePathHash, Result<Description, StoreError>> = HashMap::new();
        let mut running = FuturesUnordered::new();
        let one = |path: StorePath| async move {
            let answer = self.describe(&path).await;
            (path, answer)
        };
        for root in roots.iter().filter(|root| asked.insert(root.hash())) {
            running.push(one(root.clone()));
        }
        while let Some((path, answer)) = running.next().await {
            for reference in answer.iter().flat_map(|d| &d.narinfo.references) {
                if asked.insert(reference.hash()) {
                    running.push(one(reference.clone()));
                }
            }
            answers.insert(path.hash(), answer);
            tell(answers.len(), asked.len());
        }
        in_order(roots, answers)
    }
}

fn in_order(
    roots: &[StorePath],
    mut answers: HashMap<StorePathHash, Result<Description, StoreError>>,
) -> Vec<(StorePath, Result<Description, StoreError>)> {
    let mut ordered = Vec::new();
    let mut level = roots.to_vec();
    while !level.is_empty() {
        let mut next = Vec::new();
        for path in level {
            if let Some(answer) = answers.remove(&path.hash()) {
                next.extend(answer.iter().flat_map(|d| d.narinfo.references.clone()));
                ordered.push((path, answer));
            }
        }
        level = next;
    }
    ordered
}

impl Core {
    fn described(&self, narinfo: NarInfo, substituter: &Substituter) -> Description {
        Description {
            trust: narinfo.trust(&self.settings.keys),
            narinfo,
            substituter: substituter.name().to_owned(),
            waived: substituter.trusted() || !self.settings.require_signatures,
        }
    }

    /// The narinfo that was refused with `error`, asked for once more: what is refused is not kept.
    async fn untrusted(&self, path: &StorePath, error: &StoreError) -> Option<Description> {
        let StoreError::Untrusted { substituter, .. } = error.root() else {
            return None;
        };
        let substituter = self.substituter_named(substituter)?;
        let text = self.narinfo_text(&substituter, path).await.ok()??;
        let narinfo = NarInfo::parse(&text, &path.hash()).ok()?;
        (narinfo.store_path == *path).then(|| self.described(narinfo, &substituter))
    }
}
