//! `narfs demo`, as root and as an ordinary user: what it shows is so, and nothing of it stays.

#[path = "support/elsewhere.rs"]
mod elsewhere;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::ffi::OsStrExt,
    process::{Command, Stdio},
};

use elsewhere::{Home, Place};
use rustix::process::Signal;
use serde_json::Value;

fn demo(home: &Home, arguments: &[&str]) -> Command {
    let mut command = home.narfs();
    command.arg("demo").args(arguments).stdin(Stdio::null());
    command
}

/// Temporary files, mounts and processes of the home, apart from the program's own copy.
fn left_behind(home: &Home) -> Vec<String> {
    let files = fs::read_dir(home.path().join("tmp")).expect("it is there");
    let mut left: Vec<_> = files
        .map(|f| f.expect("readable").path().display().to_string())
        .collect();
    let name = home.path().as_os_str().as_bytes();
    let contains = |bytes: &[u8]| bytes.windows(name.len()).any(|window| window == name);
    for process in fs::read_dir("/proc").expect("it is there") {
        let process = process.expect("readable").path();
        // Other processes come and go meanwhile.
        if fs::read(process.join("cmdline")).is_ok_and(|line| contains(&line)) {
            left.push(process.display().to_string());
        }
    }
    let mounts = fs::read_to_string("/proc/mounts").expect("it is there");
    left.extend(
        mounts
            .lines()
            .filter(|line| contains(line.as_bytes()))
            .map(str::to_owned),
    );
    left
}

#[test]
fn shows_that_little_is_fetched_and_leaves_nothing() {
    for place in Place::ALL {
        let home = Home::new(place);
        let output = demo(&home, &["--json", "--rtt", "30ms", "--mbit", "100"])
            .output()
            .expect("bash is there");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{place:?}: {said}");
        assert_eq!(said, "", "{place:?}");
        let figures: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let number = |name: &str| {
            figures[name]
                .as_u64()
                .unwrap_or_else(|| panic!("{name}: {figures}"))
        };
        // A narinfo and the NAR's first bytes, at the least.
        assert!(number("timeToFirstByteMs") >= 60, "{figures}");
        assert!(number("timeToExitMs") >= number("timeToFirstByteMs"));
        let (fetched, all) = (number("bytesFetched"), number("closureFileSize"));
        assert!(0 < fetched && fetched < all, "{fetched} of {all}");
        assert!(number("requests") >= 2 * number("storePathsTouched"));
        let paths = figures["paths"].as_array().expect("a list");
        assert_eq!(paths.len() as u64, number("storePaths"));
        let path = |name: &str| {
            let found = paths
                .iter()
                .find(|p| p["storePath"].as_str().is_some_and(|s| s.ends_with(name)));
            found.unwrap_or_else(|| panic!("{name}: {figures}")).clone()
        };
        assert_eq!(path("-demo-untouched")["fetchedSize"], 0, "{figures}");
        let program = path(concat!("-narfs-", env!("CARGO_PKG_VERSION")));
        assert!(program["fetchedSize"].as_u64() > Some(0), "{figures}");
        assert_eq!(left_behind(&home), Vec::<String>::new(), "{place:?}");
        assert!(!home.state().exists(), "{place:?}");
    }
}

#[test]
fn tells_people_what_it_does() {
    let home = Home::new(Place::BARE);
    let output = demo(&home, &["--rtt", "1ms", "--mbit", "400"])
        .output()
        .expect("bash is there");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for name in [
        "packed",
        "serving",
        "mounted",
        "running",
        "first byte",
        "finished",
        "fetched",
        "otherwise",
    ] {
        assert!(
            said.lines().any(|line| line.starts_with(name)),
            "{name}: {said}"
        );
    }
    assert!(said.contains("-demo-untouched"), "{said}");
    assert_eq!(left_behind(&home), Vec::<String>::new());
}

#[test]
fn an_interrupted_one_leaves_nothing_either() {
    for (place, signal) in [(Place::ROOT, Signal::INT), (Place::BARE, Signal::TERM)] {
        let home = Home::new(place);
        // So slow that it would take minutes.
        let mut child = demo(&home, &["--mbit", "0.1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash is there");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.starts_with("running") {
            line.clear();
            let length = stdout.read_line(&mut line).expect("UTF-8");
            assert_ne!(length, 0, "{place:?} ended: {:?}", child.wait_with_output());
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).expect("it runs");
        let status = child.wait().expect("it ends");
        let mut said = String::new();
        let mut stderr = child.stderr.take().expect("piped");
        stderr.read_to_string(&mut said).expect("UTF-8");
        assert_eq!(status.code(), Some(130), "{place:?}: {said}");
        assert!(said.ends_with("narfs: interrupted\n"), "{said}");
        assert_eq!(left_behind(&home), Vec::<String>::new(), "{place:?}");
    }
}

#[test]
fn without_the_device_it_says_what_to_do() {
    let home = Home::new(Place {
        fuse: false,
        ..Place::BARE
    });
    let output = demo(&home, &[]).output().expect("bash is there");
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/dev/fuse can't be opened"), "{said}");
    assert!(said.contains("chmod 0666 /dev/fuse"), "{said}");
    assert_eq!(left_behind(&home), Vec::<String>::new());
}
