//! The status directory and `statfs` while things happen, and readers that are killed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    corpus,
    gate::{mount, nar_url, serve},
    mounted::{Mounted, Setup, alive, run, shell, wait_until},
    scripted::{Gate, Reply},
    snapshot::{entry, files},
    truth,
};

/// Readers of each status document, and the time between two of their reads: 200 a second.
const READERS: usize = 4;
const EVERY: Duration = Duration::from_millis(5);
/// What may take no longer, though everything else hangs: far above what it takes.
const BOUND: Duration = Duration::from_secs(5);

/// An overlayfs with the mount as its lower directory.
struct Overlay(PathBuf);

impl Overlay {
    fn over(mounted: &Mounted) -> Self {
        let at = mounted.directory().join("overlay");
        let script = "mkdir \"$1\" \"$2\" \"$2/upper\" \"$2/work\"; mount -t overlay overlay \
                      -o \"lowerdir=$3,upperdir=$2/upper,workdir=$2/work\" \"$1\"";
        let scratch = mounted.directory().join("scratch");
        run(shell(script, &[&at, &scratch, &mounted.path()]));
        Self(at)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        // In a failing test it may be in use still, and goes with its users.
        let _ = rustix::mount::unmount(&self.0, flags);
    }
}

/// Reads a document again and again until told to stop; how many different ones there were.
fn poll(document: &Path, stop: &AtomicBool, reads: &AtomicUsize) -> usize {
    let (mut last, mut different) = (0, 0);
    while !stop.load(SeqCst) {
        let text = fs::read(document).expect("the status can be read at any time");
        let value: Value = serde_json::from_slice(&text).unwrap_or_else(|e| {
            panic!("torn: {e}: {}", String::from_utf8_lossy(&text));
        });
        let fetched = value["fetchedSize"].as_u64().expect("a number");
        assert!(
            fetched >= last,
            "fetchedSize went from {last} back to {fetched}"
        );
        assert!(fetched <= value["size"].as_u64().expect("a number"));
        different += usize::from(fetched != last);
        last = fetched;
        reads.fetch_add(1, SeqCst);
        std::thread::sleep(EVERY);
    }
    different
}

#[test]
fn documents_are_whole_whenever_they_are_read() {
    let server = serve("zstd");
    let root = corpus::store_path("python3.11");
    let url = nar_url("zstd", &root);
    // About two seconds for the whole.
    let packed = fs::metadata(corpus::cache("zstd").join(&url[1..]))
        .expect("the NAR")
        .len();
    let piece = usize::try_from(packed / 200).expect("small");
    server.on(
        &url,
        Reply::as_it_is().trickle(piece, Duration::from_millis(10)),
    );
    let mounted = mount(&server);
    fs::symlink_metadata(mounted.at(&root)).expect("it is there");
    let overlay = Overlay::over(&mounted);
    let document = mounted.status_file(&root);
    let through = overlay
        .0
        .join(document.strip_prefix(mounted.path()).expect("below"));
    let (stop, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let readers: Vec<_> = [&document, &through]
            .into_iter()
            .flat_map(|document| std::iter::repeat_n(document, READERS))
            .map(|document| scope.spawn(|| poll(document, &stop, &reads)))
            .collect();
        let trees = truth::trees(&root);
        let name = root
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let last = files(&trees[&name]).pop().expect("a file");
        let read = entry(&mounted.at(&root).join(&last));
        mounted.wait_until_idle();
        wait_until("the readers saw the end", {
            let enough = reads.load(SeqCst) + 100;
            let reads = &reads;
            move || reads.load(SeqCst) > enough
        });
        stop.store(true, SeqCst);
        for reader in readers {
            let different = reader.join().expect("no torn document");
            assert!(
                different > 20,
                "only {different} states seen: the test shows nothing"
            );
        }
        assert_eq!(trees[&name].get(&last), Some(&read));
    });
    let status = mounted.status(&root);
    assert_eq!(status["state"], "complete", "{status}");
    assert_eq!(status["verified"], true, "{status}");
    assert_eq!(status["fetchedSize"], status["size"], "{status}");
    let reads = reads.load(SeqCst);
    assert!(reads > 1000, "only {reads} reads");
}

