//! What the store and its NAR files share: names, open files, who is alive, usage.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File},
    io::{self, ErrorKind, Read},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rustix::fs::SeekFrom;

use super::{
    ContentError, Db, Map, NarFile,
    fds::OpenFiles,
    map::MAX_MAP,
    nar_file::{Generation, State, lock},
    persist::Persister,
    state_dir::{StateDir, allocated, sync_dir},
    sums::Sums,
    usage::Usage,
};
use crate::nix::NarHash;

/// Number of parts the table of living NAR files is in. A part is locked while a map is read from the disk; with
/// 64, two of the handful of threads that do that at a time seldom meet.
const SHARDS: usize = 64;

/// The kinds of files in `content/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nar,
    Map,
    Index,
    Chunks,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Nar, Self::Map, Self::Index, Self::Chunks];

    fn extension(self) -> &'static str {
        match self {
            Self::Nar => "nar",
            Self::Map => "map",
            Self::Index => "index",
            Self::Chunks => "chunks",
        }
    }

    /// The NAR and the kind that a file name in `content/` stands for.
    pub(super) fn parse(name: &str) -> Option<(NarHash, Self)> {
        let (stem, extension) = name.split_once('.')?;
        let kind = Self::ALL.into_iter().find(|k| k.extension() == extension)?;
        Some((
            NarHash::from_bytes(crate::nix::base32::decode(stem.as_bytes())?),
            kind,
        ))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}

type Living = HashMap<NarHash, Weak<NarFile>>;

pub(super) struct Shared {
    content: PathBuf,
    tmp: PathBuf,
    tmp_files: AtomicU64,
    pub(super) db: Db,
    pub(super) files: OpenFiles,
    pub(super) persister: Persister,
    pub(super) usage: Usage,
    living: [Mutex<Living>; SHARDS],
    generations: AtomicU64,
    /// Some map was removed and the directory not synced since.
    removals: AtomicBool,
    closed: AtomicBool,
    /// The file system punches no holes.
    no_holes: AtomicBool,
    /// Kept bytes that the disk gave back wrong, or not at all, since the store was opened.
    pub(super) damaged: AtomicU64,
    /// Dropped last: then the directory is free for another process.
    _dir: StateDir,
}

impl Shared {
    pub(super) fn new(dir: StateDir, db: Db) -> Self {
        Self {
            content: dir.content(),
            tmp: dir.tmp(),
            tmp_files: AtomicU64::new(0),
            db,
            files: OpenFiles::new(),
            persister: Persister::new(),
            usage: Usage::default(),
            living: std::array::from_fn(|_| Mutex::default()),
            generations: AtomicU64::new(1),
            removals: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            no_holes: AtomicBool::new(false),
            damaged: AtomicU64::new(0),
            _dir: dir,
        }
    }

    pub(super) fn content(&self) -> &Path {
        &self.content
    }

    pub(super) fn path(&self, hash: &NarHash, kind: Kind) -> PathBuf {
        self.content.join(format!("{}.{kind}", hash.nix32()))
    }

    /// A name for a file being written that nobody else uses.
    pub(super) fn tmp(&self) -> PathBuf {
        self.tmp
            .join(self.tmp_files.fetch_add(1, Ordering::Relaxed).to_string())
    }

    pub(super) fn next_generation(&self) -> Generation {
        self.generations.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether parts of a NAR can go, as far as is known.
    pub(super) fn punches(&self) -> bool {
        !self.no_holes.load(Ordering::Relaxed)
    }

    pub(super) fn punches_nothing(&self) {
        self.no_holes.store(true, Ordering::Relaxed);
    }

    /// The part of the table where `hash` is. No `Arc<NarFile>` may be dropped while it is locked.
    pub(super) fn living(&self, hash: &NarHash) -> MutexGuard<'_, Living> {
        lock(&self.living[hash.as_bytes()[0] as usize % SHARDS])
    }

    /// Takes a dead NAR file out of the table.
    pub(super) fn forget(&self, hash: &NarHash) {
        let mut living = self.living(hash);
        if living.get(hash).is_some_and(|w| w.strong_count() == 0) {
            living.remove(hash);
        }
    }

