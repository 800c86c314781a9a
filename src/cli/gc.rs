//! `narfs gc`: disk space back.

use super::{
    Exit, Failure,
    output::{self, Terminal, human},
    parse::size,
};
use crate::{
    config::Config,
    daemon::{
        client, limits,
        protocol::{Collected, Reply, Request},
    },
};

const LONG: &str = "\
Frees disk space by dropping content that was not read for longest, until what is kept fits --to, or \
the quota and the free space to keep. With none of them, all content goes that no root or view holds.

Content that no root, view or pin holds goes first; what a root or a view holds can go too, since it can \
be fetched again; what is pinned (`narfs pin`) stays. Of large paths that are in use, parts that were not \
read lately may go alone. What is being read or fetched stays, and files that programs have open stay \
readable.

A dropped path is still there: what is missing of it is fetched when it is read.

On a terminal it sums up; otherwise it prints columns with tabs between them: bytes freed, NAR hash, \
store paths with spaces between them.";

const AFTER: &str = "\
Exit status:
  0  done, or nothing to do
  1  what is in use or pinned alone is more than was asked for
  2  the command line or the configuration is wrong

Examples:
  # narfs gc --dry-run --to 0
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

    /// Print one JSON object: bytes freed and kept, and what was dropped
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    dry_run: bool,
    /// Bytes that became free.
    freed: u64,
    /// Bytes that are kept now.
    kept: u64,
    /// Whether the goal was reached.
    enough: bool,
    dropped: Vec<Dropped<'a>>,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Dropped<'a> {
    nar_hash: &'a str,
    store_paths: &'a [String],
    bytes: u64,
    /// Whether only a part of it goes.
    partly: bool,
}

/// Drops content.
///
/// # Errors
/// When not enough can go.
pub fn run(config: &Config, args: &GcArgs) -> Result<(), Failure> {
    let mut answer = None;
    let request = Request::Gc {
        to: args.to,
        limits: limits(config),
        partial: args.partial,
        dry_run: args.dry_run,
    };
    client::call(config, request, |reply| {
        if let Reply::Collected(collected) = reply {
            answer = Some(collected);
        }
    })?;
    let Some(collected) = answer else {
        return Err(Failure::new(
            Exit::Unavailable,
            "the daemon's answer is no collection",
        ));
    };
    let terminal = Terminal::of_stdout(config.color);
    output::print(&text(&collected, args, &terminal)?)?;
    match (collected.enough, collected.goal) {
        // Dropping "everything unused" leaves what is used, the trees and the directory itself.
        (true, _) | (_, Some(0) | None) => Ok(()),
        (false, Some(to)) => {
            let what = format!(
                "{} stay, more than {}: the rest is in use or pinned",
                human::bytes(kept(&collected)),
                human::bytes(to)
            );
            Err(Failure::new(Exit::Failure, what)
                .hint("try again when the programs that read it have ended"))
        }
    }
}

fn kept(collected: &Collected) -> u64 {
    collected.before.saturating_sub(collected.freed)
}

fn text(collected: &Collected, args: &GcArgs, terminal: &Terminal) -> Result<String, Failure> {
    if args.json {
        let dropped = collected.nars.iter().map(|nar| Dropped {
            nar_hash: &nar.nar,
            store_paths: &nar.paths,
            bytes: nar.bytes,
            partly: nar.partly,
        });
        let document = Document {
            dry_run: args.dry_run,
            freed: collected.freed,
            kept: kept(collected),
            enough: collected.enough,
            dropped: dropped.collect(),
        };
        return output::json(&document, terminal.width.is_some());
    }
    let line = |nar: &crate::daemon::protocol::CollectedNar| {
        format!("{}\t{}\t{}\n", nar.bytes, nar.nar, nar.paths.join(" "))
    };
    if terminal.width.is_none() {
        return Ok(collected.nars.iter().map(line).collect());
    }
    let mut text = String::new();
    if args.dry_run {
        for nar in &collected.nars {
            let names = if nar.paths.is_empty() {
                nar.nar.clone()
            } else {
                nar.paths.join(", ")
            };
            text.push_str(&format!("{:>10}  {names}\n", human::bytes(nar.bytes)));
        }
    }
    let would = if args.dry_run { "would be " } else { "" };
    text.push_str(&format!(
        "{} {would}freed by dropping {}, {} {would}kept\n",
        human::bytes(collected.freed),
        human::count(collected.nars.len() as u64, "NAR"),
        human::bytes(kept(collected))
    ));
    Ok(text)
}
