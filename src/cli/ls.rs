//! `narfs ls`: what is in a store path, straight from the caches.

use super::{StoreFile, parse_store_file};

const LONG: &str = "\
Lists a directory of a store path, or names a file of it. Needs no mount and no daemon; fetches \
the narinfo and the listing, and the archive only if the cache has no listing.";

const AFTER: &str = "\
Exit status:
  0  listed
  2  the command line or the configuration is wrong
  3  no cache has the store path, or there is no such file in it
  4  the store path has no trusted signature
  5  no cache can be reached or answered in time

Examples:
  $ narfs ls /nix/store/HASH-hello-2.12.1
  $ narfs ls -lR /nix/store/HASH-hello-2.12.1/bin";

/// Arguments of `narfs ls`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "List a directory of a store path, straight from the caches", long_about = LONG, after_long_help = AFTER)]
pub struct LsArgs {
    /// A store path, or a file or directory in it
    #[arg(value_name = "STOREPATH[/FILE]", value_parser = parse_store_file)]
    pub path: StoreFile,

    /// Show type, size in bytes and the target of links as well
    #[arg(long, short)]
    pub long: bool,

    /// Everything below, as paths from there
    #[arg(long, short = 'R')]
    pub recursive: bool,

    /// Print one JSON object in the form of Nix's listings (`nix store ls --json`)
    #[arg(long)]
    pub json: bool,
}
