//! A whole NAR that is on disk: is it the one that was promised, and is it as its tree says?

use std::sync::Arc;

use super::Nar;
use crate::{
    content::{ContentError, NarFile},
    nix::{NarHash, NarHasher},
    store::{Core, StoreError},
    tree::{NarIndexer, SkeletonCheck, Tree},
};

/// Bytes read at a time: so large that the system calls do not count.
const CHUNK: u64 = 256 << 10;

/// What a whole NAR on disk turned out to be.
pub(crate) struct Seen {
    pub hash: NarHash,
    /// Where it differs from its tree, if it does.
    pub mismatch: Option<String>,
}

impl Core {
    /// Hashes a NAR on disk and holds it against its tree.
    pub(super) async fn look_at(&self, nar: &Arc<Nar>) -> Result<Seen, StoreError> {
        let (file, check) = (nar.file.clone(), nar.check());
        match tokio::task::spawn_blocking(move || look_at(&file, check.tree())).await {
            Ok(seen) => Ok(seen?),
            Err(_) => Err(StoreError::Stopping),
        }
    }

    /// Compiles the tree of a verified NAR from the disk. When that fails the bytes there are not
    /// what was verified: they are dropped.
    pub(super) async fn index_on_disk(self: &Arc<Self>, nar: &Arc<Nar>) -> Result<(), StoreError> {
        let file = nar.file.clone();
        let image = tokio::task::spawn_blocking(move || index(&file))
            .await
            .map_err(|_| StoreError::Stopping)?;
        match image {
            Ok(image) => self.adopt_index(nar, &image).await,
            Err(error) => {
                tracing::error!(path = %nar.path, %error, "verified content can't be indexed; dropped and fetched again");
                nar.file.discard()?;
                self.emit(crate::store::Event::ContentDropped(nar.hash));
                Ok(())
            }
        }
    }
}

/// Hashes a NAR on disk and holds it against `tree`. Blocks.
pub(crate) fn look_at(file: &NarFile, tree: Option<&Arc<Tree>>) -> Result<Seen, ContentError> {
    let mut hasher = NarHasher::new();
    let mut skeleton = tree.map(|tree| SkeletonCheck::new(tree.clone(), 0));
    let mut mismatch = None;
    each_chunk(file, |bytes| {
        hasher.update(bytes);
        if let Some(check) = &mut skeleton
            && let Err(error) = check.push(bytes)
        {
            mismatch = Some(error.to_string());
            skeleton = None;
        }
        true
    })?;
    if let Some(Err(error)) = skeleton.map(SkeletonCheck::finish) {
        mismatch = Some(error.to_string());
    }
    Ok(Seen {
        hash: hasher.finish(),
        mismatch,
    })
}

fn index(file: &NarFile) -> Result<Vec<u8>, String> {
    let mut hasher = NarHasher::new();
    let mut indexer = NarIndexer::new();
    let mut wrong = None;
    each_chunk(file, |bytes| {
        hasher.update(bytes);
        wrong = indexer.push(bytes).err();
        wrong.is_none()
    })
    .map_err(|e| e.to_string())?;
    if let Some(error) = wrong {
        return Err(error.to_string());
    }
    let hash = hasher.finish();
    if hash != file.hash() {
        return Err(format!("its hash is {hash}"));
    }
    indexer.finish(hash).map_err(|e| e.to_string())
}

/// All of a file's bytes in order, as long as `next` wants more; of one life of the file.
fn each_chunk(file: &NarFile, mut next: impl FnMut(&[u8]) -> bool) -> Result<(), ContentError> {
    let generation = file.generation();
    let mut buf = vec![0; CHUNK.min(file.size()) as usize];
    let mut at = 0;
    while at < file.size() {
        let len = CHUNK.min(file.size() - at) as usize;
        file.read_at(&mut buf[..len], at)?;
        if !next(&buf[..len]) {
            break;
        }
        at += len as u64;
    }
    match file.generation() == generation {
        true => Ok(()),
        false => Err(ContentError::Discarded { hash: file.hash() }),
    }
}
