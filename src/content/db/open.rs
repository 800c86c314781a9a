//! Opening the database file: making it, knowing a damaged one, putting that aside.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use redb::{Builder, Database, ReadableDatabase};

use super::{
    META, SCHEMA, USES, backend::Backend, cache_infos, facts, narinfos, roots, sheltered, slots,
    views,
};
use crate::content::ContentError;

/// Memory for pages of the database, in bytes. Lookups are few (the store keeps what it uses), and the page cache
/// of the kernel is behind it; redb would take 1 GiB.
const CACHE: usize = 4 << 20;

/// What is wrong with a file that opens or does not.
enum Fault {
    Newer(u64),
    /// It cannot be used; why.
    Damaged(String),
    /// Nothing is known to be wrong with the file: the system failed.
    System(redb::Error),
}

impl From<redb::Error> for Fault {
    fn from(e: redb::Error) -> Self {
        match e {
            redb::Error::Io(e)
                if !matches!(
                    e.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::System(redb::Error::Io(e))
            }
            redb::Error::DatabaseAlreadyOpen
            | redb::Error::PreviousIo
            | redb::Error::DatabaseClosed => Self::System(e),
            other => Self::Damaged(other.to_string()),
        }
    }
}

/// Opens the database at `path`, makes it if there is none, and puts a damaged one aside.
pub(super) fn open(path: &Path) -> Result<Database, ContentError> {
    match attempt(path) {
        Ok(database) => Ok(database),
        Err(Fault::Damaged(why)) => {
            let aside = put_aside(path)?;
            tracing::warn!(
                "the database {} is damaged ({why}); it was put aside as {} and a fresh one begun. Kept bytes are not touched; narinfos are fetched again, and roots have to be made again",
                path.display(),
                aside.display()
            );
            attempt(path).map_err(|fault| refused(path, fault))
        }
        Err(fault) => Err(refused(path, fault)),
    }
}

/// Opens it again in the middle of its use: a file that was right a moment ago is never put aside.
pub(super) fn reopen(path: &Path) -> Result<Database, ContentError> {
    attempt(path).map_err(|fault| refused(path, fault))
}

fn refused(path: &Path, fault: Fault) -> ContentError {
    match fault {
        Fault::Newer(found) => ContentError::Newer {
            dir: path.into(),
            found,
            known: SCHEMA,
        },
        Fault::Damaged(why) => ContentError::database(path, redb::Error::Corrupted(why)),
        Fault::System(e) => ContentError::database(path, e),
    }
}

fn attempt(path: &Path) -> Result<Database, Fault> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(redb::Error::Io)?;
    // Nothing is lost with a database that nobody was told anything from: a new one is durable with what is first
    // written to it. A power cut before that leaves one that may have to be put aside.
    let begins = file.metadata().map_err(redb::Error::Io)?.len() == 0;
    let (backend, syncs) = Backend::new(file, !begins).map_err(redb::Error::from)?;
    let database = sheltered(|| {
        let mut builder = Builder::new();
        Ok(builder.set_cache_size(CACHE).create_with_backend(backend)?)
    })?;
    let schema = sheltered(|| {
        let txn = database.begin_read()?;
        match txn.open_table(META) {
            Ok(table) => Ok(Some(table.get("schema")?.map_or(0, |v| v.value()))),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    })?;
    match schema {
        Some(SCHEMA) => sheltered(|| check_tables(&database))?,
        // The same tables but for the views.
        Some(1) => {
            let first_view = views::first_view(damaged_count(path));
            sheltered(|| add_views(&database, first_view))?;
            sheltered(|| check_tables(&database))?;
        }
        Some(newer) if newer > SCHEMA => return Err(Fault::Newer(newer)),
        Some(older) => return Err(Fault::Damaged(format!("its tables have version {older}"))),
        None => {
            let first_slot = slots::first_slot(damaged_count(path));
            let first_view = views::first_view(damaged_count(path));
            sheltered(|| make_tables(&database, first_slot, first_view))?;
        }
    }
    syncs.begin();
    Ok(database)
}

fn make_tables(database: &Database, first_slot: u64, first_view: u64) -> Result<(), redb::Error> {
    let txn = database.begin_write()?;
    {
        let mut meta = txn.open_table(META)?;
        meta.insert("schema", SCHEMA)?;
        meta.insert(slots::NEXT, first_slot)?;
        meta.insert(views::NEXT, first_view)?;
        txn.open_table(slots::SLOTS)?;
        txn.open_table(slots::PATHS)?;
        txn.open_table(narinfos::NARINFOS)?;
        txn.open_table(roots::ROOTS)?;
        txn.open_table(views::VIEWS)?;
        txn.open_table(views::NUMBERS)?;
        txn.open_table(USES)?;
        txn.open_table(facts::FACTS)?;
        txn.open_table(cache_infos::CACHE_INFOS)?;
    }
    Ok(txn.commit()?)
}

/// Every mount depends on these: better known now than at the first lookup.
fn check_tables(database: &Database) -> Result<(), redb::Error> {
    let txn = database.begin_read()?;
    slots::read_all(&txn)?;
    roots::read_all(&txn)?;
    views::read_all(&txn)?;
    Ok(())
}

fn add_views(database: &Database, first_view: u64) -> Result<(), redb::Error> {
    let txn = database.begin_write()?;
    {
        let mut meta = txn.open_table(META)?;
        meta.insert("schema", SCHEMA)?;
        meta.insert(views::NEXT, first_view)?;
        txn.open_table(views::VIEWS)?;
        txn.open_table(views::NUMBERS)?;
    }
    Ok(txn.commit()?)
}

fn damaged_name(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".damaged-{n}"));
    name.into()
}

fn damaged_count(path: &Path) -> u32 {
    (1..)
        .take_while(|n| damaged_name(path, *n).exists())
        .count() as u32
}

fn put_aside(path: &Path) -> Result<PathBuf, ContentError> {
    let aside = damaged_name(path, damaged_count(path) + 1);
    fs::rename(path, &aside).map_err(|e| ContentError::io("put aside", path, e))?;
    Ok(aside)
}
