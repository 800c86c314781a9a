//! `narfs mount-helper`: the mount helper as a part of this program, so that one file is enough. The
//! same code is a small program of its own, `narfs-mount`.

use std::{ffi::OsString, process::ExitCode};

use narfs_mount::Called;

const LONG: &str = "\
What `narfs-mount` is as a program of its own; see narfs-mount --help. `narfs mount` starts it.";

const AFTER: &str = "\
Exit status:
  as of narfs mount";

/// Arguments of `narfs mount-helper`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Mount, and watch who serves (started by narfs mount)", long_about = LONG, after_long_help = AFTER, disable_help_flag = true)]
pub struct MountHelperArgs {
    /// As of narfs-mount
    #[arg(
        value_name = "ARGUMENT",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub arguments: Vec<OsString>,
}

/// Mounts and watches, as it is called: the arguments are its own from the verb on.
///
/// `None` if the verb is another one.
pub fn run_if_called() -> Option<ExitCode> {
    let mut called = Called::directly();
    if called.arguments.first()? != "mount-helper" {
        return None;
    }
    called.before = vec![called.arguments.remove(0)];
    called.program = Some(called.file.clone());
    Some(narfs_mount::run(&called))
}
