//! `narfs mount --background` on a temporary directory, with its own state directory; taken down
//! when it is dropped.
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::{Duration, Instant},
};

use narfs::daemon::{
    client::{ask, connect},
    protocol::{Info, Reply, Request},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long something may take that is expected to happen at once, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program.
pub const NARFS: &str = env!("CARGO_BIN_EXE_narfs");

/// Waits until it is so.
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What to mount.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    caches: Vec<String>,
    keys: Vec<String>,
    settings: Vec<String>,
    roots: Vec<String>,
    state: Option<PathBuf>,
}

impl Setup {
    /// One cache whose signatures `key` makes.
    pub fn new(cache: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            caches: vec![cache.into()],
            keys: vec![key.into()],
            ..Self::default()
        }
    }

    /// With a further flag.
    pub fn set(mut self, flag: &str) -> Self {
        self.settings.push(flag.to_owned());
        self
    }

    /// With `--root`.
    pub fn root(mut self, path: &Path) -> Self {
        self.roots.push(format!("--root={}", path.display()));
        self
    }

    /// With this state directory.
    pub fn state(mut self, directory: &Path) -> Self {
        self.state = Some(directory.to_owned());
        self
    }
}

/// The mount. See the module.
pub struct Mounted {
    setup: Setup,
    directory: tempfile::TempDir,
    pid: AtomicU32,
    /// The mount's helper, which would start another daemon.
    helper: AtomicU32,
}

impl Mounted {
    /// Mounts; the mount answers when this returns.
    pub fn start(setup: Setup) -> Self {
        let mounted = Self::prepare(setup);
        mounted.start_again();
        mounted
    }

    /// The directories, with nothing mounted yet.
    pub fn prepare(setup: Setup) -> Self {
        assert!(
            rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "the mounted tests need root and /dev/fuse; they are not skipped without"
        );
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(directory.path().join("mnt")).expect("a mountpoint");
        fs::write(directory.path().join("config.toml"), "").expect("an empty configuration");
        Self {
            setup,
            directory,
            pid: AtomicU32::new(0),
            helper: AtomicU32::new(0),
        }
    }

    /// The mountpoint.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    /// The directory that everything of this mount is in.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The state directory.
    pub fn state_dir(&self) -> PathBuf {
        let own = || self.directory.path().join("state");
        self.setup.state.clone().unwrap_or_else(own)
    }

    /// `/nix/store/X` or `X` in the mount.
    pub fn at(&self, store_path: impl AsRef<Path>) -> PathBuf {
        let path = store_path.as_ref();
        self.path()
            .join(path.strip_prefix("/nix/store").unwrap_or(path))
    }

    /// `narfs` with this mount's settings and nothing of the environment's.
    pub fn narfs(&self) -> Command {
        let mut command = narfs();
        command
            .arg("--config")
            .arg(self.directory.path().join("config.toml"))
            .arg("--state-dir")
            .arg(self.state_dir())
            .args(self.setup.caches.iter().map(|url| format!("--cache={url}")))
            .args(
                self.setup
                    .keys
                    .iter()
                    .map(|key| format!("--trusted-key={key}")),
            )
            .args(&self.setup.settings);
        command
    }

    /// What `narfs` prints with these arguments, which have to work.
    pub fn narfs_output(&self, arguments: &[&str]) -> String {
        let mut command = self.narfs();
        command.args(arguments);
        run(command)
    }

    /// `narfs mount --background` with this mount's settings.
    pub fn mount_command(&self) -> Command {
        let mut command = self.narfs();
        command.args(["mount", "--background", "--ready-timeout=60s"]);
        command.args(&self.setup.roots).arg(self.path());
        command
    }

    /// Mounts again what ended.
    pub fn start_again(&self) {
        let output = output(self.mount_command());
        assert!(
            output.status.success(),
            "{}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        self.find();
    }

    /// Takes for its own what somebody else started.
    pub fn find(&self) {
        self.pid.store(self.info().pid, SeqCst);
        let status = narfs_mount::status(&self.state_dir()).expect("the helper answers");
        // On a full disk there may be no socket to ask it at.
        let helper = status.map_or_else(|| helper_of(self.pid()), |status| status.helper);
        self.helper.store(helper, SeqCst);
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.pid.load(SeqCst)
    }

    /// The helper's process.
    pub fn helper(&self) -> u32 {
        self.helper.load(SeqCst)
    }

    /// What the daemon says of itself.
    pub fn info(&self) -> Info {
        let stream = connect(&self.state_dir())
            .expect("the socket can be used")
            .unwrap_or_else(|| panic!("no daemon; its log:\n{}", self.log()));
        let mut info = None;
        let told = ask(stream, Request::Info, None, |reply| {
            if let Reply::Info(found) = reply {
                info = Some(found);
            }
        });
        told.expect("the daemon answers");
        info.expect("it says who it is")
    }

    /// What the daemon's store counted since it started.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        self.info().counters
    }

