//! What is mounted where, and why something can't be mounted on. Read from the kernel's table:
//! no thread that matters touches a mount to learn of it, since one without a server may hang.

use std::{
    ffi::OsString,
    fmt, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::{io::Errno, mount::UnmountFlags};

/// Type of our mounts in the kernel's table.
pub const TYPE: &str = "fuse.narfs";

/// How long a mount may take to say that it lives: it answers from memory.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// Why there is no mount.
#[derive(Debug)]
pub enum MountError {
    /// There is no `/dev/fuse`.
    NoDevice,
    /// Neither root nor `fusermount3`.
    NoPermission(PathBuf),
    /// The mountpoint can't be used.
    MountPoint {
        /// The mountpoint.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// Anything else.
    Io {
        /// The mountpoint.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str(
                "/dev/fuse is missing: load the kernel's fuse module (modprobe fuse), or give the container the device",
            ),
            Self::NoPermission(path) => write!(
                f,
                "no permission to mount on {}: run as root, install fusermount3 (package fuse3), or use `narfs run`, \
                 which needs neither",
                path.display()
            ),
            Self::MountPoint { path, reason } => {
                write!(f, "{} can't be mounted on: {reason}", path.display())
            }
            Self::Io { path, source } => write!(f, "mounting on {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for MountError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Says in words what mount(2) would say in numbers.
///
/// # Errors
/// With the reason why nothing can be mounted there.
pub fn check(path: &Path) -> Result<(), MountError> {
    let refuse = |reason: String| {
        Err(MountError::MountPoint {
            path: path.into(),
            reason,
        })
    };
    let without_a_server = || {
        let path = path.display();
        refuse(format!(
            "a mount without a server is left on it; remove it with: narfs umount {path}"
        ))
    };
    if mounted_by_narfs(path) {
        if has_no_server(path) {
            return without_a_server();
        }
        let path = path.display();
        return refuse(format!(
            "narfs is mounted there already; end that first with: narfs umount {path}"
        ));
    }
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return refuse(format!(
                "it does not exist; make it with: mkdir -p {}",
                path.display()
            ));
        }
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => return without_a_server(),
        Err(e) => return refuse(e.to_string()),
    };
    if !found.is_dir() {
        return refuse("it is not a directory".into());
    }
    Ok(())
}

/// Whether the daemon of a mount is gone. One that hangs is not: so it is asked on a thread that
/// nobody has to wait for.
fn has_no_server(path: &Path) -> bool {
    let (told, answer) = std::sync::mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || {
        // The kernel may remember attributes, but asks for these each time.
        let answer = rustix::fs::statfs(path);
        // Nobody listens any more after the time is up.
        let _ = told.send(answer.is_err_and(|e| e == Errno::NOTCONN));
    });
    answer.recv_timeout(ANSWERS_WITHIN).unwrap_or(false)
}

/// Takes away mounts of narfs that nobody serves any more; whether there was one.
///
/// # Errors
/// When one can't be unmounted.
pub fn unmount_dead(path: &Path) -> Result<bool, MountError> {
    let mut found = false;
    while mounted_by_narfs(path) && has_no_server(path) {
        unmount(path, true).map_err(|source| MountError::Io {
            path: path.into(),
            source,
        })?;
        found = true;
    }
    Ok(found)
}

/// Unmounts; `lazily` also what is in use, which then ends with its last user. Without privilege
/// through `fusermount3`.
///
/// # Errors
/// Of the system, `EBUSY` among them.
pub fn unmount(path: &Path, lazily: bool) -> io::Result<()> {
    let flags = if lazily {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    match rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => fusermount(path, lazily),
        Err(e) => Err(e.into()),
    }
}

/// Ends a mount whatever state it is in: whoever waits there gets an error, and so does whoever uses
/// it afterwards.
///
/// # Errors
/// Of the system.
pub fn force(path: &Path) -> io::Result<()> {
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(path, flags) {
        // For those who may not unmount by force there is the kernel's control file, which is of
        // the user who mounted.
        Err(Errno::PERM) => {
            let device = mounted_device(path).unwrap_or_default();
            let number = device.rsplit(':').next().unwrap_or_default();
            let control = format!("/sys/fs/fuse/connections/{number}/abort");
            std::fs::write(control, "1")?;
            unmount(path, true)
        }
        done => done.map_err(Into::into),
    }
}

fn fusermount(path: &Path, lazily: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command
        .arg("-u")
        .args(lazily.then_some("-z"))
        .arg("--")
        .arg(path);
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}

/// Whether the topmost mount on `path` is one of narfs.
pub fn mounted_by_narfs(path: &Path) -> bool {
    mounted_device(path).is_some()
}

/// Everything that something is mounted on, as this process sees it.
pub fn mountpoints() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lines = table.lines();
    lines
        .filter_map(|line| line.split(' ').nth(4).map(unescape))
        .collect()
}

/// The number of the topmost mount on `path`, `MAJOR:MINOR`, if it is one of narfs.
pub fn mounted_device(path: &Path) -> Option<String> {
    // A dead mount can't be resolved, but its parent can.
    let wanted = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => parent
            .canonicalize()
            .map(|p| p.join(name))
            .unwrap_or_else(|_| path.into()),
        _ => path.canonicalize().unwrap_or_else(|_| path.into()),
    };
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut on_it = table
        .lines()
        .filter(|line| line.split(' ').nth(4).map(unescape).as_ref() == Some(&wanted));
    let topmost = on_it.next_back()?;
    // Fields that may be there or not end with a dash.
    let (_, rest) = topmost.split_once(" - ")?;
    let ours = rest.split(' ').next() == Some(TYPE);
    ours.then(|| topmost.split(' ').nth(2).map(str::to_owned))?
}

/// Spaces and the like are octal in the kernel's table.
fn unescape(field: &str) -> PathBuf {
    let mut out = Vec::new();
    let mut bytes = field.bytes();
    while let Some(b) = bytes.next() {
        if b != b'\\' {
            out.push(b);
            continue;
        }
        let digits: Vec<u8> = bytes.by_ref().take(3).collect();
        let value = std::str::from_utf8(&digits)
            .ok()
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        out.extend(value);
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_escapes_are_read() {
        assert_eq!(unescape(r"/a\040b\134c"), PathBuf::from(r"/a b\c"));
    }

    #[test]
    fn says_what_is_wrong_with_a_mountpoint() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert!(
            check(&missing)
                .unwrap_err()
                .to_string()
                .contains("mkdir -p")
        );
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(
            check(&file)
                .unwrap_err()
                .to_string()
                .contains("not a directory")
        );
        assert!(check(dir.path()).is_ok());
        assert!(!mounted_by_narfs(Path::new("/proc")));
    }
}
