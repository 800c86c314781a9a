//! `narfs gc`: disk space back.

use super::parse::size;

const LONG: &str = "\
Frees disk space by dropping content that was not read for longest, until what is kept fits the \
quota. Content that no root or view holds goes first; the rest can go too, since it can be fetched \
again. Files that programs have open stay readable.

Names, sizes and links are kept, so that a dropped path is still there: its content is fetched \
when it is read.";

const AFTER: &str = "\
Exit status:
  0  done, or nothing to do
  1  what is in use alone is more than was asked for
  2  the command line or the configuration is wrong

Examples:
  # narfs gc --dry-run
  # narfs gc --to 10GiB";

/// Arguments of `narfs gc`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Free disk space", long_about = LONG, after_long_help = AFTER)]
pub struct GcArgs {
    /// Free until no more than this is kept, instead of the quota; 0 drops everything unused
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub to: Option<u64>,

    /// Also drop partial content of paths that nothing holds, however recent
    #[arg(long)]
    pub partial: bool,

    /// Say what would be dropped, and drop nothing
    #[arg(long, short = 'n')]
    pub dry_run: bool,

    /// Print one JSON object: bytes and paths dropped and kept
    #[arg(long)]
    pub json: bool,
}
