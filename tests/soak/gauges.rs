//! The gauges of `/metrics`: those that say what goes on now are zero when nothing does.

use std::{collections::BTreeSet, path::Path};

use crate::admin;

/// What goes on now.
const ZERO: &[&str] = &[
    "narfs_transfers",
    "narfs_admissions_under_way",
    "narfs_fuse_waiting",
    "narfs_control_clients",
    "narfs_snapshots",
];
/// What there is, whether anything goes on or not.
const STAY: &[&str] = &[
    "narfs_content_bytes",
    "narfs_quota_bytes",
    "narfs_native_files_bytes",
    "narfs_paths",
    "narfs_substituter_up",
    "narfs_build_info",
    "narfs_uptime_seconds",
    "narfs_mounts",
    "process_resident_memory_bytes",
    "narfs_anonymous_memory_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_threads",
    "process_start_time_seconds",
];

/// Fails unless every gauge of the documentation is in one of the lists.
pub fn check_lists() {
    let documentation = include_str!("../../docs/metrics.md");
    let rows = documentation.lines().filter(|l| l.contains("| gauge |"));
    let documented: BTreeSet<&str> = rows
        .map(|row| row.split('`').nth(1).expect("a name"))
        .collect();
    let listed: BTreeSet<&str> = ZERO.iter().chain(STAY).copied().collect();
    assert_eq!(
        documented, listed,
        "gauges of docs/metrics.md, and those known here"
    );
}

/// Those of them that are not at zero.
pub fn busy(state_dir: &Path) -> Vec<(String, f64)> {
    let metrics = admin::metrics(state_dir);
    let name = |series: &str| series.split('{').next().unwrap_or_default().to_owned();
    for gauge in ZERO {
        let is_there = metrics.keys().any(|series| name(series) == *gauge);
        assert!(is_there, "no {gauge} in {:?}", metrics.keys());
    }
    metrics
        .into_iter()
        .filter(|(series, value)| ZERO.contains(&&*name(series)) && *value != 0.0)
        .collect()
}
