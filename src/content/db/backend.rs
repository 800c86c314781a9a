//! The file of the database, as redb has it, but for the syncs of its making.
//!
//! redb syncs a new file four times before anything is in it, which on a slow disk is most of the time that a first
//! start takes.

use std::{
    fs::File,
    io,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::{BackendError, DatabaseError, StorageBackend, backends::FileBackend};

/// The file.
#[derive(Debug)]
pub(super) struct Backend {
    file: FileBackend,
    syncs: Arc<AtomicBool>,
}

/// Makes a file's syncs count.
pub(super) struct Syncs(Arc<AtomicBool>);

impl Syncs {
    /// From the next one on; it takes along what was written before.
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Backend {
    /// Around `file`; without `syncs`, none is done before [`Syncs::begin`].
    pub(super) fn new(file: File, syncs: bool) -> Result<(Self, Syncs), DatabaseError> {
        let syncs = Arc::new(AtomicBool::new(syncs));
        let file = FileBackend::new(file)?;
        let handle = Syncs(syncs.clone());
        Ok((Self { file, syncs }, handle))
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.syncs.load(Ordering::Acquire) {
            true => self.file.sync_data(),
            false => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
