//! `narfs check`: whether what is kept is what was signed.

use super::{
    Exit, Failure,
    output::{self, Terminal, human, printable},
    parse_store_path,
};
use crate::{
    config::Config,
    daemon::{
        client,
        protocol::{Reply, Request},
    },
    nix::StorePath,
    store::{CheckReport, Checked, Condition},
};

const LONG: &str = "\
Hashes what is kept again and compares it with what was signed. Complete paths are hashed whole; \
of partial ones the structure is checked. Needs no network, except with --repair.

What is damaged is dropped, so that nobody reads it; it is fetched again when it is read, or at once \
with --repair.

On a terminal it names what is wrong and sums up; otherwise it prints columns with tabs between \
them: condition (sound, partial, damaged, repaired), bytes, store path, what is wrong.";

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

    /// Fetch again at once what is damaged, whole, and check it
    #[arg(long)]
    pub repair: bool,

    /// Print a JSON list with an object for each path that is kept
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints of a path.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    /// Absent for content of which no path is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    store_path: Option<&'a str>,
    nar_hash: &'a str,
    condition: Condition,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn of(checked: &'a Checked) -> impl Iterator<Item = Self> {
        let line = |store_path| Self {
            store_path,
            nar_hash: &checked.nar,
            condition: checked.condition,
            bytes: checked.bytes,
            problem: checked.problem.as_deref(),
            error: checked.error.as_deref(),
        };
        let nameless = checked.store_paths.is_empty().then_some(None);
        checked
            .store_paths
            .iter()
            .map(|path| Some(path.as_str()))
            .chain(nameless)
            .map(line)
    }

    fn name(&self) -> &'a str {
        self.store_path.unwrap_or(self.nar_hash)
    }

    fn columns(&self) -> String {
        let wrong = match (self.problem, self.error) {
            (Some(problem), Some(error)) => format!("{problem}; not repaired: {error}"),
            (problem, _) => problem.unwrap_or_default().to_string(),
        };
        format!(
            "{}\t{}\t{}\t{}\n",
            word(self.condition),
            self.bytes,
            self.name(),
            printable(&wrong)
        )
    }
}

/// Checks, and repairs if asked to.
///
/// # Errors
/// When something is damaged and was not repaired.
pub fn run(config: &Config, args: &CheckArgs) -> Result<(), Failure> {
    let request = Request::Check {
        paths: args.paths.iter().map(StorePath::to_string).collect(),
        repair: args.repair,
    };
    let mut answer = None;
    client::call(config, request, |reply| {
        if let Reply::Checked { report, unrepaired } = reply {
            answer = Some((report, unrepaired));
        }
    })?;
    let Some((report, unrepaired)) = answer else {
        return Err(Failure::new(
            Exit::Unavailable,
            "the daemon's answer is no report",
        ));
    };
    let terminal = Terminal::of_stdout(config.color);
    output::print(&text(&report, args.json, &terminal)?)?;
    let left = report.of(Condition::Damaged).count() as u64;
    if left == 0 {
        return Ok(());
    }
    let exit = unrepaired.map_or(Exit::Failure, Exit::from_code);
    let what = format!("{} damaged; what is damaged was dropped", are(left));
    let failure = Failure::new(exit, what);
    Err(match args.repair {
        true => failure.hint("it is fetched when it is read; run `narfs check --repair` again when its cache can be reached"),
        false => failure.hint("it is fetched again when it is read; `narfs prefetch` fetches it now"),
    })
}

fn text(report: &CheckReport, json: bool, terminal: &Terminal) -> Result<String, Failure> {
    let lines: Vec<Line<'_>> = report.checked.iter().flat_map(Line::of).collect();
    if json {
        return output::json(&lines, terminal.width.is_some());
    }
    if terminal.width.is_none() {
        return Ok(lines.iter().map(Line::columns).collect());
    }
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.problem.is_some()) {
        let state = terminal.paint(
            if line.condition == Condition::Repaired {
                32
            } else {
                31
            },
            word(line.condition),
        );
        text.push_str(&format!(
            "{state}  {}\n  {}\n",
            line.name(),
            printable(line.problem.unwrap_or_default())
        ));
        if let Some(error) = line.error {
            text.push_str(&format!("  not repaired: {}\n", printable(error)));
        }
    }
    let count = |condition| report.of(condition).count();
    text.push_str(&format!(
        "{} hashed: {} sound, {} partial, {} damaged, {} repaired\n",
        human::bytes(report.hashed),
        count(Condition::Sound),
        count(Condition::Partial),
        count(Condition::Damaged),
        count(Condition::Repaired)
    ));
    Ok(text)
}

fn word(condition: Condition) -> &'static str {
    match condition {
        Condition::Sound => "sound",
        Condition::Partial => "partial",
        Condition::Damaged => "damaged",
        Condition::Repaired => "repaired",
    }
}

fn are(number: u64) -> String {
    match number {
        1 => "1 path is".into(),
        number => format!("{number} paths are"),
    }
}
