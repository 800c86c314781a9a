//! `narfs path-info`: what the caches say of a store path.

use super::parse_store_path;
use crate::nix::StorePath;

const LONG: &str = "\
Prints what the caches say of store paths: sizes packed and unpacked, hash, references, signatures \
and whether they are trusted, which cache it is and how it packs. Fetches narinfos only.";

const AFTER: &str = "\
Exit status:
  0  printed
  2  the command line or the configuration is wrong
  3  no cache has one of the paths
  4  one of the paths has no trusted signature; it is printed all the same
  5  no cache can be reached or answered in time

Examples:
  $ narfs path-info /nix/store/HASH-hello-2.12.1
  $ narfs path-info --closure --json /nix/store/HASH-hello-2.12.1 | jq 'map(.narSize) | add'";

/// Arguments of `narfs path-info`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Print what the caches say of store paths", long_about = LONG, after_long_help = AFTER)]
pub struct PathInfoArgs {
    /// The store paths
    #[arg(value_name = "STOREPATH", required = true, value_parser = parse_store_path)]
    pub paths: Vec<StorePath>,

    /// Also everything that they refer to, directly or through others; a table with totals
    #[arg(long, short)]
    pub closure: bool,

    /// Print a JSON list with an object for each path
    #[arg(long)]
    pub json: bool,
}
