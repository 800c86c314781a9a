//! The metrics of a store.

use super::{Lane, Store, inflight::Stage};
use crate::metrics::{Label, Metric, Scrape, Source, Unit};

const SUBSTITUTER: Label = Label {
    name: "substituter",
    bound: "the URLs of the configured caches, without credentials",
};
const LANE: Label = Label {
    name: "lane",
    bound: "background, read-ahead, demand",
};

static READS: Metric = Metric::counter(
    "narfs_reads",
    Unit::None,
    "Reads of files in store paths, and whether their bytes were here",
)
.labels(&[Label {
    name: "result",
    bound: "hit, miss",
}]);
static READ: Metric = Metric::counter("narfs_read", Unit::Bytes, "Bytes handed to readers");
static FETCH_REQUESTS: Metric = Metric::counter(
    "narfs_fetch_requests",
    Unit::None,
    "Requests for NARs or parts of them",
)
.labels(&[SUBSTITUTER, LANE]);
static FETCHED: Metric = Metric::counter(
    "narfs_fetched",
    Unit::Bytes,
    "Bytes of NARs that came, as they stand in the cache",
)
.labels(&[SUBSTITUTER, LANE]);
static FETCH_ERRORS: Metric = Metric::counter(
    "narfs_fetch_errors",
    Unit::None,
    "Requests for NARs that failed or broke off; most are tried again",
)
.labels(&[SUBSTITUTER, LANE]);
static TRANSFERS: Metric = Metric::gauge(
    "narfs_transfers",
    Unit::None,
    "Transfers of NARs that are under way",
)
.labels(&[
    LANE,
    Label {
        name: "stage",
        bound: "queued, waiting, flowing, silent",
    },
]);
static QUEUED: Metric = Metric::times(
    "narfs_transfer_queue",
    "How long transfers waited for their turn",
)
.labels(&[LANE]);
static ADMISSIONS: Metric = Metric::counter(
    "narfs_admissions",
    Unit::None,
    "Store paths that became known, and those that could not",
)
.labels(&[Label {
    name: "result",
    bound: "admitted, failed",
}]);
static ADMITTING: Metric = Metric::gauge(
    "narfs_admissions_under_way",
    Unit::None,
    "Store paths that are being looked up in the caches",
);
static NARINFOS: Metric = Metric::counter(
    "narfs_narinfo_questions",
    Unit::None,
    "Questions for narinfos: answered from what is kept, or put to a cache",
)
.labels(&[Label {
    name: "result",
    bound: "hit, miss",
}]);
static VERIFIED: Metric = Metric::counter(
    "narfs_nars_verified",
    Unit::None,
    "NARs whose whole hash was checked and was right",
);
static QUARANTINED: Metric = Metric::counter(
    "narfs_nars_quarantined",
    Unit::None,
    "NARs dropped because they were not what their narinfo promised",
);
static EVICTED: Metric = Metric::counter(
    "narfs_nars_evicted",
    Unit::None,
    "NARs dropped to make room",
);
static FREED: Metric = Metric::counter(
    "narfs_evicted",
    Unit::Bytes,
    "Disk space freed by dropping NARs to make room",
);
static DAMAGED: Metric = Metric::counter(
    "narfs_damaged",
    Unit::Bytes,
    "Kept bytes that the disk gave back wrong or not at all; readers got those of a cache",
);
static COPIED: Metric = Metric::counter(
    "narfs_copied",
    Unit::Bytes,
    "Bytes of NARs that were copied from other NARs here, and not fetched",
);
static PROFILE_FETCHED: Metric = Metric::counter(
    "narfs_profile_fetched",
    Unit::Bytes,
    "Bytes of NARs fetched because an access profile names them",
)
.experimental();
static PROFILE_UNREAD: Metric = Metric::counter(
    "narfs_profile_unread",
    Unit::Bytes,
    "Bytes of those that were not read by the end of the start",
)
.experimental();
static KEPT: Metric = Metric::gauge(
    "narfs_content",
    Unit::Bytes,
    "Disk space that kept content takes",
);
static QUOTA: Metric = Metric::gauge(
    "narfs_quota",
    Unit::Bytes,
    "The most that kept content may take now; missing without a limit",
);
static PATHS: Metric = Metric::gauge(
    "narfs_paths",
    Unit::None,
    "Store paths that are known, and those of them in memory",
)
.labels(&[Label {
    name: "state",
    bound: "known, loaded",
}]);

