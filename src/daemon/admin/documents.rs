//! The JSON documents of the admin endpoint, as `narfs top` and scripts read them.

use std::collections::BTreeMap;

use narfs_state_schema::Timestamp;
use serde::{Deserialize, Serialize};

/// `/debug/inflight`: what goes on at this moment. Times in seconds count from or to `at`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InFlight {
    /// When it was put together.
    pub at: Timestamp,
    /// Requests of the kernel that wait, the longest first.
    pub waiting: Vec<Waiting>,
    /// Store paths that are being looked up in the caches, the longest first.
    pub admissions: Vec<Admission>,
    /// Transfers of NARs, the oldest first.
    pub transfers: Vec<Transfer>,
    /// Caches, in the order in which they are asked.
    pub caches: Vec<Cache>,
    /// The last errors of store paths, the newest first.
    pub errors: Vec<PathError>,
}

/// Somebody who waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// `lookup`, `read`, …
    pub what: String,
    /// The thread that asked; 0 where the kernel does not say.
    pub pid: u32,
    /// Its name, while it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// What it asked for.
    pub path: String,
    /// Of a read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Of a read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Since when.
    pub since: Timestamp,
    /// For how long.
    pub seconds: f64,
    /// When it gets an error if nothing comes until then.
    pub deadline: Timestamp,
}

/// A store path that is being looked up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Admission {
    /// The store path.
    pub store_path: String,
    /// `demand`, `read-ahead` or `background`.
    pub lane: String,
    /// Since when.
    pub since: Timestamp,
    /// For how long.
    pub seconds: f64,
}

/// Bytes on their way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transfer {
    /// Its number: the same transfer has the same in the next document.
    pub id: u64,
    /// The store path; others may share the NAR.
    pub store_path: String,
    /// The cache that was asked last, without credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub substituter: Option<String>,
    /// `demand`, `read-ahead` or `background`.
    pub lane: String,
    /// `queued`, `waiting`, `flowing` or `silent`.
    pub stage: String,
    /// Bytes that came.
    pub bytes: u64,
    /// Bytes that it is for, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<u64>,
    /// Bytes a second, from its first byte on.
    pub rate: f64,
    /// Since when.
    pub since: Timestamp,
    /// For how long.
    pub seconds: f64,
    /// When it gives the cache up, while it waits for an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// Bytes of the store path's NAR that are here, and all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_of: Option<(u64, u64)>,
}

/// A binary cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cache {
    /// Its URL, without credentials.
    pub name: String,
    /// Whether it can be reached.
    pub online: bool,
    /// For how long it could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline_seconds: Option<f64>,
    /// The last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_at: Option<Timestamp>,
}

/// What went wrong with a store path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathError {
    /// The store path.
    pub store_path: String,
    /// What happened.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// One series of `/debug/metrics.json`, which is a list of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Name of the metric; of a histogram with `_count` and `_sum`.
    pub name: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}
