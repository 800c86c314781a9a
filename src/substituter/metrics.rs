//! The metrics of a substituter.

use super::Substituter;
use crate::metrics::{Label, Metric, Scrape, Source, Unit};

const SUBSTITUTER: Label = Label {
    name: "substituter",
    bound: "the URLs of the configured caches, without credentials",
};

static REQUESTS: Metric = Metric::counter(
    "narfs_substituter_requests",
    Unit::None,
    "Requests to a cache, retries and redirects included",
)
.labels(&[SUBSTITUTER]);
static RECEIVED: Metric = Metric::counter(
    "narfs_substituter_received",
    Unit::Bytes,
    "Bytes of bodies that a cache sent",
)
.labels(&[SUBSTITUTER]);
static FAILURES: Metric = Metric::counter(
    "narfs_substituter_failures",
    Unit::None,
    "Calls to a cache that failed for good, and bodies that broke off",
)
.labels(&[
    SUBSTITUTER,
    Label {
        name: "reason",
        bound: "22 words: connect, dns, tls, stalled, status, truncated, ...",
    },
]);
static UP: Metric = Metric::gauge(
    "narfs_substituter_up",
    Unit::None,
    "0 while a cache can't be reached, else 1",
)
.labels(&[SUBSTITUTER]);

/// All of them.
pub static METRICS: &[&Metric] = &[&REQUESTS, &RECEIVED, &FAILURES, &UP];

impl Source for Substituter {
    fn collect(&self, into: &mut Scrape) {
        let (name, counters) = (self.name(), self.counters());
        into.count(&REQUESTS, &[name], counters.requests());
        into.count(&RECEIVED, &[name], counters.bytes_received());
        for (slug, n) in counters.failures_by_slug() {
            into.count(&FAILURES, &[name, slug], n);
        }
        into.level(&UP, &[name], i64::from(!self.health().is_offline()));
    }
}
