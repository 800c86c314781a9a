//! A private containerd: its own root, state, sockets and names of everything that machines share
//! (control groups, runc's state). Dropped, it leaves no process, mount or control group.
//!
//! What was tried with containerd 1.6.20, 1.7.24 and 2.1.9 and the tests rest on:
//!
//! - `ctr run` with Debian's runc works as it is, with control groups of version 1 and 2.
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
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::{
    cell::RefCell,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::{Duration, Instant},
};

use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};

use crate::{
    corpus,
    mounted::{alive, output, run, shell, wait_until},
};

/// The namespace of the CRI plugin's images and containers.
pub const CRI_NAMESPACE: &str = "k8s.io";

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The one that the machine's distribution has: 1.6 in Debian 12.
    Installed,
    /// 1.7
    V1_7,
    /// 2.x
    V2,
}

impl Version {
    pub const ALL: [Self; 3] = [Self::Installed, Self::V1_7, Self::V2];

    /// Where its programs are, none if on the `PATH`.
    fn programs(self) -> Option<PathBuf> {
        let name = match self {
            Self::Installed => return None,
            Self::V1_7 => "containerd-1.7",
            Self::V2 => "containerd-2",
        };
        let directory = corpus::directory().join(name);
        let found = directory.join("containerd").exists();
        assert!(found, "no {}: run tests/setup", directory.display());
        Some(directory)
    }

    /// One of its programs, with its shim on the `PATH`.
    fn command(self, program: &str) -> Command {
        let Some(directory) = self.programs() else {
            return Command::new(program);
        };
        let mut command = Command::new(directory.join(program));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", directory.display()));
        command
    }

    /// What `narfs containerd-config --version` calls it.
    pub fn generation(self) -> &'static str {
        match self {
            Self::Installed | Self::V1_7 => "1",
            Self::V2 => "2",
        }
    }

    /// Flags that have `ctr images import` use the transfer service; none where there is none.
    pub fn import_by_transfer(self) -> Option<&'static str> {
        match self {
            Self::Installed => None,
            Self::V1_7 | Self::V2 => Some("--local=false"),
        }
    }
}

/// How a containerd is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    version: Version,
    /// What the configuration imports.
    drop_in: String,
    /// The snapshotter of the CRI plugin, and the image of a pod's sandbox.
    cri: Option<(String, String)>,
}

impl Setup {
    pub fn new(version: Version) -> Self {
        Self {
            version,
            drop_in: String::new(),
            cri: None,
        }
    }

    /// With a file that the configuration imports, as what `narfs containerd-config` prints.
    pub fn drop_in(mut self, text: &str) -> Self {
        text.clone_into(&mut self.drop_in);
        self
    }

    /// With the CRI plugin.
    pub fn cri(mut self, snapshotter: &str, sandbox_image: &str) -> Self {
        self.cri = Some((snapshotter.to_owned(), sandbox_image.to_owned()));
        self
    }

    fn configuration(&self, directory: &Path) -> String {
        let cri = self.cri_configuration(directory);
        let mut disabled = DISABLED.to_vec();
        if self.cri.is_none() {
            disabled.extend(CRI_PLUGINS);
        }
        let version = if self.version == Version::V2 { 3 } else { 2 };
        let directory = directory.display();
        format!(
            r#"version = {version}
imports = ["{directory}/conf.d/*.toml"]
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = {disabled:?}
[grpc]
  address = "{directory}/containerd.sock"
[ttrpc]
  address = "{directory}/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
{cri}"#
        )
    }

    fn cri_configuration(&self, directory: &Path) -> String {
        let Some((snapshotter, sandbox)) = &self.cri else {
            return String::new();
        };
        let directory = directory.display();
        if self.version == Version::V2 {
            return format!(
                r#"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{sandbox}"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{directory}/cni/bin"]
    conf_dir = "{directory}/cni/conf"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
"#
            );
        }
        format!(
            r#"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{directory}/cni/bin"
    conf_dir = "{directory}/cni/conf"
"#
        )
    }
}

/// The node resource interface listens at a fixed place, which another containerd may hold.
const DISABLED: [&str; 1] = ["io.containerd.nri.v1.nri"];

