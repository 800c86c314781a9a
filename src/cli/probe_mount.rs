//! `narfs probe-mount`: whether a mount answers; run by the snapshotter for its readiness.

use std::path::PathBuf;

use super::{Exit, Failure};
use crate::fuse;

const LONG: &str = "\
Asks a mount of narfs something that only its server can answer. `narfs snapshotter` runs it to \
know whether it is ready: a process that waited for its own mount could not be killed.";

const AFTER: &str = "\
Exit status:
  0  it answers
  2  the command line is wrong
  6  it does not, or it is no mount of narfs";

/// Arguments of `narfs probe-mount`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Ask whether a mount answers (run by the snapshotter)", long_about = LONG, after_long_help = AFTER)]
pub struct ProbeMountArgs {
    /// The directory that narfs is mounted at
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
}

/// Asks.
///
/// # Errors
/// When there is no answer.
pub fn run(args: &ProbeMountArgs) -> Result<(), Failure> {
    let path = &args.mountpoint;
    let failed = |what: &str| Failure::new(Exit::System, format!("{} {what}", path.display()));
    if !fuse::mounted_by_narfs(path) {
        return Err(failed("is no mount of narfs"));
    }
    rustix::fs::statfs(path)
        .map(drop)
        .map_err(|e| failed("does not answer").because(&e))
}
