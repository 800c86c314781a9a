//! `narfs snapshotter` as a process that is started, stopped and killed.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use narfs::daemon::{
    client::{ask, connect},
    protocol::{Reply, Request},
};
use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;

use crate::{
    containerd::{Version, mounts_below},
    mounted::{alive, narfs, read_json, run, wait_until},
};

/// `narfs snapshotter`, with everything of its in one directory.
pub struct Snapshotter {
    cache: String,
    key: String,
    directory: tempfile::TempDir,
    process: RefCell<Option<Child>>,
}

impl Snapshotter {
    /// Over one cache; it serves when this returns.
    pub fn start(cache: &str, key: &str) -> Self {
        Self::configured(cache, key, "")
    }

    /// The same with a configuration file.
    pub fn configured(cache: &str, key: &str, configuration: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "the snapshotter needs root and /dev/fuse; these tests are not skipped without"
        );
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("config.toml"), configuration).expect("a configuration");
        let snapshotter = Self {
            cache: cache.to_owned(),
            key: key.to_owned(),
            directory,
            process: RefCell::new(None),
        };
        snapshotter.start_again();
        snapshotter
    }

    /// Ends it and starts it with another configuration.
    pub fn configure(&self, configuration: &str) {
        self.stop();
        fs::write(self.directory.path().join("config.toml"), configuration)
            .expect("a configuration");
        self.start_again();
    }

    /// Starts what was stopped or killed.
    pub fn start_again(&self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .expect("a log");
        let mut command = narfs();
        command
            .arg("--config")
            .arg(self.directory.path().join("config.toml"))
            .arg(format!("--cache={}", self.cache))
            .arg(format!("--trusted-key={}", self.key))
            .arg("snapshotter")
            .arg("--address")
            .arg(self.socket())
            .arg("--root")
            .arg(self.root());
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("narfs was built");
        self.process.replace(Some(child));
        wait_until("the snapshotter listens", || {
            assert!(self.runs(), "the snapshotter ended:\n{}", self.log());
            std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
        });
    }

    /// The configuration with which a containerd uses it.
    pub fn drop_in(&self, version: Version) -> String {
        let mut command = narfs();
        command.args(["containerd-config", "--version", version.generation()]);
        command.arg("--address").arg(self.socket());
        command.arg("--root").arg(self.root());
        run(command)
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        let mut process = self.process.borrow_mut();
        let status = process.as_mut().map(Child::try_wait);
        matches!(status, Some(Ok(None)))
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("narfs.sock")
    }

    /// Its state directory.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        let process = self.process.borrow();
        process.as_ref().expect("it was started").id()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// SIGTERM; returns when the process is gone.
    pub fn stop(&self) {
        self.end(Signal::TERM);
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.end(Signal::KILL);
    }

    fn end(&self, signal: Signal) {
        let Some(mut child) = self.process.take() else {
            return;
        };
        // Fails where it ended by itself, which is what is wanted.
        let _ = kill_process(Pid::from_child(&child), signal);
        let deadline = Instant::now() + Duration::from_secs(20);
        while alive(child.id()) && Instant::now() < deadline {
            if child.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// What its store counted since it started.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let stream = connect(&self.root())
            .expect("the socket can be used")
            .unwrap_or_else(|| panic!("no daemon; its log:\n{}", self.log()));
        let mut counters = None;
        let told = ask(stream, Request::Info, None, |reply| {
            if let Reply::Info(info) = reply {
                counters = Some(info.counters);
            }
        });
        told.expect("the daemon answers");
        counters.expect("it says what it counted")
    }

    /// The summary of everything it knows.
    pub fn summary(&self) -> Value {
        let summary = "mnt/.nix-snapshotter/summary.json";
        read_json(&self.root().join(summary))
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.and_then(|kib| kib.parse::<u64>().ok())
            .expect("a number")
            * 1024
    }
}

impl Drop for Snapshotter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the snapshotter's log:\n{}---", self.log());
        }
        self.end(Signal::TERM);
        for point in mounts_below(self.directory.path()).into_iter().rev() {
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
}