/// All of them.
pub static METRICS: &[&Metric] = &[
    &READS,
    &READ,
    &FETCH_REQUESTS,
    &FETCHED,
    &FETCH_ERRORS,
    &TRANSFERS,
    &QUEUED,
    &ADMISSIONS,
    &ADMITTING,
    &NARINFOS,
    &VERIFIED,
    &QUARANTINED,
    &EVICTED,
    &FREED,
    &DAMAGED,
    &COPIED,
    &PROFILE_FETCHED,
    &PROFILE_UNREAD,
    &KEPT,
    &QUOTA,
    &PATHS,
];

impl Source for Store {
    fn collect(&self, into: &mut Scrape) {
        let (core, counted) = (&self.0, &self.0.counters);
        let misses = counted.read_misses.get();
        // Misses are counted after reads: the difference may be off by what happens now.
        let hits = counted.reads.get().saturating_sub(misses);
        into.count(&READS, &["hit"], hits);
        into.count(&READS, &["miss"], misses);
        into.count(&READ, &[], counted.read_bytes.get());
        let in_flight = core.lanes.in_flight();
        for (substituter, lane, brought) in in_flight.brought() {
            let labels = [substituter, lane.as_str()];
            into.count(&FETCH_REQUESTS, &labels, brought.requests.get());
            into.count(&FETCHED, &labels, brought.bytes.get());
            into.count(&FETCH_ERRORS, &labels, brought.errors.get());
        }
        let transfers = in_flight.transfers();
        for lane in Lane::ALL {
            for stage in Stage::ALL {
                let these = transfers.iter();
                let these = these.filter(|t| t.lane == lane && t.stage == stage);
                let labels = [lane.as_str(), stage.as_str()];
                into.level(&TRANSFERS, &labels, these.count() as i64);
            }
        }
        for (lane, times) in in_flight.queued() {
            into.times(&QUEUED, &[lane.as_str()], times);
        }
        into.count(&ADMISSIONS, &["admitted"], counted.admitted.get());
        into.count(&ADMISSIONS, &["failed"], counted.admission_failures.get());
        into.level(&ADMITTING, &[], self.admissions().len() as i64);
        into.count(&NARINFOS, &["hit"], counted.narinfo_hits.get());
        into.count(&NARINFOS, &["miss"], counted.narinfo_misses.get());
        into.count(&VERIFIED, &[], counted.verified.get());
        into.count(&QUARANTINED, &[], counted.quarantined.get());
        into.count(&EVICTED, &[], counted.evicted.get());
        into.count(&FREED, &[], counted.evicted_bytes.get());
        into.count(&DAMAGED, &[], core.content.damaged_bytes());
        into.count(&COPIED, &[], counted.copied.get());
        into.count(&PROFILE_FETCHED, &[], counted.profile_fetched.get());
        into.count(&PROFILE_UNREAD, &[], counted.profile_unread.get());
        // A state directory that can't be read has other ways to say so.
        if let Ok(kept) = core.content.usage() {
            into.count(&KEPT, &[], kept);
        }
        if let Ok((_, Some(most))) = core.content.room(&core.settings.limits, 0) {
            into.count(&QUOTA, &[], most);
        }
        let (known, loaded) = core.paths.count();
        into.count(&PATHS, &["known"], known);
        into.count(&PATHS, &["loaded"], loaded);
        for substituter in self.substituters() {
            substituter.collect(into);
        }
    }
}
