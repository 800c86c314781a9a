//! The state directory: whose it is, which version, and that one process has it.
//!
//! | name | what |
//! |---|---|
//! | `version` | `narfs-state 1` and a newline: the format of everything below; a newer one is refused |
//! | `lock` | held with `flock` by the process that uses the directory; its text is that process's number |
//! | `content/` | see the content store |
//! | `tmp/` | files that have no name yet; emptied when the directory is opened |
//! | `narfs.redb` | see the database |

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::ContentError;

/// The format of the state directory that this program writes and reads.
pub const STATE_VERSION: u64 = 1;

const VERSION_WORD: &str = "narfs-state";
const VERSION_FILE: &str = "version";
const VERSION_TMP: &str = "version.tmp";
const LOCK_FILE: &str = "lock";
const CONTENT_DIR: &str = "content";
const TMP_DIR: &str = "tmp";
const DB_FILE: &str = "narfs.redb";

/// How often a lock that another process has is tried again: `flock` itself waits for ever or not at all.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// What may lie in a directory that has no version yet: an interrupted creation's leavings, and what a fresh file
/// system has at its root.
const BEFORE_VERSION: [&str; 4] = [LOCK_FILE, VERSION_TMP, LOG_FILE, "lost+found"];
/// Log of a daemon in the background, begun by who starts it.
pub const LOG_FILE: &str = "daemon.log";

/// A state directory that is ours until this is dropped.
#[derive(Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    /// Held for its `flock`.
    _lock: File,
}

impl StateDir {
    /// Makes the directory if it is missing, takes it, and checks that it is of a version we know.
    pub(super) fn take(path: &Path, wait: Duration) -> Result<Self, ContentError> {
        make_dir(path)?;
        check_owner(path)?;
        // Before anything in it is touched: it may be somebody's home directory.
        check_version(path)?;
        let lock = take_lock(path, wait)?;
        // Again, because only now nobody else can be making it.
        if check_version(path)? == Version::None {
            write_version(path)?;
        }
        make_private(path)?;
        make_dir(&path.join(CONTENT_DIR))?;
        make_dir(&path.join(TMP_DIR))?;
        let dir = Self {
            path: path.into(),
            _lock: lock,
        };
        dir.empty_tmp()?;
        Ok(dir)
    }

    pub(super) fn content(&self) -> PathBuf {
        self.path.join(CONTENT_DIR)
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.path.join(TMP_DIR)
    }

    /// Removes what interrupted writes left behind.
    fn empty_tmp(&self) -> Result<(), ContentError> {
        let tmp = self.tmp();
        let fail = |e| ContentError::io("empty", &tmp, e);
        for entry in fs::read_dir(&tmp).map_err(fail)? {
            fs::remove_file(entry.map_err(fail)?.path()).map_err(fail)?;
        }
        Ok(())
    }

    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DB_FILE)
    }
}

fn make_dir(path: &Path) -> Result<(), ContentError> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        // An existing directory on a read-only file system is told apart later, by what fails on it.
        Err(e) if !path.is_dir() => Err(ContentError::io("create the directory", path, e)),
        _ => Ok(()),
    }
}

fn check_owner(path: &Path) -> Result<(), ContentError> {
    let meta = fs::metadata(path).map_err(|e| ContentError::io("look at", path, e))?;
    let me = rustix::process::geteuid().as_raw();
    let refuse = |problem| {
        Err(ContentError::Unsafe {
            dir: path.into(),
            problem,
        })
    };
    if meta.uid() != me {
        return refuse(format!(
            "belongs to user {}, and narfs runs as user {me}",
            meta.uid()
        ));
    }
    let mode = meta.mode() & 0o777;
    if mode & 0o022 != 0 {
        return refuse(format!("has mode {mode:04o}, so others can write to it"));
    }
    Ok(())
}

/// Lets nobody else look at it: what store paths are kept is nobody's business.
fn make_private(path: &Path) -> Result<(), ContentError> {
    let meta = fs::metadata(path).map_err(|e| ContentError::io("look at", path, e))?;
    if meta.mode() & 0o777 == 0o700 {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(0o700))
        .map_err(|e| ContentError::io("set mode 0700 on", path, e))
}

