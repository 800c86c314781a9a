//! `narfs mount`: the store as a directory, until it is unmounted.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::thread::{CapabilitySet, capabilities};

use super::{Exit, Failure, parse::duration, parse_store_path};
use crate::{
    config::{Config, Flags, Secrets},
    daemon::{Serve, serve, spawn::background},
    nix::StorePath,
};

const LONG: &str = "\
Mounts the binary caches at a directory, usually /nix/store.

Every store path that a cache has can be opened by its name at once; listing the directory shows \
those that are known here. The mount is read-only. Its owner is root, its times are 1970, as in \
every Nix store.

It serves until the directory is unmounted, or until it gets SIGTERM or is interrupted, which \
unmounts too. What was fetched is kept in the state directory and served by the next one, without \
the network.

With the privilege to mount, the process that mounts is not the one that serves: should the serving \
one (`narfs daemon`) end, be killed or hang, another takes its place, and who reads meanwhile \
waits for it. `narfs upgrade` goes on with a new version in the same way. Without the privilege, \
fusermount3 mounts, and the mount ends with its daemon.";

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
  # mount -t narfs https://cache.example.org /nix/store -o trusted-key=example-1:BASE64
  # narfs umount /nix/store";

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
    if may_mount() {
        return Err(become_helper(config, flags, args, &mountpoint));
    }
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

/// Whether mount(2) is for us. Without, fusermount3 mounts, and the mount is the daemon's.
fn may_mount() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Goes on as the mount helper; returns only if that can't be.
fn become_helper(config: &Config, flags: &Flags, args: &MountArgs, mountpoint: &Path) -> Failure {
    let failed = |e: &dyn std::error::Error| {
        Failure::new(Exit::System, "the mount helper can't be started").because(e)
    };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(e) => return failed(&e),
    };
    let mut command = Command::new(&program);
    command.arg0("narfs").arg("mount-helper");
    command.args((!args.background).then_some("-f"));
    command.arg("--state-dir").arg(&config.state_dir);
    let log_format = config.value("log-format", Secrets::Masked);
    let log_format = log_format.as_ref().and_then(|value| value.as_str());
    command.args(log_format.map(|form| format!("--log-format={form}")));
    command.arg(format!(
        "--ready-timeout={}",
        args.ready_timeout.as_secs_f64()
    ));
    command.arg("narfs").arg(mountpoint).arg("--");
    command.args(flags.to_args());
    command.args(args.root.iter().map(|root| format!("--root={root}")));
    failed(&command.exec())
}
