//! `user.narfs.*`: what a user sees of a file's state, for nothing.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use rustix::io::Errno;

use crate::{
    admin_client::metrics,
    corpus,
    gate::{mount, serve},
    mounted::{Mounted, run, shell, wait_until},
    scripted::Gate,
    truth,
};

/// What `getfattr -d -m -` prints, by name.
fn attributes(path: &Path) -> BTreeMap<String, String> {
    let mut getfattr = Command::new("getfattr");
    getfattr
        .args(["-d", "-m", "-", "--absolute-names"])
        .arg(path);
    let text = run(getfattr);
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

fn upcalls(mounted: &Mounted, opcode: &str) -> f64 {
    metrics(&mounted.state_dir())[&format!("narfs_fuse_requests_total{{opcode=\"{opcode}\"}}")]
}

#[test]
fn they_say_how_far_a_file_is_and_fetch_nothing() {
    let server = serve("none");
    let root = corpus::store_path("redis-server");
    let mounted = mount(&server);
    let file = mounted.at(&root).join("bin/redis-server");
    let size = fs::metadata(&file).expect("it is there").len();
    let nar_size = fs::metadata(truth::nar(
        &root.file_name().expect("a name").to_string_lossy(),
    ))
    .map(|m| m.len());
    wait_until("the closure is admitted", || {
        let admitted = "narfs_admissions_total{result=\"admitted\"}";
        metrics(&mounted.state_dir())[admitted] == truth::closure(&root).len() as f64
    });
    server.clear();

    let cold = attributes(&file);
    let names: Vec<_> = cold.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "user.narfs.fetched",
            "user.narfs.nar-hash",
            "user.narfs.size",
            "user.narfs.source",
            "user.narfs.state",
            "user.narfs.store-path",
        ]
    );
    assert_eq!(cold["user.narfs.state"], "known");
    assert_eq!(cold["user.narfs.fetched"], "0");
    assert_eq!(cold["user.narfs.size"], size.to_string());
    assert_eq!(cold["user.narfs.store-path"], root.display().to_string());
    assert_eq!(cold["user.narfs.source"], server.base());
    assert!(cold["user.narfs.nar-hash"].starts_with("sha256:"));
    let whole = attributes(&mounted.at(&root));
    assert_eq!(whole["user.narfs.state"], "known");
    if let Ok(nar_size) = nar_size {
        assert_eq!(whole["user.narfs.size"], nar_size.to_string());
    }
    assert_eq!(server.requests().len(), 0, "looking fetched something");

    fs::read(&file).expect("readable");
    let warm = attributes(&file);
    assert_eq!(warm["user.narfs.state"], "complete");
    assert_eq!(warm["user.narfs.fetched"], size.to_string());
    let bin = attributes(&mounted.at(&root).join("bin"));
    assert!(bin["user.narfs.size"].parse::<u64>().expect("a number") >= size);
    assert!(bin["user.narfs.fetched"].parse::<u64>().expect("a number") >= size);

    // What is in no store path has none, others are nowhere, and a buffer may be too small.
    assert!(attributes(&mounted.path()).is_empty());
    let mut room = [0; 1000];
    for name in [
        "user.other",
        "security.capability",
        "user.narfs.",
        "user.narfs.nothing",
    ] {
        let found = rustix::fs::getxattr(&file, name, &mut room);
        assert_eq!(found, Err(Errno::NODATA), "{name}");
    }
    let found = rustix::fs::getxattr(&file, "user.narfs.state", &mut room[..2]);
    assert_eq!(found, Err(Errno::RANGE));

    // After a restart, too, and still for nothing; an error is there with its text.
    mounted.stop();
    server.everything(Some(crate::scripted::Reply::status(503)));
    server.clear();
    mounted.start_again();
    let again = attributes(&file);
    assert_eq!(again["user.narfs.state"], "complete");
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn an_error_is_told_and_a_hanging_fetch_is_not_waited_for() {
    let server = serve("none");
    let root = corpus::store_path("redis-server");
    let mounted = mount(&server);
    let file = mounted.at(&root).join("bin/redis-server");
    fs::metadata(&file).expect("it is there");
    let gate = Gate::new();
    let url = crate::gate::nar_url("none", &root);
    server.on(&url, crate::scripted::Reply::as_it_is().behind(&gate));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read(&file));
        gate.wait_for(1);
        assert_eq!(attributes(&file)["user.narfs.state"], "fetching");
        server.on(&url, crate::scripted::Reply::status(404));
        gate.open();
        let _ = reader.join().expect("it ends");
    });
    let other = mounted.at(&root).join("bin/redis-benchmark");
    let other = if other.exists() { other } else { file.clone() };
    // What came before the failure may serve it.
    if fs::read(&other).is_err() {
        assert!(attributes(&other)["user.narfs.last-error"].contains("gone"));
    }
}

#[test]
fn a_program_that_starts_costs_no_question_about_attributes() {
    let server = serve("none");
    let root = corpus::store_path("redis-server");
    let mounted = mount(&server);
    let program = mounted.at(&root).join("bin/redis-server");
    fs::read(&program).expect("readable");
    let before = upcalls(&mounted, "getxattr");
    // It is started, whether or not it finds its libraries: the kernel asks before that.
    for _ in 0..3 {
        let mut start = Command::new(&program);
        let _ = start.arg("--version").output();
    }
    assert_eq!(
        upcalls(&mounted, "getxattr"),
        before,
        "nosuid mounts have no capabilities to ask for"
    );
    // Through an overlay that is not nosuid, as a container's is, one for each start.
    let overlay = mounted.directory().join("overlay");
    let layers = overlay.with_file_name("layers");
    for directory in [
        &overlay,
        &layers,
        &layers.join("upper"),
        &layers.join("work"),
    ] {
        fs::create_dir_all(directory).expect("made");
    }
    run(shell(
        "mount -t overlay overlay -o lowerdir=$1,upperdir=$2/upper,workdir=$2/work $3",
        &[&mounted.path(), &layers, &overlay],
    ));
    let inside = overlay
        .join(root.file_name().expect("a name"))
        .join("bin/redis-server");
    let start = || {
        let mut start = Command::new(&inside);
        let _ = start.arg("--version").output();
    };
    // The first also asks for what overlays keep in attributes of directories.
    start();
    let before = upcalls(&mounted, "getxattr");
    const STARTS: usize = 5;
    for _ in 0..STARTS {
        start();
    }
    let asked = upcalls(&mounted, "getxattr") - before;
    run(shell("umount $1", &[&overlay]));
    eprintln!("{asked} getxattr for {STARTS} starts through an overlay");
    assert!(asked <= STARTS as f64, "{asked} for {STARTS} starts");
}
