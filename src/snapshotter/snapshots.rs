//! The ten calls, with the semantics of containerd's overlayfs snapshotter.
//!
//! A call looks at the newest [`State`], does what is slow (admits paths, makes directories and
//! views), and then changes the database in one step that looks again: so no lock is held while
//! anything slow happens, a cache that hangs holds up only those who need it, and of two who want
//! the same key one is told that it exists. From the first directory on, a call runs as a task of
//! its own: whoever stops waiting leaves nothing half done.
//!
//! In which order things last: directory and view first, the record after them, the answer last;
//! on removal the record goes first. So a kill in between leaves a directory or a view that nobody
//! knows of, never a snapshot without them; `heal.rs` sees to what is left.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::task::spawn_blocking;

use super::{
    closures::Closures,
    directories::{Directories, remove},
    error::SnapshotError,
    filter::{Filter, takes},
    layer::{LayerError, Wanted, is_unpacked_into},
    metadata::{Metadata, State},
    metrics::Calls,
    mounts::{Layers, Overlay},
    native::Native,
    record::{
        Keyed, Kind, Labels, Moment, Named, NixLayer, Record, SnapshotId, Usage, kept_labels,
    },
    wire::Mount,
};
use crate::nix::StorePath;

/// How long the admission of a layer may take in all: below the two minutes that kubelet gives a
/// request to the runtime, so that its error is ours.
pub const ADMISSION: Duration = Duration::from_secs(90);

/// Bytes of mount options from which on containerd shortens them, with something to spare.
const MOST_OPTIONS: usize = 3072;

/// How the snapshotter acts.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether layers without labels are looked at, see `layer.rs`.
    pub detect: bool,
    /// How long the admission of a layer may take in all.
    pub admission: Duration,
    /// What the kernel needs to be told.
    pub overlay: Overlay,
    /// Files that the kernel reads itself, if there are any.
    pub native: Option<Arc<Native>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            detect: true,
            admission: ADMISSION,
            overlay: Overlay::of_this_system(),
            native: None,
        }
    }
}

/// All snapshots of a state directory. Clones share them.
#[derive(Clone)]
pub struct Snapshots(pub(super) Arc<Core>);

pub(super) struct Core {
    pub metadata: Metadata,
    pub directories: Directories,
    pub closures: Arc<dyn Closures>,
    pub options: Options,
    pub calls: Calls,
    /// Snapshots in the making: their directories and views are no leavings.
    busy: Mutex<HashSet<SnapshotId>>,
    /// Held for a round of the cleaner.
    cleaning: tokio::sync::Mutex<()>,
    /// A round will begin.
    clean_soon: AtomicBool,
}

/// A snapshot in the making.
struct Busy<'a>(&'a Core, SnapshotId);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy().remove(&self.1);
    }
}

/// What is asked for in a new snapshot.
struct New {
    kind: Kind,
    key: String,
    parent: Option<String>,
    labels: Labels,
    /// A Nix layer's own paths, admitted.
    own: Option<Vec<StorePath>>,
}

impl Snapshots {
    pub(super) fn with(
        metadata: Metadata,
        directories: Directories,
        closures: Arc<dyn Closures>,
        options: Options,
    ) -> Self {
        Self(Arc::new(Core {
            metadata,
            directories,
            closures,
            options,
            calls: Calls::default(),
            busy: Mutex::default(),
            cleaning: tokio::sync::Mutex::default(),
            clean_soon: AtomicBool::new(false),
        }))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.metadata.state().iter().count()
    }

