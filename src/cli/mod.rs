//! What a user types and reads: verbs, flags, help texts, and how results and errors are printed.
//!
//! One file for each verb, with its arguments and help. Flags for settings are made from the table
//! in [`crate::config::KEYS`], see [`settings`]. `tests/help/` holds the help of every verb as it
//! is printed, so that changes to it are reviewed.

use clap::{Parser, Subcommand};

pub mod cat;
pub mod check;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod exit;
pub mod gc;
mod help;
pub mod log;
pub mod ls;
pub mod mount;
pub mod output;
mod parse;
pub mod path_info;
pub mod prefetch;
pub mod run;
pub mod settings;
pub mod status;
pub mod store_path;
pub mod umount;

pub use exit::{Exit, Failure};
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
    Status(status::StatusArgs),
    Prefetch(prefetch::PrefetchArgs),
    Ls(ls::LsArgs),
    Cat(cat::CatArgs),
    PathInfo(path_info::PathInfoArgs),
    Check(check::CheckArgs),
    Gc(gc::GcArgs),
    Config(config::ConfigArgs),
    #[command(hide = true)]
    Daemon(daemon::DaemonArgs),
}