/// Does `what`, which must not take long.
fn promptly<T: Send + 'static>(name: &str, what: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(what()));
    let begun = Instant::now();
    match receiver.recv_timeout(BOUND) {
        Ok(done) => done,
        Err(_) => panic!("{name}: no answer after {:?}", begun.elapsed()),
    }
}

#[test]
fn df_and_status_answer_while_reads_hang() {
    let server = serve("none");
    let root = corpus::store_path("python3.11");
    let mounted = mount(&server);
    let trees = truth::trees(&root);
    let closure = truth::closure(&root);
    for name in &closure {
        fs::symlink_metadata(mounted.at(name)).expect("it is there");
    }
    let gate = Gate::new();
    for name in &closure {
        let path = Path::new("/nix/store").join(name);
        server.on(&nar_url("none", &path), Reply::as_it_is().behind(&gate));
    }
    let mut wanted: Vec<_> = closure
        .iter()
        .flat_map(|name| {
            files(&trees[name])
                .into_iter()
                .map(move |file| (name, file))
        })
        .collect();
    let step = wanted.len() / 64;
    wanted = wanted.into_iter().step_by(step).take(64).collect();
    assert_eq!(wanted.len(), 64);
    std::thread::scope(|scope| {
        let readers: Vec<_> = wanted
            .iter()
            .map(|(name, file)| {
                let at = mounted.at(name).join(file);
                scope.spawn(move || entry(&at))
            })
            .collect();
        gate.wait_for(1);
        let before = mounted.counters()["reads"];
        assert!(before <= 64, "reads got through a closed gate");
        for _ in 0..10 {
            let path = mounted.path();
            let found = promptly("statfs", move || rustix::fs::statvfs(path).expect("statfs"));
            assert!(found.f_blocks > 0);
            let mut df = Command::new("df");
            df.arg(mounted.path());
            promptly("df", move || run(df));
            for document in [
                mounted.status_file(&root),
                mounted.path().join(".nix-snapshotter/summary.json"),
            ] {
                let text = promptly("status", move || fs::read(document).expect("readable"));
                serde_json::from_slice::<Value>(&text).expect("JSON");
            }
            let path = mounted.path();
            let names = promptly("readdir", move || {
                fs::read_dir(path).expect("listed").count()
            });
            assert!(names >= closure.len());
        }
        assert!(
            readers.iter().all(|reader| !reader.is_finished()),
            "they do not hang"
        );
        gate.open();
        for (reader, (name, file)) in readers.into_iter().zip(&wanted) {
            let read = reader.join().expect("it reads");
            assert_eq!(
                trees[*name].get(file),
                Some(&read),
                "{name}/{}",
                file.display()
            );
        }
    });
}

