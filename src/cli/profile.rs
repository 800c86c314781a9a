//! `narfs profile`: what starts of programs read, kept, carried elsewhere, forgotten.

use std::{fs, io::Read, path::PathBuf};

use super::{
    Exit, Failure,
    output::{self, Terminal, human},
    parse_store_path,
};
use crate::{
    config::Config,
    daemon::{
        client,
        protocol::{ProfileInfo, Reply, Request},
    },
    nix::StorePath,
    profile::{MAX_PROFILE, Profile},
};

const LONG: &str = "\
An access profile says what the start of a program read of its closure, in order. narfs records one \
whenever a program is started of which nothing was here, keeps it under the program's store path, and \
fetches what it names at the next cold start, before the program asks.

A profile can be carried to other machines, or published beside the cache, where every narfs finds it \
(`narfs publish --profile`). It is a hint: a wrong one costs bytes on the link and never gives a wrong \
byte.";

const AFTER_LIST: &str = "\
Exit status:
  As for `narfs profile`

Examples:
  $ narfs profile list --json";

const AFTER_EXPORT: &str = "\
Exit status:
  As for `narfs profile`

Examples:
  $ narfs profile export /nix/store/HASH-python3-3.11.9 > python3.profile";

const AFTER_IMPORT: &str = "\
Exit status:
  As for `narfs profile`

Examples:
  # narfs profile import python3.profile";

const AFTER_FORGET: &str = "\
Exit status:
  As for `narfs profile`

Examples:
  # narfs profile forget /nix/store/HASH-python3-3.11.9";

const AFTER: &str = "\
Exit status:
  0  done
  1  it could not be written
  2  the command line or the configuration is wrong, or a file is no profile
  3  no profile is kept of one of the paths

Examples:
  $ narfs run /nix/store/HASH-python3-3.11.9/bin/python3 -c 'import json'
  $ narfs profile export /nix/store/HASH-python3-3.11.9 > python3.profile
  $ narfs publish --profile python3.profile --from https://cache.nixos.org --to file:///srv/cache \\
      --secret-key key.sec /nix/store/HASH-python3-3.11.9";

/// Arguments of `narfs profile`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(
    about = "Show, carry and forget what starts of programs read",
    long_about = LONG,
    after_long_help = AFTER,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    disable_help_subcommand = true
)]
pub struct ProfileArgs {
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// Verbs of `narfs profile`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Verb {
    /// List the profiles that are kept
    ///
    /// On a terminal a table, otherwise columns with tabs between them: bytes of NARs, parts, store
    /// paths that are read, the program's store path.
    #[command(after_long_help = AFTER_LIST)]
    List {
        /// Print a JSON list with an object for each
        #[arg(long)]
        json: bool,
    },
    /// Write a profile to standard output or a file
    #[command(after_long_help = AFTER_EXPORT)]
    Export {
        /// The program's store path
        #[arg(value_name = "STOREPATH", value_parser = parse_store_path)]
        path: StorePath,

        /// The file; what is there is replaced
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Keep profiles from files, each in the place of the one before
    #[command(after_long_help = AFTER_IMPORT)]
    Import {
        /// The files; - is standard input
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
    /// Forget profiles; the next cold start records anew
    #[command(after_long_help = AFTER_FORGET)]
    Forget {
        /// The programs' store paths
        #[arg(value_name = "STOREPATH", required = true, value_parser = parse_store_path)]
        paths: Vec<StorePath>,
    },
}

/// Does what the verb says.
///
/// # Errors
/// When there is no such profile, a file is none, or something can't be written.
pub fn run(config: &Config, args: &ProfileArgs) -> Result<(), Failure> {
    match &args.verb {
        Verb::List { json } => list(config, *json),
        Verb::Export { path, output } => export(config, path, output.as_ref()),
        Verb::Import { files } => {
            // All of them are read before anything is kept.
            let profiles = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
            for profile in profiles {
                let text = profile.text();
                client::call(config, Request::KeepProfile { text }, |_| {})?;
            }
            Ok(())
        }
        Verb::Forget { paths } => {
            let paths = paths.iter().map(StorePath::to_string).collect();
            client::call(config, Request::ForgetProfiles { paths }, |_| {})
        }
    }
}

/// A profile out of a file, or of standard input.
///
/// # Errors
/// When it can't be read or is none.
pub fn read(file: &PathBuf) -> Result<Profile, Failure> {
    let shown = file.display();
    let failed =
        |e: std::io::Error| Failure::new(Exit::Usage, format!("{shown} can't be read")).because(&e);
    let mut text = Vec::new();
    let limit = MAX_PROFILE + 1;
    match file.as_os_str() == "-" {
        true => std::io::stdin().take(limit).read_to_end(&mut text),
        false => fs::File::open(file).and_then(|file| file.take(limit).read_to_end(&mut text)),
    }
    .map_err(failed)?;
    Profile::parse(&text).map_err(|e| {
        Failure::new(Exit::Usage, format!("{shown} is no access profile"))
            .because(&e)
            .hint("`narfs profile export STOREPATH` writes one")
    })
}

fn list(config: &Config, json: bool) -> Result<(), Failure> {
    let mut answer = None;
    client::call(config, Request::Profiles, |reply| {
        if let Reply::Profiles { profiles } = reply {
            answer = Some(profiles);
        }
    })?;
    let profiles = answer.ok_or_else(other_answer)?;
    let terminal = Terminal::of_stdout(config.color);
    output::print(&match (json, terminal.width.is_some()) {
        (true, on_terminal) => output::json(&profiles, on_terminal)?,
        (false, true) => profiles.iter().map(row).collect(),
        (false, false) => profiles.iter().map(columns).collect(),
    })
}

fn other_answer() -> Failure {
    Failure::new(
        Exit::Unavailable,
        "the daemon's answer is no access profile",
    )
}

fn columns(profile: &ProfileInfo) -> String {
    let ProfileInfo {
        store_path,
        paths,
        parts,
        bytes,
    } = profile;
    format!("{bytes}\t{parts}\t{paths}\t{store_path}\n")
}

fn row(profile: &ProfileInfo) -> String {
    format!(
        "{:>10}  {:>12}  {:>10}  {}\n",
        human::bytes(profile.bytes),
        human::count(profile.parts, "part"),
        human::count(profile.paths, "path"),
        profile.store_path
    )
}

fn export(config: &Config, path: &StorePath, output: Option<&PathBuf>) -> Result<(), Failure> {
    let mut answer = None;
    let request = Request::Profile {
        path: path.to_string(),
    };
    client::call(config, request, |reply| {
        if let Reply::Profile { text } = reply {
            answer = Some(text);
        }
    })?;
    let text = answer.ok_or_else(other_answer)?;
    match output {
        None => output::print(&text),
        Some(file) => fs::write(file, text).map_err(|e| {
            Failure::new(
                Exit::Failure,
                format!("{} can't be written", file.display()),
            )
            .because(&e)
        }),
    }
}
