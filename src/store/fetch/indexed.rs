//! Chunks: the index that a cache has of a NAR, what it proves, and chunks that are here already.
//!
//! An index is used when a trusted key signed it, when it is of this NAR and this file, and when
//! the tree is the one that it promises. Then every chunk is checked before anything of it is
//! kept, and no reader has to wait for more than his chunks, whatever the policy. An index that is
//! of no use is a line in the log: the NAR is had as from any other cache.

use std::{ops::Range, sync::Arc};

use sha2::{Digest, Sha256};

use super::{Access, Check, Nar, Source};
use crate::{
    chunks::{ChunkIndex, file_name},
    codec::{Block, BlockTable},
    content::{ContentError, Extents},
    nix::TrustedKeys,
    store::{Core, Event, Path, StoreError, book::ChunkPlace, settings::Verify},
    tree::{self, Tree},
};

/// Which bytes of one life of a NAR's file were held against its index.
#[derive(Default)]
pub(super) struct Checked {
    generation: u64,
    extents: Extents,
}

/// Why an index is of no use.
enum NoUse {
    Index(String),
    /// The index is good, and the tree is not.
    Tree,
}

impl Nar {
    /// Whether these bytes are on the disk and were held against the index.
    pub(super) fn is_checked(&self, range: &Range<u64>) -> bool {
        let checked = self.checked();
        checked.generation == self.file.generation()
            && checked.extents.contains(range)
            && self.file.is_valid(range.clone())
    }

    fn note_checked(&self, generation: u64, range: Range<u64>) {
        let mut checked = self.checked();
        if checked.generation != generation {
            *checked = Checked {
                generation,
                extents: Extents::new(),
            };
        }
        checked.extents.insert(range);
    }

    fn checked(&self) -> std::sync::MutexGuard<'_, Checked> {
        self.checked
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Core {
    /// Asks for the chunk index of a path that was just admitted: whoever reads it will want that.
    pub(in crate::store) fn read_index_soon(self: &Arc<Self>, path: &Arc<Path>) {
        let (core, path) = (self.clone(), path.clone());
        self.runtime.spawn(async move {
            if let Ok(nar) = core.nar_of(&path) {
                core.read_index(&nar).await;
            }
        });
    }

    /// Returns when it is known how the NAR's chunks can be had, if a source announced an index.
    pub(in crate::store) async fn read_index(self: &Arc<Self>, nar: &Arc<Nar>) {
        let Access::Indexed(_) = nar.access() else {
            return;
        };
        let _one = nar.indexing.lock().await;
        let Access::Indexed(source) = nar.access() else {
            return;
        };
        let access = match self.usable_index(nar, &source).await {
            Ok(table) => Access::Blocks(Arc::new(table), source),
            Err(NoUse::Index(reason)) => {
                let substituter = source.substituter.name();
                tracing::warn!(path = %nar.path, %substituter, %reason, "its chunk index is not used");
                Access::Stream
            }
            Err(NoUse::Tree) => {
                drop(self.listing_lied(nar, "the signed chunk index is of another tree".into()));
                Access::Stream
            }
        };
        let mut state = nar.state();
        if matches!(state.access, Access::Indexed(_)) {
            state.access = access;
        }
    }

    async fn usable_index(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        source: &Arc<Source>,
    ) -> Result<BlockTable, NoUse> {
        let Check::Against(tree) = nar.check() else {
            return Err(NoUse::Index("its tree is in doubt".into()));
        };
        let judge = Judge {
            nar: nar.clone(),
            source: source.clone(),
            tree,
            keys: self.settings.keys.clone(),
        };
        let (core, kept) = (self.clone(), judge.clone());
        let kept = tokio::task::spawn_blocking(move || {
            core.book.load(&core.content);
            let bytes = core.content.chunks(&kept.nar.hash)?;
            kept.judge(&bytes).ok()
        });
        if let Ok(Some(index)) = kept.await {
            self.book.add(&index);
            return Ok(table(index));
        }
        let asked = self.chunk_index_of(source, &nar.path, nar.lane()).await;
        let bytes = match asked {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                let file = file_name(&source.url);
                return Err(NoUse::Index(format!("{file} is announced, and not there")));
            }
            Err(error) => return Err(NoUse::Index(error.to_string())),
        };
        let core = self.clone();
        let judged = tokio::task::spawn_blocking(move || {
            let index = judge.judge(&bytes)?;
            if let Err(error) = core.content.save_chunks(&index.nar_hash, &bytes) {
                tracing::debug!(%error, "a chunk index is not kept");
            }
            Ok(index)
        });
        let index = judged
            .await
            .unwrap_or_else(|_| Err(NoUse::Index("narfs is stopping".into())))?;
        self.book.add(&index);
        Ok(table(index))
    }

