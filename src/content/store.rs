//! The content store: the state directory and everything in it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Weak, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use super::{
    ContentError, Db, NarFile,
    shared::{Kind, Shared},
    state_dir::{StateDir, allocated, replace_file_unsynced},
};
use crate::nix::NarHash;

/// How to open a state directory.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    /// How long to wait for another process that has the directory: one that is just ending, say.
    pub wait: Duration,
}

/// The kept bytes, trees and facts of one state directory. While it lives, the directory is this process's.
pub struct ContentStore {
    pub(super) shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl ContentStore {
    /// Opens the state directory, which is made if it is missing.
    ///
    /// Refused, with a message that says what to do: a directory that another process uses, that somebody else
    /// could write to, that holds something else, or that a newer narfs wrote.
    pub fn open(dir: &Path, options: OpenOptions) -> Result<Self, ContentError> {
        let dir = StateDir::take(dir, options.wait)?;
        let db = Db::open(&dir.database())?;
        let content = dir.content();
        let shared = Arc::new(Shared::new(dir, db));
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("narfs-persist".into())
            .spawn(move || for_thread.persister.run(&for_thread))
            .map_err(|e| ContentError::io("start the thread that syncs", &content, e))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The kept bytes of a NAR of `nar_size` bytes: always the same object for one hash.
    pub fn nar(&self, hash: &NarHash, nar_size: u64) -> Result<Arc<NarFile>, ContentError> {
        let mut living = self.shared.living(hash);
        if let Some(nar) = living.get(hash).and_then(Weak::upgrade) {
            drop(living);
            return match nar.size() == nar_size {
                true => Ok(nar),
                false => Err(ContentError::SizeMismatch {
                    hash: *hash,
                    known: nar.size(),
                    asked: nar_size,
                }),
            };
        }
        let nar = self.shared.load(hash, nar_size)?;
        living.insert(*hash, Arc::downgrade(&nar));
        Ok(nar)
    }

    /// Where the compiled tree of a NAR lies, or would.
    pub fn tree_path(&self, hash: &NarHash) -> PathBuf {
        self.shared.path(hash, Kind::Index)
    }

    /// Keeps the compiled tree of a NAR; where it lies.
    pub fn save_tree(&self, hash: &NarHash, image: &[u8]) -> Result<PathBuf, ContentError> {
        let path = self.tree_path(hash);
        let before = fs::metadata(&path).map_or(0, |m| allocated(&m));
        let after = replace_file_unsynced(&self.shared.tmp(), &path, image)?;
        self.shared.usage.change(before, after);
        Ok(path)
    }

    /// Drops the compiled tree of a NAR, if there is one.
    pub fn drop_tree(&self, hash: &NarHash) -> Result<(), ContentError> {
        self.shared.remove_counted(hash, Kind::Index).map(|_| ())
    }

    /// Keeps the chunk index of a NAR, as it came.
    pub fn save_chunks(&self, hash: &NarHash, index: &[u8]) -> Result<(), ContentError> {
        let path = self.shared.path(hash, Kind::Chunks);
        let before = fs::metadata(&path).map_or(0, |m| allocated(&m));
        let after = replace_file_unsynced(&self.shared.tmp(), &path, index)?;
        self.shared.usage.change(before, after);
        Ok(())
    }

    /// The chunk index that is kept of a NAR; nobody has checked it since.
    pub fn chunks(&self, hash: &NarHash) -> Option<Vec<u8>> {
        fs::read(self.shared.path(hash, Kind::Chunks)).ok()
    }

    /// The NARs whose chunk index is kept, the one that came last first.
    pub fn all_chunks(&self) -> Vec<NarHash> {
        let entries = fs::read_dir(self.shared.content()).into_iter().flatten();
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| {
                let (hash, kind) = Kind::parse(entry.file_name().to_str()?)?;
                let written = entry.metadata().ok()?.modified().ok()?;
                (kind == Kind::Chunks).then_some((written, hash))
            })
            .collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.into_iter().map(|(_, hash)| hash).collect()
    }

    /// The database.
    pub fn db(&self) -> &Db {
        &self.shared.db
    }

    /// Makes everything that is kept now durable. What could not be stays valid in memory and is tried again.
    pub fn flush(&self) -> Result<(), ContentError> {
        self.shared.persister.round(&self.shared, true)
    }

    /// Bytes allocated for what is kept. Cheap: counted once, then kept up to date.
    pub fn usage(&self) -> Result<u64, ContentError> {
        self.shared.usage.get(self.shared.content())
    }

    /// As [`ContentStore::usage`], counted now: what `du` says of `content/`.
    pub fn usage_exact(&self) -> Result<u64, ContentError> {
        self.shared
            .usage
            .exact(self.shared.content())
            .map(|scan| scan.total)
    }

    /// Bytes allocated for what is kept of one NAR, its map and tree among them.
    pub fn usage_of(&self, hash: &NarHash) -> u64 {
        let of = |kind| fs::metadata(self.shared.path(hash, kind)).map_or(0, |m| allocated(&m));
        of(Kind::Nar) + of(Kind::Map) + of(Kind::Index) + of(Kind::Chunks)
    }

    /// Kept bytes that the disk gave back wrong, or not at all, since this was opened; they were dropped.
    pub fn damaged_bytes(&self) -> u64 {
        self.shared.damaged.load(Ordering::Relaxed)
    }

    /// The NAR file of this hash, if anybody has it.
    pub(super) fn alive(&self, hash: &NarHash) -> Option<Arc<NarFile>> {
        self.shared.living(hash).get(hash).and_then(Weak::upgrade)
    }
}

impl Drop for ContentStore {
    fn drop(&mut self) {
        self.shared.close();
        self.shared.persister.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