    /// Counted requests of the kernel of every kind.
    pub fn upcalls(&self) -> u64 {
        let counters = self.counters();
        let kinds = ["lookups", "getattrs", "readdirs", "readlinks", "reads"];
        kinds.iter().map(|kind| counters[*kind]).sum()
    }

    /// The daemon's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.state_dir().join(narfs::content::LOG_FILE)).unwrap_or_default()
    }

    /// Name of the status document of a store path.
    pub fn status_file(&self, store_path: &Path) -> PathBuf {
        let name = store_path.file_name().expect("a name").to_string_lossy();
        self.path()
            .join(".nix-snapshotter")
            .join(format!("{name}.json"))
    }

    /// The status document of a store path.
    pub fn status(&self, store_path: &Path) -> Value {
        read_json(&self.status_file(store_path))
    }

    /// The summary.
    pub fn summary(&self) -> Value {
        read_json(&self.path().join(".nix-snapshotter/summary.json"))
    }

    /// Waits until nothing is being fetched any more.
    pub fn wait_until_idle(&self) {
        wait_until("nothing is fetched any more", || {
            self.summary()["paths"]["fetching"] == 0
        });
    }

    /// SIGTERM to the helper; returns when processes and mount are gone.
    pub fn stop(&self) {
        signal(self.helper(), Signal::TERM);
        wait_until("all of it ends on SIGTERM", || {
            !alive(self.pid()) && !alive(self.helper())
        });
        assert!(!is_mounted(&self.path()), "SIGTERM left the mount");
        self.pid.store(0, SeqCst);
    }

    /// SIGKILL, and takes away the dead mount.
    pub fn kill(&self) {
        self.kill_only();
        self.remove_mount();
    }

    /// SIGKILL to the helper and then the daemon; the dead mount stays.
    pub fn kill_only(&self) {
        signal(self.helper(), Signal::KILL);
        wait_until("SIGKILL ends the helper", || !alive(self.helper()));
        signal(self.pid(), Signal::KILL);
        wait_until("SIGKILL ends the daemon", || !alive(self.pid()));
        self.pid.store(0, SeqCst);
    }

    fn remove_mount(&self) {
        while is_mounted(&self.path()) {
            let flags = rustix::mount::UnmountFlags::DETACH;
            rustix::mount::unmount(self.path(), flags).expect("it can be unmounted");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A failing test may have left anything behind; and a panic here would hide it.
        let processes = [self.helper(), self.pid()].map(|pid| (pid, process(pid)));
        for pid in processes.iter().filter_map(|(_, pid)| *pid) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while processes.iter().any(|(pid, _)| alive(*pid)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        for pid in processes.iter().filter_map(|(_, pid)| *pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
        if std::thread::panicking() {
            eprintln!("--- the daemon's log:\n{}---", self.log());
        }
        while is_mounted(&self.path())
            && rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH).is_ok()
        {
        }
    }
}

/// The parent of a daemon, if it is a mount helper; otherwise 0.
fn helper_of(daemon: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{daemon}/status")).unwrap_or_default();
    let mut fields = status.lines().filter_map(|line| line.split_once(':'));
    let parent = fields.find(|(name, _)| *name == "PPid");
    let parent = parent.and_then(|(_, pid)| pid.trim().parse().ok());
    let is_helper = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).nth(1) == Some(b"mount-helper")
    };
    parent.filter(is_helper).unwrap_or(0)
}

fn process(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn signal(pid: u32, signal: Signal) {
    kill_process(process(pid).expect("it runs"), signal).expect("it can be signalled");
}

/// `narfs` with nothing of the environment's settings.
pub fn narfs() -> Command {
    let mut command = Command::new(NARFS);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("NARFS_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end.
pub fn output(mut command: Command) -> Output {
    let program = command.get_program().to_owned();
    command.stdin(Stdio::null());
    command.output().unwrap_or_else(|error| {
        panic!(
            "{} can't be run: {error}; tests/setup installs what the tests need",
            program.display()
        )
    })
}

/// Runs a command that has to succeed; what it printed.
pub fn run(command: Command) -> String {
    let shown = format!("{command:?}");
    let output = output(command);
    assert!(
        output.status.success(),
        "{shown}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A shell script with its positional parameters.
pub fn shell(script: &str, args: &[&Path]) -> Command {
    let mut command = Command::new("/bin/bash");
    command.args(["-euo", "pipefail", "-c", script, "bash"]);
    command.args(args);
    command
}

/// Whether the process runs; one that ended and was not collected does not.
pub fn alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The state stands behind the name, which may hold anything but stands in parentheses.
    let state = stat.rsplit(')').next().unwrap_or_default();
    let ended = state.trim_start().starts_with(['Z', 'X']);
    // The first thread of a killed process may be a zombie while others still hold its files.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    pid != 0 && !(ended && threads <= 1)
}

/// Whether something is mounted there.
pub fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mounts").expect("the kernel's table");
    let path = path.to_string_lossy();
    table
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&path))
}

/// A document that has to be one.
pub fn read_json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let shown = String::from_utf8_lossy(&text);
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}: {shown}", path.display()))
}
