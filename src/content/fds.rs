//! A bounded number of open files, whatever the number of NARs.

use std::{
    fs::File,
    io,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;

use super::nar_file::Generation;

/// Most NAR files kept open between two operations. The usual soft limit of a process is 1,024 descriptors: half
/// of it leaves room for connections, mounts and the files that operations under way hold beyond this number.
pub const MAX_OPEN_FILES: usize = 512;

/// Open NAR files, least recently used first out. A file that is being read stays open until that read is over,
/// because its reader shares it.
///
/// Keyed by generation, a number that no other incarnation of any NAR has: so a descriptor of discarded bytes is
/// never found by anybody who begins afterwards.
pub(super) struct OpenFiles(Mutex<LruCache<Generation, Open>>);

#[derive(Clone)]
struct Open {
    file: Arc<File>,
    writable: bool,
}

impl OpenFiles {
    pub(super) fn new() -> Self {
        const MOST: NonZeroUsize = NonZeroUsize::new(MAX_OPEN_FILES).unwrap();
        Self(Mutex::new(LruCache::new(MOST)))
    }

    /// The open file of this generation, opened with `open` if there is none (or none that can be written to).
    pub(super) fn get(
        &self,
        generation: Generation,
        writable: bool,
        open: impl Fn() -> io::Result<File>,
    ) -> io::Result<Arc<File>> {
        if let Some(found) = self.lock().get(&generation)
            && (found.writable || !writable)
        {
            return Ok(found.file.clone());
        }
        let file = match open() {
            Err(e) if out_of_descriptors(&e) => {
                self.lock().clear();
                open()
            }
            other => other,
        };
        let file = Arc::new(file?);
        // The one pushed out is closed after the lock is released.
        let _out = self.lock().push(
            generation,
            Open {
                file: file.clone(),
                writable,
            },
        );
        Ok(file)
    }

    pub(super) fn forget(&self, generation: Generation) {
        let _out = self.lock().pop(&generation);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Generation, Open>> {
        // Nothing panics while it is held but the allocator; the cache stays consistent either way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn out_of_descriptors(e: &io::Error) -> bool {
    let (mine, all) = (rustix::io::Errno::MFILE, rustix::io::Errno::NFILE);
    e.raw_os_error() == Some(mine.raw_os_error()) || e.raw_os_error() == Some(all.raw_os_error())
}
