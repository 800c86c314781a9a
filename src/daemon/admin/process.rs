//! The metrics of the process: what the system says of it, and what it serves.
//!
//! Names that begin with `process_` are those that every Prometheus client library uses.

use std::sync::atomic::Ordering::SeqCst;

use crate::{
    daemon::serve::Shared,
    metrics::{Label, Metric, Scrape, Source, Unit},
};

static BUILD: Metric = Metric::gauge("narfs_build_info", Unit::None, "Always 1").labels(&[Label {
    name: "version",
    bound: "the one version that runs",
}]);
static UPTIME: Metric = Metric::gauge(
    "narfs_uptime",
    Unit::Seconds,
    "Time since the daemon opened its store",
);
static MOUNTS: Metric = Metric::gauge("narfs_mounts", Unit::None, "Mounts that are served");
static CLIENTS: Metric = Metric::gauge(
    "narfs_control_clients",
    Unit::None,
    "Commands that the control socket serves now",
);
static RESIDENT: Metric = Metric::gauge(
    "process_resident_memory",
    Unit::Bytes,
    "Memory that the process has in RAM, mapped trees included",
);
static ANONYMOUS: Metric = Metric::gauge(
    "narfs_anonymous_memory",
    Unit::Bytes,
    "That of it which is the process's own: no files",
);
static CPU: Metric = Metric::counter(
    "process_cpu",
    Unit::Seconds,
    "Processor time, of programs and of the kernel for them",
);
static OPEN: Metric = Metric::gauge("process_open_fds", Unit::None, "Open file descriptors");
static MOST: Metric = Metric::gauge(
    "process_max_fds",
    Unit::None,
    "The most file descriptors that may be open",
);
static THREADS: Metric = Metric::gauge("process_threads", Unit::None, "Threads");
static START: Metric = Metric::gauge(
    "process_start_time",
    Unit::Seconds,
    "When the daemon opened its store, in Unix time",
);

/// All of them.
pub static METRICS: &[&Metric] = &[
    &BUILD, &UPTIME, &MOUNTS, &CLIENTS, &RESIDENT, &ANONYMOUS, &CPU, &OPEN, &MOST, &THREADS, &START,
];

/// This process.
pub(super) struct Process<'a>(pub &'a Shared);

impl Source for Process<'_> {
    fn collect(&self, into: &mut Scrape) {
        let shared = self.0;
        into.count(&BUILD, &[env!("CARGO_PKG_VERSION")], 1);
        into.real(&UPTIME, &[], shared.begun.elapsed().as_secs_f64());
        into.count(&MOUNTS, &[], shared.mounts.load(SeqCst) as u64);
        into.count(&CLIENTS, &[], shared.clients.load(SeqCst) as u64);
        let started = std::time::SystemTime::now() - shared.begun.elapsed();
        if let Ok(started) = started.duration_since(std::time::UNIX_EPOCH) {
            into.real(&START, &[], started.as_secs_f64());
        }
        // What /proc does not tell (in a container without it) is left out.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        for (metric, name) in [(&RESIDENT, "VmRSS:"), (&ANONYMOUS, "RssAnon:")] {
            if let Some(kib) = field(name) {
                into.count(metric, &[], kib * 1024);
            }
        }
        if let Some(threads) = field("Threads:") {
            into.count(&THREADS, &[], threads);
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // One of them is that of the directory itself.
            into.count(&OPEN, &[], (open.count() as u64).saturating_sub(1));
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        if let Some(most) = limit.current {
            into.count(&MOST, &[], most);
        }
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        into.real(&CPU, &[], cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9);
    }
}
