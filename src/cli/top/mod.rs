//! `narfs top`: what a daemon does at this moment, on a terminal.
//!
//! ```text
//! state.rs    what the daemon says, twice, as numbers to show (pure)
//! screen.rs   the numbers on a screen (pure)
//! terminal.rs the terminal: keys, signals, and leaving it as it was
//! ```

mod screen;
mod state;
mod terminal;

use std::time::Duration;

use ratatui::{Terminal as Screen, backend::TestBackend, buffer::Buffer};

use super::{
    Exit, Failure,
    output::{self, Terminal},
    parse::duration,
};
use crate::{config::Config, daemon::admin::client::Client};
use screen::{Look, draw};
use state::{Said, State};

const LONG: &str = "\
Shows what the daemon of a state directory does at this moment: fetches with their lanes and rates, who \
waits for what, how many reads were here, how the caches are, what went wrong last.

The daemon is asked over its admin socket, so the mount is not touched and nothing waits behind a fetch. \
With --once or --json it prints and ends, for scripts and where there is no terminal.";

const AFTER: &str = "\
Keys:
  q, Esc, Ctrl-C   end
  p, Space         pause, go on
  + -              look more or less often
  Tab              give the most room to fetches, readers that wait, or errors
  Down Up, j k     scroll that list
  r                look now

Lanes:
  demand      a reader waits
  read-ahead  what a program that runs will ask for next
  background  nobody waits; it gives way to the others

Stages of a fetch:
  queued   it waits for its turn      flowing  bytes arrive
  waiting  for the cache's answer     silent   bytes came, and none for half a second

Exit status:
  0  ended, or printed
  2  the command line or the configuration is wrong; there is no terminal
  5  no daemon answers

Examples:
  # narfs top
  # narfs top --once
  # narfs top --json | jq '.inflight.waiting[] | \"\\(.program) waits for \\(.path)\"'";

/// Arguments of `narfs top`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "Watch fetches, readers and caches on a terminal", long_about = LONG, after_long_help = AFTER)]
pub struct TopArgs {
    /// Print one screen as text and end
    #[arg(long)]
    pub once: bool,

    /// Print one JSON object and end: summary, inflight, metrics
    #[arg(long, conflicts_with = "once")]
    pub json: bool,

    /// The time between two looks
    #[arg(long, short, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub interval: Duration,
}

/// Width of `--once` where there is no terminal, and the most lines that it prints.
const ONCE: (u16, u16) = (100, 120);

/// Shows it, once or until somebody has seen enough.
///
/// # Errors
/// When no daemon answers at first, or there is no terminal to show it on.
pub fn run(config: &Config, args: &TopArgs) -> Result<(), Failure> {
    let client = Client::new(&config.state_dir)?;
    let out = Terminal::of_stdout(config.color);
    if args.json {
        let text = output::json(&Said::ask(&client)?, out.width.is_some())?;
        return output::write(text.as_bytes()).map(drop);
    }
    if args.once {
        let first = Said::ask(&client)?;
        // Rates are differences.
        std::thread::sleep(args.interval.min(Duration::from_secs(1)));
        let state = State::of(Some(&first), Said::ask(&client)?);
        let width = out.width.and_then(|width| u16::try_from(width).ok());
        let look = Look {
            unicode: out.unicode,
            ..Look::default()
        };
        let text = as_text(&state, &look, (width.unwrap_or(ONCE.0), ONCE.1))?;
        return output::write(text.as_bytes()).map(drop);
    }
    let smart = std::env::var("TERM").is_ok_and(|term| !term.is_empty() && term != "dumb");
    if out.width.is_none() || !smart {
        let what = "standard output is no terminal that can be drawn on";
        return Err(Failure::new(Exit::Usage, what).hint("use --once or --json"));
    }
    terminal::watch(&client, args.interval, &out)
}

/// A screen as lines of text, without what is empty at its end.
fn as_text(state: &State, look: &Look, (width, height): (u16, u16)) -> Result<String, Failure> {
    let failed = |e: &dyn std::error::Error| Failure::from_error(Exit::Failure, e);
    let mut screen =
        Screen::new(TestBackend::new(width.max(40), height)).map_err(|e| failed(&e))?;
    screen
        .draw(|frame| {
            draw(
                frame,
                state,
                &Look {
                    keys: false,
                    ..*look
                },
            )
        })
        .map_err(|e| failed(&e))?;
    Ok(lines(screen.backend().buffer()))
}

fn lines(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width.max(1));
    let mut lines: Vec<String> = buffer
        .content
        .chunks(width)
        .map(|cells| {
            let line: String = cells.iter().map(|cell| cell.symbol()).collect();
            line.trim_end().to_owned()
        })
        .collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}
