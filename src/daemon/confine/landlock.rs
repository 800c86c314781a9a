//! Landlock: below which directories this process may still do what.
//!
//! Rights and structures are those of the kernel's `linux/landlock.h`.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{FileType, Mode, OFlags, fstat, open},
    io::Errno,
};

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const TRUNCATE: u64 = 1 << 14;
/// All rights of version 1: the above, removing, and making nodes of each kind.
const FIRST: u64 = (1 << 13) - 1;
/// Device nodes: nobody makes any here.
const MAKE_DEVICES: u64 = 1 << 6 | 1 << 11;
/// Since version 2: renaming between directories.
const REFER: u64 = 1 << 13;
/// Those that mean something for a file that is no directory.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE;

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const ASK_VERSION: u32 = 1;
/// `LANDLOCK_RULE_PATH_BENEATH`.
const BENEATH: u32 = 1;

/// What is allowed somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// Reading, listing and running.
    Read,
    /// Reading and writing files that are there.
    Write,
    /// Everything but device nodes.
    Keep,
}

impl Right {
    fn bits(self) -> u64 {
        match self {
            Self::Read => EXECUTE | READ_FILE | READ_DIR,
            Self::Write => READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE,
            Self::Keep => (FIRST | REFER | TRUNCATE) & !MAKE_DEVICES,
        }
    }
}

/// `struct landlock_ruleset_attr`, as version 1 has it.
#[repr(C)]
struct RulesetAttributes {
    handled_access_fs: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed_access: u64,
    parent: i32,
}

/// Rules that are not in force yet.
pub(super) struct Ruleset {
    descriptor: OwnedFd,
    handled: u64,
}

impl Ruleset {
    /// Without a rule everything is forbidden.
    ///
    /// # Errors
    /// `ENOSYS` and `EOPNOTSUPP` where the kernel has no landlock, or has it switched off.
    pub fn new() -> io::Result<Self> {
        // SAFETY: asks for the version only; there is nothing for the kernel to read.
        let version = check(unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                std::ptr::null::<RulesetAttributes>(),
                0usize,
                ASK_VERSION,
            )
        })?;
        let handled = match version {
            ..=1 => FIRST,
            2 => FIRST | REFER,
            _ => FIRST | REFER | TRUNCATE,
        };
        let attributes = RulesetAttributes {
            handled_access_fs: handled,
        };
        // SAFETY: the kernel reads the structure, which has the size that it is told.
        let number = check(unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &attributes,
                size_of::<RulesetAttributes>(),
                0u32,
            )
        })?;
        // SAFETY: the descriptor is new, and nobody else's.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number as i32) };
        Ok(Self {
            descriptor,
            handled,
        })
    }

    /// Allows something at `path` and below; whether there is anything.
    ///
    /// # Errors
    /// Of the system, when there is something that can't be allowed.
    pub fn allow(&self, path: &Path, right: Right) -> io::Result<bool> {
        let place = match open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let kind = FileType::from_raw_mode(fstat(&place)?.st_mode);
        let meaningful = match kind {
            FileType::Directory => !0,
            _ => OF_FILES,
        };
        let rule = Beneath {
            allowed_access: right.bits() & meaningful & self.handled,
            parent: place.as_raw_fd(),
        };
        // SAFETY: the kernel reads the structure, and both descriptors are open.
        let done = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.descriptor.as_fd().as_raw_fd(),
                BENEATH,
                &rule,
                0u32,
            )
        };
        check(done).map(|_| true)
    }

    /// Puts the rules in force, for this thread and those that it starts from now on. It can't be
    /// undone.
    ///
    /// # Errors
    /// Without `no_new_privs`.
    pub fn enforce(self) -> io::Result<()> {
        // SAFETY: a bare system call on an open descriptor.
        let done = unsafe {
            libc::syscall(
                libc::SYS_landlock_restrict_self,
                self.descriptor.as_raw_fd(),
                0u32,
            )
        };
        check(done).map(drop)
    }
}

fn check(answer: libc::c_long) -> io::Result<libc::c_long> {
    match answer {
        -1 => Err(io::Error::last_os_error()),
        answer => Ok(answer),
    }
}
