//! The database: what narfs knows of store paths, besides their bytes. `narfs.redb` in the state directory.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | number: `schema` (version of these tables), `next_slot`, `next_view` |
//! | `slots` | digest of a store path, 20 bytes | its newest slot, its name |
//! | `paths` | slot | base name of the store path |
//! | `narinfos` | digest, substituter | seconds since 1970 when fetched, text of the narinfo or none (not there) |
//! | `roots` | name | base names of store paths, one a line |
//! | `views` | name | its number, slots of its paths, slots of the paths in its status directory |
//! | `view-numbers` | number of a view | its name |
//! | `uses` | NAR hash, 32 bytes | seconds since 1970 of the last use |
//! | `facts` | digest | JSON, [`PathFacts`] |
//! | `profiles` | digest of a program's store path | its access profile, text |
//! | `no-profiles` | digest of a program's store path, substituter | seconds since 1970 when it said that it has no profile |
//! | `cache-infos` | substituter | seconds since 1970 when fetched, its `nix-cache-info` |
//!
//! Everything in it can be had again, at the price of requests, but the slots: they are inode numbers that a mount
//! has given out, and the views', which are parts of them. So a file that is damaged is put aside as `narfs.redb.damaged-<n>` and a fresh one is begun, whose
//! slots start in another part of their range.
//!
//! Writes go through one thread. It takes whatever waits into one transaction and answers after the commit, so that
//! a thousand callers cost one sync, and no transaction is ever open while something slow happens. Reads run on the
//! caller's thread, from the last commit.

mod backend;
mod cache_infos;
mod facts;
mod known;
mod narinfos;
mod open;
mod profiles;
mod roots;
mod slots;
mod spare;
mod views;
mod writer;

pub use facts::{PathError, PathFacts};
pub use known::KeptOfPath;
pub use narinfos::{CachedNarinfo, NarinfoTtl};
pub use slots::MAX_SLOT;
pub use views::{KeptView, MAX_VIEW};
pub use writer::Pending;

use std::{
    collections::HashMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use redb::{Database, ReadTransaction, ReadableDatabase, TableDefinition, WriteTransaction};

use super::ContentError;
use crate::nix::NarHash;
use spare::Spare;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const USES: TableDefinition<&[u8; 32], u64> = TableDefinition::new("uses");

/// Version of the tables. An older one is brought up to date, a newer one refused: a program that knows nothing of
/// views would collect what they root.
pub const SCHEMA: u64 = 2;

/// The database of a state directory.
pub struct Db {
    core: Arc<Core>,
    writer: writer::Writer,
}

/// What the callers and the writer thread share.
struct Core {
    path: PathBuf,
    /// `None` after a failure from which opening it again has not helped yet.
    database: RwLock<Option<Database>>,
    /// Slots that are not in it yet. A leaf, like every lock here, and held for a write of one record at most.
    spare: Mutex<Spare>,
    /// Held by the one that writes them to the database.
    settling: Mutex<()>,
}

impl Db {
    /// Opens the database at `path`, or makes it. The state directory is ours already.
    pub(super) fn open(path: &Path) -> Result<Self, ContentError> {
        let database = open::open(path)?;
        let core = Arc::new(Core {
            path: path.into(),
            database: RwLock::new(Some(database)),
            spare: Mutex::new(Spare::open(&path.with_extension("spare"))),
            settling: Mutex::default(),
        });
        let writer = writer::Writer::start(core.clone())?;
        let db = Self { core, writer };
        if db.has_spare_slots() {
            // On a thread of its own: this one may be a task's, which must not wait.
            let settled = std::thread::scope(|s| s.spawn(|| db.settle_spare_slots()).join());
            if let Ok(Err(error)) = settled {
                tracing::warn!(%error, "store paths that were named on a full disk are not in the database yet");
            }
        }
        Ok(db)
    }

    /// Notes when NARs were used last, in seconds since 1970.
    pub fn put_uses(&self, uses: HashMap<NarHash, u64>) -> Pending<()> {
        self.writer.submit(move |txn| {
            let mut table = txn.open_table(USES)?;
            for (hash, at) in &uses {
                table.insert(hash.as_bytes(), at)?;
            }
            Ok(Ok(()))
        })
    }

    /// When each NAR was used last, as far as it was noted.
    pub fn uses(&self) -> Result<HashMap<NarHash, u64>, ContentError> {
        self.core.read(|txn| {
            let table = txn.open_table(USES)?;
            redb::ReadableTable::iter(&table)?
                .map(|entry| {
                    entry.map(|(hash, at)| (NarHash::from_bytes(*hash.value()), at.value()))
                })
                .collect::<Result<_, _>>()
                .map_err(redb::Error::from)
        })
    }

    /// Forgets the uses of NARs that are no longer kept.
    pub fn forget_uses(&self, hashes: Vec<NarHash>) -> Pending<()> {
        self.writer.submit(move |txn| {
            let mut table = txn.open_table(USES)?;
            for hash in &hashes {
                table.remove(hash.as_bytes())?;
            }
            Ok(Ok(()))
        })
    }
}

impl Core {
    /// Runs `f` on what was committed last.
    fn read<T>(
        &self,
        f: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, ContentError> {
        let outcome = {
            let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
            guard
                .as_ref()
                .map(|database| sheltered(|| f(&database.begin_read()?)))
        };
        match outcome {
            Some(Ok(value)) => Ok(value),
            Some(Err(e)) => {
                if wants_reopening(&e) {
                    self.reopen()?;
                }
                Err(ContentError::database(&self.path, e))
            }
            None => {
                self.reopen()?;
                Err(ContentError::database(&self.path, redb::Error::PreviousIo))
            }
        }
    }

    /// Runs `f` in a transaction and commits it.
    fn write(
        &self,
        f: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        // redb refuses reads as well after a write that failed, and can't be opened again where nothing is written.
        if is_read_only(&self.path) {
            return Err(redb::Error::Io(io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        let mut tried = false;
        loop {
            let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
            let Some(database) = guard.as_ref() else {
                drop(guard);
                if std::mem::replace(&mut tried, true) {
                    return Err(redb::Error::PreviousIo);
                }
                self.reopen().map_err(into_redb)?;
                continue;
            };
            let outcome = sheltered(|| {
                let txn = database.begin_write()?;
                f(&txn)?;
                Ok(txn.commit()?)
            });
            drop(guard);
            if let Err(e) = &outcome
                && wants_reopening(e)
                && let Err(error) = self.reopen()
            {
                tracing::warn!(%error, "the database stays closed for now");
            }
            return outcome;
        }
    }

    fn spare(&self) -> MutexGuard<'_, Spare> {
        // Consistent at every step.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settling(&self) -> MutexGuard<'_, ()> {
        self.settling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes and opens it: after an I/O error (a full disk is one) redb refuses everything until then.
    fn reopen(&self) -> Result<(), ContentError> {
        let mut guard = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // Two databases on one file exclude each other.
        drop(guard.take());
        *guard = Some(open::reopen(&self.path)?);
        Ok(())
    }
}

/// redb's own assertions stop a thread when the file is damaged; here they become an error.
fn sheltered<T>(f: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("an assertion failed");
        Err(redb::Error::Corrupted(text.into()))
    })
}

fn wants_reopening(e: &redb::Error) -> bool {
    matches!(
        e,
        redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed
    )
}

/// Whether its file system was made read-only, as happens to one with errors.
fn is_read_only(path: &Path) -> bool {
    rustix::fs::statvfs(path)
        .is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

fn into_redb(e: ContentError) -> redb::Error {
    redb::Error::Io(std::io::Error::other(e))
}
