//! The totals over all store paths of a mount or a view.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{LastError, PathState, Timestamp};

/// Totals over the store paths that a mount or a view shows: `.nix-snapshotter/summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Number of store paths, by state.
    pub paths: StateCounts,

    /// Bytes of all uncompressed NARs.
    pub size: u64,

    /// Bytes of these NARs that are kept here and can be read without the network.
    pub fetched_size: u64,

    /// `fetchedSize` in percent of `size`, rounded down to hundredths: 100 means all of it.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub fetched_percent: f64,

    /// Number of store paths that have an `error` at present.
    pub errors: u64,

    /// The binary caches in use, in the order in which they are asked.
    pub substituters: Vec<SubstituterStatus>,

    /// Number of binary caches left out of `substituters` because the document would have grown
    /// beyond its fixed size. Absent when none was.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub substituters_omitted: u64,

    /// The process that serves the mount.
    pub daemon: DaemonStatus,
}

/// Number of store paths, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StateCounts {
    /// All of them.
    pub total: u64,
    /// Known, with none of their content here.
    pub known: u64,
    /// With content arriving now.
    pub fetching: u64,
    /// With some content here and nothing arriving.
    pub partial: u64,
    /// With all of their content here.
    pub complete: u64,
    /// Dropped because what a cache sent does not have the hash that was signed.
    pub quarantined: u64,
    /// Not served because no trusted signature was found.
    pub refused: u64,
}

impl StateCounts {
    /// Counts one more path.
    pub fn add(&mut self, state: PathState) {
        self.total += 1;
        *match state {
            PathState::Known => &mut self.known,
            PathState::Fetching => &mut self.fetching,
            PathState::Partial => &mut self.partial,
            PathState::Complete => &mut self.complete,
            PathState::Quarantined => &mut self.quarantined,
            PathState::Refused => &mut self.refused,
        } += 1;
    }

    /// The number of paths in `state`.
    pub fn of(&self, state: PathState) -> u64 {
        match state {
            PathState::Known => self.known,
            PathState::Fetching => self.fetching,
            PathState::Partial => self.partial,
            PathState::Complete => self.complete,
            PathState::Quarantined => self.quarantined,
            PathState::Refused => self.refused,
        }
    }
}

/// What a binary cache has done since the daemon started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SubstituterStatus {
    /// Its URL, without credentials.
    pub name: String,

    /// Its priority: caches with lower numbers are asked first.
    pub priority: u32,

    /// Requests sent to it, repeated ones included.
    pub requests: u64,

    /// Bytes of response bodies received from it, as they came over the network (packed).
    pub bytes_received: u64,

    /// Requests that failed. "Not found" is an answer and not a failure.
    pub failures: u64,

    /// The last failure. Absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
}

/// The process that serves the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DaemonStatus {
    /// Version of narfs, as `narfs --version` prints it.
    pub version: String,

    /// Its process id, in the namespace it runs in.
    pub pid: u32,

    /// When it started.
    pub started: Timestamp,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_counted_once() {
        let mut counts = StateCounts::default();
        for state in PathState::ALL {
            counts.add(state);
        }
        assert_eq!(counts.total, PathState::ALL.len() as u64);
        for state in PathState::ALL {
            assert_eq!(counts.of(state), 1, "{state}");
        }
    }
}
