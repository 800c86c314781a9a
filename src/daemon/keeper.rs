//! The keeper of a snapshotter's mount: a process that holds it while no server does, and does
//! nothing else.
//!
//! A server that is killed, ends or is replaced would take its mount along, and every program that
//! uses it with it. So the first one that mounts starts a keeper and hands it the mount's two
//! descriptors ([`Kept`]); each later one, which the service manager starts, gets copies of them over
//! a socket in the state directory and takes the mount over. Whoever reads in between waits.
//!
//! The keeper is `narfs keep-mount`. It reads no configuration, no mount and no file. The mounts of
//! `narfs mount` have a mount helper instead, which does the same and starts the servers too.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::Path,
    process::{Command, Stdio},
};

use narfs_mount::handover;
use rustix::io::{FdFlags, fcntl_setfd};

use super::namespace::{adopt, detached};
use crate::{
    failure::{Exit, Failure},
    fuse::Kept,
};

/// Name of the keeper's socket in the state directory.
pub const SOCKET: &str = "keeper.sock";

/// The mount that the keeper of a state directory holds; `None` if there is no keeper.
///
/// # Errors
/// When there is one that does not answer.
pub fn ask(state_dir: &Path) -> Result<Option<Kept>, Failure> {
    handover::ask(&state_dir.join(SOCKET)).map_err(|e| unusable(state_dir, &e))
}

/// Tells the keeper of a state directory to let go of its mount.
///
/// # Errors
/// When there is one that does not answer.
pub fn end(state_dir: &Path) -> Result<(), Failure> {
    handover::end(&state_dir.join(SOCKET)).map_err(|e| unusable(state_dir, &e))
}

/// Starts a keeper for a mount.
///
/// # Errors
/// When it can't be started; the mount is as it was.
pub fn start(state_dir: &Path, kept: &Kept) -> Result<(), Failure> {
    let failed = |e: &dyn std::error::Error| {
        Failure::new(Exit::System, "the keeper of the mount can't be started").because(e)
    };
    let path = state_dir.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&e)),
        _ => {}
    }
    // Bound here, so that it answers from the first moment on.
    let listener = UnixListener::bind(&path).map_err(|e| failed(&e))?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).map_err(|e| failed(&e))?;
    let handed = kept.try_clone().map_err(|e| failed(&e))?;
    let descriptors = [handed.device, handed.greeting, OwnedFd::from(listener)];
    let mut args: Vec<OsString> = vec!["keep-mount".into()];
    for (flag, descriptor) in ["device", "greeting", "socket"].iter().zip(&descriptors) {
        fcntl_setfd(descriptor, FdFlags::empty()).map_err(|e| failed(&e))?;
        args.push(format!("--{flag}-fd={}", descriptor.as_raw_fd()).into());
    }
    let program = std::env::current_exe().map_err(|e| failed(&e))?;
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Not waited for: it outlives this process, and whoever inherits it collects it.
    drop(detached(&mut command).spawn().map_err(|e| failed(&e))?);
    Ok(())
}

/// Holds the mount until it ends or somebody says so.
///
/// # Errors
/// When the descriptors are none.
pub fn keep(device: OwnedFd, greeting: OwnedFd, socket: OwnedFd) -> Result<(), Failure> {
    handover::keep(&Kept { device, greeting }, socket)
        .map_err(|e| Failure::new(Exit::System, "the mount can't be kept").because(&e))
}

fn unusable(state_dir: &Path, error: &io::Error) -> Failure {
    let socket = state_dir.join(SOCKET);
    let what = format!(
        "the keeper of the mount does not answer at {}",
        socket.display()
    );
    Failure::new(Exit::Unavailable, what).because(error).hint(
        "end the process `narfs keep-mount`; what uses its mount then has to be started again",
    )
}

/// The three descriptors that `narfs keep-mount` is given by number.
///
/// # Errors
/// When one of them was not.
pub fn handed(device: i32, greeting: i32, socket: i32) -> Result<[OwnedFd; 3], Failure> {
    let take = |number| {
        adopt(number).map_err(|e| {
            let what = format!("descriptor {number} was not handed over");
            Failure::new(Exit::Usage, what).because(&e)
        })
    };
    Ok([take(device)?, take(greeting)?, take(socket)?])
}