    /// Removes a file if it is there; whether it was.
    pub(super) fn remove(&self, hash: &NarHash, kind: Kind) -> Result<bool, ContentError> {
        let path = self.path(hash, kind);
        match fs::remove_file(&path) {
            Ok(()) => {
                if kind == Kind::Map {
                    self.removals.store(true, Ordering::Release);
                }
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(ContentError::io("remove", &path, e)),
        }
    }

    /// Removes a file that no living NAR file counts, if it is there; the bytes that became free.
    pub(super) fn remove_counted(&self, hash: &NarHash, kind: Kind) -> Result<u64, ContentError> {
        let bytes = fs::metadata(self.path(hash, kind)).map_or(0, |m| allocated(&m));
        match self.remove(hash, kind)? {
            true => {
                self.usage.change(bytes, 0);
                Ok(bytes)
            }
            false => Ok(0),
        }
    }

    /// Makes removed maps stay removed. Due before a new NAR file is made: else, after a power cut, the map of an
    /// earlier file of that name might come back and speak for the new one's holes.
    pub(super) fn settle_removals(&self) -> Result<(), ContentError> {
        if self.removals.swap(false, Ordering::AcqRel)
            && let Err(e) = sync_dir(&self.content)
        {
            self.removals.store(true, Ordering::Release);
            return Err(e);
        }
        Ok(())
    }

    /// What the disk holds of a NAR that is not in the table; its part of the table is locked.
    pub(super) fn load(
        self: &Arc<Self>,
        hash: &NarHash,
        nar_size: u64,
    ) -> Result<Arc<NarFile>, ContentError> {
        let empty = || State::empty(self.next_generation(), nar_size);
        let make = |state, nar, map| NarFile::new(*hash, nar_size, self.clone(), state, nar, map);
        let (map, map_allocated) = match self.read_map(hash)? {
            OnDisk::Absent => return Ok(make(empty(), 0, 0)),
            OnDisk::Map(map, allocated) => (map, allocated),
            OnDisk::Unusable(why) => {
                self.distrust(hash, &why);
                return Ok(make(empty(), 0, 0));
            }
        };
        if map.nar_size != nar_size {
            if map.verified {
                return Err(ContentError::SizeMismatch {
                    hash: *hash,
                    known: map.nar_size,
                    asked: nar_size,
                });
            }
            self.distrust(
                hash,
                &format!(
                    "it is the map of a NAR of {} bytes, not {nar_size}",
                    map.nar_size
                ),
            );
            return Ok(make(empty(), 0, 0));
        }
        match self.backing(&map)? {
            Ok(nar_allocated) => {
                let state = State {
                    exists: true,
                    verified: map.verified,
                    was_verified: map.was_verified,
                    sums: Sums::from_list(nar_size, &map.extents, &map.sums),
                    extents: map.extents,
                    checkpoint_source: map.checkpoint_source,
                    checkpoints: map.checkpoints,
                    ..empty()
                };
                Ok(make(state, nar_allocated, map_allocated))
            }
            Err(why) => {
                self.distrust(hash, why);
                Ok(make(empty(), 0, 0))
            }
        }
    }

    /// The map of a NAR as it is on the disk.
    pub(super) fn read_map(&self, hash: &NarHash) -> Result<OnDisk, ContentError> {
        let path = self.path(hash, Kind::Map);
        let read = || -> io::Result<(Vec<u8>, u64)> {
            let file = File::open(&path)?;
            let meta = file.metadata()?;
            let mut bytes = Vec::with_capacity(meta.len().min(MAX_MAP) as usize);
            file.take(MAX_MAP + 1).read_to_end(&mut bytes)?;
            Ok((bytes, allocated(&meta)))
        };
        match read() {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(OnDisk::Absent),
            Err(e) => Err(ContentError::io("read", &path, e)),
            Ok((bytes, _)) if bytes.len() as u64 > MAX_MAP => {
                Ok(OnDisk::Unusable("it is too large".into()))
            }
            Ok((bytes, allocated)) => Ok(match Map::decode(&bytes, hash) {
                Ok(map) => OnDisk::Map(map, allocated),
                Err(e) => OnDisk::Unusable(e.to_string()),
            }),
        }
    }

    /// Whether the NAR file can hold what its map says: the bytes allocated for it, or why not.
    pub(super) fn backing(&self, map: &Map) -> Result<Result<u64, &'static str>, ContentError> {
        let path = self.path(&map.hash, Kind::Nar);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Err("its NAR file is missing")),
            Err(e) => return Err(ContentError::io("open", &path, e)),
        };
        let meta = file
            .metadata()
            .map_err(|e| ContentError::io("look at", &path, e))?;
        if !meta.is_file() || meta.len() != map.nar_size {
            return Ok(Err("its NAR file has another size"));
        }
        // One call for each extent, and no reading. File systems that cannot tell say that there is no hole.
        for extent in map.extents.ranges() {
            match rustix::fs::seek(&file, SeekFrom::Hole(extent.start)) {
                Ok(hole) if hole < extent.end => {
                    return Ok(Err("its NAR file has a hole where it says bytes are"));
                }
                _ => {}
            }
        }
        Ok(Ok(allocated(&meta)))
    }

    fn distrust(&self, hash: &NarHash, why: &str) {
        tracing::warn!(nar = %hash, "the map of this NAR is not used and its bytes are fetched again: {why}");
        for kind in [Kind::Map, Kind::Nar] {
            // What cannot be removed now is removed before the next file of that name is made.
            if let Err(error) = self.remove_counted(hash, kind) {
                tracing::warn!(%error, "a useless file stays");
            }
        }
    }
}

/// A map as it is on the disk.
pub(super) enum OnDisk {
    Absent,
    /// It, and the bytes allocated for it.
    Map(Map, u64),
    Unusable(String),
}
