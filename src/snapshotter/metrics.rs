//! The metrics of a snapshotter.

use tonic::Code;

use super::{record::Kind, snapshots::Snapshots};
use crate::{
    metrics::{Counter, Label, Metric, Scrape, Source, Unit},
    store::Beside,
};

static CALLS: Metric = Metric::counter(
    "narfs_snapshotter_calls",
    Unit::None,
    "Calls of containerd: answered, refused as it may expect (not found, already there), or failed",
)
.labels(&[
    Label {
        name: "call",
        bound: "the ten calls of containerd's snapshots service",
    },
    Label {
        name: "result",
        bound: "ok, refused, failed",
    },
]);
static SNAPSHOTS: Metric =
    Metric::gauge("narfs_snapshots", Unit::None, "Snapshots").labels(&[Label {
        name: "kind",
        bound: "active, view, committed",
    }]);
static NATIVE: Metric = Metric::gauge(
    "narfs_native_files",
    Unit::Bytes,
    "Disk space that native files take: trees of layers and copies; missing where there are none",
);
static NATIVE_MENDED: Metric = Metric::counter(
    "narfs_native_files_mended",
    Unit::None,
    "Native files that were not what was fetched, and were mended",
);

/// All of them.
pub static METRICS: &[&Metric] = &[&CALLS, &SNAPSHOTS, &NATIVE, &NATIVE_MENDED];

const NAMES: [&str; 10] = [
    "Prepare", "View", "Mounts", "Commit", "Remove", "Stat", "Update", "List", "Usage", "Cleanup",
];
const RESULTS: [&str; 3] = ["ok", "refused", "failed"];

/// Calls, counted.
#[derive(Debug, Default)]
pub struct Calls([[Counter; RESULTS.len()]; NAMES.len()]);

impl Calls {
    /// A call came to this end.
    pub(super) fn ended(&self, call: &str, code: Code) {
        let result = match code {
            Code::Ok => 0,
            Code::NotFound | Code::AlreadyExists | Code::InvalidArgument => 1,
            _ => 2,
        };
        if let Some(at) = NAMES.iter().position(|name| *name == call) {
            self.0[at][result].add(1);
        }
    }
}

impl Source for Snapshots {
    fn collect(&self, into: &mut Scrape) {
        for (name, results) in NAMES.iter().zip(&self.0.calls.0) {
            for (result, count) in RESULTS.iter().zip(results) {
                into.count(&CALLS, &[name, result], count.get());
            }
        }
        let state = self.0.metadata.state();
        for (kind, name) in [
            (Kind::Active, "active"),
            (Kind::View, "view"),
            (Kind::Committed, "committed"),
        ] {
            let these = state.iter().filter(|(_, record)| record.kind == kind);
            into.count(&SNAPSHOTS, &[name], these.count() as u64);
        }
        if let Some(native) = &self.0.options.native {
            into.count(&NATIVE, &[], native.bytes());
            into.count(&NATIVE_MENDED, &[], native.mended());
        }
    }
}
