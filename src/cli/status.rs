//! `narfs status`: what is here, what is arriving, what is wrong.

use std::time::Duration;

use super::{parse::duration, parse_store_path};
use crate::nix::StorePath;

const LONG: &str = "\
Shows the store paths that are known here: state, bytes fetched of all, errors.

On a terminal it is a table with bars, cut to the terminal's width; otherwise columns with tabs \
between them: state, percent, fetched bytes, bytes in all, store path, error. It never needs the \
network and does not wait behind anything that does.";

const AFTER: &str = "\
States:
  known        its narinfo is trusted; nothing of its content is here
  fetching     content is arriving
  partial      some content is here, nothing is arriving
  complete     all content is here
  quarantined  what a cache sent does not have the hash that was signed; another cache is tried
  refused      no trusted signature; nothing of it is served

Exit status:
  0  shown
  2  the command line or the configuration is wrong
  3  a store path that was asked for is not known here
  5  no daemon uses the state directory, or it does not answer

Examples:
  $ narfs status
  $ narfs status --watch
  $ narfs status --json | jq '.paths[] | select(.error)'";

/// Arguments of `narfs status`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Show what is here, what is arriving and what is wrong", long_about = LONG, after_long_help = AFTER)]
pub struct StatusArgs {
    /// Only these; all without any
    #[arg(value_name = "STOREPATH", value_parser = parse_store_path)]
    pub paths: Vec<StorePath>,

    /// Print one JSON object: summary, and paths as a list, in the form of the status files
    #[arg(long)]
    pub json: bool,

    /// Show it again and again until interrupted; with --json one object a line
    #[arg(long, short)]
    pub watch: bool,

    /// With --watch: the time between
    #[arg(long, value_name = "TIME", default_value = "1s", requires = "watch", value_parser = duration)]
    pub interval: Duration,
}
