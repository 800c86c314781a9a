//! What the daemon says, twice, as numbers to show.

use std::collections::HashMap;

use narfs_state_schema::Summary;
use serde::Serialize;

use crate::{
    daemon::admin::{
        client::Client,
        documents::{InFlight, Series},
    },
    failure::Failure,
};

/// What the daemon says at one moment.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Said {
    pub summary: Summary,
    pub inflight: InFlight,
    pub metrics: Vec<Series>,
}

impl Said {
    pub fn ask(client: &Client) -> Result<Self, Failure> {
        Ok(Self {
            summary: client.json("/status.json")?,
            inflight: client.json("/debug/inflight")?,
            metrics: client.json("/debug/metrics.json")?,
        })
    }

    /// The sum of all series of a metric that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |series: &&Series| {
            series.name == name
                && labels
                    .iter()
                    .all(|(k, v)| series.labels.get(*k).is_some_and(|have| have == v))
        };
        self.metrics.iter().filter(has).map(|s| s.value).sum()
    }

    /// A metric that may be missing.
    pub fn value(&self, name: &str) -> Option<f64> {
        let series = self.metrics.iter().find(|series| series.name == name)?;
        Some(series.value)
    }
}

/// What is shown.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub said: Said,
    /// Bytes a second of each transfer, by its number, since the look before.
    pub rates: HashMap<u64, f64>,
    /// Bytes a second of all caches together, since the look before.
    pub incoming: f64,
    /// Bytes a second handed to readers, since the look before.
    pub outgoing: f64,
    /// Reads since the look before: here, and not here.
    pub reads: (f64, f64),
}

impl State {
    /// What is shown of `said`, with `before` as the look before.
    pub fn of(before: Option<&Said>, said: Said) -> Self {
        // Another process counts from zero again.
        let before = before.filter(|b| b.summary.daemon == said.summary.daemon);
        let uptime = |said: &Said| said.value("narfs_uptime_seconds").unwrap_or(0.0);
        let seconds = before.map_or(0.0, |before| uptime(&said) - uptime(before));
        let since = |name: &str, labels: &[(&str, &str)]| {
            before.map_or(0.0, |before| {
                said.sum(name, labels) - before.sum(name, labels)
            })
        };
        let per_second = |change: f64| match seconds > 0.0 {
            true => (change / seconds).max(0.0),
            false => 0.0,
        };
        let old: HashMap<u64, u64> = before
            .iter()
            .flat_map(|before| &before.inflight.transfers)
            .map(|transfer| (transfer.id, transfer.bytes))
            .collect();
        let rates = said.inflight.transfers.iter().map(|transfer| {
            let rate = match old.get(&transfer.id) {
                Some(bytes) => per_second(transfer.bytes.saturating_sub(*bytes) as f64),
                None => transfer.rate,
            };
            (transfer.id, rate)
        });
        Self {
            rates: rates.collect(),
            incoming: per_second(since("narfs_substituter_received_bytes_total", &[])),
            outgoing: per_second(since("narfs_read_bytes_total", &[])),
            reads: (
                since("narfs_reads_total", &[("result", "hit")]),
                since("narfs_reads_total", &[("result", "miss")]),
            ),
            said,
        }
    }

    /// Share of all reads since the daemon's start that were here, in percent; `None` before the
    /// first.
    pub fn hit_percent(&self) -> Option<f64> {
        let hits = self.said.sum("narfs_reads_total", &[("result", "hit")]);
        let misses = self.said.sum("narfs_reads_total", &[("result", "miss")]);
        (hits + misses > 0.0).then(|| hits * 100.0 / (hits + misses))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use narfs_state_schema::{DaemonStatus, StateCounts, SubstituterStatus, Timestamp};

    use super::*;
    use crate::daemon::admin::documents::{Cache, PathError, Transfer, Waiting};

    const PATH: &str = "/nix/store/00000000000000000000000000000000-hello-2.12.1";

    fn series(name: &str, labels: &[(&str, &str)], value: f64) -> Series {
        Series {
            name: name.into(),
            labels: labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<BTreeMap<_, _>>(),
            value,
        }
    }

    /// A daemon after so many seconds, that fetches a megabyte in each.
    pub fn said(seconds: f64) -> Said {
        let at = Timestamp::from_unix_millis(1_700_000_000_000);
        let bytes = (seconds * 1_000_000.0) as u64;
        Said {
            summary: Summary {
                paths: StateCounts {
                    total: 3,
                    fetching: 1,
                    complete: 2,
                    ..StateCounts::default()
                },
                size: 30_000_000,
                fetched_size: 20_000_000,
                fetched_percent: 66.66,
                errors: 1,
                substituters: vec![SubstituterStatus {
                    name: "https://cache.example.org/".into(),
                    priority: 40,
                    requests: 12,
                    bytes_received: bytes,
                    failures: 1,
                    last_error: None,
                }],
                substituters_omitted: 0,
                daemon: DaemonStatus {
                    version: "0.1.0".into(),
                    pid: 4711,
                    started: at.clone(),
                },
            },
            inflight: InFlight {
                at: at.clone(),
                waiting: vec![Waiting {
                    what: "read".into(),
                    pid: 99,
                    program: Some("python3".into()),
                    path: format!("{PATH}/bin/hello\u{1b}[2J"),
                    offset: Some(0),
                    size: Some(4096),
                    since: at.clone(),
                    seconds: 2.5,
                    deadline: at.clone(),
                }],
                admissions: Vec::new(),
                transfers: vec![Transfer {
                    id: 7,
                    store_path: PATH.into(),
                    substituter: Some("https://cache.example.org/".into()),
                    lane: "demand".into(),
                    stage: "flowing".into(),
                    bytes,
                    wanted: Some(10_000_000),
                    rate: 1.0,
                    since: at.clone(),
                    seconds,
                    deadline: None,
                    fetched_of: Some((bytes, 20_000_000)),
                }],
                caches: vec![
                    Cache {
                        name: "https://cache.example.org/".into(),
                        online: true,
                        offline_seconds: None,
                        last_error: None,
                        last_error_at: None,
                    },
                    Cache {
                        name: "https://gone.example.org/".into(),
                        online: false,
                        offline_seconds: Some(75.0),
                        last_error: Some("cannot connect: refused".into()),
                        last_error_at: Some(at.clone()),
                    },
                ],
                errors: vec![PathError {
                    store_path: PATH.into(),
                    message: "no answer before the deadline".into(),
                    at,
                }],
            },
            metrics: vec![
                series("narfs_uptime_seconds", &[], seconds),
                series("narfs_substituter_received_bytes_total", &[], bytes as f64),
                series("narfs_read_bytes_total", &[], bytes as f64 / 2.0),
                series("narfs_reads_total", &[("result", "hit")], 90.0),
                series("narfs_reads_total", &[("result", "miss")], 10.0),
            ],
        }
    }

    #[test]
    fn rates_are_what_came_between_two_looks() {
        let state = State::of(Some(&said(10.0)), said(12.0));
        assert_eq!(state.rates[&7].round(), 1_000_000.0);
        assert_eq!(state.incoming.round(), 1_000_000.0);
        assert_eq!(state.outgoing.round(), 500_000.0);
        assert_eq!(state.hit_percent(), Some(90.0));
    }

    #[test]
    fn another_process_is_no_look_before() {
        let mut before = said(1000.0);
        before.summary.daemon.pid = 1;
        let state = State::of(Some(&before), said(1.0));
        assert_eq!((state.incoming, state.reads), (0.0, (0.0, 0.0)));
        assert_eq!(state.rates[&7], 1.0, "what the daemon says itself");
    }
}
