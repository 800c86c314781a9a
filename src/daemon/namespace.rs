//! A private `/nix/store` for one program: user and mount namespaces, no privilege needed.
//!
//! Where the host has no `/nix/store` directory, a new root is put together first: a tmpfs with
//! the host's top-level directories bound into it and `nix/store` beside them.
//!
//! The only module besides the tree's map that needs `unsafe`: entering namespaces, and what a
//! child does between fork and exec.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::Command,
};

use rustix::{
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
        unmount,
    },
    process::{chdir, getegid, geteuid, pivot_root, setsid},
    thread::{UnshareFlags, unshare_unsafe},
};

use crate::{
    failure::{Exit, Failure},
    nix::STORE_DIR,
};

pub use narfs_mount::adopt;

/// What to do where namespaces are not for everybody.
const ALLOW: &str = "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces, \
                     kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor profile), or mount as root: \
                     narfs mount /nix/store";

/// The child becomes the leader of a session of its own, so that no terminal takes it along.
pub fn detached(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only async-signal-safe functions may be called; `setsid`
    // is a bare system call, and nothing is allocated.
    unsafe { command.pre_exec(|| setsid().map(drop).map_err(Into::into)) }
}

/// Moves this process, which must have one thread only, into a mount namespace of its own: as
/// root that alone, else with a user namespace in which the user stays who he is.
///
/// # Errors
/// With what the system does not allow, and what to do.
pub fn enter() -> Result<(), Failure> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    if uid != 0 || unshare(UnshareFlags::NEWNS).is_err() {
        let what = "the kernel does not allow a user namespace here";
        unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)
            .map_err(|e| failed(what, &e).hint(ALLOW))?;
        // Some systems let the namespace be made, and nothing be done in it.
        map_ids(uid, gid).map_err(|e| failed(what, &e).hint(ALLOW))?;
    }
    // Nothing of what is mounted here may reach the host.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(|e| failed("mounts can't be made private", &e).hint(ALLOW))
}

fn unshare(what: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: unsharing the user and mount namespaces does not touch memory, descriptors or
    // threads of this process; it is refused by the kernel if there is a second thread.
    unsafe { unshare_unsafe(what) }
}

fn failed(what: &str, e: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::System, what).because(e)
}

/// Makes a directory `/nix/store` to be mounted on, where the host has none; `scratch` is a
/// directory that may be mounted over.
///
/// # Errors
/// With what the system does not allow.
pub fn provide_store_dir(scratch: &Path) -> Result<(), Failure> {
    if Path::new(STORE_DIR).is_dir() {
        return Ok(());
    }
    let here = std::env::current_dir().ok();
    new_root(scratch)
        .map_err(|e| failed("a root directory with /nix in it can't be put together", &e))?;
    if let Some(here) = here {
        // A directory that is not there any more leaves us at the root.
        let _ = chdir(&here);
    }
    Ok(())
}

/// Mounts an empty FUSE file system; the descriptor is for whoever serves it. To be called after
/// [`enter`]: the kernel wants the device opened in the user namespace that mounts it.
///
/// # Errors
/// With what the system does not allow, and what to do.
pub fn mount_fuse(mountpoint: &Path) -> Result<OwnedFd, Failure> {
    let device = open_device()?;
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    // Other users of this namespace, if it has any, are the user's own affair.
    let options = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions,allow_other",
        device.as_raw_fd()
    );
    let data = CString::new(options).map_err(|e| failed("mount options", &e))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    mount("narfs", mountpoint, "fuse.narfs", flags, data.as_c_str()).map_err(|e| {
        failed(
            &format!("{} can't be mounted in the namespace", mountpoint.display()),
            &e,
        )
    })?;
    Ok(device)
}

fn open_device() -> Result<OwnedFd, Failure> {
    let path = "/dev/fuse";
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map(OwnedFd::from).map_err(|e| {
        let hint = match e.kind() {
            io::ErrorKind::NotFound => {
                "load the kernel's fuse module (modprobe fuse), or give the container the device"
            }
            _ => "distributions have it open to all; here, as root: chmod 0666 /dev/fuse",
        };
        Failure::new(Exit::System, format!("{path} can't be opened"))
            .because(&e)
            .hint(hint)
    })
}

/// The user stays who he is.
fn map_ids(uid: u32, gid: u32) -> io::Result<()> {
    // Without privilege, groups can only be mapped once they can't be dropped any more.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Builds a root on a tmpfs out of the host's and changes over to it.
fn new_root(root: &Path) -> io::Result<()> {
    mount(
        "narfs-root",
        root,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=0755",
    )?;
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        let (from, to) = (entry.path(), root.join(entry.file_name()));
        if from != Path::new("/nix") {
            bring_over(&from, &to)?;
        }
    }
    fs::create_dir_all(root.join(&STORE_DIR[1..]))?;
    chdir(root)?;
    // The old root ends up on top of the new one, and is taken off it.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    // The new root came along with the directory that it was put together in.
    let _ = unmount(root, UnmountFlags::DETACH);
    Ok(())
}

fn bring_over(from: &Path, to: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(from)?;
    if found.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(from)?, to);
    }
    if found.is_dir() {
        fs::create_dir(to)?;
    } else {
        File::create_new(to)?;
    }
    match mount_bind_recursive(from, to) {
        Ok(()) => Ok(()),
        // What may not be bound (EINVAL: it was marked so), programs can do without.
        Err(error @ (Errno::ACCESS | Errno::PERM | Errno::INVAL)) => {
            tracing::warn!(path = %from.display(), %error, "not in the program's view of the machine");
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

/// Replaces this process by the program.
///
/// # Errors
/// Returns only when it could not be started.
pub fn become_program(program: &Path, args: &[std::ffi::OsString]) -> Failure {
    let error = Command::new(program).args(args).exec();
    let what = format!("{} can't be run", program.display());
    let (exit, hint) = match error.kind() {
        io::ErrorKind::NotFound if fs::symlink_metadata(program).is_ok() => (
            Exit::NotExecutable,
            Some(
                "the interpreter that it names is missing: a script's first line, or a dynamic loader in no cache",
            ),
        ),
        io::ErrorKind::NotFound => (Exit::NoProgram, None),
        io::ErrorKind::PermissionDenied => (Exit::NotExecutable, Some("it is no executable file")),
        _ if error.raw_os_error() == Some(libc::EIO) => (
            Exit::Unavailable,
            Some("its bytes could not be fetched; `narfs status` says why"),
        ),
        _ => (Exit::NotExecutable, None),
    };
    let failure = Failure::new(exit, what).because(&error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