#[test]
fn what_is_known_answers_while_a_narinfo_hangs() {
    let server = serve("zstd");
    let root = corpus::store_path("redis-server");
    let name = root
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let mounted = mount(&server);
    let file = mounted.at(&root).join("bin/redis-server");
    let first = entry(&file);
    let gate = Gate::new();
    let hanging = format!("{}-hangs", "1".repeat(32));
    server.on(
        &format!("/{}.narinfo", "1".repeat(32)),
        Reply::status(404).behind(&gate),
    );
    let at = mounted.at(&hanging);
    let waiting = std::thread::spawn(move || fs::symlink_metadata(at));
    gate.wait_for(1);
    for n in 0..10 {
        let (at, file) = (mounted.at(&root), file.clone());
        let names = promptly("ls", move || fs::read_dir(at).expect("listed").count());
        assert!(names > 0);
        let again = promptly("read", move || entry(&file));
        assert_eq!(again, first);
        // A name that nobody looked up yet, so that it is the daemon that answers.
        let other = mounted.at(&root).join(format!("not-there-{n}"));
        let found = promptly("a lookup", move || fs::symlink_metadata(other));
        assert_eq!(
            found.expect_err("it is not there").kind(),
            std::io::ErrorKind::NotFound
        );
        let other = mounted.path().join(format!("no-store-path-{n}"));
        let found = promptly("a lookup in the root", move || fs::symlink_metadata(other));
        assert!(found.is_err());
    }
    let other = truth::closure(&root).pop().expect("a closure");
    assert_ne!(other, name);
    let at = mounted.at(&other);
    promptly("another store path", move || fs::symlink_metadata(at)).expect("it is there");
    assert!(!waiting.is_finished(), "it does not hang");
    gate.open();
    let error = waiting.join().expect("no panic").expect_err("404");
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_lookup_that_hangs_has_an_end_and_is_no_absence() {
    let server = serve("zstd");
    let root = corpus::store_path("redis-server");
    let digest = &root.file_name().expect("a name").to_string_lossy()[..32];
    let narinfo = format!("/{digest}.narinfo");
    let gate = Gate::new();
    server.on(&narinfo, Reply::as_it_is().behind(&gate));
    let setup = Setup::new(server.base(), corpus::public_key());
    let mounted = Mounted::start(setup.set("--lookup-timeout=1s"));
    let at = mounted.at(&root);
    let error = promptly("the lookup", move || fs::symlink_metadata(at));
    let error = error.expect_err("the narinfo never came");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    // So a process that is killed in it is gone by then.
    let mut command = Command::new("stat");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut reader = command.arg(mounted.at(&root)).spawn().expect("it starts");
    reader.kill().expect("killed");
    let pid = reader.id();
    promptly("the kill", move || {
        while alive(pid) {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    reader.wait().expect("collected");
    server.forget(&narinfo);
    gate.open();
    wait_until("it is there once the cache answers", || {
        fs::symlink_metadata(mounted.at(&root)).is_ok()
    });
}

#[test]
fn without_the_network_what_is_missing_is_an_error_and_comes_back() {
    let server = serve("none");
    let root = corpus::store_path("python3.11");
    let name = root
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let trees = truth::trees(&root);
    let mounted = Mounted::start(
        Setup::new(server.base(), corpus::public_key())
            .set("--tries=1")
            .set("--lookup-timeout=3s"),
    );
    let closure = truth::closure(&root);
    fs::symlink_metadata(mounted.at(&root)).expect("it is there");
    wait_until("the closure is known", || {
        mounted.counters()["admitted"] == closure.len() as u64
    });
    // Far from each other, so that one does not come along with the other.
    let all = files(&trees[&name]);
    let (read, unread) = (&all[0], &all[all.len() - 1]);
    let at = |file: &Path| mounted.at(&root).join(file);
    assert_eq!(trees[&name].get(read), Some(&entry(&at(read))));
    mounted.wait_until_idle();

    server.vanish();
    assert_eq!(trees[&name].get(read), Some(&entry(&at(read))));
    let error = fs::read(at(unread)).expect_err("it can't be fetched");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    let new = Path::new("/nix/store").join(format!("{}-new", "1".repeat(32)));
    let error = fs::symlink_metadata(mounted.at(&new)).expect_err("nobody can know");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    let status = mounted.status(&root);
    assert!(status["error"].is_string(), "{status}");

    server.come_back();
    assert_eq!(
        trees[&name].get(unread),
        Some(&entry(&at(unread))),
        "the first read after it"
    );
    let error = fs::symlink_metadata(mounted.at(&new)).expect_err("no cache has it");
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    let status = mounted.status(&root);
    assert!(
        status.get("error").is_none(),
        "an error that is over: {status}"
    );
}

#[test]
fn a_reader_that_is_killed_while_it_waits_is_gone() {
    let server = serve("zstd");
    let root = corpus::store_path("redis-server");
    let gate = Gate::new();
    server.on(&nar_url("zstd", &root), Reply::as_it_is().behind(&gate));
    let mounted = mount(&server);
    let file = mounted.at(&root).join("bin/redis-server");
    let mut command = Command::new("cat");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .arg(&file);
    let mut reader = command.spawn().expect("it starts");
    gate.wait_for(1);
    wait_until("it waits in read", || {
        let counters = mounted.counters();
        counters["read_misses"] > 0
    });
    reader.kill().expect("killed");
    let pid = reader.id();
    promptly("the kill", move || {
        while alive(pid) {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    reader.wait().expect("collected");
    gate.open();
    let trees = truth::trees(&root);
    let name = root
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    assert_eq!(
        trees[&name].get(Path::new("bin/redis-server")),
        Some(&entry(&file))
    );
}
