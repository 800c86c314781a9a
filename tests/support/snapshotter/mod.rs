//! `narfs snapshotter` as a process with its own root, socket and mount, asked over gRPC as
//! containerd asks it; taken down completely when it is dropped.
//!
//! ```text
//! mod.rs     the process: started, stopped, killed
//! calls.rs   the ten calls
//! mounts.rs  what they return, mounted as containerd mounts it
//! ```
#![allow(
    dead_code,
    reason = "every test binary includes this directory and uses a part of it"
)]

mod calls;
mod mounts;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::AtomicUsize,
    time::{Duration, Instant},
};

use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

pub use self::{
    calls::{Calls, Labels, labels},
    mounts::{Root, lowers, option},
};

/// Longer than anything here takes; only what hangs meets it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Over which caches, and how.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    flags: Vec<String>,
}

impl Setup {
    /// Without any cache: for what has nothing to do with Nix.
    pub fn without_caches() -> Self {
        Self::default()
    }

    /// One cache whose signatures `key` makes.
    pub fn new(cache: &str, key: &str) -> Self {
        Self::default().cache(cache, key)
    }

    /// With a further one.
    pub fn cache(self, cache: &str, key: &str) -> Self {
        self.flag(&format!("--cache={cache}"))
            .flag(&format!("--trusted-key={key}"))
    }

    /// With a further flag.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }
}

/// The process. See the module.
pub struct Snapshotter {
    setup: Setup,
    runtime: Runtime,
    child: Option<Child>,
    calls: Option<Calls>,
    roots: AtomicUsize,
    // Last: what is mounted in it goes first.
    directory: tempfile::TempDir,
}

impl Snapshotter {
    /// Starts it; it answers when this returns.
    pub fn start(setup: Setup) -> Self {
        assert!(
            rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "the tests of the snapshotter need root and /dev/fuse; they are not skipped without"
        );
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("config.toml"), "caches = []").expect("a configuration");
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime for the client");
        let mut snapshotter = Self {
            setup,
            runtime,
            child: None,
            calls: None,
            roots: AtomicUsize::new(0),
            directory,
        };
        snapshotter.start_again();
        snapshotter
    }

    /// Starts it after it ended.
    pub fn start_again(&mut self) {
        let mut command = self.narfs();
        command
            .arg("snapshotter")
            .arg(format!("--address={}", self.socket().display()))
            .arg(format!("--root={}", self.root().display()))
            .args(&self.setup.flags);
        let mut options = fs::File::options();
        let log = options.create(true).append(true).open(self.log_file());
        let log = log.expect("a log");
        command.stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.child = Some(command.spawn().expect("the program can be run"));
        let calls = self.runtime.block_on(Calls::to(&self.socket()));
        self.calls = Some(calls.on(self.runtime.handle().clone()));
        let deadline = Instant::now() + PATIENCE;
        while self.list(&[]).is_err() {
            let child = self.child.as_mut().expect("it was started");
            let ended = child.try_wait().expect("ours");
            assert!(ended.is_none(), "it ended: {ended:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM; it has to end well.
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("it runs");
        kill_process(Pid::from_child(&child), Signal::TERM).expect("signalled");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("ours") {
                assert!(status.success(), "{status}\n{}", self.log());
                return;
            }
            assert!(Instant::now() < deadline, "SIGTERM does not end it");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("killed");
        child.wait().expect("ours");
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Stops it well and starts it again.
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// The directory of everything that it keeps.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Where it mounts the store.
    pub fn mountpoint(&self) -> PathBuf {
        self.root().join("mnt")
    }

    /// containerd's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("run/snapshotter.sock")
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// What it wrote to its log in all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// `narfs` with nothing of the environment's settings, and this state directory.
    pub fn narfs(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_narfs"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NARFS_") {
                command.env_remove(name);
            }
        }
        let config = self.directory.path().join("config.toml");
        command.arg("--config").arg(config);
        command
    }

    /// What a verb that asks the running program prints, which has to be JSON.
    pub fn ask(&self, verb: &[&str]) -> Value {
        let mut command = self.narfs();
        command.arg("--state-dir").arg(self.root()).args(verb);
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().expect("the program can be run");
        let said = String::from_utf8_lossy(&stderr);
        assert!(status.success(), "narfs {verb:?}: {status}: {said}");
        let shown = String::from_utf8_lossy(&stdout);
        serde_json::from_slice(&stdout).unwrap_or_else(|e| panic!("{verb:?}: {e}: {shown}"))
    }

    /// Names of the store paths whose content a collection would drop: complete or partial, and
    /// held by nothing.
    pub fn collectable(&self) -> BTreeSet<String> {
        let found = self.ask(&["gc", "--dry-run", "--partial", "--json"]);
        let dropped = found["dropped"].as_array().expect("a list");
        let paths = dropped
            .iter()
            .flat_map(|one| one["storePaths"].as_array().expect("a list"));
        paths
            .map(|path| base_name(path.as_str().expect("a text")))
            .collect()
    }

    /// Numbers of the snapshots that have a directory.
    pub fn directories(&self) -> BTreeSet<String> {
        names(&self.root().join("snapshots"))
    }

    /// Names of the views in the mount.
    pub fn views(&self) -> BTreeSet<String> {
        names(&self.mountpoint().join("views"))
    }

    /// Asserts that nothing but `snapshots` of them is left once the cleaner has been here.
    pub fn assert_holds_only(&self, snapshots: usize, views: usize) {
        self.cleanup().expect("what is left can be deleted");
        assert_eq!(self.list(&[]).expect("a list").len(), snapshots);
        let directories = self.directories();
        assert_eq!(directories.len(), snapshots, "{directories:?}");
        self.wait_for_views(views);
    }

    /// Waits until the mount has so many views: the kernel hears of one that went a moment later.
    pub fn wait_for_views(&self, views: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.views();
            if found.len() == views {
                return;
            }
            assert!(Instant::now() < deadline, "{found:?}, not {views}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl std::ops::Deref for Snapshotter {
    type Target = Calls;

    fn deref(&self) -> &Calls {
        self.calls.as_ref().expect("it was started")
    }
}

impl Drop for Snapshotter {
    fn drop(&mut self) {
        // A failing test may have left anything behind; and a panic here would hide it.
        if let Some(mut child) = self.child.take() {
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(10);
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the snapshotter's log:\n{}---", self.log());
        }
        // Nobody answers any more, and whoever waits for an answer would wait for ever.
        mounts::abort(&self.mountpoint());
        // Whoever keeps the mount ends with it.
        for path in mounts::below(self.directory.path()) {
            let _ = unmount(&path, UnmountFlags::DETACH);
        }
    }
}

/// Names in a directory.
pub fn names(directory: &Path) -> BTreeSet<String> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("UTF-8");
    entries.map(|e| name(e.expect("readable"))).collect()
}

/// `hash-name` of a store path, whether absolute or not.
pub fn base_name(path: &str) -> String {
    path.strip_prefix("/nix/store/").unwrap_or(path).to_owned()
}