    /// A snapshot to write to; how to mount it.
    ///
    /// # Errors
    /// Of the arguments; of a Nix layer that can't be had, and then nothing is left behind.
    pub async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.create(Kind::Active, key, parent, kept_labels(labels))
            .await
    }

    /// A snapshot to read; how to mount it.
    ///
    /// # Errors
    /// Of the arguments.
    pub async fn view(
        &self,
        key: &str,
        parent: &str,
        labels: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.create(Kind::View, key, parent, kept_labels(labels))
            .await
    }

    async fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        named(key, "key")?;
        let mut new = New {
            kind,
            key: key.into(),
            parent: (!parent.is_empty()).then(|| parent.into()),
            labels,
            own: None,
        };
        new.check(&self.0.metadata.state())?;
        // A view is never a layer.
        if kind == Kind::Active
            && let Some(wanted) = Wanted::from_labels(&new.labels)?
        {
            new.own = Some(self.0.admit(&wanted).await?);
        }
        self.apart(async move |core| core.create(new).await).await
    }

    /// How to mount an active snapshot or a view.
    ///
    /// # Errors
    /// When there is none with this key, or something below it is damaged.
    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        named(key, "key")?;
        let record = self.0.metadata.state().expect(key)?.clone();
        if record.kind == Kind::Committed {
            return Err(SnapshotError::NoMounts { key: key.into() });
        }
        self.0.mounts(key, &record).await
    }

    /// Finishes an active snapshot under a name; its labels are replaced.
    ///
    /// # Errors
    /// Of the arguments; of a Nix layer that can't be had.
    pub async fn commit(
        &self,
        name: &str,
        key: &str,
        labels: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), SnapshotError> {
        named(key, "key")?;
        named(name, "name")?;
        let labels = kept_labels(labels);
        let state = self.0.metadata.state();
        let record = state.expect(key)?.clone();
        committable(&state, name, key, record.id)?;
        let own = match &record.nix {
            Some(_) => None,
            None => self.0.late_layer(&record, &labels).await?,
        };
        let (name, key) = (name.to_owned(), key.to_owned());
        self.apart(async move |core| core.commit(name, key, &record, labels, own).await)
            .await
    }

    /// Ends a snapshot. Its directory is deleted later.
    ///
    /// # Errors
    /// When there is none with this key, or it has children.
    pub async fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        named(key, "key")?;
        let key = key.to_owned();
        let snapshots = self.clone();
        self.apart(async move |core| {
            let record = core
                .metadata
                .change(move |draft| {
                    let record = draft.state().expect(&key)?.clone();
                    if draft.state().has_children(&key) {
                        return Err(SnapshotError::HasChildren { key });
                    }
                    draft.take(&key);
                    Ok(record)
                })
                .await?;
            if record.nix.is_some()
                && let Err(error) = core.closures.remove_view(record.id).await
            {
                // The cleaner tries again.
                tracing::warn!(snapshot = %record.id, %error, "its view is not removed yet");
            }
            snapshots.clean_in_the_background();
            Ok(())
        })
        .await
    }

    /// What a snapshot is.
    ///
    /// # Errors
    /// When there is none with this key.
    pub fn stat(&self, key: &str) -> Result<Arc<Record>, SnapshotError> {
        named(key, "key")?;
        Ok(self.0.metadata.state().expect(key)?.clone())
    }

    /// Changes labels: those that `fields` names, as `labels` or `labels.KEY`, or all of them if it
    /// names none.
    ///
    /// # Errors
    /// When there is no such snapshot, or another field is named.
    pub async fn update(
        &self,
        key: &str,
        labels: impl IntoIterator<Item = (String, String)>,
        fields: Vec<String>,
    ) -> Result<Record, SnapshotError> {
        named(key, "name")?;
        let (key, given) = (key.to_owned(), kept_labels(labels));
        self.0
            .metadata
            .change(move |draft| {
                let mut record = Record::clone(draft.state().expect(&key)?);
                if fields.is_empty() {
                    record.labels = given.clone();
                }
                for field in fields {
                    match field.strip_prefix("labels.") {
                        Some(label) => drop(match given.get(label) {
                            Some(value) => record.labels.insert(label.into(), value.clone()),
                            None => record.labels.remove(label),
                        }),
                        None if field == "labels" => record.labels = given.clone(),
                        None => return Err(SnapshotError::Immutable { key, field }),
                    }
                }
                record.updated = Moment::now();
                draft.put(&key, record.clone());
                Ok(record)
            })
            .await
    }

    /// All snapshots that one of the filters takes, in the order of their keys.
    ///
    /// # Errors
    /// Filters that can't be read.
    pub fn list(&self, filters: &[String]) -> Result<Vec<Keyed>, SnapshotError> {
        let filters: Vec<_> = filters
            .iter()
            .map(|text| Filter::parse(text))
            .collect::<Result<_, _>>()?;
        let state = self.0.metadata.state();
        let taken = state
            .iter()
            .filter(|(key, record)| takes(&filters, &Named(key, record)));
        Ok(taken.map(|(k, r)| (k.clone(), r.clone())).collect())
    }

    /// What a snapshot takes of the disk, without its parents.
    ///
    /// # Errors
    /// When there is none with this key.
    pub async fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        named(key, "key")?;
        let record = self.0.metadata.state().expect(key)?.clone();
        let core = self.0.clone();
        let mut usage = match record.kind {
            Kind::Active => blocking(move || core.directories.usage(record.id)).await?,
            Kind::View | Kind::Committed => record.usage,
        };
        let record = self.0.metadata.state().expect(key)?.clone();
        if record.nix.is_some() {
            let core = self.0.clone();
            let of = key.to_owned();
            usage.size += blocking(move || {
                core.closures
                    .view_usage(record.id)
                    .map_err(|source| SnapshotError::View { key: of, source })
            })
            .await?;
        }
        Ok(usage)
    }

    /// Deletes what removed snapshots left, and returns when it is gone.
    ///
    /// # Errors
    /// When something can't be deleted; the rest was.
    pub async fn cleanup(&self) -> Result<(), SnapshotError> {
        self.apart(async move |core| core.clean().await).await
    }

    /// Looks after native files, as long as this lives.
    pub(super) fn keep_native(&self) {
        if let Some(native) = &self.0.options.native {
            native.clone().keep(Arc::downgrade(&self.0));
        }
    }

    pub(super) fn clean_in_the_background(&self) {
        if self.0.clean_soon.swap(true, SeqCst) {
            return;
        }
        let core = self.0.clone();
        tokio::spawn(async move {
            if let Err(error) = core.clean().await {
                tracing::warn!(%error, "what a removed snapshot left can't be deleted yet");
            }
        });
    }

    /// Runs `work` to its end even if nobody waits for it any more.
    async fn apart<T, F, W>(&self, work: W) -> Result<T, SnapshotError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, SnapshotError>> + Send + 'static,
        W: FnOnce(Arc<Core>) -> F,
    {
        let task = tokio::spawn(work(self.0.clone()));
        task.await.unwrap_or(Err(SnapshotError::Stopping))
    }
}

