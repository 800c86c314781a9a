//! `narfs demo`: the whole of narfs shown on one machine, with nothing needed and nothing left.

use std::{path::PathBuf, time::Duration};

use super::{
    Failure,
    parse::{duration, link_rate},
};
use crate::{config::Config, demo};

const LONG: &str = "\
Shows lazy loading at work, on this machine alone.

Packs this program with the libraries that it loads, and some data that it never reads, into \
signed archives; serves them as a binary cache on the loopback interface, behind an artificial \
round trip; mounts that cache; runs the program from the mount; shows live what was fetched of \
what; prints the time to the first byte, the bytes fetched of those in the closure and the number \
of requests; unmounts and removes everything.

It needs a kernel with FUSE and, for an ordinary user, one that allows user namespaces. It does \
not touch /nix, the configuration or the network.";

const AFTER: &str = "\
Exit status:
  0  shown, and what the program read was right
  1  something went wrong; it says what
  6  no FUSE here, or mounting is not allowed
  130  interrupted; everything was removed, too

Examples:
  $ narfs demo
  $ narfs demo --rtt 80ms --mbit 20
  $ narfs demo --json | jq .bytesFetched";

/// Arguments of `narfs demo`.
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(about = "Show it at work: needs nothing but this program and leaves nothing behind", long_about = LONG, after_long_help = AFTER)]
pub struct DemoArgs {
    /// The artificial round trip of the demo's cache: the wait before each response
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = duration)]
    pub rtt: Duration,

    /// The speed of the demo's cache in megabits (10^6 bits) per second; 0 is unlimited
    #[arg(long, value_name = "N", default_value = "200", value_parser = link_rate)]
    pub mbit: f64,

    /// Print the figures as one JSON object when done, and no live picture
    #[arg(long)]
    pub json: bool,

    /// What the program does that is run from the mount: read this file and print its SHA-256
    #[arg(long, value_name = "FILE", hide = true)]
    pub read: Option<PathBuf>,
}

/// Shows it.
///
/// # Errors
/// What went wrong.
pub fn run(config: &Config, args: &DemoArgs) -> Result<(), Failure> {
    match &args.read {
        Some(file) => demo::read(file),
        None => demo::show(args, config.color),
    }
}
