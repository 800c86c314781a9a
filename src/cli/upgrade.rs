//! `narfs upgrade`: another version serves the same mount.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{Exit, Failure, output, parse::duration};
use crate::config::Config;

const LONG: &str = "\
Has the mount of a state directory served by this program, in the place of the one that serves it: \
after an update, from the new version. The mount stays, with everything that is open in it; who reads \
waits for a moment. It also starts a daemon at once where the helper waits before it tries again.

The mount has to be one of `narfs mount` or `narfs-mount`, mounted with privilege. (A snapshotter goes \
on with a new version when its service is restarted.)";

const AFTER: &str = "\
Exit status:
  0  the new daemon serves
  2  the command line or the configuration is wrong
  5  the new daemon does not serve; the helper goes on trying, and `narfs status` says why
  6  no mount with a helper uses the state directory, or no privilege

Examples:
  # narfs upgrade
  # /opt/narfs-2/bin/narfs upgrade
  # narfs upgrade --program /opt/narfs-1/bin/narfs";

/// How often it is looked whether the new daemon serves.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Arguments of `narfs upgrade`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Have another version serve a mount", long_about = LONG, after_long_help = AFTER)]
pub struct UpgradeArgs {
    /// The narfs that is to serve [default: this one]
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,

    /// How long to wait until it serves
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub ready_timeout: Duration,
}

/// Tells the helper, and waits for the new daemon.
///
/// # Errors
/// When there is no helper, or the new daemon does not serve.
pub fn run(config: &Config, args: &UpgradeArgs) -> Result<(), Failure> {
    let directory = config.state_dir.display();
    let program = match &args.program {
        Some(program) => std::path::absolute(program),
        None => std::env::current_exe(),
    };
    let program =
        program.map_err(|e| Failure::new(Exit::System, "this program's file").because(&e))?;
    let failed = |e: std::io::Error| {
        let what = format!("the helper of {directory} can't be asked");
        Failure::new(Exit::System, what).because(&e)
    };
    let before = narfs_mount::status(&config.state_dir).map_err(failed)?;
    let told = narfs_mount::upgrade(&config.state_dir, &program).map_err(failed)?;
    let (true, Some(before)) = (told, before) else {
        let what = format!("no mount with a helper uses {directory}");
        return Err(Failure::new(Exit::System, what).hint("`narfs mount` starts one, as root"));
    };
    let deadline = Instant::now() + args.ready_timeout;
    let mut last = None;
    while Instant::now() < deadline {
        // Between the old helper and the new one nobody may answer.
        if let Ok(Some(now)) = narfs_mount::status(&config.state_dir) {
            if now.state == "serving" && now.daemon != before.daemon {
                let daemon = now.daemon.unwrap_or_default();
                return output::print(&format!(
                    "{} is served by process {daemon}\n",
                    now.mountpoint
                ));
            }
            last = Some(now);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let what = format!(
        "the new daemon does not serve within {} s",
        args.ready_timeout.as_secs()
    );
    let mut failure = Failure::new(Exit::Unavailable, what);
    failure.causes = last
        .map(|last| last.reason)
        .into_iter()
        .filter(|why| !why.is_empty())
        .collect();
    Err(failure.hint(format!("its log is {directory}/daemon.log")))
}
