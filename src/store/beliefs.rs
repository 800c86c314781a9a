//! Trees out of listings, which nobody signs, until the NAR itself has confirmed them.
//!
//! A stream is held against the tree as it passes; what came in pieces is not. So as long as a
//! NAR is not verified, whoever reads a file first compares what stands in front of its contents
//! in the NAR, unless a signed chunk index has confirmed the tree; and a NAR counts as verified
//! only when all of it agrees with its tree. A tree that turns out wrong is replaced by one
//! compiled from the NAR. Nothing is read through the wrong one from the moment that it is in doubt ([`Nar::doubts`]) or was replaced
//! ([`Path::is_replaced`]).

use std::sync::{Arc, Mutex};

use super::{
    Core, Event, Lane, Path, Slot, StoreError,
    fetch::{Delivered, Nar},
};
use crate::tree::{EntryIndex, Tree};

impl Core {
    /// The tree that was compiled from a NAR with the right hash replaces whatever was believed.
    pub(super) async fn adopt_index(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        image: &[u8],
    ) -> Result<(), StoreError> {
        let tree = Arc::new(self.keep_tree(&nar.hash, image)?);
        let lied = || {
            self.paths
                .find(|p| p.nar_hash == nar.hash && p.tree.same_as(&tree).is_err())
        };
        let wrong = lied();
        wrong.iter().for_each(|path| path.set_replaced());
        if let Some(path) = wrong.first() {
            nar.answer_wrong_tree(path);
        }
        nar.adopt_tree(tree.clone());
        // Looked for once more: a path that is admitted right now either is found here, or finds
        // the adopted tree itself.
        for old in lied() {
            self.replace(&old, nar, &tree).await?;
        }
        Ok(())
    }

    /// A path that was just admitted, with the tree that its NAR turned out to have.
    pub(super) async fn with_right_tree(
        self: &Arc<Self>,
        path: Arc<Path>,
    ) -> Result<Arc<Path>, StoreError> {
        let Some(nar) = self.living_nar(&path.nar_hash) else {
            return Ok(path);
        };
        match nar.tree() {
            Some(tree) if path.tree.same_as(&tree).is_err() => {
                self.replace(&path, &nar, &tree).await
            }
            _ => Ok(path),
        }
    }

    /// The same path with another tree, in a slot of its own.
    async fn replace(
        self: &Arc<Self>,
        old: &Arc<Path>,
        nar: &Arc<Nar>,
        tree: &Arc<Tree>,
    ) -> Result<Arc<Path>, StoreError> {
        old.set_replaced();
        let slot = Slot(self.content.db().slot_for(&old.store_path, true).await?);
        let new = Arc::new(Path {
            slot,
            store_path: old.store_path.clone(),
            nar_hash: old.nar_hash,
            nar_size: old.nar_size,
            references: old.references.clone(),
            tree: tree.clone(),
            source: old.source.clone(),
            nar: nar.clone().into(),
            touched: true.into(),
            looked_up: true.into(),
            trust: Default::default(),
            health: Mutex::new(old.health()),
            first_seen: old.first_seen,
        });
        self.paths.insert(new.clone());
        self.paths.retire(old.slot);
        let views = self.views.replace_slot(old.slot, slot);
        self.emit(Event::Replaced {
            old: old.slot,
            path: old.store_path.clone(),
            views,
        });
        Ok(new)
    }

    /// Whether a file may be read through the path's tree, from what is kept; `None`: what would
    /// tell is not here.
    pub(super) fn believed(
        self: &Arc<Self>,
        path: &Path,
        entry: EntryIndex,
        nar: &Arc<Nar>,
    ) -> Option<Result<(), StoreError>> {
        if path.is_replaced() {
            return Some(Err(StoreError::NoNode));
        }
        // One that lost parts since was compared with the same tree.
        if nar.file.was_verified() || path.confirmed(entry) {
            return Some(Ok(()));
        }
        if nar.is_proven() {
            path.confirm(entry);
            return Some(Ok(()));
        }
        let Some((range, expected)) = path.tree.header_before(entry) else {
            return Some(Ok(()));
        };
        let mut found = vec![0; expected.len()];
        // Dropped or never here: to be fetched.
        nar.file.read_at(&mut found, range.start).ok()?;
        Some(self.compare(path, entry, nar, &found, &expected))
    }

    /// Fetches what stands in front of a file's contents and compares it with the tree.
    pub(super) async fn confirm(
        self: &Arc<Self>,
        path: &Path,
        entry: EntryIndex,
        nar: &Arc<Nar>,
    ) -> Result<(), StoreError> {
        // With a chunk index the whole tree is confirmed at once.
        self.read_index(nar).await;
        if let Some(known) = self.believed(path, entry, nar) {
            return known;
        }
        let Some((range, expected)) = path.tree.header_before(entry) else {
            return Ok(());
        };
        match self
            .ensure(nar, self.want(nar, range), Lane::Demand)
            .await?
        {
            Delivered::Bytes(found) => self.compare(path, entry, nar, &found, &expected),
            // Dropped again at once: the reader finds that out too.
            Delivered::OnDisk => self.believed(path, entry, nar).unwrap_or(Ok(())),
        }
    }

    fn compare(
        self: &Arc<Self>,
        path: &Path,
        entry: EntryIndex,
        nar: &Arc<Nar>,
        found: &[u8],
        expected: &[u8],
    ) -> Result<(), StoreError> {
        if found == expected {
            path.confirm(entry);
            return Ok(());
        }
        let name = String::from_utf8_lossy(&path.tree.path_of(entry)).into_owned();
        Err(self.listing_lied(nar, format!("at {name}")))
    }
}
