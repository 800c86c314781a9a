//! `narfs keep-mount`: the process that holds a mount while no daemon serves it; started by those
//! that mount.

use std::os::fd::RawFd;

use super::Failure;
use crate::daemon::keeper;

const LONG: &str = "\
Holds a mount, so that the process that serves it may end, be killed or be replaced: whoever reads \
waits for the next one. `narfs snapshotter` starts it and finds it again by its socket in the state \
directory. It ends when the mount does; ending it while no other process serves the mount ends the \
mount.";

const AFTER: &str = "\
Exit status:
  0  the mount has ended
  1  failed
  2  a descriptor was not handed over";

/// Arguments of `narfs keep-mount`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Hold a mount (started by the other verbs)", long_about = LONG, after_long_help = AFTER)]
pub struct KeepMountArgs {
    /// The descriptor of /dev/fuse, mounted
    #[arg(long, value_name = "FD")]
    pub device_fd: RawFd,

    /// The descriptor of the file that keeps the kernel's first request
    #[arg(long, value_name = "FD")]
    pub greeting_fd: RawFd,

    /// The descriptor of the socket to hand both over at
    #[arg(long, value_name = "FD")]
    pub socket_fd: RawFd,
}

/// Holds it to its end.
///
/// # Errors
/// When a descriptor is none.
pub fn run(args: &KeepMountArgs) -> Result<(), Failure> {
    let [device, greeting, socket] =
        keeper::handed(args.device_fd, args.greeting_fd, args.socket_fd)?;
    keeper::keep(device, greeting, socket)
}
