//! What the snapshotter needs of the store: closures admitted, views made.

use std::{future::Future, pin::Pin, sync::Arc};

use super::{
    layer::Wanted,
    record::{NixLayer, SnapshotId},
};
use crate::store::{ClosureReport, Lane, Store, StoreError, ViewName};

/// An answer that takes a while.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A lazy store, as far as snapshots are concerned. Unit tests have a twin in memory.
pub trait Closures: Send + Sync {
    /// Makes all paths known that a layer wants: their narinfos are trusted, their trees compiled.
    fn admit<'a>(&'a self, wanted: &'a Wanted) -> Answer<'a, ClosureReport>;

    /// Makes the view of a snapshot, durably, of paths that were admitted before, and roots them.
    /// Needs no network.
    fn make_view<'a>(
        &'a self,
        id: SnapshotId,
        layer: &'a NixLayer,
    ) -> Answer<'a, Result<(), StoreError>>;

    /// Removes the view of a snapshot; whether there was one.
    fn remove_view(&self, id: SnapshotId) -> Answer<'_, Result<bool, StoreError>>;

    /// The view of a snapshot, if there is one.
    fn view(&self, id: SnapshotId) -> Option<NixLayer>;

    /// Every snapshot that has a view.
    fn views(&self) -> Vec<SnapshotId>;

    /// Bytes of disk that the content of a view's own paths takes now.
    ///
    /// # Errors
    /// When the state directory can't be read.
    fn view_usage(&self, id: SnapshotId) -> Result<u64, StoreError>;
}

impl Closures for Store {
    fn admit<'a>(&'a self, wanted: &'a Wanted) -> Answer<'a, ClosureReport> {
        // A container waits for it to start.
        let lane = Lane::Demand;
        Box::pin(async move {
            let report = match wanted {
                Wanted::Paths(paths) => self.admit_all(paths, lane).await,
                // Nobody reads what only lists the others: its NAR is not even indexed.
                Wanted::ReferencesOf(path) => match self.references(path, lane).await {
                    Ok(references) => self.admit_closure(&references, lane).await,
                    Err(error) => ClosureReport {
                        failed: vec![(path.clone(), Arc::new(error))],
                        ..ClosureReport::default()
                    },
                },
            };
            let absent = report.failed.iter().filter(|(_, e)| e.is_absence());
            let absent = absent.map(|(path, _)| path);
            if let Err(error) = self.forget_absence(absent).await {
                tracing::warn!(%error, "paths that are missing now stay known as missing for a while");
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
            let name = name_of(id)?;
            Store::make_view(self, &name, &layer.own, &layer.shown).await
        })
    }

    fn remove_view(&self, id: SnapshotId) -> Answer<'_, Result<bool, StoreError>> {
        Box::pin(async move { Store::remove_view(self, &name_of(id)?).await })
    }

    fn view(&self, id: SnapshotId) -> Option<NixLayer> {
        let contents = Store::view(self, &name_of(id).ok()?)?;
        Some(NixLayer {
            own: contents.own,
            shown: contents.shown,
        })
    }

    fn views(&self) -> Vec<SnapshotId> {
        let names = Store::views(self);
        names
            .iter()
            .filter_map(|name| of_view(name.as_str()))
            .collect()
    }

    fn view_usage(&self, id: SnapshotId) -> Result<u64, StoreError> {
        Store::view_usage(self, &name_of(id)?)
    }
}

/// Every such name is one; an error only so that nothing has to be taken for granted.
fn name_of(id: SnapshotId) -> Result<ViewName, StoreError> {
    ViewName::parse(&view_name(id)).map_err(|_| StoreError::NoEntry)
}

/// Name of a snapshot's view.
pub fn view_name(id: SnapshotId) -> String {
    format!("s{id}")
}

/// The snapshot whose view has this name.
pub fn of_view(name: &str) -> Option<SnapshotId> {
    let id = SnapshotId(name.strip_prefix('s')?.parse().ok()?);
    (view_name(id) == name).then_some(id)
}
