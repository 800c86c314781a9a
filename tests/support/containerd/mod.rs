//! A private containerd: its own root, state, sockets and names of everything that machines share
//! (control groups, runc's state). Dropped, it leaves no process, mount or control group.
//!
//! What was tried with containerd 1.6.20, 1.7.24 and 2.1.9 and the tests rest on:
//!
//! - `ctr run` with Debian's runc works as it is, with control groups of version 1.
//! - runc keeps its state in `/run/containerd/runc/NAMESPACE/ID` whatever containerd's own state
//!   directory is: names of containers have to be unique on the machine.
//! - The annotations of an image's layers become labels of `Prepare` where containerd's *unpacker*
//!   works: in the CRI plugin's pull, and in the transfer service (`ctr images import
//!   --local=false` in 1.7; what 2.x does without a flag). Where `ctr` unpacks by itself they do
//!   not: `ctr images import` and `pull` in 1.6, which knows nothing else, in 1.7, and in 2.x with
//!   `--local`.
//! - Words behind the image's name in `ctr run` replace its entry point; in the CRI they are its
//!   arguments.
//! - 2.x takes a configuration of `version = 2`, but its CRI plugin loses the `snapshotter` of it.
//! - A registry on 127.0.0.1 may speak plain HTTP to the CRI plugin; `ctr` wants `--plain-http`,
//!   and the transfer service of 1.7 ignores that.
//! - Pods in the host's network need no CNI plugin and no CNI configuration.
//!
//! ```text
//! setup.rs      versions and configuration
//! container.rs  containers, and snapshots mounted
//! traces.rs     what is left of it on the machine, and taking that away
//! ```
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

mod container;
mod setup;
mod traces;

#[allow(
    unused_imports,
    reason = "not every test binary that includes this has containers"
)]
pub use container::Container;
pub use setup::{Setup, Version, architecture};
#[allow(unused_imports, reason = "as above")]
pub use traces::mounts_below;

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::mounted::{output, run, wait_until};

/// The namespace of the CRI plugin's images and containers.
pub const CRI_NAMESPACE: &str = "k8s.io";

/// The process and its directory. See the module.
pub struct Containerd {
    pub version: Version,
    /// Namespace of everything but pods; unique on the machine.
    pub namespace: String,
    directory: tempfile::TempDir,
    process: RefCell<Option<Child>>,
    names: AtomicU32,
}

impl Containerd {
    /// Starts; it answers when this returns.
    pub fn start(setup: &Setup) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "containerd needs root; these tests are not skipped without"
        );
        let directory = tempfile::tempdir().expect("a temporary directory");
        let configuration = setup.configuration(directory.path());
        fs::write(directory.path().join("config.toml"), configuration).expect("written");
        let drop_ins = directory.path().join("conf.d");
        fs::create_dir(&drop_ins).expect("made");
        fs::write(drop_ins.join("narfs.toml"), &setup.drop_in).expect("written");
        let number = STARTED.fetch_add(1, SeqCst);
        let containerd = Self {
            version: setup.version,
            namespace: format!("narfs-{}-{number}", std::process::id()),
            directory,
            process: RefCell::new(None),
            names: AtomicU32::new(0),
        };
        containerd.start_again();
        containerd
    }

    /// Starts what was stopped or killed.
    pub fn start_again(&self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .expect("a log");
        let mut command = self.version.command("containerd");
        command.arg("--config").arg(self.path("config.toml"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("containerd can't be run: {error}; tests/setup installs it")
        });
        self.process.replace(Some(child));
        wait_until("containerd answers", || {
            let ended = self
                .process
                .borrow_mut()
                .as_mut()
                .is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_some()));
            assert!(!ended, "containerd ended:\n{}", self.log());
            output(self.ctr(&["version"])).status.success()
        });
    }

    /// SIGTERM; containers go on.
    pub fn stop(&self) {
        self.end(Signal::TERM);
    }

    /// SIGKILL; containers go on.
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
        while Instant::now() < deadline {
            if child.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// Where it keeps everything, for files of the test's own too.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What it warned of.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.contains("level=info"));
        lines.flat_map(|line| [line, "\n"]).collect()
    }

    /// The version that it says it is.
    pub fn version_text(&self) -> String {
        let text = run(self.ctr(&["version"]));
        let server = text.split("Server:").nth(1).unwrap_or_default();
        let version = server.split("Version:").nth(1).unwrap_or_default();
        version
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    /// `ctr` in this containerd's namespace.
    pub fn ctr(&self, arguments: &[&str]) -> Command {
        self.ctr_in(&self.namespace, arguments)
    }

    /// `ctr` in a namespace.
    pub fn ctr_in(&self, namespace: &str, arguments: &[&str]) -> Command {
        let mut command = self.version.command("ctr");
        command.arg("--address").arg(self.socket());
        command.arg("--namespace").arg(namespace).args(arguments);
        command.env_remove("CONTAINERD_SNAPSHOTTER");
        command
    }

    /// A name for a container that no other has.
    pub fn name(&self) -> String {
        let number = self.names.fetch_add(1, SeqCst);
        format!("{}-{number}", self.namespace)
    }

    /// `ctr images import` by `ctr` itself, and unpacked for this snapshotter.
    pub fn import(&self, archive: &Path, snapshotter: &str) -> Output {
        let mut command = self.ctr(&["images", "import", "--snapshotter", snapshotter]);
        if self.version == Version::V2 {
            command.arg("--local");
        }
        command.arg(archive);
        output(command)
    }

    /// `ctr images import` by the transfer service.
    pub fn transfer(&self, archive: &Path, snapshotter: &str) -> Output {
        let flag = self.version.import_by_transfer();
        let flag = flag.expect("this version has the transfer service");
        let mut command = self.ctr(&["images", "import", flag, "--snapshotter", snapshotter]);
        command.arg(archive);
        output(command)
    }

    /// Imports what has to be importable, in the way that passes annotations where there is one.
    pub fn load(&self, archive: &Path, snapshotter: &str) {
        let output = match self.version.import_by_transfer() {
            Some(_) => self.transfer(archive, snapshotter),
            None => self.import(archive, snapshotter),
        };
        self.assert_done(&output, &format!("the import of {}", archive.display()));
    }

    /// Fails with everything that is known.
    pub fn assert_done(&self, output: &Output, what: &str) {
        assert!(
            output.status.success(),
            "{what}: {}\n{}{}\n--- containerd's log:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
    }

    /// `ctr run --rm` to its end: these words in place of the image's entry point, or that.
    pub fn run_once(&self, image: &str, snapshotter: &str, arguments: &[&str]) -> Output {
        let name = self.name();
        let mut command = self.ctr(&["run", "--rm", "--snapshotter", snapshotter, image, &name]);
        command.args(arguments);
        output(command)
    }

    /// What it prints, when it ends well.
    pub fn run(&self, image: &str, snapshotter: &str, arguments: &[&str]) -> String {
        let output = self.run_once(image, snapshotter, arguments);
        self.assert_done(&output, &format!("{image} {arguments:?}"));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// The snapshots of a snapshotter in the namespace: key, parent if there is one, kind.
    pub fn snapshots(&self, snapshotter: &str) -> Vec<Vec<String>> {
        let table = run(self.ctr(&["snapshots", "--snapshotter", snapshotter, "list"]));
        let rows = table.lines().skip(1).map(|line| {
            let cells = line.split_whitespace().map(str::to_owned);
            cells.collect::<Vec<_>>()
        });
        rows.filter(|row| !row.is_empty()).collect()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.end(Signal::KILL);
        traces::remove(self.directory.path(), &self.socket(), &self.namespace);
    }
}