/// Whether containerd can mount it although it has data-only lowers: the kernel takes a page of options, and what
/// containerd does to shorten longer ones does not understand those.
fn fits(mounts: &[Mount]) -> bool {
    let length = |mount: &Mount| mount.options.iter().map(|o| o.len() + 1).sum::<usize>();
    mounts.iter().map(length).sum::<usize>() <= MOST_OPTIONS
}

/// Runs what touches the disk on a thread that may wait.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    spawn_blocking(work)
        .await
        .unwrap_or(Err(SnapshotError::Stopping))
}

fn named(key: &str, field: &'static str) -> Result<(), SnapshotError> {
    match key.is_empty() {
        true => Err(SnapshotError::NoKey { field }),
        false => Ok(()),
    }
}

/// Whether a snapshot can be committed under a name.
fn committable(state: &State, name: &str, key: &str, id: SnapshotId) -> Result<(), SnapshotError> {
    let record = state.expect(key)?;
    if record.id != id {
        // It was removed, and made anew meanwhile.
        return Err(SnapshotError::NotFound { key: key.into() });
    }
    if state.get(name).is_some() {
        return Err(SnapshotError::Exists { key: name.into() });
    }
    if record.kind != Kind::Active {
        let (key, kind) = (key.into(), record.kind);
        return Err(SnapshotError::NotActive { key, kind });
    }
    Ok(())
}

impl New {
    /// Whether there can be such a snapshot now.
    fn check(&self, state: &State) -> Result<(), SnapshotError> {
        if let Some(parent) = &self.parent {
            let Some(found) = state.get(parent) else {
                return Err(SnapshotError::NoParent {
                    key: self.key.clone(),
                    parent: parent.clone(),
                });
            };
            if found.kind != Kind::Committed {
                return Err(SnapshotError::ParentNotCommitted {
                    parent: parent.clone(),
                    kind: found.kind,
                });
            }
        }
        match state.get(&self.key) {
            Some(_) => Err(SnapshotError::Exists {
                key: self.key.clone(),
            }),
            None => Ok(()),
        }
    }
}

