//! The performance gate: requests to the cache and requests of the kernel for fixed workloads,
//! counted exactly. Times are for the benchmarks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    corpus,
    mounted::{Mounted, Setup, run, wait_until},
    scripted::{Gate, Reply, Server},
    snapshot::{Entry, assert_same, entry, files, snapshot},
    truth,
};

/// More than the file may be fetched for a small file, in bytes.
const BEYOND: u64 = 128 * 1024;

/// A server that counts, with a cache of the corpus.
pub fn serve(cache: &str) -> Server {
    let server = Server::start();
    server.directory(corpus::cache(cache));
    server
}

/// A mount of it.
pub fn mount(server: &Server) -> Mounted {
    Mounted::start(Setup::new(server.base(), corpus::public_key()))
}

/// The paths of the requests so far, without those for the cache itself.
fn asked(server: &Server) -> Vec<String> {
    let paths = server.requests().into_iter().map(|request| request.path);
    paths.filter(|path| path != "/nix-cache-info").collect()
}

fn nars(server: &Server) -> Vec<crate::scripted::Request> {
    let requests = server.requests().into_iter();
    requests
        .filter(|request| request.path.starts_with("/nar/"))
        .collect()
}

/// A path of the corpus that refers to nothing but itself.
fn lonely() -> String {
    let closure = truth::closure(&corpus::store_path("redis-server"));
    let glibc = closure.into_iter().find(|name| name.contains("-glibc-"));
    let glibc = glibc.expect("every program needs it");
    assert_eq!(truth::closure(Path::new(&glibc)).len(), 1);
    glibc
}

/// The first non-empty file of `tree` with a size in `sizes`.
fn file_of(root: &Path, sizes: std::ops::Range<u64>) -> (PathBuf, u64) {
    let trees = truth::trees(root);
    let tree = &trees[&*root.file_name().expect("a name").to_string_lossy()];
    let found = files(tree).into_iter().find_map(|path| match tree[&path] {
        Entry::File { size, .. } if sizes.contains(&size) => Some((path, size)),
        _ => None,
    });
    found.expect("the corpus has one")
}

#[test]
fn listing_a_path_costs_its_narinfo_and_its_listing() {
    let server = serve("zstd");
    let mounted = mount(&server);
    let name = lonely();
    let mut ls = Command::new("ls");
    ls.arg("-lR").arg(mounted.at(&name));
    let lines = run(ls).lines().count();
    assert!(lines > 100, "{lines}");
    let digest = &name[..32];
    // Both are asked for at the same time: either may reach the cache first.
    let mut asked = asked(&server);
    asked.sort();
    assert_eq!(
        asked,
        [format!("/{digest}.ls"), format!("/{digest}.narinfo")]
    );
}

#[test]
fn what_the_kernel_knows_it_does_not_ask_again() {
    let server = serve("none");
    let mounted = mount(&server);
    let root = corpus::store_path("redis-server");
    let (inner, _) = file_of(&root, 1..10 << 20);
    let file = mounted.at(&root).join(&inner);
    let missing = mounted.at(&root).join("bin/not-there");
    let absent = mounted.at(format!("{}-absent", "0".repeat(32)));
    let probe = mounted.path().join("libfoo.so.1");
    let look = || {
        assert!(fs::symlink_metadata(&file).is_ok());
        for name in [&missing, &probe] {
            let error = fs::symlink_metadata(name).expect_err("it is not there");
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::NotFound,
                "{}",
                name.display()
            );
        }
    };
    look();
    wait_until("the closure is admitted", || {
        asked(&server).len() == 2 * truth::closure(&root).len()
    });
    let before = mounted.upcalls();
    for _ in 0..5 {
        look();
    }
    assert_eq!(mounted.upcalls(), before, "the kernel asked again");

    // What no cache has is asked for once, whatever the kernel forgets.
    server.clear();
    for _ in 0..3 {
        assert!(fs::symlink_metadata(&absent).is_err());
    }
    assert_eq!(asked(&server), [format!("/{}.narinfo", "0".repeat(32))]);

    // Bytes that were read once come out of the page cache.
    let bytes = fs::read(&file).expect("readable");
    let before = mounted.counters()["reads"];
    assert_eq!(fs::read(&file).expect("readable"), bytes);
    assert_eq!(mounted.counters()["reads"], before);
}

#[test]
fn names_that_are_no_store_paths_cost_no_request() {
    let server = serve("zstd");
    let mounted = mount(&server);
    for n in 0..10_000 {
        let probe = mounted.path().join(format!("libprobe-{n}.so"));
        assert!(fs::symlink_metadata(probe).is_err());
    }
    assert_eq!(asked(&server), [""; 0]);
}

#[test]
fn a_small_file_is_one_small_range() {
    let server = serve("none");
    let root = corpus::store_path("python3.11");
    let mounted = mount(&server);
    let (inner, size) = file_of(&root, 1000..4000);
    let trees = truth::trees(&root);
    let name = root.file_name().expect("a name").to_string_lossy();
    assert_eq!(
        Some(&entry(&mounted.at(&root).join(&inner))),
        trees[&*name].get(&inner)
    );
    let nars = nars(&server);
    assert_eq!(nars.len(), 1, "{nars:?}");
    let (from, to) = byte_range(&nars[0]);
    let fetched = to - from + 1;
    assert!(
        fetched <= size + BEYOND,
        "{fetched} bytes for a file of {size}"
    );
}

