//! `narfs umount`: the end of a mount.

use std::path::PathBuf;

const LONG: &str = "\
Unmounts a mount of narfs. The daemon that serves it ends; what was fetched is kept.";

const AFTER: &str = "\
Exit status:
  0  unmounted
  2  the command line or the configuration is wrong
  6  no mount of narfs is there, programs still use it (see --lazy), or no privilege

Examples:
  # narfs umount /nix/store
  # narfs umount --lazy /nix/store";

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
}
