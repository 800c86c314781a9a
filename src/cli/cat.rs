//! `narfs cat`: a file of a store path, straight from the caches.

use super::{StoreFile, parse_store_file};

const LONG: &str = "\
Writes files of store paths to standard output, one behind the other. Needs no mount and no \
daemon; fetches no more than it needs: the file's own bytes from a cache that serves them \
uncompressed, otherwise the archive up to the end of the file.

Links inside the store are followed.";

const AFTER: &str = "\
Exit status:
  0  written whole
  1  standard output cannot be written
  2  the command line or the configuration is wrong
  3  no cache has the store path, or there is no such file in it
  4  the store path has no trusted signature, or what came does not have the hash that was signed
  5  no cache can be reached or answered in time

Examples:
  $ narfs cat /nix/store/HASH-python3-3.11.9/lib/python3.11/this.py";

/// Arguments of `narfs cat`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Write files of store paths to standard output, straight from the caches", long_about = LONG, after_long_help = AFTER)]
pub struct CatArgs {
    /// The files
    #[arg(value_name = "STOREPATH/FILE", required = true, value_parser = parse_store_file)]
    pub files: Vec<StoreFile>,
}