fn take_lock(dir: &Path, wait: Duration) -> Result<File, ContentError> {
    let path = dir.join(LOCK_FILE);
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| ContentError::io("open", &path, e))?;
    let start = Instant::now();
    let outcome = loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if start.elapsed() < wait => std::thread::sleep(LOCK_POLL),
            other => break other,
        }
    };
    match outcome {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let _ = lock.take(32).read_to_string(&mut text);
            return Err(ContentError::InUse {
                pid: text.trim().parse().ok(),
                dir: dir.into(),
            });
        }
        Err(e) => return Err(ContentError::io("lock", &path, e.into())),
    }
    let pid = format!("{}\n", std::process::id());
    lock.set_len(0)
        .and_then(|()| lock.write_all_at(pid.as_bytes(), 0))
        .map_err(|e| ContentError::io("write", &path, e))?;
    Ok(lock)
}

/// What a directory is, if it is not refused.
#[derive(PartialEq, Eq)]
enum Version {
    /// Empty, or as good as that.
    None,
    /// Ours, of the format we know.
    Known,
}

fn check_version(dir: &Path) -> Result<Version, ContentError> {
    let path = dir.join(VERSION_FILE);
    let not_ours = |found: String| {
        Err(ContentError::NotOurs {
            dir: dir.into(),
            found,
        })
    };
    let text = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return match stranger(dir)? {
                Some(name) => not_ours(format!(
                    "it has no file named version, but one named {name:?}"
                )),
                None => Ok(Version::None),
            };
        }
        Err(e) => return Err(ContentError::io("read", &path, e)),
    };
    let version = std::str::from_utf8(&text).ok().and_then(|t| {
        t.trim_end()
            .strip_prefix(VERSION_WORD)?
            .strip_prefix(' ')?
            .parse::<u64>()
            .ok()
    });
    match version {
        Some(STATE_VERSION) => Ok(Version::Known),
        Some(found) if found > STATE_VERSION => Err(ContentError::Newer {
            dir: dir.into(),
            found,
            known: STATE_VERSION,
        }),
        _ => {
            let shown: String = String::from_utf8_lossy(&text).chars().take(40).collect();
            not_ours(format!("its file named version says {shown:?}"))
        }
    }
}

/// Something in the directory that an interrupted creation would not have left.
fn stranger(dir: &Path) -> Result<Option<String>, ContentError> {
    let entries = fs::read_dir(dir).map_err(|e| ContentError::io("list", dir, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| ContentError::io("list", dir, e))?;
        let name = entry.file_name();
        if !BEFORE_VERSION.iter().any(|known| name == *known) {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

fn write_version(dir: &Path) -> Result<(), ContentError> {
    let text = format!("{VERSION_WORD} {STATE_VERSION}\n");
    replace_file(
        &dir.join(VERSION_TMP),
        &dir.join(VERSION_FILE),
        text.as_bytes(),
    )?;
    sync_dir(dir)
}

/// Writes `bytes` to `tmp`, makes them durable and gives them the name `path`. The caller syncs the directory when
/// the name has to be durable as well. Returns the bytes allocated for it.
pub(super) fn replace_file(tmp: &Path, path: &Path, bytes: &[u8]) -> Result<u64, ContentError> {
    write_and_rename(tmp, path, bytes, true)
}

/// As [`replace_file`], for what carries its own checksum and can be made again: after a power cut it may be found
/// empty or torn, which its reader sees.
pub(super) fn replace_file_unsynced(
    tmp: &Path,
    path: &Path,
    bytes: &[u8],
) -> Result<u64, ContentError> {
    write_and_rename(tmp, path, bytes, false)
}

fn write_and_rename(
    tmp: &Path,
    path: &Path,
    bytes: &[u8],
    sync: bool,
) -> Result<u64, ContentError> {
    let write = || -> io::Result<u64> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(tmp)?;
        file.write_all(bytes)?;
        if sync {
            file.sync_data()?;
        }
        let allocated = allocated(&file.metadata()?);
        fs::rename(tmp, path)?;
        Ok(allocated)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(tmp);
        ContentError::io("write", path, e)
    })
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), ContentError> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| ContentError::io("sync the directory", dir, e))
}

/// Bytes that a file takes on its file system: `st_blocks` counts units of 512 bytes on Linux, whatever the block
/// size.
pub(super) fn allocated(meta: &fs::Metadata) -> u64 {
    meta.blocks() * 512
}
