//! `narfs status`: what is here, what is arriving, what is wrong.

use std::time::Duration;

use narfs_state_schema::{PathStatus, Summary};

use super::{
    Exit, Failure,
    output::{self, Terminal, table},
    parse::duration,
    parse_store_path,
};
use crate::{
    config::Config,
    daemon::{client, protocol},
    nix::StorePath,
};

const LONG: &str = "\
Shows the store paths that are known here: state, bytes fetched of all, errors.

On a terminal it is a table with bars, cut to the terminal's width; otherwise columns with tabs \
between them: state, percent, fetched bytes, bytes in all, store path, error. It never needs the \
network and does not wait behind anything that does.

Where a daemon uses the state directory it is asked; otherwise the directory itself tells.";

const AFTER: &str = "\
States:
  known        its narinfo is trusted; nothing of its content is here
  fetching     content is arriving
  partial      some content is here, nothing is arriving
  complete     all content is here
  quarantined  what a cache sent does not have the hash that was signed; another cache is tried
  refused      no trusted signature; nothing of it is served

Exit status:
  0  shown
  2  the command line or the configuration is wrong
  3  a store path that was asked for is not known here
  5  the daemon does not answer, or another narfs is busy with the state directory

Examples:
  $ narfs status
  $ narfs status --watch
  $ narfs status --json | jq '.paths[] | select(.error)'";

/// Arguments of `narfs status`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Show what is here, what is arriving and what is wrong", long_about = LONG, after_long_help = AFTER)]
pub struct StatusArgs {
    /// Only these; all without any
    #[arg(value_name = "STOREPATH", value_parser = parse_store_path)]
    pub paths: Vec<StorePath>,

    /// Print one JSON object: summary, and paths as a list, in the form of the status files
    #[arg(long)]
    pub json: bool,

    /// Show it again and again until interrupted; with --json one object a line
    #[arg(long, short)]
    pub watch: bool,

    /// With --watch: the time between
    #[arg(long, value_name = "TIME", default_value = "1s", requires = "watch", value_parser = duration)]
    pub interval: Duration,
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Document<'a> {
    /// The helper of the mount, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    helper: Option<Helper>,
    summary: &'a Summary,
    paths: &'a [PathStatus],
}

/// How it stands with the mount.
#[derive(serde::Serialize)]
struct Helper {
    pid: u32,
    mountpoint: String,
    state: String,
    daemon: Option<u32>,
    restarts: u64,
    #[serde(skip_serializing_if = "String::is_empty", rename = "lastEnd")]
    last_end: String,
}

/// What the helper of the mount says; none of it if there is no helper.
fn helper(config: &Config) -> Option<Helper> {
    // One that does not answer is no reason not to show the rest.
    let status = narfs_mount::status(&config.state_dir).ok().flatten()?;
    Some(Helper {
        pid: status.helper,
        mountpoint: status.mountpoint,
        state: status.state,
        daemon: status.daemon,
        restarts: status.restarts,
        last_end: status.reason,
    })
}

impl Helper {
    /// What is wrong with the mount, if something is.
    fn trouble(&self) -> Option<String> {
        let at = &self.mountpoint;
        let what = match &*self.state {
            "refusing" => {
                format!("{at} has no daemon and gives I/O errors; `narfs upgrade` starts one")
            }
            "waiting" => format!("{at} has no daemon at the moment; programs wait for the next"),
            _ => return None,
        };
        let why = crate::failure::printable(&self.last_end);
        Some(format!("narfs: {what}\n  cause: the last one: {why}\n"))
    }
}

/// Shows the status, once or until interrupted.
///
/// # Errors
/// When nobody can tell it, and when a path that was asked for is not known.
pub fn run(config: &Config, args: &StatusArgs) -> Result<(), Failure> {
    loop {
        let helper = helper(config);
        // First, since without a daemon the rest may not come.
        if let Some(trouble) = helper.as_ref().and_then(Helper::trouble) {
            eprint!("{trouble}");
        }
        let (summary, paths) = ask(config, &args.paths)?;
        let text = text(config, args, helper, &summary, &paths)?;
        let read = output::write(text.as_bytes())?;
        if !args.watch {
            return all_known(&args.paths, &paths);
        }
        if !read {
            return Ok(());
        }
        std::thread::sleep(args.interval);
    }
}

