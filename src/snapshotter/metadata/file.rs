//! The file: made, opened, checked, moved on from older versions, written.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Draft, State};
use crate::snapshotter::{error::MetadataError, record::Record};

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const SNAPSHOTS: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshots");

/// Version of the tables.
pub const SCHEMA: u64 = 1;

/// Memory for pages of the database, in bytes: it is read once.
const CACHE: usize = 1 << 20;

pub(super) fn open(path: &Path, directories: usize) -> Result<(Database, State), MetadataError> {
    if !path.exists() {
        if directories > 0 {
            return Err(MetadataError::Missing {
                path: path.into(),
                count: directories,
            });
        }
        make(path)?;
    }
    open_existing(path)
}

/// Opens a file that has to be there, and reads it.
pub(super) fn open_existing(path: &Path) -> Result<(Database, State), MetadataError> {
    let database = open_file(path)?;
    migrate(path, &database)?;
    let state = sheltered(|| read(&database)).map_err(|e| failed(path, e))?;
    let state = state.map_err(|why| MetadataError::Damaged {
        path: path.into(),
        why,
    })?;
    Ok((database, state))
}

fn open_file(path: &Path) -> Result<Database, MetadataError> {
    let opened = || {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        // Opened as a new one, redb would begin an empty database in it.
        if file.metadata()?.len() == 0 {
            return Err(redb::Error::Corrupted("it is empty".into()));
        }
        Ok(Builder::new().set_cache_size(CACHE).create_file(file)?)
    };
    sheltered(opened).map_err(|e| failed(path, e))
}

/// Makes an empty database, whole or not at all.
fn make(path: &Path) -> Result<(), MetadataError> {
    let new = temporary(path);
    let made = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.mode(0o600).open(&new)?;
        let database = Builder::new().set_cache_size(CACHE).create_file(file)?;
        let txn = database.begin_write()?;
        txn.open_table(META)?.insert("schema", SCHEMA)?;
        txn.open_table(SNAPSHOTS)?;
        txn.commit()?;
        drop(database);
        fs::rename(&new, path)?;
        // The name has to last as long as what is written under it.
        let directory = path.parent().unwrap_or(Path::new("."));
        Ok(fs::File::open(directory)?.sync_all()?)
    };
    sheltered(made).map_err(|e| failed(path, e))
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension("redb.new")
}

/// Brings the tables of an older narfs to this version, one step after the other.
fn migrate(path: &Path, database: &Database) -> Result<(), MetadataError> {
    let found = sheltered(|| {
        let txn = database.begin_read()?;
        match txn.open_table(META) {
            Ok(table) => Ok(table.get("schema")?.map_or(0, |v| v.value())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(0),
            Err(e) => Err(e.into()),
        }
    })
    .map_err(|e| failed(path, e))?;
    let (path, known) = (path.to_owned(), SCHEMA);
    match found {
        SCHEMA => Ok(()),
        newer if newer > SCHEMA => Err(MetadataError::Newer { path, found, known }),
        // Version 1 is the first. What turns version N into N + 1 goes here, in one transaction
        // that ends with setting `schema`.
        _ => Err(MetadataError::TooOld { path, found, known }),
    }
}

/// Everything in the file; the inner error says what in it makes no sense.
fn read(database: &Database) -> Result<Result<State, String>, redb::Error> {
    let txn = database.begin_read()?;
    let mut draft = Draft::of(&State::default());
    for entry in txn.open_table(SNAPSHOTS)?.iter()? {
        let (key, value) = entry?;
        match serde_json::from_slice::<Record>(value.value()) {
            Ok(record) => draft.put(key.value(), record),
            Err(e) => return Ok(Err(format!("the record of {}: {e}", key.value()))),
        }
    }
    let mut state = draft.state;
    let next = txn
        .open_table(META)?
        .get("next-id")?
        .map_or(1, |v| v.value());
    state.next_id = state.next_id.max(next).max(1);
    Ok(Ok(state))
}

/// Writes what a draft changed, durably.
pub(super) fn write(database: &Database, draft: &Draft) -> Result<(), redb::Error> {
    // Before the transaction is begun: it is open for writing alone.
    let mut changes = Vec::with_capacity(draft.changed.len());
    for key in &draft.changed {
        let value = match draft.state.records.get(key) {
            Some(record) => Some(serde_json::to_vec(&**record).map_err(io::Error::other)?),
            None => None,
        };
        changes.push((key, value));
    }
    sheltered(|| {
        let txn = database.begin_write()?;
        {
            let mut table = txn.open_table(SNAPSHOTS)?;
            for (key, value) in &changes {
                match value {
                    Some(value) => drop(table.insert(&***key, value.as_slice())?),
                    None => drop(table.remove(&***key)?),
                }
            }
            txn.open_table(META)?
                .insert("next-id", draft.state.next_id)?;
        }
        Ok(txn.commit()?)
    })
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

/// What an error of redb means for this file.
pub(super) fn failed(path: &Path, error: redb::Error) -> MetadataError {
    let path = path.to_owned();
    match error {
        redb::Error::Io(e)
            if matches!(
                e.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
        {
            MetadataError::NoSpace { path }
        }
        redb::Error::Io(e)
            if !matches!(
                e.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            let source = Arc::new(redb::Error::Io(e));
            MetadataError::Failed { path, source }
        }
        redb::Error::DatabaseAlreadyOpen
        | redb::Error::PreviousIo
        | redb::Error::DatabaseClosed => {
            let source = Arc::new(error);
            MetadataError::Failed { path, source }
        }
        other => {
            let why = other.to_string();
            MetadataError::Damaged { path, why }
        }
    }
}
