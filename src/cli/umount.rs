//! `narfs umount`: the end of a mount.

use std::path::PathBuf;

use super::{Exit, Failure};
use crate::fuse;

const LONG: &str = "\
Unmounts a mount of narfs. The daemon that serves it ends, and so does its helper; what was fetched \
is kept.";

const AFTER: &str = "\
Exit status:
  0  unmounted
  2  the command line or the configuration is wrong
  6  no mount of narfs is there, programs still use it (see --lazy), or no privilege

Examples:
  # narfs umount /nix/store
  # narfs umount --lazy /nix/store
  # narfs umount --force /nix/store";

/// Arguments of `narfs umount`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Unmount", long_about = LONG, after_long_help = AFTER)]
pub struct UmountArgs {
    /// The directory that narfs is mounted at
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,

    /// Take it out of the directory tree at once, even if programs use it; it ends when the last
    /// of them lets go of it
    #[arg(long, short)]
    pub lazy: bool,

    /// End it whatever state it is in: programs that use it or wait for it get errors at once
    #[arg(long, short, conflicts_with = "lazy")]
    pub force: bool,
}

/// Unmounts.
///
/// # Errors
/// When it is no mount of narfs, or is in use.
pub fn run(args: &UmountArgs) -> Result<(), Failure> {
    let path = std::path::absolute(&args.mountpoint).unwrap_or_else(|_| args.mountpoint.clone());
    if !fuse::mounted_by_narfs(&path) {
        let what = format!("{} is no mount of narfs", path.display());
        return Err(Failure::new(Exit::System, what)
            .hint("`grep narfs /proc/self/mounts` shows those that there are"));
    }
    let done = match args.force {
        true => fuse::force(&path),
        false => fuse::unmount(&path, args.lazy),
    };
    done.map_err(|e| {
        let failure = Failure::new(
            Exit::System,
            format!("{} can't be unmounted", path.display()),
        )
        .because(&e);
        match e.kind() {
            std::io::ErrorKind::ResourceBusy => {
                failure.hint("programs use it: end them, or unmount with --lazy")
            }
            _ => failure,
        }
    })
}
