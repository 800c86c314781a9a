//! `narfs mount`: the store as a directory, until it is unmounted.

use std::{path::PathBuf, time::Duration};

use super::{Failure, parse::duration, parse_store_path};
use crate::{
    config::{Config, Flags},
    daemon::{Serve, serve, spawn::background},
    nix::StorePath,
};

const LONG: &str = "\
Mounts the binary caches at a directory, usually /nix/store.

Every store path that a cache has can be opened by its name at once; listing the directory shows \
those that are known here. The mount is read-only. Its owner is root, its times are 1970, as in \
every Nix store.

In the foreground it serves until it is interrupted or the directory is unmounted. SIGTERM ends \
the daemon; what was fetched is kept in the state directory and served by the next one, without \
the network.";

const AFTER: &str = "\
Exit status:
  0  unmounted; with --background: the mount answers
  1  failed for a reason that none of the others names
  2  the command line or the configuration is wrong
  3  no cache has a path given with --root
  4  a path given with --root has no trusted signature
  5  the mount did not answer in time (--background), or another daemon uses the state directory
  6  no /dev/fuse, no privilege, or the mountpoint is missing or in use

Files:
  MOUNTPOINT/.nix-snapshotter/HASH-NAME.json   status of a store path
  MOUNTPOINT/.nix-snapshotter/summary.json     totals
  STATE-DIR                                    what was fetched, see --state-dir

Examples:
  # narfs mount /nix/store
  # narfs mount --background --nix-conf /etc/nix/nix.conf /nix/store
  # narfs mount --cache https://cache.example.org --trusted-key example-1:BASE64 \\
      --root /nix/store/HASH-app /nix/store
  # umount /nix/store";

/// Arguments of `narfs mount`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Mount the binary caches at a directory", long_about = LONG, after_long_help = AFTER)]
pub struct MountArgs {
    /// The directory to mount at; it has to exist
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,

    /// Return when the mount answers, and serve it in the background
    #[arg(long)]
    pub background: bool,

    /// With --background: how long to wait for the mount to answer
    #[arg(long, value_name = "TIME", default_value = "30s", requires = "background", value_parser = duration)]
    pub ready_timeout: Duration,

    /// Make this store path and everything it refers to known at the start, and collect it last
    /// (may be repeated)
    #[arg(long, value_name = "STOREPATH", value_parser = parse_store_path)]
    pub root: Vec<StorePath>,
}

/// Mounts, and serves until it is unmounted or told to end.
///
/// # Errors
/// What kept it from mounting.
pub fn run(config: &Config, flags: &Flags, args: &MountArgs) -> Result<(), Failure> {
    let mountpoint =
        std::path::absolute(&args.mountpoint).unwrap_or_else(|_| args.mountpoint.clone());
    if !args.background {
        let what = Serve {
            mountpoint: Some(mountpoint),
            roots: args.root.clone(),
            ..Serve::default()
        };
        return serve(config, what);
    }
    let mut daemon = vec![mountpoint.into_os_string()];
    daemon.extend(args.root.iter().map(|root| format!("--root={root}").into()));
    background(config, flags, &daemon, args.ready_timeout)
}