#[test]
fn two_hundred_processes_fetch_a_file_once() {
    let server = serve("zstd");
    let root = corpus::store_path("redis-server");
    let gate = Gate::new();
    let url = nar_url("zstd", &root);
    server.on(&url, Reply::as_it_is().behind(&gate));
    let mounted = mount(&server);
    let (inner, size) = file_of(&root, 1 << 20..100 << 20);
    let file = mounted.at(&root).join(&inner);
    let readers: Vec<_> = (0..200)
        .map(|_| {
            let mut command = Command::new("sha256sum");
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .arg(&file);
            command.spawn().expect("it starts")
        })
        .collect();
    gate.wait_for(1);
    gate.open();
    let outputs: BTreeSet<_> = readers
        .into_iter()
        .map(|reader| reader.wait_with_output().expect("it ends"))
        .map(|output| (output.status.success(), output.stdout))
        .collect();
    assert_eq!(outputs.len(), 1, "they read different bytes");
    assert!(outputs.first().expect("one").0);
    mounted.wait_until_idle();
    let mut asked: Vec<_> = nars(&server)
        .into_iter()
        .map(|request| request.path)
        .collect();
    assert_eq!(
        asked.iter().filter(|path| **path == url).count(),
        1,
        "{size} bytes: {asked:?}"
    );
    // The libraries that the program names come ahead of need, each once as well.
    let all = asked.len();
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), all, "{asked:?}");
}

#[test]
fn two_hundred_threads_fetch_every_byte_once() {
    let server = serve("none");
    let root = corpus::store_path("redis-server");
    let mounted = mount(&server);
    let (inner, size) = file_of(&root, 1 << 20..100 << 20);
    let file = mounted.at(&root).join(&inner);
    let hashes: BTreeSet<_> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..200)
            .map(|_| scope.spawn(|| crate::snapshot::hash(&file)))
            .collect();
        readers
            .into_iter()
            .map(|r| r.join().expect("it reads"))
            .collect()
    });
    assert_eq!(hashes.len(), 1, "they read different bytes");
    mounted.wait_until_idle();
    // The libraries that the program names come ahead of need: every NAR by itself.
    let mut ranges: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    for request in nars(&server) {
        let range = byte_range(&request);
        ranges.entry(request.path).or_default().push(range);
    }
    for (path, ranges) in &mut ranges {
        ranges.sort();
        for pair in ranges.windows(2) {
            assert!(pair[0].1 < pair[1].0, "{path}: fetched twice: {ranges:?}");
        }
    }
    let of_it = &ranges[&nar_url("none", &root)];
    let total: u64 = of_it.iter().map(|(from, to)| to - from + 1).sum();
    assert!(total >= size, "{total} of {size}");
}

/// First and last byte that were asked for.
fn byte_range(request: &crate::scripted::Request) -> (u64, u64) {
    let range = request.header("range").expect("a range, not the whole");
    let range = range.strip_prefix("bytes=").and_then(|r| r.split_once('-'));
    let (from, to) = range.expect("a range of bytes");
    (
        from.parse().expect("a number"),
        to.parse().expect("a number"),
    )
}

/// Where a cache keeps the NAR of a path, as the server sees it.
pub fn nar_url(cache: &str, root: &Path) -> String {
    let digest = &root.file_name().expect("a name").to_string_lossy()[..32];
    let file = corpus::cache(cache).join(format!("{digest}.narinfo"));
    let text = fs::read_to_string(file).expect("a narinfo");
    let url = text.lines().find_map(|line| line.strip_prefix("URL: "));
    format!("/{}", url.expect("a URL"))
}

#[test]
fn a_warm_restart_asks_for_nothing() {
    let server = serve("zstd");
    let root = corpus::store_path("redis-server");
    let trees = truth::trees(&root);
    let mounted = mount(&server);
    let compare = || {
        for (name, wanted) in &*trees {
            assert_same(name, &snapshot(&mounted.at(name)), wanted);
        }
    };
    compare();
    mounted.wait_until_idle();
    mounted.stop();
    server.clear();
    mounted.start_again();
    compare();
    let absent = mounted.at(&root).join("lib/not-there.so");
    assert!(fs::symlink_metadata(absent).is_err());
    mounted.stop();
    let requests = server.requests();
    assert!(requests.is_empty(), "{requests:?}");
}

#[test]
fn the_first_touch_admits_the_closure() {
    let server = serve("zstd");
    let root = corpus::store_path("python3.11");
    let mounted = mount(&server);
    fs::symlink_metadata(mounted.at(&root)).expect("it is there");
    let closure = truth::closure(&root);
    let mut wanted: Vec<String> = closure
        .iter()
        .flat_map(|name| ["narinfo", "ls"].map(|kind| format!("/{}.{kind}", &name[..32])))
        .collect();
    wanted.sort();
    wait_until("all were asked for", || {
        asked(&server).len() >= wanted.len()
    });
    wait_until("all are known", || {
        mounted.counters()["admitted"] == closure.len() as u64
    });
    let mut found = asked(&server);
    found.sort();
    assert_eq!(found, wanted);
    // And the loader finds them all without a further request.
    for name in &closure {
        fs::symlink_metadata(mounted.at(name)).expect("it is there");
    }
    assert_eq!(asked(&server).len(), wanted.len());
}
