//! How much of the disk the kept bytes take.

use std::{
    collections::HashMap,
    fs,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use super::{ContentError, nar_file::lock, shared::Kind, state_dir::allocated};
use crate::nix::NarHash;

/// Bytes allocated in `content/`: counted once, then kept up to date by whoever changes a file.
#[derive(Default)]
pub(super) struct Usage {
    /// May be off by what changed while it was counted; never by more, and right after the next count.
    total: AtomicI64,
    counted: Mutex<bool>,
}

impl Usage {
    /// A file that had `before` bytes allocated has `after` now.
    pub(super) fn change(&self, before: u64, after: u64) {
        self.total
            .fetch_add(after as i64 - before as i64, Ordering::Relaxed);
    }

    pub(super) fn get(&self, content: &Path) -> Result<u64, ContentError> {
        let mut counted = lock(&self.counted);
        if !*counted {
            self.total
                .store(Scan::of(content)?.total as i64, Ordering::Relaxed);
            *counted = true;
        }
        Ok(self.total.load(Ordering::Relaxed).max(0) as u64)
    }

    pub(super) fn exact(&self, content: &Path) -> Result<Scan, ContentError> {
        let mut counted = lock(&self.counted);
        let scan = Scan::of(content)?;
        self.total.store(scan.total as i64, Ordering::Relaxed);
        *counted = true;
        Ok(scan)
    }
}

/// Bytes allocated for what belongs to one NAR.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sizes {
    pub(super) nar: u64,
    pub(super) map: u64,
    /// The compiled tree and the chunk index.
    pub(super) index: u64,
}

/// One look at all of `content/`.
pub(super) struct Scan {
    /// With the directory itself, as `du` counts.
    pub(super) total: u64,
    pub(super) nars: HashMap<NarHash, Sizes>,
}

impl Scan {
    fn of(content: &Path) -> Result<Self, ContentError> {
        let fail = |e| ContentError::io("list", content, e);
        let mut scan = Self {
            total: allocated(&fs::metadata(content).map_err(fail)?),
            nars: HashMap::new(),
        };
        for entry in fs::read_dir(content).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            // A file that went away meanwhile takes no room.
            let Ok(meta) = entry.metadata() else { continue };
            scan.total += allocated(&meta);
            let name = entry.file_name();
            let Some((hash, kind)) = std::str::from_utf8(name.as_bytes())
                .ok()
                .and_then(Kind::parse)
            else {
                continue;
            };
            let sizes = scan.nars.entry(hash).or_default();
            match kind {
                Kind::Nar => sizes.nar = allocated(&meta),
                Kind::Map => sizes.map = allocated(&meta),
                Kind::Index | Kind::Chunks => sizes.index += allocated(&meta),
            }
        }
        Ok(scan)
    }
}
