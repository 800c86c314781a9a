//! The JSON document of a trace; `docs/trace.md` describes it.
//!
//! Times are milliseconds from the beginning of the trace.

use std::collections::BTreeMap;

use narfs_state_schema::Timestamp;
use serde::{Deserialize, Serialize};

/// What the document says of itself.
pub(super) const FORMAT: &str = "narfs-trace";
/// Grows when a field changes its meaning or goes; new fields may come at any time.
pub(super) const VERSION: u32 = 1;

/// A recorded run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    pub format: String,
    pub version: u32,
    pub narfs: String,
    pub command: Vec<String>,
    pub began: Timestamp,
    pub cold: bool,
    pub milliseconds: f64,
    pub ended: Ended,
    pub time: Vec<Share>,
    pub totals: Totals,
    pub counters: Counters,
    pub store_paths: Vec<PathRow>,
    pub files: Vec<FileRow>,
    pub requests: Vec<RequestRow>,
    pub upcalls: Vec<UpcallRow>,
}

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Ended {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

/// A part of the time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Share {
    pub what: String,
    pub milliseconds: f64,
}

/// Sums over the events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Totals {
    pub upcalls: u64,
    pub upcalls_that_waited: u64,
    pub upcalls_left_out: u64,
    pub requests: u64,
    pub requests_left_out: u64,
    pub bytes_received: u64,
    pub bytes_unpacked: u64,
    pub bytes_touched: u64,
    pub files_touched: u64,
    pub files_left_out: u64,
    pub store_paths_touched: u64,
}

/// What the daemon itself counted, for comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counters {
    pub upcalls: BTreeMap<String, u64>,
    pub caches: Vec<CacheRow>,
}

/// What one cache cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CacheRow {
    pub name: String,
    pub requests: u64,
    pub bytes_received: u64,
}

/// A store path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PathRow {
    pub store_path: String,
    pub nar_size: u64,
    pub requests: u64,
    pub bytes_received: u64,
    pub bytes_unpacked: u64,
    pub bytes_touched: u64,
    pub files_touched: u64,
    pub waited_milliseconds: f64,
}

/// A file of which something was touched or fetched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FileRow {
    pub store_path: String,
    pub file: String,
    pub size: u64,
    pub touched: u64,
    pub fetched: u64,
    pub reads: u64,
    pub waited_milliseconds: f64,
}

/// A request to a cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RequestRow {
    pub at: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte: Option<f64>,
    pub end: f64,
    pub kind: String,
    pub cache: String,
    pub address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_path: Option<String>,
    pub lanes: Vec<LaneRow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    pub bytes: u64,
    pub outcome: String,
}

/// A lane, from when on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LaneRow {
    pub at: f64,
    pub lane: String,
}

/// A request of the kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UpcallRow {
    pub at: f64,
    pub end: f64,
    pub what: String,
    pub pid: u32,
    pub path: String,
    /// The store path in which it is, if it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    pub waited: bool,
    pub outcome: String,
}
