//! What a user types and reads: verbs, flags, help texts, and how results and errors are printed.
//!
//! One file for each verb, with its arguments and help. Flags for settings are made from the table
//! in [`crate::config::KEYS`], see [`settings`]. `tests/help/` holds the help of every verb as it
//! is printed, so that changes to it are reviewed.

use clap::{Parser, Subcommand};

pub mod bugreport;
pub mod cat;
pub mod check;
pub mod config;
pub mod containerd_config;
pub mod daemon;
pub mod demo;
pub mod gc;
mod help;
pub mod image;
pub mod in_store;
pub mod keep_mount;
pub mod log;
pub mod ls;
pub mod mount;
pub mod mount_helper;
pub mod output;
mod parse;
pub mod path_info;
pub mod pin;
pub mod prefetch;
pub mod probe_mount;
pub mod profile;
pub mod publish;
pub mod run;
pub mod settings;
pub mod snapshotter;
pub mod status;
pub mod store_path;
pub mod top;
pub mod trace;
pub mod umount;
pub mod upgrade;

pub use crate::failure::{Exit, Failure};
pub use settings::SettingFlags;
pub use store_path::{StoreFile, parse_store_file, parse_store_path};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "narfs",
    version,
    about = "Mounts Nix binary caches as /nix/store and fetches a file's bytes when they are read",
    long_about = help::ABOUT,
    after_help = "`narfs --help` and `narfs VERB --help` say more.",
    after_long_help = help::AFTER,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Flags that every verb takes.
    #[command(flatten)]
    pub settings: SettingFlags,
}

/// What to do: one verb for each file of this module.
#[derive(Debug, Subcommand)]
#[allow(
    missing_docs,
    reason = "clap would print comments here instead of the verbs' own help"
)]
pub enum Command {
    Demo(demo::DemoArgs),
    Run(run::RunArgs),
    Mount(mount::MountArgs),
    Umount(umount::UmountArgs),
    Upgrade(upgrade::UpgradeArgs),
    Snapshotter(snapshotter::SnapshotterArgs),
    Status(status::StatusArgs),
    Top(top::TopArgs),
    Trace(Box<trace::TraceArgs>),
    Prefetch(prefetch::PrefetchArgs),
    Ls(ls::LsArgs),
    Cat(cat::CatArgs),
    PathInfo(path_info::PathInfoArgs),
    Check(check::CheckArgs),
    Gc(gc::GcArgs),
    Pin(pin::PinArgs),
    Unpin(pin::UnpinArgs),
    Profile(profile::ProfileArgs),
    Image(image::ImageArgs),
    Publish(Box<publish::PublishArgs>),
    Config(config::ConfigArgs),
    ContainerdConfig(containerd_config::ContainerdConfigArgs),
    Bugreport(bugreport::BugreportArgs),
    #[command(hide = true)]
    Daemon(daemon::DaemonArgs),
    #[command(hide = true)]
    MountHelper(mount_helper::MountHelperArgs),
    #[command(hide = true)]
    KeepMount(keep_mount::KeepMountArgs),
    #[command(hide = true)]
    ProbeMount(probe_mount::ProbeMountArgs),
}

impl Command {
    /// Whether it goes on serving a mount, and so logs what it does.
    pub fn serves(&self) -> bool {
        matches!(
            self,
            Self::Mount(_) | Self::Snapshotter(_) | Self::Daemon(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "/nix/store/00000000000000000000000000000000-hello-2.12.1/bin/hello";

    fn parsed(arguments: &[&str]) -> Cli {
        Cli::try_parse_from(["narfs"].iter().chain(arguments)).unwrap()
    }

    #[test]
    fn flags_for_settings_stand_before_or_behind_the_verb() {
        let want = parsed(&[
            "--cache",
            "https://a",
            "--cache",
            "https://b",
            "--quota",
            "1G",
            "status",
        ]);
        let have = parsed(&[
            "status",
            "--quota=1G",
            "--cache=https://a",
            "--cache",
            "https://b",
        ]);
        assert_eq!(have.settings, want.settings);
        let list = |urls: [&str; 2]| urls.map(String::from).to_vec();
        let settings = [
            ("caches", list(["https://a", "https://b"])),
            ("quota", vec!["1G".to_string()]),
        ];
        assert_eq!(have.settings.0.settings, settings);
        let signatures = parsed(&["config", "--require-signatures", "--json"]);
        assert_eq!(
            signatures.settings.0.settings,
            [("require-signatures", vec!["true".to_string()])]
        );
    }

    #[test]
    fn everything_behind_the_program_is_the_programs() {
        let cli = parsed(&[
            "run",
            "--verify",
            "stream",
            PROGRAM,
            "--version",
            "--cache",
            "-c",
            "--",
            "x",
        ]);
        let Command::Run(run) = cli.command else {
            panic!()
        };
        assert_eq!(run.program.absolute(), PROGRAM);
        assert_eq!(run.args, ["--version", "--cache", "-c", "--", "x"]);
        assert_eq!(
            cli.settings.0.settings,
            [("verify", vec!["stream".to_string()])]
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for arguments in [
            &["prefetch"][..],
            &["cat", "hello"],
            &["mount", "/x", "--ready-timeout", "3s"],
            &["status", "--interval", "1s"],
            &["config", "--json", "--toml"],
            &["gc", "--to", "lots"],
            &["demo", "--mbit", "-1"],
            &["frobnicate"],
        ] {
            let error = Cli::try_parse_from(["narfs"].iter().chain(arguments)).unwrap_err();
            assert_eq!(
                error.exit_code(),
                i32::from(Exit::Usage.code()),
                "{arguments:?}"
            );
        }
    }
}
