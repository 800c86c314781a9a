//! The admin endpoint of a mount's daemon: what it counts, what it shows, and that it answers
//! while everything else waits.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use narfs::{daemon, fuse, metrics::Metric, store, substituter};

use crate::{
    admin_client::{ask, get, json, metrics},
    corpus,
    gate::{nar_url, serve},
    mounted::{Mounted, Setup, narfs, output, run, wait_until},
    scripted::{Gate, Reply},
    snapshot::{entry, files},
    truth,
};

/// What an answer may take at most on a machine that is busy; a hundredth of it is usual.
const BOUND: Duration = Duration::from_secs(2);

fn declared() -> Vec<&'static Metric> {
    let all = [
        store::METRICS,
        substituter::METRICS,
        fuse::METRICS,
        daemon::METRICS,
    ];
    all.into_iter().flatten().copied().collect()
}

#[test]
fn what_is_declared_is_counted_and_nothing_else() {
    let server = serve("none");
    let root = corpus::store_path("redis-server");
    let setup = Setup::new(server.base(), corpus::public_key());
    let mounted = Mounted::start(setup.set("--quota=100GiB"));
    let socket = mounted.state_dir().join("admin.sock");
    let mode = fs::metadata(socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let file = mounted.at(&root).join("bin/redis-server");
    let bytes = fs::read(&file).expect("readable");
    mounted.wait_until_idle();

    let text = get(&mounted.state_dir(), "/metrics");
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let shown: BTreeSet<_> = types.filter_map(|line| line.split(' ').next()).collect();
    let names: Vec<_> = declared().iter().map(|metric| metric.name()).collect();
    let declared: BTreeSet<_> = names.iter().map(String::as_str).collect();
    assert_eq!(shown, declared);
    // Labels are those that are declared, and no store path is among their values.
    assert!(!text.contains("-redis-"), "{text}");

    let counted = metrics(&mounted.state_dir());
    let sum = |name: &str| -> f64 {
        let these = counted
            .iter()
            .filter(|(series, _)| series.starts_with(name));
        these.map(|(_, value)| value).sum()
    };
    assert!(sum("narfs_read_bytes_total") >= bytes.len() as f64);
    assert!(sum("narfs_fetched_bytes_total") >= bytes.len() as f64);
    assert!(counted["narfs_reads_total{result=\"miss\"}"] >= 1.0);
    assert!(counted["narfs_fuse_requests_total{opcode=\"read\"}"] >= 1.0);
    assert!(counted["narfs_fuse_read_duration_seconds_count{result=\"miss\"}"] >= 1.0);
    assert!(
        counted["narfs_fuse_read_duration_seconds_bucket{result=\"miss\",le=\"+Inf\"}"] >= 1.0
            || counted["narfs_fuse_read_duration_seconds_bucket{le=\"+Inf\",result=\"miss\"}"]
                >= 1.0
    );
    let closure = truth::closure(&root).len() as f64;
    assert_eq!(
        counted["narfs_admissions_total{result=\"admitted\"}"],
        closure
    );
    assert_eq!(counted["narfs_paths{state=\"loaded\"}"], closure);
    assert!(sum("narfs_substituter_requests_total") > closure);
    assert_eq!(sum("narfs_substituter_up"), 1.0);
    assert_eq!(counted["narfs_mounts"], 1.0);
    assert_eq!(counted["narfs_quota_bytes"], (100u64 << 30) as f64);
    assert!(counted["narfs_content_bytes"] > 0.0);
    assert!(counted["process_resident_memory_bytes"] > 1e6);
    wait_until("every gauge of work is back at zero", || {
        let now = metrics(&mounted.state_dir());
        let work = [
            "narfs_transfers{",
            "narfs_fuse_waiting{",
            "narfs_admissions_under_way",
        ];
        let works = |series: &str| work.iter().any(|name| series.starts_with(name));
        now.iter()
            .all(|(series, value)| !works(series) || *value == 0.0)
    });

    // What was read once more was here.
    let hits = counted["narfs_reads_total{result=\"hit\"}"];
    rustix::fs::fadvise(
        fs::File::open(&file).expect("a file"),
        0,
        None,
        rustix::fs::Advice::DontNeed,
    )
    .expect("the kernel forgets");
    assert_eq!(fs::read(&file).expect("readable"), bytes);
    let now = metrics(&mounted.state_dir());
    assert!(now["narfs_reads_total{result=\"hit\"}"] > hits);
    assert_eq!(json(&mounted.state_dir(), "/status.json")["errors"], 0);
    let series = json(&mounted.state_dir(), "/debug/metrics.json");
    assert!(series.as_array().is_some_and(|all| all.len() > 50));
}

#[test]
fn all_of_it_answers_while_64_fetches_hang() {
    let server = serve("none");
    let root = corpus::store_path("python3.11");
    let setup = Setup::new(server.base(), corpus::public_key());
    let mounted = Mounted::start(setup);
    let trees = truth::trees(&root);
    let gate = Gate::new();
    let mut wanted = Vec::new();
    for name in truth::closure(&root) {
        let path = Path::new("/nix/store").join(&name);
        server.on(&nar_url("none", &path), Reply::as_it_is().behind(&gate));
        fs::symlink_metadata(mounted.at(&name)).expect("it is there");
        let files = files(&trees[&name]).into_iter();
        wanted.extend(files.map(|file| (name.clone(), file)));
    }
    let step = wanted.len() / 64;
    let wanted: Vec<_> = wanted.into_iter().step_by(step).take(64).collect();
    assert_eq!(wanted.len(), 64);
    let state = mounted.state_dir();
    let mut longest = Duration::ZERO;
    std::thread::scope(|scope| {
        let readers: Vec<_> = wanted
            .iter()
            .map(|(name, file)| {
                let at = mounted.at(name).join(file);
                scope.spawn(move || entry(&at))
            })
            .collect();
        wait_until("all of them wait", || {
            let shown = json(&state, "/debug/inflight");
            let waiting = shown["waiting"].as_array().expect("a list");
            let reads = waiting.iter().filter(|w| w["what"] == "read").count();
            // Files next to each other come with one request.
            reads == 64 && shown["transfers"].as_array().expect("a list").len() >= 16
        });
        let mut promptly = |what: &str, ask: &mut dyn FnMut()| {
            let begun = Instant::now();
            ask();
            let took = begun.elapsed();
            assert!(took < BOUND, "{what} took {took:?}");
            longest = longest.max(took);
        };
        for _ in 0..5 {
            promptly("statvfs", &mut || {
                rustix::fs::statvfs(mounted.path()).expect("statfs");
            });
            promptly("df", &mut || {
                let mut df = Command::new("df");
                df.arg(mounted.path());
                run(df);
            });
            for route in ["/metrics", "/status.json", "/debug/inflight", "/live"] {
                promptly(route, &mut || drop(get(&state, route)));
            }
            promptly("narfs status", &mut || {
                let mut status = mounted.narfs();
                status.arg("status");
                run(status);
            });
        }
        let shown = json(&state, "/debug/inflight");
        let waiting = &shown["waiting"][0];
        assert!(waiting["pid"].as_u64().expect("a pid") > 0);
        assert!(
            waiting["path"]
                .as_str()
                .expect("a path")
                .starts_with("/nix/store/")
        );
        assert!(waiting["since"].is_string() && waiting["deadline"].is_string());
        let transfer = &shown["transfers"][0];
        assert_eq!(transfer["substituter"], server.base());
        assert!(
            transfer["storePath"]
                .as_str()
                .expect("a path")
                .starts_with("/nix/store/")
        );
        let demand = shown["transfers"].as_array().expect("a list").iter();
        assert!(demand.filter(|t| t["lane"] == "demand").count() >= 16);
        // Readiness asks the mount itself, and that answers too.
        assert_eq!(get(&state, "/ready"), "ready\n");
        gate.open();
        for (reader, (name, file)) in readers.into_iter().zip(&wanted) {
            let read = reader.join().expect("it reads");
            assert_eq!(trees[name].get(file), Some(&read), "{name}");
        }
    });
    eprintln!("the longest answer took {longest:?}");
}

#[test]
fn a_loopback_address_answers_and_only_those_who_mean_it() {
    let server = serve("none");
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        free.local_addr().expect("an address").port()
    };
    let setup = Setup::new(server.base(), corpus::public_key());
    let _mounted = Mounted::start(setup.set(&format!("--metrics-listen=127.0.0.1:{port}")));
    wait_until("it listens", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let asked = |path: &str, host: &str| {
        ask(
            TcpStream::connect(("127.0.0.1", port)).expect("it listens"),
            path,
            host,
        )
    };
    let (status, text) = asked("/metrics", &format!("localhost:{port}"));
    assert!(
        status.contains(" 200 ") && text.contains("narfs_build_info"),
        "{status}"
    );
    assert!(asked("/metrics", "evil.example.org").0.contains(" 403 "));
    assert!(asked("/else", "127.0.0.1").0.contains(" 404 "));
    let mut elsewhere = narfs();
    elsewhere.args(["--metrics-listen=0.0.0.0:9633", "config"]);
    let refused = output(elsewhere);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("no loopback address"), "{error}");
}
