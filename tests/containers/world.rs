//! What every test here starts: caches behind a link, the snapshotter, and images.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
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
    containerd::{Container, Containerd, Setup, Version, mounts_below},
    corpus::{self, Nginx},
    mounted::{alive, narfs, run, wait_until},
    registry::free_port,
};

/// The snapshotter's name to containerd.
pub const NARFS: &str = "narfs";

/// A round trip of 20 ms and 200 Mbit/s in front of a port: `benches/slowlink.py`.
pub struct Link {
    port: u16,
    target: u16,
    process: RefCell<Child>,
}

impl Link {
    /// In front of `http://127.0.0.1:PORT`.
    pub fn start(url: &str) -> Self {
        let target = url.rsplit(':').next().and_then(|port| port.parse().ok());
        let target = target.expect("a URL with a port");
        let port = free_port();
        let process = RefCell::new(Self::spawn(port, target));
        Self {
            port,
            target,
            process,
        }
    }

    fn spawn(port: u16, target: u16) -> Child {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/slowlink.py");
        let process = Command::new("/usr/bin/python3")
            .arg(script)
            .args([port.to_string(), target.to_string()])
            .args(["--rtt", "20", "--mbit", "200"])
            .stdin(Stdio::null())
            .spawn()
            .expect("python3 is installed by tests/setup");
        wait_until("the link is there", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        process
    }

    /// What is behind it, as seen through it.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The far side is gone: connections are refused.
    pub fn cut(&self) {
        let mut process = self.process.borrow_mut();
        // Fails where it has ended already, which is what is wanted.
        let _ = process.kill();
        let _ = process.wait();
    }

    /// The far side is back.
    pub fn mend(&self) {
        let mut process = self.process.borrow_mut();
        *process = Self::spawn(self.port, self.target);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
    }
}

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
        assert!(
            rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "the snapshotter needs root and /dev/fuse; these tests are not skipped without"
        );
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("config.toml"), "").expect("an empty configuration");
        let snapshotter = Self {
            cache: cache.to_owned(),
            key: key.to_owned(),
            directory,
            process: RefCell::new(None),
        };
        snapshotter.start_again();
        snapshotter
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
    fn drop_in(&self, version: Version) -> String {
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
        crate::mounted::read_json(&self.root().join(summary))
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

/// A snapshotter and a containerd that uses it.
///
/// Fields are dropped in order: containers end before what serves them.
pub struct Host {
    pub containerd: Containerd,
    pub snapshotter: Snapshotter,
    images: tempfile::TempDir,
    named: AtomicU32,
}

impl Host {
    /// With the store of a cache.
    pub fn start(
        version: Version,
        cache: &str,
        key: &str,
        change: impl FnOnce(Setup) -> Setup,
    ) -> Self {
        let snapshotter = Snapshotter::start(cache, key);
        let setup = Setup::new(version).drop_in(&snapshotter.drop_in(version));
        Self {
            containerd: Containerd::start(&change(setup)),
            snapshotter,
            images: tempfile::tempdir().expect("a temporary directory"),
            named: AtomicU32::new(0),
        }
    }

    /// A file for an image.
    pub fn file(&self, name: &str) -> PathBuf {
        let number = self.named.fetch_add(1, SeqCst);
        self.images.path().join(format!("{number}-{name}.tar"))
    }
}

/// The corpus's cache in plain zstd behind a link, and a host.
pub struct World {
    host: Host,
    pub link: Link,
    pub nginx: Nginx,
}

impl Deref for World {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl World {
    pub fn start(version: Version) -> Self {
        Self::start_with(version, |setup| setup)
    }

    /// The same with a changed containerd.
    pub fn start_with(version: Version, change: impl FnOnce(Setup) -> Setup) -> Self {
        let nginx = Nginx::start();
        let link = Link::start(&nginx.url);
        let cache = format!("{}/zstd", link.url());
        Self {
            host: Host::start(version, &cache, &corpus::public_key(), change),
            link,
            nginx,
        }
    }

    /// The image of a corpus closure, as `narfs image build` makes it.
    pub fn build(&self, name: &str, closure: &Path, entrypoint: &str) -> PathBuf {
        let file = self.file("image");
        let cache = format!("file://{}", corpus::cache("zstd").display());
        build(
            &cache,
            &corpus::public_key(),
            name,
            closure,
            entrypoint,
            &[],
            &file,
        );
        file
    }

    /// Builds and loads it; its name, and its archive.
    pub fn nix_image(&self, name: &str, closure: &Path, entrypoint: &str) -> (String, PathBuf) {
        let name = format!("docker.io/library/{name}:1");
        let file = self.build(&name, closure, entrypoint);
        self.containerd.load(&file, NARFS);
        (name, file)
    }

    /// The image of python3.11, loaded; its name.
    pub fn python_image(&self) -> String {
        self.nix_image("python", &python_root(), "bin/python3.11").0
    }
}

/// `narfs image build`; the entry point is a path inside of the closure's root.
pub fn build(
    cache: &str,
    key: &str,
    name: &str,
    closure: &Path,
    entrypoint: &str,
    more: &[&str],
    file: &Path,
) {
    let mut command = narfs();
    command
        .args(["--config", "/dev/null"])
        .arg(format!("--cache={cache}"))
        .arg(format!("--trusted-key={key}"))
        .args(["image", "build", "--name", name, "--closure"])
        .arg(closure)
        .arg("--entrypoint")
        .arg(closure.join(entrypoint))
        .args(more)
        .arg("-o")
        .arg(file);
    run(command);
}

/// The store path of the corpus's python.
pub fn python_root() -> PathBuf {
    corpus::store_path("python3.11")
}

/// The program in it.
pub fn python() -> String {
    python_root().join("bin/python3.11").display().to_string()
}

/// What python prints inside of a container: the root directory, the names of the status
/// documents, and the summary.
pub const LOOK: &str = "import json, os; \
    print(json.dumps([sorted(os.listdir('/')), sorted(os.listdir('/.nix-snapshotter')), \
    json.load(open('/.nix-snapshotter/summary.json'))]))";

/// The status directory of a container, however it was read.
#[derive(Debug)]
pub struct Status {
    root: Vec<String>,
    names: BTreeSet<String>,
    pub summary: Value,
}

impl Status {
    /// Of what [`LOOK`] printed last.
    pub fn parse(printed: &str) -> Self {
        let line = printed.lines().last().unwrap_or_default();
        let (root, names, summary) = serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("{error}: what was printed is\n{printed}"));
        Self {
            root,
            names,
            summary,
        }
    }

    /// Read through a running container's root.
    pub fn of(container: &Container<'_>) -> Self {
        let names = |path: &str| -> Vec<String> {
            let path = container.at(path);
            let entries = fs::read_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let names = entries.map(|entry| entry.expect("readable").file_name());
            names
                .map(|name| name.into_string().expect("ASCII"))
                .collect()
        };
        let summary = container.at("/.nix-snapshotter/summary.json");
        Self {
            root: names("/"),
            names: names("/.nix-snapshotter").into_iter().collect(),
            summary: crate::mounted::read_json(&summary),
        }
    }

    /// It is hidden, and lists exactly these store paths.
    pub fn assert_shows(&self, closure: &[PathBuf]) {
        let hidden = !self.root.iter().any(|name| name == ".nix-snapshotter");
        assert!(hidden, "the status directory is listed: {:?}", self.root);
        let documents = closure.iter().map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy();
            format!("{name}.json")
        });
        let mut wanted: BTreeSet<String> = documents.collect();
        wanted.insert("summary.json".to_owned());
        assert_eq!(self.names, wanted);
        assert_eq!(self.summary["paths"]["total"], closure.len());
    }

    /// It is hidden, and lists these store paths, others perhaps too.
    pub fn assert_shows_at_least(&self, paths: &[PathBuf]) {
        for path in paths {
            let name = path.file_name().expect("a name").to_string_lossy();
            let document = format!("{name}.json");
            assert!(
                self.names.contains(&document),
                "no {document}: {:?}",
                self.names
            );
        }
        assert!(
            !self.root.iter().any(|name| name == ".nix-snapshotter"),
            "{:?}",
            self.root
        );
    }

    /// Percent of the closure's bytes that are here.
    pub fn fetched_percent(&self) -> f64 {
        let percent = &self.summary["fetchedPercent"];
        percent
            .as_f64()
            .unwrap_or_else(|| panic!("{}", self.summary))
    }
}