/// The CRI, of 1.x and of 2.x; names of plugins that are not there disable nothing.
const CRI_PLUGINS: [&str; 3] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
];

/// What images and containerd call this machine's architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => panic!("no name for the architecture {other} is known here"),
    }
}

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

    /// `ctr run --detach`: a container that goes on.
    pub fn start_container(
        &self,
        image: &str,
        snapshotter: &str,
        arguments: &[&str],
    ) -> Container<'_> {
        let name = self.name();
        let flags = ["run", "--detach", "--null-io", "--snapshotter", snapshotter];
        let mut command = self.ctr(&flags);
        command.args([image, &name]).args(arguments);
        let output = output(command);
        self.assert_done(&output, &format!("{image} {arguments:?}"));
        let pid = self.pid(&name);
        Container {
            containerd: self,
            name,
            pid,
        }
    }

    fn pid(&self, name: &str) -> u32 {
        let table = run(self.ctr(&["tasks", "list"]));
        let mut rows = table.lines().map(|line| {
            let cells = line.split_whitespace();
            cells.collect::<Vec<_>>()
        });
        let row = rows.find(|row| row.first() == Some(&name));
        let row = row.unwrap_or_else(|| panic!("no task {name}:\n{table}"));
        row[1].parse().expect("a process number")
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

    /// A view of a snapshot, mounted. (`ctr images mount` would do that in one, but knows no
    /// snapshotter other than overlayfs in 1.6, whatever it is told.)
    pub fn mount_view(&self, parent: &str, snapshotter: &str) -> Mounted<'_> {
        self.mounted("view", parent, snapshotter)
    }

    /// A new snapshot on top of another one, mounted.
    pub fn mount_new(&self, parent: &str, snapshotter: &str) -> Mounted<'_> {
        self.mounted("prepare", parent, snapshotter)
    }

    fn mounted(&self, verb: &str, parent: &str, snapshotter: &str) -> Mounted<'_> {
        let key = self.name();
        let at = self.path(&format!("mount-{key}"));
        fs::create_dir(&at).expect("a mountpoint");
        let shown = at.display().to_string();
        let snapshots = |words: &[&str]| {
            let mut command = self.ctr(&["snapshots", "--snapshotter", snapshotter]);
            command.args(words);
            command
        };
        // `ctr` leaves a view to the garbage collector, which may take it at once; the snapshots
        // that it shows are the image's, and stay.
        let mut script = None;
        for _ in 0..10 {
            run(snapshots(&[verb, &key, parent]));
            let mounts = output(snapshots(&["mounts", &shown, &key]));
            if mounts.status.success() {
                script = Some(String::from_utf8(mounts.stdout).expect("UTF-8"));
                break;
            }
        }
        run(shell(&script.expect("the snapshot stays"), &[]));
        Mounted {
            containerd: self,
            snapshotter: snapshotter.to_owned(),
            key,
            at,
        }
    }

    /// Names of its shims' processes and of those that they run.
    fn processes(&self) -> Vec<u32> {
        let address = self.socket().display().to_string();
        let mut found = Vec::new();
        for pid in numbers_in(Path::new("/proc")) {
            // The command line of a process that waits for a page of it can't be read; its name can.
            let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            if !name.starts_with(b"containerd-shim") {
                continue;
            }
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = words.split(|byte| *byte == 0);
            let shim = words
                .next()
                .is_some_and(|word| word.ends_with(b"containerd-shim-runc-v2"));
            if shim && words.any(|word| word == address.as_bytes()) {
                found.extend(children(pid));
                found.push(pid);
            }
        }
        found
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A failing test may have left anything behind; and a panic here would hide it.
        self.end(Signal::KILL);
        let mine = containers_of(&self.directory.path().join("state"));
        for _ in 0..3 {
            for pid in self.processes() {
                if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.processes().into_iter().any(alive) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        unmount_below(self.directory.path());
        for (namespace, name) in &mine {
            let state = Path::new("/run/containerd/runc").join(namespace).join(name);
            let _ = fs::remove_dir_all(state);
        }
        let _ = fs::remove_dir(Path::new("/run/containerd/runc").join(&self.namespace));
        remove_cgroups(&self.namespace, &mine);
    }
}

/// A container that runs; dropped, it is killed and removed with its snapshot.
pub struct Container<'c> {
    containerd: &'c Containerd,
    pub name: String,
    /// Its first process, as the host numbers it.
    pub pid: u32,
}