fn ask(config: &Config, paths: &[StorePath]) -> Result<(Summary, Vec<PathStatus>), Failure> {
    let mut answer = None;
    let request = protocol::Request::Status {
        paths: paths.iter().map(StorePath::to_string).collect(),
    };
    client::call(config, request, |reply| {
        if let protocol::Reply::Status { summary, paths } = reply {
            answer = Some((*summary, paths));
        }
    })?;
    answer.ok_or_else(|| Failure::new(Exit::Unavailable, "the daemon's answer is no status"))
}

fn all_known(asked: &[StorePath], found: &[PathStatus]) -> Result<(), Failure> {
    let unknown = |path: &&StorePath| !found.iter().any(|f| f.store_path == path.absolute());
    match asked.iter().find(unknown) {
        None => Ok(()),
        Some(path) => {
            let what = format!("{} is not known here", path.absolute());
            Err(Failure::new(Exit::NotFound, what).hint(
                "a path becomes known when it is looked up in the mount, or by `narfs prefetch`",
            ))
        }
    }
}

fn text(
    config: &Config,
    args: &StatusArgs,
    helper: Option<Helper>,
    summary: &Summary,
    paths: &[PathStatus],
) -> Result<String, Failure> {
    let terminal = Terminal::of_stdout(config.color);
    if args.json {
        let document = Document {
            helper,
            summary,
            paths,
        };
        return output::json(&document, terminal.width.is_some() && !args.watch);
    }
    let table = table::status(summary, paths, &terminal);
    Ok(match (args.watch, terminal.width) {
        (false, _) => table,
        (true, None) => table + "\n",
        (true, Some(_)) => redrawn(&table, Terminal::lines_of_stdout()),
    })
}

/// `table` over what the terminal showed before, cut to its height so that nothing scrolls.
fn redrawn(table: &str, height: Option<usize>) -> String {
    /// To the upper left corner (ECMA-48, CUP).
    const HOME: &str = "\u{1b}[H";
    /// Clears the rest of the line (EL) and of the screen (ED).
    const REST_OF_LINE: &str = "\u{1b}[K\n";
    const REST_OF_SCREEN: &str = "\u{1b}[J";
    let lines: Vec<&str> = table.lines().collect();
    // The last line of the screen holds the cursor.
    let room = height.map_or(lines.len(), |height| height.saturating_sub(1));
    let mut text = HOME.to_string();
    if lines.len() <= room {
        lines
            .iter()
            .for_each(|line| text.extend([line, REST_OF_LINE]));
    } else {
        // The totals at the end tell most; the first paths are as good as any.
        let totals = lines
            .iter()
            .rev()
            .take_while(|line| !line.is_empty())
            .count()
            .min(room.saturating_sub(1));
        let shown = room.saturating_sub(totals + 1);
        lines[..shown]
            .iter()
            .for_each(|line| text.extend([line, REST_OF_LINE]));
        let hidden = lines.len() - totals - shown;
        text.push_str(&format!("  ({hidden} more lines)"));
        text.push_str(REST_OF_LINE);
        lines[lines.len() - totals..]
            .iter()
            .for_each(|line| text.extend([line, REST_OF_LINE]));
    }
    text.push_str(REST_OF_SCREEN);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(height: Option<usize>) -> Vec<String> {
        let text = redrawn("a\nb\nc\nd\n\ntotals\ncache\n", height);
        let text = text
            .strip_prefix("\u{1b}[H")
            .unwrap()
            .strip_suffix("\u{1b}[J")
            .unwrap();
        text.split_terminator("\u{1b}[K\n")
            .map(String::from)
            .collect()
    }

    #[test]
    fn a_long_table_never_scrolls_and_keeps_its_totals() {
        assert_eq!(shown(None), ["a", "b", "c", "d", "", "totals", "cache"]);
        assert_eq!(shown(Some(8)).len(), 7);
        assert_eq!(
            shown(Some(6)),
            ["a", "b", "  (3 more lines)", "totals", "cache"]
        );
        for height in 1..8 {
            assert!(
                shown(Some(height)).len() < height.max(2),
                "{height}: {:?}",
                shown(Some(height))
            );
        }
    }
}
