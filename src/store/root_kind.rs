//! What described paths are themselves: directories, files or links. Admits nothing.
//!
//! The listing says it. Where a cache has none, the first bytes of the NAR do: its stream is
//! dropped as soon as they are out of their packing.

use tokio::sync::watch;

use super::{Core, Description, Lane, Store, StoreError, admit::compile};
use crate::{
    nix::{NarInfo, RootKind},
    substituter::Substituter,
    tree::{EntryIndex, Node, Tree},
};

impl Store {
    /// What a path is itself, of which a cache gave this description.
    ///
    /// # Errors
    /// [`StoreError::Untrusted`] for one that is not served; what keeps listing and NAR from being
    /// had.
    pub async fn root_kind(&self, description: &Description) -> Result<RootKind, StoreError> {
        let core = &self.0;
        let (narinfo, name) = (&description.narinfo, &description.substituter);
        let path = &narinfo.store_path;
        let substituter = core
            .substituter_named(name)
            .filter(|_| description.served());
        let Some(substituter) = substituter else {
            return Err(StoreError::Untrusted {
                path: path.clone(),
                substituter: name.clone(),
            });
        };
        let lane = watch::channel(Lane::Demand).1;
        if let Some(json) = core.listing_text(&substituter, path, &lane).await? {
            match compile(json, narinfo).await {
                Ok(image) => return Ok(of_tree(&Tree::from_image(image)?)),
                Err(error) => {
                    tracing::warn!(%path, substituter = %name, %error, "unusable listing; the NAR is asked instead");
                }
            }
        }
        let longest = core.settings.index_timeout;
        match tokio::time::timeout(longest, core.kind_of_nar(&substituter, narinfo)).await {
            Ok(kind) => kind,
            Err(_) => Err(StoreError::TimedOut {
                path: path.clone(),
                what: "the beginning of its NAR",
                waited: longest,
            }),
        }
    }
}

fn of_tree(tree: &Tree) -> RootKind {
    match tree.node(EntryIndex(0)) {
        Some(Node::Regular { .. }) => RootKind::File,
        Some(Node::Symlink { .. }) => RootKind::Symlink,
        Some(Node::Directory { .. }) | None => RootKind::Directory,
    }
}

impl Core {
    async fn kind_of_nar(
        &self,
        substituter: &Substituter,
        narinfo: &NarInfo,
    ) -> Result<RootKind, StoreError> {
        let head = self.nar_head(substituter, narinfo).await?;
        RootKind::of_nar(&head).ok_or_else(|| StoreError::Damaged {
            path: narinfo.store_path.clone(),
            substituter: substituter.name().to_owned(),
            reason: "it is no NAR".into(),
        })
    }
}