impl Container<'_> {
    /// A path inside, as the host reaches it: through the container's own mounts.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let inner = path.strip_prefix("/").unwrap_or(path);
        Path::new("/proc")
            .join(self.pid.to_string())
            .join("root")
            .join(inner)
    }

    /// Runs something inside.
    pub fn exec(&self, words: &[&str]) -> Output {
        let exec = format!("{}-exec", self.containerd.name());
        let mut command = self.containerd.ctr(&["tasks", "exec", "--exec-id", &exec]);
        command.arg(&self.name).args(words);
        output(command)
    }

    /// Runs what has to succeed inside; what it printed.
    pub fn exec_well(&self, words: &[&str]) -> String {
        let output = self.exec(words);
        self.containerd
            .assert_done(&output, &format!("{words:?} inside"));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Whether its first process runs.
    pub fn runs(&self) -> bool {
        alive(self.pid)
    }

    /// Kills and removes it; fails where containerd does.
    pub fn remove(self) {
        let name = self.name.clone();
        let containerd = self.containerd;
        drop(self);
        let left = run(containerd.ctr(&["containers", "list", "--quiet"]));
        assert!(
            !left.lines().any(|line| line == name),
            "{name} is still there"
        );
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // Whatever fails here is looked for where the test wants to know.
        let _ = output(
            self.containerd
                .ctr(&["tasks", "delete", "--force", &self.name]),
        );
        let _ = output(self.containerd.ctr(&["containers", "delete", &self.name]));
    }
}

/// A snapshot's file system; dropped, it is unmounted and the snapshot removed.
pub struct Mounted<'c> {
    containerd: &'c Containerd,
    snapshotter: String,
    /// Its snapshot.
    pub key: String,
    /// Where it is.
    pub at: PathBuf,
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        let remove = [
            "snapshots",
            "--snapshotter",
            &self.snapshotter,
            "remove",
            &self.key,
        ];
        let _ = output(self.containerd.ctr(&remove));
    }
}

/// Lines of the kernel's table of mounts that name something below a directory.
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").expect("the kernel's table");
    let points = table.lines().filter_map(|line| line.split(' ').nth(1));
    let points = points.map(PathBuf::from);
    points
        .filter(|point| point.starts_with(directory))
        .collect()
}

fn unmount_below(directory: &Path) {
    for point in mounts_below(directory).into_iter().rev() {
        let _ = unmount(point, UnmountFlags::DETACH);
    }
}

fn numbers_in(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// Processes that this one started.
fn children(of: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for thread in numbers_in(&PathBuf::from(format!("/proc/{of}/task"))) {
        let text = fs::read_to_string(format!("/proc/{of}/task/{thread}/children"));
        let text = text.unwrap_or_default();
        found.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    found
}

/// Namespace and name of each container that has or had a task, by the bundles of the runtime.
fn containers_of(state: &Path) -> Vec<(String, String)> {
    let list = |directory: &Path| -> Vec<String> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
            other => other.into_iter().flatten().flatten(),
        };
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.collect()
    };
    let tasks = state.join("io.containerd.runtime.v2.task");
    let mut found = Vec::new();
    for namespace in list(&tasks) {
        let names = list(&tasks.join(&namespace));
        found.extend(names.into_iter().map(|name| (namespace.clone(), name)));
    }
    found
}

/// Removes the control groups of containers that are gone; those of version 1 have a tree for each
/// controller, those of version 2 one.
fn remove_cgroups(namespace: &str, containers: &[(String, String)]) {
    let root = Path::new("/sys/fs/cgroup");
    let trees = fs::read_dir(root).into_iter().flatten().flatten();
    let mut trees: Vec<PathBuf> = trees.map(|entry| entry.path()).collect();
    trees.push(root.to_owned());
    for tree in trees {
        for (namespace, name) in containers {
            let _ = fs::remove_dir(tree.join(namespace).join(name));
        }
        let left = fs::read_dir(tree.join(namespace))
            .into_iter()
            .flatten()
            .flatten();
        for entry in left {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(tree.join(namespace));
    }
}
