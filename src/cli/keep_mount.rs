//! `narfs keep-mount`: the process that keeps the snapshotter's mount; started by it.

use std::{os::fd::RawFd, path::PathBuf};

use super::{Exit, Failure};
use crate::{
    daemon::spawn::inherited,
    fuse::Kept,
    snapshotter::{Keep, keep, standard_output},
};

const LONG: &str = "\
Keeps the mount of a snapshotter alive while that is away, so that containers go on when it is \
stopped, updated or killed and started again. `narfs snapshotter` starts it; its arguments are \
for that to choose and may change.

It ends when the mount is unmounted and nothing uses it any more.";

const AFTER: &str = "\
Exit status:
  0  the mount is gone, or it was told to end
  2  the command line is wrong
  6  its socket can't be made";

/// Arguments of `narfs keep-mount`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Keep a snapshotter's mount (started by it)", long_about = LONG, after_long_help = AFTER)]
pub struct KeepMountArgs {
    /// Where the next snapshotter asks for the mount
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,

    /// The descriptor of /dev/fuse, mounted
    #[arg(long, value_name = "FD")]
    pub device_fd: RawFd,

    /// The descriptor of the file that keeps the kernel's first request
    #[arg(long, value_name = "FD")]
    pub greeting_fd: RawFd,

    /// The mount's number in the kernel's table
    #[arg(long, value_name = "MAJOR:MINOR")]
    pub mount: String,
}

/// Keeps it.
///
/// # Errors
/// What kept it from that.
pub fn run(args: &KeepMountArgs) -> Result<(), Failure> {
    let failed = |e: std::io::Error| {
        let what = format!("the mount can't be kept at {}", args.socket.display());
        Failure::new(Exit::System, what).because(&e)
    };
    let what = Keep {
        socket: args.socket.clone(),
        kept: Kept {
            device: inherited(args.device_fd)?,
            greeting: inherited(args.greeting_fd)?,
        },
        mount: args.mount.clone(),
        ready: Some(standard_output().map_err(failed)?),
    };
    keep(what).map_err(failed)
}