    /// Copies what is here already, in another NAR or elsewhere in this one, of the chunks that hold
    /// `range`.
    pub(super) async fn copy_known(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        table: &Arc<BlockTable>,
        range: &Range<u64>,
    ) {
        let missing = |block: &&Block| !nar.file.is_valid(block.nar.clone());
        let known: Vec<(Block, [u8; 32], ChunkPlace)> = table
            .covering(range.clone())
            .iter()
            .filter(missing)
            .filter_map(|block| {
                let digest = table.digest(block)?;
                Some((
                    block.clone(),
                    *digest,
                    self.book.find(digest, &nar.hash, block.nar.start)?,
                ))
            })
            .collect();
        if known.is_empty() {
            return;
        }
        let (core, to) = (self.clone(), nar.clone());
        let copying = tokio::task::spawn_blocking(move || {
            for (block, digest, place) in known {
                core.copy_chunk(&to, &block, &digest, &place);
            }
        });
        // A copy that failed is fetched.
        let _ = copying.await;
        nar.answer_satisfied();
    }

    /// Copies a chunk if it is where the book says. Blocks.
    fn copy_chunk(&self, nar: &Nar, block: &Block, digest: &[u8; 32], place: &ChunkPlace) {
        let size = block.nar.end - block.nar.start;
        let range = place.start..place.start + size;
        // Opened, the file of a NAR that is not here costs a look at the directory.
        let Ok(from) = self.content.nar(&place.nar, place.nar_size) else {
            return;
        };
        if !from.is_valid(range.clone()) {
            return;
        }
        let mut bytes = vec![0; size as usize];
        if from.read_at(&mut bytes, range.start).is_err() || *Sha256::digest(&bytes) != *digest {
            return;
        }
        let generation = nar.file.generation();
        let kept = nar
            .file
            .write_at_generation(generation, &bytes, block.nar.start);
        if kept.is_ok() {
            self.counters.copied.add(size);
        }
    }

    /// Holds what is kept of these chunks against the index. What is not what it promises was
    /// there before it, from elsewhere: all of the NAR is dropped and comes anew.
    pub(super) async fn check_kept(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        table: &Arc<BlockTable>,
        range: &Range<u64>,
    ) -> Result<(), StoreError> {
        if self.settings.verify != Verify::BeforeRead || nar.is_checked(range) {
            return Ok(());
        }
        let (owner, table, range) = (nar.clone(), table.clone(), range.clone());
        let looking = tokio::task::spawn_blocking(move || right_on_disk(&owner, &table, range));
        match looking.await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => {
                tracing::error!(path = %nar.path, "content kept earlier is not that of the chunk index; dropped and fetched again");
                nar.file.discard()?;
                self.emit(Event::ContentDropped(nar.hash));
                Ok(())
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(StoreError::Stopping),
        }
    }
}

/// Whether the chunks of `range` that are on the disk are right; notes those that are. Blocks.
fn right_on_disk(nar: &Nar, table: &BlockTable, range: Range<u64>) -> Result<bool, ContentError> {
    let generation = nar.file.generation();
    let mut bytes = Vec::new();
    for block in table.covering(range) {
        if !nar.file.is_valid(block.nar.clone()) || nar.is_checked(&block.nar) {
            continue;
        }
        bytes.resize((block.nar.end - block.nar.start) as usize, 0);
        match nar.file.read_at(&mut bytes, block.nar.start) {
            Ok(()) => {}
            // Dropped in this moment.
            Err(ContentError::Discarded { .. } | ContentError::NotValid { .. }) => return Ok(true),
            Err(error) => return Err(error),
        }
        if table.digest(block) != Some(&Sha256::digest(&bytes).into()) {
            return Ok(false);
        }
        nar.note_checked(generation, block.nar.clone());
    }
    Ok(true)
}

/// What an index is held against.
#[derive(Clone)]
struct Judge {
    nar: Arc<Nar>,
    source: Arc<Source>,
    tree: Arc<Tree>,
    keys: TrustedKeys,
}

impl Judge {
    /// The index, if it may be used. Blocks: a large tree takes its time.
    fn judge(&self, bytes: &[u8]) -> Result<ChunkIndex, NoUse> {
        let index =
            ChunkIndex::parse(bytes, &self.keys).map_err(|e| NoUse::Index(e.to_string()))?;
        let nar = (index.nar_hash, index.nar_size) == (self.nar.hash, self.nar.size);
        let (hash, size) = (self.source.file_hash, self.source.file_size);
        let file = (hash, size) == (Some(index.file_hash), Some(index.file_size));
        match (nar, file) {
            (true, true) if index.structure == tree::structure(&self.tree) => Ok(index),
            (true, true) => Err(NoUse::Tree),
            _ => Err(NoUse::Index("it is that of another NAR or file".into())),
        }
    }
}

fn table(index: ChunkIndex) -> BlockTable {
    BlockTable::of_chunks(index.chunks.into_iter().map(|chunk| {
        let block = Block {
            packed: chunk.packed,
            nar: chunk.nar,
        };
        (block, chunk.digest)
    }))
}
