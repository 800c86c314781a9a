//! The mount helper: mounts, keeps the mount, and starts the daemons that serve it, one after the
//! other. What needs privilege is here; the daemon needs none once it has its descriptors.
//!
//! ```text
//! options.rs     the command line, as mount(8) and people write it
//! mountpoint.rs  what is mounted where, from the kernel's table
//! device.rs      mount(2), and a mount in descriptors
//! start.rs       from the command line to a mount that answers
//! launch.rs      starting one daemon, as the user it is to be
//! watch.rs       one daemon after the other, to the mount's end
//! probe.rs       whether the mount answers
//! refuse.rs      the answers while no daemon can be started
//! control.rs     what `narfs status` and `narfs upgrade` ask
//! log.rs         its own log lines
//! notify.rs      systemd: readiness, watchdog, descriptor store
//! handover.rs    a mount's descriptors over a socket; the keeper of the snapshotter's mount
//! process.rs     what needs `unsafe`: fork, signals, descriptors by number
//! ```
//!
//! One thread, no network, no configuration file: settings are handed on to `narfs`, which knows
//! them. It opens nothing in the mount and never asks it anything; who does is a process of its own
//! (`--probe`). A program that waited for its own mount could not be killed, and neither could one
//! whose child closes a file of it at the start of another program.

mod control;
mod device;
pub mod handover;
mod launch;
mod log;
mod mountpoint;
mod notify;
mod options;
mod probe;
mod process;
mod refuse;
mod start;
mod watch;

use std::fmt;

pub(crate) use log::{say, warn};

pub use control::{SOCKET, Status, status, upgrade};
pub use device::{Kept, mount, raise_read_ahead, send_again};
pub use mountpoint::{
    MountError, TYPE, check, force, mounted_by_narfs, mounted_device, mountpoints, unmount,
    unmount_dead,
};
pub use process::adopt;
pub use start::{Called, run};

/// Why it failed: exit status as those of `narfs`, and what to print.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: u8,
    text: String,
}

/// Exit statuses of `narfs` that it has too.
pub(crate) mod exit {
    /// The command line or the configuration is wrong; nothing was done.
    pub const USAGE: u8 = 2;
    /// The system does not allow it.
    pub const SYSTEM: u8 = 6;
}

impl Failure {
    /// With `narfs: ` in front, as all messages have it.
    fn new(exit: u8, what: impl fmt::Display) -> Self {
        let text = format!("narfs: {what}");
        Self { exit, text }
    }

    fn usage(what: impl fmt::Display) -> Self {
        Self::new(exit::USAGE, what)
    }

    /// `what` did not work, because of `why`.
    fn system(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(exit::SYSTEM, format_args!("{what}\n  cause: {why}"))
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        Self::new(exit::SYSTEM, error)
    }
}
