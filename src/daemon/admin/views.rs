//! From what goes on to the documents that show it.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use narfs_state_schema::Timestamp;

use super::documents::{Admission, Cache, InFlight, PathError, Series, Transfer, Waiting};
use crate::{
    daemon::serve::Shared,
    fuse::{self, Opcode},
    metrics::{Scrape, Value},
    store::{Store, TransferView},
};

/// Most items of a list: more than anybody reads, and a document of bounded size.
const MOST: usize = 1000;

pub(super) fn in_flight(shared: &Shared) -> InFlight {
    let (store, now) = (&shared.store, Now(SystemTime::now()));
    let waiting = shared.options.upcalls.waiting().into_iter().take(MOST);
    let admissions = store.admissions().into_iter().take(MOST);
    let transfers = store.in_flight().transfers().into_iter().take(MOST);
    let caches = store.substituters().into_iter().map(|substituter| {
        let health = substituter.health();
        let last = health.last_failure();
        Cache {
            name: substituter.name().to_owned(),
            online: !health.is_offline(),
            offline_seconds: health.offline_for().map(|d| d.as_secs_f64()),
            last_error_at: last.as_ref().map(|last| timestamp(last.at)),
            last_error: last.map(|last| last.message),
        }
    });
    let errors = store
        .recent_errors()
        .into_iter()
        .map(|(path, error)| PathError {
            store_path: path.absolute(),
            at: timestamp(UNIX_EPOCH + Duration::from_secs(error.at)),
            message: error.message,
        });
    InFlight {
        at: timestamp(now.0),
        waiting: waiting.map(|w| who_waits(store, &now, w)).collect(),
        admissions: admissions
            .map(|(path, lane, age)| Admission {
                store_path: path.absolute(),
                lane: lane.as_str().into(),
                since: now.before(age),
                seconds: age.as_secs_f64(),
            })
            .collect(),
        transfers: transfers.map(|t| transfer(store, &now, t)).collect(),
        caches: caches.collect(),
        errors: errors.collect(),
    }
}

fn who_waits(store: &Store, now: &Now, waiting: fuse::Waiting) -> Waiting {
    let mut path = store.name_of(waiting.node);
    if let Some(name) = &waiting.name {
        path = format!("{path}/{}", String::from_utf8_lossy(name));
    }
    let settings = store.settings();
    let patience = match waiting.opcode {
        Opcode::Read => settings.read_timeout,
        _ => settings.lookup_timeout.max(settings.index_timeout),
    };
    Waiting {
        what: waiting.opcode.as_str().into(),
        pid: waiting.pid,
        program: program(waiting.pid),
        path,
        offset: waiting.range.map(|(offset, _)| offset),
        size: waiting.range.map(|(_, size)| size),
        since: now.before(waiting.age),
        seconds: waiting.age.as_secs_f64(),
        deadline: now.after(patience.saturating_sub(waiting.age)),
    }
}

/// The name of a thread. Not its command line, whose reader would wait for it where it waits for us.
fn program(pid: u32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name: Cow<'_, str> = String::from_utf8_lossy(&name);
    Some(name.trim_end().to_owned())
}

fn transfer(store: &Store, now: &Now, view: TransferView) -> Transfer {
    let known = store.known(&view.path);
    Transfer {
        id: view.id,
        store_path: view.path.absolute(),
        substituter: view.substituter,
        lane: view.lane.as_str().into(),
        stage: view.stage.as_str().into(),
        bytes: view.bytes,
        wanted: view.wanted,
        rate: view.rate.round(),
        since: now.before(view.age),
        seconds: view.age.as_secs_f64(),
        deadline: view.left.map(|left| now.after(left)),
        fetched_of: known.map(|path| (store.fetched_bytes(&path), path.nar_size)),
    }
}

pub(super) fn series(scrape: &Scrape) -> Vec<Series> {
    let mut all = Vec::new();
    for (metric, samples) in scrape.families() {
        for sample in samples {
            let mut add = |suffix: &str, value: f64| {
                let labels = sample.labels.iter();
                all.push(Series {
                    name: metric.name() + suffix,
                    labels: labels.map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
                    value,
                });
            };
            match &sample.value {
                Value::Whole(n) => add("", *n as f64),
                Value::Signed(n) => add("", *n as f64),
                Value::Real(n) => add("", *n),
                Value::Buckets { sum, buckets } => {
                    add("_count", buckets.iter().map(|(_, n)| *n as f64).sum());
                    add("_sum", *sum);
                }
            }
        }
    }
    all
}

struct Now(SystemTime);

impl Now {
    fn before(&self, age: Duration) -> Timestamp {
        timestamp(self.0.checked_sub(age).unwrap_or(UNIX_EPOCH))
    }

    fn after(&self, left: Duration) -> Timestamp {
        timestamp(self.0 + left)
    }
}

fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
