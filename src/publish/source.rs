//! Where paths come from: a binary cache, or a Nix store of this machine.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{LocalStore, PublishError};
use crate::{
    codec::{self, Checkpoint},
    nix::{NarHasher, NarInfo, StorePath, nar},
    store::{Store, StoreError, packed_channel},
    substituter::{Deadline, Substituter},
    tree::{NarIndexer, Tree},
};

/// How long a cache has to begin with a NAR.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes unpacked at a time, as decoders want it.
const PIECE: usize = 128 << 10;

/// Where the paths are now.
#[derive(Clone)]
pub enum Supplier {
    /// In the caches of a store, which is used to ask them.
    Caches(Store),
    /// In a Nix store here.
    Local(LocalStore),
}

/// A path and who has it.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub info: NarInfo,
    pub from: Where,
}

#[derive(Debug, Clone)]
pub(super) enum Where {
    Cache(Substituter),
    Local(LocalStore),
}

impl Where {
    fn name(&self) -> String {
        match self {
            Self::Cache(substituter) => substituter.name().to_owned(),
            Self::Local(store) => store.name(),
        }
    }
}

impl Supplier {
    /// The paths to publish: `roots` and everything they refer to.
    pub(super) async fn closure(
        &self,
        roots: &[StorePath],
        tell: impl FnMut(usize, usize),
    ) -> Result<Vec<Item>, PublishError> {
        let store = match self {
            Self::Caches(store) => store,
            Self::Local(local) => {
                let infos = local.closure(roots).await?;
                let item = |info| Item {
                    info,
                    from: Where::Local(local.clone()),
                };
                return Ok(infos.into_iter().map(item).collect());
            }
        };
        let caches = store.substituters();
        let mut items = Vec::new();
        for (path, answer) in store.describe_closure_telling(roots, tell).await {
            let description = answer?;
            let substituter = description.substituter.clone();
            if !description.served() {
                return Err(StoreError::Untrusted { path, substituter }.into());
            }
            let cache = caches.iter().find(|c| c.name() == substituter);
            let Some(cache) = cache.cloned() else {
                return Err(StoreError::Stopping.into());
            };
            items.push(Item {
                info: description.narinfo,
                from: Where::Cache(cache),
            });
        }
        Ok(items)
    }
}

impl Item {
    /// Writes the NAR to a new file at `out`, checked, and compiles its tree. `done` counts its bytes.
    pub(super) async fn spool(
        &self,
        out: &Path,
        tries: u32,
        done: &Arc<AtomicU64>,
    ) -> Result<(File, Arc<Tree>), PublishError> {
        let path = &self.info.store_path;
        for tried in 1.. {
            done.store(0, Relaxed);
            let file = File::create(out).map_err(PublishError::file(path, "create", out))?;
            let sink = Sink {
                file: file
                    .try_clone()
                    .map_err(PublishError::file(path, "open", out))?,
                hasher: NarHasher::new(),
                indexer: NarIndexer::new(),
                done: done.clone(),
            };
            let came = match &self.from {
                Where::Cache(cache) => self.download(cache, sink).await,
                Where::Local(store) => self.dump(store, sink).await,
            };
            match came {
                Ok(tree) => {
                    let file = File::open(out).map_err(PublishError::file(path, "open", out))?;
                    return Ok((file, tree));
                }
                Err(PublishError::Source(error)) if tried < tries && may_pass(&error) => {
                    tracing::info!(%path, %error, "tried again");
                }
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Stopping.into())
    }

    async fn download(&self, cache: &Substituter, sink: Sink) -> Result<Arc<Tree>, PublishError> {
        let info = &self.info;
        let path = info.store_path.clone();
        let failed = |source| {
            PublishError::from(StoreError::Fetch {
                path: path.clone(),
                source: Arc::new(source),
            })
        };
        let opened = cache
            .nar(&info.url, None, None, Deadline::after(PATIENCE))
            .await;
        let mut body = opened.map_err(failed)?;
        let (mut feed, packed) = packed_channel();
        let item = self.clone();
        let decoding = tokio::task::spawn_blocking(move || {
            let (format, size) = (item.info.compression, item.info.nar_size);
            let reader = codec::stream(format, Box::new(packed), Checkpoint::START, size);
            let reader = reader.map_err(|e| item.damaged(e.to_string()))?;
            item.take(reader, sink)
        });
        let mut cut_off = None;
        loop {
            match body.next().await {
                Ok(Some(chunk)) => {
                    if !feed.chunk(chunk).await {
                        break;
                    }
                }
                Ok(None) => {
                    feed.end().await;
                    break;
                }
                Err(error) => {
                    drop(feed);
                    cut_off = Some(failed(error));
                    break;
                }
            }
        }
        let decoded = decoding
            .await
            .unwrap_or(Err(PublishError::Died { path: path.clone() }));
        match cut_off {
            Some(error) => Err(error),
            None => decoded,
        }
    }

    async fn dump(&self, store: &LocalStore, sink: Sink) -> Result<Arc<Tree>, PublishError> {
        let (item, files) = (self.clone(), store.files(&self.info.store_path));
        let path = self.info.store_path.clone();
        let dumping = tokio::task::spawn_blocking(move || {
            let mut sink = io::BufWriter::with_capacity(PIECE, sink);
            nar::dump(&files, &mut sink).map_err(|error| PublishError::File {
                path: item.info.store_path.clone(),
                doing: "pack",
                file: files.clone(),
                error: Arc::new(io::Error::other(error.source)),
            })?;
            match sink.into_inner() {
                Ok(sink) => item.finish(sink),
                Err(error) => Err(item.damaged(error.to_string())),
            }
        });
        dumping.await.unwrap_or(Err(PublishError::Died { path }))
    }

    fn take(&self, mut reader: impl Read, mut sink: Sink) -> Result<Arc<Tree>, PublishError> {
        let mut piece = vec![0; PIECE];
        loop {
            // Of the spool file, or of the archive: the message says which.
            let n = reader
                .read(&mut piece)
                .and_then(|n| sink.write_all(&piece[..n]).map(|()| n))
                .map_err(|error| self.damaged(error.to_string()))?;
            if n == 0 {
                return self.finish(sink);
            }
        }
    }

    fn finish(&self, sink: Sink) -> Result<Arc<Tree>, PublishError> {
        let hash = sink.hasher.finish();
        if hash != self.info.nar_hash {
            let reason = format!("its hash is {hash}, it should be {}", self.info.nar_hash);
            return Err(self.damaged(reason));
        }
        let image = sink
            .indexer
            .finish(hash)
            .map_err(|e| self.damaged(e.to_string()))?;
        let tree = Tree::from_image(image).map_err(|e| self.damaged(e.to_string()))?;
        Ok(Arc::new(tree))
    }

    fn damaged(&self, reason: String) -> PublishError {
        PublishError::Damaged {
            path: self.info.store_path.clone(),
            from: self.from.name(),
            reason,
        }
    }
}

/// Whether another try may bring what this one did not.
fn may_pass(error: &StoreError) -> bool {
    matches!(error, StoreError::Fetch { source, .. } if source.failure().retryable())
}

/// Where a NAR goes as it comes: into a file, hashed and indexed.
struct Sink {
    file: File,
    hasher: NarHasher,
    indexer: NarIndexer,
    done: Arc<AtomicU64>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.indexer.push(bytes).map_err(io::Error::other)?;
        self.done.fetch_add(bytes.len() as u64, Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
