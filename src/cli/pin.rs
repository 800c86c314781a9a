//! `narfs pin` and `narfs unpin`: what no garbage collection takes.

use super::{
    Exit, Failure,
    output::{self, Terminal, human},
    parse_store_path,
};
use crate::{
    config::Config,
    daemon::{
        client,
        protocol::{Pin, Reply, Request},
    },
    nix::StorePath,
};

const LONG: &str = "\
Pins store paths, as a root does for Nix: what is kept of them, and of everything that they refer to, is \
not dropped to make room, neither by `narfs gc` nor for the quota. Pinning fetches names, not content: \
`narfs prefetch --closure` brings that.

Without any store path it lists what is pinned: on a terminal a table, otherwise columns with tabs \
between them: bytes kept, paths in the closure, store path.";

const AFTER: &str = "\
Exit status:
  0  done
  1  it could not be written
  2  the command line or the configuration is wrong
  3  no cache has one of the paths, or something that it refers to
  4  one of the paths has no trusted signature
  5  no cache can be reached or answered in time

Examples:
  # narfs prefetch --closure /nix/store/HASH-python3-3.11.9
  # narfs pin /nix/store/HASH-python3-3.11.9
  # narfs pin --json";

/// Arguments of `narfs pin`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Keep store paths from garbage collection, or list those", long_about = LONG, after_long_help = AFTER)]
pub struct PinArgs {
    /// What to pin; without any, what is pinned is listed
    #[arg(value_name = "STOREPATH", value_parser = parse_store_path)]
    pub paths: Vec<StorePath>,

    /// Print a JSON list with an object for each path that is pinned
    #[arg(long, conflicts_with = "paths")]
    pub json: bool,
}

const LONG_UNPIN: &str = "\
Takes pins away. What was pinned goes like anything else then, when room is made; nothing is dropped now.";

const AFTER_UNPIN: &str = "\
Exit status:
  0  done
  1  it could not be written
  2  the command line or the configuration is wrong
  3  one of the paths was not pinned; the others are no longer

Examples:
  # narfs unpin /nix/store/HASH-python3-3.11.9";

/// Arguments of `narfs unpin`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Leave pinned store paths to garbage collection again", long_about = LONG_UNPIN, after_long_help = AFTER_UNPIN)]
pub struct UnpinArgs {
    /// What is to be pinned no longer
    #[arg(value_name = "STOREPATH", required = true, value_parser = parse_store_path)]
    pub paths: Vec<StorePath>,
}

fn names(paths: &[StorePath]) -> Vec<String> {
    paths.iter().map(StorePath::to_string).collect()
}

/// Pins, or lists what is pinned.
///
/// # Errors
/// When a path can't be known or a pin not be written.
pub fn run(config: &Config, args: &PinArgs) -> Result<(), Failure> {
    if !args.paths.is_empty() {
        let paths = names(&args.paths);
        return client::call(config, Request::Pin { paths }, |_| {});
    }
    let mut answer = None;
    client::call(config, Request::Pins, |reply| {
        if let Reply::Pins { pins } = reply {
            answer = Some(pins);
        }
    })?;
    let Some(pins) = answer else {
        return Err(Failure::new(
            Exit::Unavailable,
            "the daemon's answer is no list of pins",
        ));
    };
    let terminal = Terminal::of_stdout(config.color);
    output::print(&match (args.json, terminal.width.is_some()) {
        (true, on_terminal) => output::json(&pins, on_terminal)?,
        (false, true) => pins.iter().map(row).collect(),
        (false, false) => pins.iter().map(columns).collect(),
    })
}

fn columns(pin: &Pin) -> String {
    format!("{}\t{}\t{}\n", pin.kept, pin.closure, pin.store_path)
}

fn row(pin: &Pin) -> String {
    let closure = human::count(pin.closure, "path");
    format!(
        "{:>10}  {closure:>12}  {}\n",
        human::bytes(pin.kept),
        pin.store_path
    )
}

/// Takes pins away.
///
/// # Errors
/// When one of the paths is not pinned, or it can't be written.
pub fn undo(config: &Config, args: &UnpinArgs) -> Result<(), Failure> {
    let paths = names(&args.paths);
    client::call(config, Request::Unpin { paths }, |_| {})
}
