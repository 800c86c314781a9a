//! What the demonstration found, for people and for programs.

use std::time::Duration;

use narfs_state_schema::{PathStatus, Summary};
use serde::Serialize;

use crate::cli::output::{Terminal, human, table};

/// The figures: the object that `narfs demo --json` prints.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// The program that ran, as a store path with a file.
    pub program: String,
    /// Store paths in its closure.
    pub store_paths: usize,
    /// Those of them that content was fetched of.
    pub store_paths_touched: usize,
    /// Bytes of the closure.
    pub closure_size: u64,
    /// Bytes of the closure as the cache has it, compressed.
    pub closure_file_size: u64,
    /// Bytes that came from the cache up to the program's end: compressed, narinfos and listings too.
    pub bytes_fetched: u64,
    /// Requests to the cache up to the program's end.
    pub requests: u64,
    /// From the first touch of the mount to the first byte of a file.
    pub time_to_first_byte_ms: u64,
    /// From the first touch of the mount to the end of the program.
    pub time_to_exit_ms: u64,
    /// What the whole closure takes through the link at least.
    pub whole_closure_ms: u64,
    /// The link's round trip.
    pub rtt_ms: u64,
    /// The link's megabits per second; 0 without a limit.
    pub mbit: f64,
    /// Each store path at the program's end.
    pub paths: Vec<PathFigures>,
}

/// One store path of [`Figures`].
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathFigures {
    /// Its name.
    pub store_path: String,
    /// Bytes of its NAR.
    pub size: u64,
    /// Bytes of its NAR as the cache has it, compressed.
    pub file_size: u64,
    /// Bytes of its NAR that are here.
    pub fetched_size: u64,
}

impl Figures {
    /// For people.
    pub fn to_text(&self, summary: &Summary, paths: &[PathStatus], terminal: &Terminal) -> String {
        let terminal = Terminal {
            width: terminal.width.or(Some(100)),
            ..*terminal
        };
        let share = self.bytes_fetched as f64 * 100.0 / self.closure_file_size.max(1) as f64;
        let time = |ms| human::duration(Duration::from_millis(ms));
        let rows = [
            (
                "first byte",
                format!("{} after the first touch", time(self.time_to_first_byte_ms)),
            ),
            (
                "finished",
                format!(
                    "{} after the first touch; what the program read was right",
                    time(self.time_to_exit_ms)
                ),
            ),
            (
                "fetched",
                format!(
                    "{} of {} ({}), in {}",
                    human::bytes(self.bytes_fetched),
                    human::bytes(self.closure_file_size),
                    human::percent(share),
                    human::count(self.requests, "request")
                ),
            ),
            (
                "otherwise",
                format!(
                    "{} at least to fetch everything before the start",
                    time(self.whole_closure_ms)
                ),
            ),
        ];
        let mut text = format!("\n{}\n", table::status(summary, paths, &terminal));
        for (name, value) in rows {
            text.push_str(&format!("{name:<12}{value}\n"));
        }
        text
    }
}
