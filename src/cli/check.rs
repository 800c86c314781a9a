//! `narfs check`: whether what is kept is what was signed.

use super::parse_store_path;
use crate::nix::StorePath;

const LONG: &str = "\
Hashes what is kept again and compares it with what was signed. Complete paths are hashed whole; \
of partial ones the structure is checked. Needs no network, except with --repair.";

const AFTER: &str = "\
Exit status:
  0  everything is as it was signed, or was repaired
  1  something is not, and was not repaired
  2  the command line or the configuration is wrong
  3  a store path that was asked for is not known here
  5  with --repair: no cache can be reached or answered in time

Examples:
  # narfs check
  # narfs check --repair /nix/store/HASH-hello-2.12.1";

/// Arguments of `narfs check`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Hash what is kept again and compare it with what was signed", long_about = LONG, after_long_help = AFTER)]
pub struct CheckArgs {
    /// Only these; everything that is kept without any
    #[arg(value_name = "STOREPATH", value_parser = parse_store_path)]
    pub paths: Vec<StorePath>,

    /// Drop what is wrong, so that it is fetched again when it is read, and fetch again what was
    /// complete
    #[arg(long)]
    pub repair: bool,

    /// Print a JSON list with an object for each path
    #[arg(long)]
    pub json: bool,
}
