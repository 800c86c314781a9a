//! `narfs image`: container images whose store paths a snapshotter brings.

use clap::Subcommand;

use super::Failure;
use crate::config::Config;

pub mod args;
pub mod build;
mod gather;
mod output;

const LONG: &str = "\
Makes container images that hold no files, only mountpoints for store paths. containerd unpacks \
them in no time; `narfs snapshotter` (or nix-snapshotter) puts the store paths in their places, and \
narfs fetches their bytes when the container reads them.";

const AFTER: &str = "\
Exit status:
  As for `narfs image build`

Examples:
  $ narfs image build --name hello:1 --closure /nix/store/HASH-hello-2.12.1 \\
      --entrypoint /nix/store/HASH-hello-2.12.1/bin/hello -o hello.tar";

/// Arguments of `narfs image`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(
    about = "Make container images of store paths",
    long_about = LONG,
    after_long_help = AFTER,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    disable_help_subcommand = true
)]
pub struct ImageArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// What to do with images.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
#[allow(
    missing_docs,
    reason = "clap would print comments here instead of the verbs' own help"
)]
pub enum ImageCommand {
    Build(Box<args::BuildArgs>),
}

/// Does it.
///
/// # Errors
/// What the verb says.
pub fn run(config: &Config, args: &ImageArgs) -> Result<(), Failure> {
    match &args.command {
        ImageCommand::Build(args) => build::run(config, args),
    }
}
