//! `narfs daemon`: the process behind a mount; started by the other verbs.

use std::{os::fd::RawFd, path::PathBuf, time::Duration};

use super::{Exit, Failure, parse::duration, parse_store_path};
use crate::{
    config::Config,
    daemon::{
        Serve,
        confine::{self, Confined},
        serve,
        spawn::inherited,
    },
    nix::StorePath,
};

const LONG: &str = "\
Serves the store of a state directory. `narfs mount`, the mount helper and `narfs run` start it; its \
flags are theirs to choose and may change. Use `narfs mount` or `narfs-mount` in services.

It ends on SIGTERM and SIGINT, when its mounts are gone, and after --idle-exit without any use.";

const AFTER: &str = "\
Exit status:
  0  ended as it was asked to
  1  failed for a reason that none of the others names
  2  the command line or the configuration is wrong
  5  another daemon uses the state directory
  6  no /dev/fuse, no privilege, or the mountpoint is missing or in use";

/// Arguments of `narfs daemon`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Serve a state directory (started by the other verbs)", long_about = LONG, after_long_help = AFTER)]
pub struct DaemonArgs {
    /// A directory to mount at; none serves the control socket alone
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: Option<PathBuf>,

    /// A descriptor that gets one line when the mount answers ("ready") or the reason why it
    /// never will, and is closed then
    #[arg(long, value_name = "FD")]
    pub ready_fd: Option<RawFd>,

    /// Say there why not as people read it
    #[arg(long, requires = "ready_fd")]
    pub ready_plain: bool,

    /// A descriptor of /dev/fuse, mounted already
    #[arg(long, value_name = "FD")]
    pub fuse_fd: Option<RawFd>,

    /// A descriptor of the file that keeps the kernel's first request for the processes that serve
    /// --fuse-fd one after the other; empty for the first of them
    #[arg(long, value_name = "FD", requires = "fuse_fd")]
    pub greeting_fd: Option<RawFd>,

    /// Where --fuse-fd is mounted; asked whether it answers, by another process
    #[arg(long, value_name = "MOUNTPOINT", requires = "fuse_fd")]
    pub served_at: Option<PathBuf>,

    /// End after this time without a mount or a connection
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub idle_exit: Option<Duration>,

    /// Make this store path and everything it refers to known at the start (may be repeated)
    #[arg(long, value_name = "STOREPATH", value_parser = parse_store_path)]
    pub root: Vec<StorePath>,
}

/// Confines a daemon of the mount helper, if the settings do not say otherwise. Before the log is
/// begun and this process has a second thread.
pub fn confine(config: &Config, args: &DaemonArgs) -> Option<Confined> {
    let of_helper = args.greeting_fd.is_some() && args.mountpoint.is_none();
    (config.confine && of_helper).then(|| confine::confine(config, args.served_at.as_deref()))
}

/// Serves as the verb that started it wants.
///
/// # Errors
/// What kept it from serving; also told through `--ready-fd`.
pub fn run(config: &Config, args: &DaemonArgs, confined: Option<Confined>) -> Result<(), Failure> {
    if let Some(confined) = &confined {
        confined.tell();
    }
    let what = Serve {
        mountpoint: args.mountpoint.clone(),
        ready: args.ready_fd.map(inherited).transpose()?,
        ready_plain: args.ready_plain,
        device: args.fuse_fd.map(inherited).transpose()?,
        greeting: args.greeting_fd.map(inherited).transpose()?,
        served_at: args.served_at.clone(),
        watched: confined.map(|confined| confined.watched),
        idle_exit: args.idle_exit,
        roots: args.root.clone(),
    };
    // Relative paths are absolute by now; a directory that somebody may want to unmount is not kept.
    std::env::set_current_dir("/")
        .map_err(|e| Failure::new(Exit::System, "no root directory").because(&e))?;
    serve(config, what)
}