impl Core {
    fn busy(&self) -> std::sync::MutexGuard<'_, HashSet<SnapshotId>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new snapshot's number, which the cleaner leaves alone as long as this is kept.
    fn begin(&self) -> Busy<'_> {
        let id = self.metadata.new_id();
        self.busy().insert(id);
        Busy(self, id)
    }

    /// Makes a layer's paths known, inside the bound.
    pub(super) async fn admit(&self, wanted: &Wanted) -> Result<Vec<StorePath>, LayerError> {
        let bound = self.options.admission;
        match tokio::time::timeout(bound, self.closures.admit(wanted)).await {
            Ok(report) => wanted.own(report),
            Err(_) => Err(LayerError::TimedOut {
                seconds: bound.as_secs(),
                asked: wanted.describe(),
            }),
        }
    }

    /// What a layer shows that stands on these, the top one first.
    fn layer(own: Vec<StorePath>, below: &[Keyed]) -> NixLayer {
        let inherited = below.iter().find_map(|(_, record)| record.nix.as_ref());
        let mut shown: BTreeSet<_> = own.iter().cloned().collect();
        shown.extend(
            inherited
                .into_iter()
                .flat_map(|nix| nix.shown.iter().cloned()),
        );
        NixLayer {
            own,
            shown: shown.into_iter().collect(),
        }
    }

    async fn create(self: Arc<Self>, new: New) -> Result<Vec<Mount>, SnapshotError> {
        let busy = self.begin();
        let id = busy.1;
        let key = new.key.clone();
        let record = match self.create_with(id, new).await {
            Ok(record) => record,
            Err(error) => {
                self.undo(id).await;
                return Err(error);
            }
        };
        drop(busy);
        self.mounts(&key, &record).await
    }

    async fn create_with(
        self: &Arc<Self>,
        id: SnapshotId,
        new: New,
    ) -> Result<Record, SnapshotError> {
        let now = Moment::now();
        let mut record = Record {
            id,
            kind: new.kind,
            parent: new.parent.clone(),
            labels: new.labels.clone(),
            created: now,
            updated: now,
            usage: Usage::default(),
            nix: None,
        };
        let below = self.metadata.state().ancestors(&record)?;
        let (core, kind, parent) = (self.clone(), new.kind, below.first().cloned());
        blocking(move || {
            let owner = match parent {
                Some((key, parent)) if !core.directories.exists(parent.id) => {
                    let (key, what) = (key.to_string(), "its directory is missing".into());
                    return Err(SnapshotError::Damaged { key, what });
                }
                Some((_, parent)) => Some(core.directories.owner(parent.id)?),
                None => None,
            };
            core.directories.make(id, kind, owner)
        })
        .await?;
        if let Some(own) = new.own.clone() {
            let layer = Self::layer(own, &below);
            self.make_view(&new.key, id, &layer).await?;
            record.nix = Some(layer);
        }
        self.metadata
            .change(move |draft| {
                new.check(draft.state())?;
                draft.put(&new.key, record.clone());
                Ok(record)
            })
            .await
    }

    pub(super) async fn make_view(
        &self,
        key: &str,
        id: SnapshotId,
        layer: &NixLayer,
    ) -> Result<(), SnapshotError> {
        let made = self.closures.make_view(id, layer).await;
        made.map_err(|source| SnapshotError::View {
            key: key.into(),
            source,
        })
    }

    /// Takes back what was made of a snapshot that will not be.
    async fn undo(self: &Arc<Self>, id: SnapshotId) {
        let core = self.clone();
        let removed = blocking(move || core.directories.remove(id)).await;
        let unviewed = match self.closures.view(id) {
            Some(_) => self.closures.remove_view(id).await,
            None => Ok(false),
        };
        // What is left now is left for the cleaner.
        if let Err(error) = removed {
            tracing::warn!(snapshot = %id, %error, "left behind for now");
        }
        if let Err(error) = unviewed {
            tracing::warn!(snapshot = %id, %error, "its view is left behind for now");
        }
    }

    async fn mounts(
        self: &Arc<Self>,
        key: &str,
        record: &Record,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let below = self.metadata.state().ancestors(record)?;
        let shows_own = record.nix.is_some() && !is_unpacked_into(&record.labels);
        let own = shows_own.then_some((key, record)).into_iter();
        for (key, layer) in own.chain(below.iter().map(|(key, layer)| (&**key, &**layer))) {
            if layer.nix.is_some() && self.closures.view(layer.id).is_none() {
                self.restore_view(key, layer).await?;
            }
        }
        let (core, id, kind, key) = (self.clone(), record.id, record.kind, key.to_owned());
        blocking(move || {
            let own = std::iter::once((&*key, id));
            let all = own.chain(below.iter().map(|(key, layer)| (&**key, layer.id)));
            for (key, id) in all {
                if !core.directories.exists(id) {
                    let (key, what) = (key.into(), "its directory is missing".into());
                    return Err(SnapshotError::Damaged { key, what });
                }
            }
            let directories = &core.directories;
            let mounts = |native: Option<&Native>| {
                let mut data = Vec::new();
                let lowers = below.iter().flat_map(|(_, layer)| {
                    if let Some(native) = native
                        && layer.parent.is_none()
                        && let Some(lowers) = native.lowers(layer.id)
                    {
                        data.extend(native.data(layer.id));
                        return Vec::from(lowers);
                    }
                    let view = layer.nix.is_some().then(|| directories.view(layer.id));
                    let lowers = view.into_iter().chain([directories.fs(layer.id)]);
                    lowers.collect()
                });
                let own_view = shows_own.then(|| directories.view(id));
                let lowers = own_view.into_iter().chain(lowers).collect();
                let own = directories.fs(id);
                let layers = match kind {
                    Kind::Active => Layers::Writable {
                        upper: own,
                        work: directories.work(id),
                        lowers,
                    },
                    Kind::View | Kind::Committed => Layers::ReadOnly { own, lowers },
                };
                layers.mounts(core.options.overlay, &data)
            };
            let native = mounts(core.options.native.as_deref());
            Ok(match fits(&native) {
                true => native,
                false => mounts(None),
            })
        })
        .await
    }

    /// The own paths of a layer that becomes known as one only when it is committed.
    async fn late_layer(
        self: &Arc<Self>,
        record: &Record,
        labels: &Labels,
    ) -> Result<Option<Vec<StorePath>>, SnapshotError> {
        let mut wanted = Wanted::from_labels(labels)?;
        if wanted.is_none() && self.options.detect {
            let root = self.directories.fs(record.id);
            wanted = blocking(move || {
                Wanted::from_directory(&root).map_err(|e| SnapshotError::io("look into", &root, e))
            })
            .await?;
        }
        match wanted {
            Some(wanted) => Ok(Some(self.admit(&wanted).await?)),
            None => Ok(None),
        }
    }

    async fn commit(
        self: Arc<Self>,
        name: String,
        key: String,
        record: &Record,
        labels: Labels,
        own: Option<Vec<StorePath>>,
    ) -> Result<(), SnapshotError> {
        let (core, id) = (self.clone(), record.id);
        let usage = blocking(move || core.directories.usage(id)).await?;
        let mut nix = record.nix.clone();
        let late = own.is_some();
        if let Some(own) = own {
            let layer = Self::layer(own, &self.metadata.state().ancestors(record)?);
            self.make_view(&key, id, &layer).await?;
            nix = Some(layer);
        }
        let committed = self.metadata.change(move |draft| {
            committable(draft.state(), &name, &key, id)?;
            let mut record = Record::clone(draft.state().expect(&key)?);
            record.kind = Kind::Committed;
            record.labels = labels;
            record.created = Moment::now();
            record.updated = record.created;
            (record.usage, record.nix) = (usage, nix);
            draft.take(&key);
            draft.put(&name, record);
            Ok(())
        });
        let committed = committed.await;
        if committed.is_err()
            && late
            && let Err(error) = self.closures.remove_view(id).await
        {
            tracing::warn!(snapshot = %id, %error, "its view is left behind for now");
        }
        committed
    }

    /// One round of deleting what nobody knows any more.
    async fn clean(self: Arc<Self>) -> Result<(), SnapshotError> {
        let _round = self.cleaning.lock().await;
        self.clean_soon.store(false, SeqCst);
        // In this order: what is in the making when it is seen is busy, or has its record by then.
        let views = self.closures.views();
        let core = self.clone();
        let found = blocking(move || core.directories.list()).await?;
        let busy = self.busy().clone();
        let state = self.metadata.state();
        let known: HashSet<_> = state.iter().map(|(_, record)| record.id).collect();
        let mut failed = None;
        for id in views {
            if !known.contains(&id)
                && !busy.contains(&id)
                && let Err(source) = self.closures.remove_view(id).await
            {
                let key = format!("with number {id}, which is removed");
                failed = Some(SnapshotError::View { key, source });
            }
        }
        let core = self.clone();
        let deleted = blocking(move || {
            let gone = found.snapshots.difference(&known).copied();
            let mut outcome = Ok(());
            for id in gone.filter(|id| !busy.contains(id)) {
                outcome = core.directories.remove(id).and(outcome);
            }
            for path in &found.strangers {
                outcome = remove(path).and(outcome);
            }
            outcome
        });
        deleted.await.and(failed.map_or(Ok(()), Err))
    }
}
