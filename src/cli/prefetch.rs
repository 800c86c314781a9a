//! `narfs prefetch`: everything now, for later without the network.

use std::time::Instant;

use super::{
    Failure,
    output::{Terminal, progress::Progress},
    parse_store_path,
};
use crate::{
    config::Config,
    daemon::{
        client,
        protocol::{Reply, Request},
    },
    nix::StorePath,
};

const LONG: &str = "\
Fetches store paths whole, checks them and keeps them, so that they can be read without the \
network later. What is here already is not fetched again. Programs that read from the mount at the \
same time go first. If some of them cannot be had, the others are fetched all the same.

On a terminal bars show bytes, rate and time left; otherwise a line every few seconds does.";

const AFTER: &str = "\
Exit status:
  0  everything is here and was checked
  1  the disk is full, or the quota is too small for it
  2  the command line or the configuration is wrong
  3  no cache has one of the paths
  4  one of the paths has no trusted signature, or no cache sent bytes with the right hash
  5  no cache can be reached or answered in time

Examples:
  $ narfs prefetch --closure /nix/store/HASH-python3-3.11.9";

/// Arguments of `narfs prefetch`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Fetch store paths whole, for later without the network", long_about = LONG, after_long_help = AFTER)]
pub struct PrefetchArgs {
    /// What to fetch
    #[arg(value_name = "STOREPATH", required = true, value_parser = parse_store_path)]
    pub paths: Vec<StorePath>,

    /// Also everything that they refer to, directly or through others
    #[arg(long, short)]
    pub closure: bool,

    /// Show no progress
    #[arg(long, short)]
    pub quiet: bool,
}

/// Fetches.
///
/// # Errors
/// The first path that could not be had, and how many others.
pub fn run(config: &Config, args: &PrefetchArgs) -> Result<(), Failure> {
    let request = Request::Prefetch {
        paths: args.paths.iter().map(StorePath::to_string).collect(),
        closure: args.closure,
    };
    let mut progress = Progress::new(&Terminal::of_stderr(config.color), args.quiet);
    let mut last = Vec::new();
    let outcome = client::call(config, request, |reply| {
        if let Reply::Progress { paths } = reply {
            progress.update(Instant::now(), &paths);
            last = paths;
        }
    });
    progress.finish(&last);
    outcome
}
