//! A store in memory, for the unit tests of the snapshotter.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use super::{
    closures::{Answer, Closures},
    layer::Wanted,
    record::{NixLayer, SnapshotId},
};
use crate::{
    nix::StorePath,
    store::{ClosureReport, StoreError},
};

/// Has some paths and remembers views.
#[derive(Default)]
pub struct Twin {
    /// Paths that its cache has, with what they refer to.
    pub cache: Mutex<BTreeMap<StorePath, Vec<StorePath>>>,
    /// Paths that were admitted.
    pub admitted: Mutex<BTreeSet<StorePath>>,
    /// Its views.
    pub views: Mutex<BTreeMap<SnapshotId, NixLayer>>,
    /// Every admission waits for one of these, if there is one.
    pub gate: Option<Arc<tokio::sync::Semaphore>>,
}

/// `<digest of the name>-<name>`.
pub fn path(name: &str) -> StorePath {
    let digest: String = name.bytes().map(|b| char::from(b'0' + b % 10)).collect();
    StorePath::parse(&format!("{digest:0<32}-{name}")).unwrap()
}

impl Twin {
    /// Its cache has these.
    pub fn with(names: &[&str]) -> Self {
        let twin = Self::default();
        twin.offer(names);
        twin
    }

    /// Its cache has these from now on.
    pub fn offer(&self, names: &[&str]) {
        let paths = names.iter().map(|name| (path(name), Vec::new()));
        self.cache.lock().unwrap().extend(paths);
    }
}

impl Closures for Twin {
    fn admit<'a>(&'a self, wanted: &'a Wanted) -> Answer<'a, ClosureReport> {
        Box::pin(async move {
            if let Some(gate) = &self.gate {
                gate.acquire().await.unwrap().forget();
            }
            let cache = self.cache.lock().unwrap();
            let mut asked = match wanted {
                Wanted::Paths(paths) => paths.clone(),
                Wanted::ReferencesOf(root) => {
                    let mut all = cache.get(root).cloned().unwrap_or_default();
                    all.push(root.clone());
                    all
                }
            };
            let mut report = ClosureReport::default();
            for path in asked.drain(..) {
                if cache.contains_key(&path) {
                    self.admitted.lock().unwrap().insert(path.clone());
                    report.admitted.push(path);
                } else {
                    let caches = "memory".into();
                    let absent = StoreError::Absent {
                        path: path.clone(),
                        caches,
                    };
                    report.failed.push((path, Arc::new(absent)));
                }
            }
            report
        })
    }

    fn make_view<'a>(
        &'a self,
        id: SnapshotId,
        layer: &'a NixLayer,
    ) -> Answer<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let admitted = self.admitted.lock().unwrap();
            if !layer.shown.iter().all(|path| admitted.contains(path)) {
                return Err(StoreError::NoEntry);
            }
            self.views.lock().unwrap().insert(id, layer.clone());
            Ok(())
        })
    }

    fn remove_view(&self, id: SnapshotId) -> Answer<'_, Result<bool, StoreError>> {
        Box::pin(async move { Ok(self.views.lock().unwrap().remove(&id).is_some()) })
    }

    fn view(&self, id: SnapshotId) -> Option<NixLayer> {
        self.views.lock().unwrap().get(&id).cloned()
    }

    fn views(&self) -> Vec<SnapshotId> {
        self.views.lock().unwrap().keys().copied().collect()
    }

    fn view_usage(&self, id: SnapshotId) -> Result<u64, StoreError> {
        match self.views.lock().unwrap().get(&id) {
            Some(view) => Ok(1000 * view.own.len() as u64),
            None => Err(StoreError::NoEntry),
        }
    }
}
