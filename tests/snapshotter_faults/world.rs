//! `narfs snapshotter` in a directory of its own, over a scripted cache; taken down when dropped.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use narfs::{
    nix::SigningKey,
    snapshotter::wire::{
        CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, Mount, MountsRequest,
        PrepareSnapshotRequest, RemoveSnapshotRequest, SnapshotsClient, StatSnapshotRequest,
        ViewSnapshotRequest,
    },
};
use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::support::{
    cache::{Cache, Package, Packing, directory, exec, file, key},
    scripted::Server,
};

/// Longer than anything here takes; only what hangs meets it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Labels of the older scheme for these store paths.
pub fn nix_labels<'a>(packages: impl IntoIterator<Item = &'a Package>) -> HashMap<String, String> {
    let paths = packages.into_iter().enumerate().map(|(n, package)| {
        let label = format!("containerd.io/snapshot/nix-store-path.{n}");
        (label, package.path.absolute())
    });
    let mark = ("containerd.io/snapshot/nix-layer".into(), "true".into());
    paths.chain([mark]).collect()
}

/// A program and the library it refers to.
pub fn program(name: &str) -> [Package; 2] {
    let library = Package::new(
        &format!("{name}-library"),
        &directory([("lib", file(name))]),
    );
    let program = Package::new(
        name,
        &directory([("bin", directory([("run", exec("#!/bin/sh\n"))]))]),
    )
    .with_references(&[&library]);
    [program, library]
}

/// See the module.
pub struct World {
    /// Serves the files of [`World::add`] where nothing is scripted.
    pub server: Server,
    cache: Cache<'static>,
    key: &'static SigningKey,
    directory: tempfile::TempDir,
    root: PathBuf,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    process: Option<Child>,
}

impl World {
    /// Started, with these flags.
    pub async fn start(flags: &[&str]) -> Self {
        let mut world = Self::prepare(flags);
        world.run().await;
        world
    }

    /// Not started yet.
    pub fn prepare(flags: &[&str]) -> Self {
        assert!(
            rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "these tests need root and /dev/fuse; they are not skipped without"
        );
        let key: &SigningKey = Box::leak(Box::new(key()));
        let cache = Cache::new(key);
        let server = Server::start();
        server.directory(cache.path());
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.toml"), "").unwrap();
        Self {
            server,
            cache,
            key,
            root: directory.path().join("root"),
            directory,
            flags: flags.iter().map(|flag| flag.to_string()).collect(),
            environment: Vec::new(),
            process: None,
        }
    }

    /// Sets a variable of its environment.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    /// With another root directory.
    pub fn at(mut self, root: &Path) -> Self {
        self.root = root.to_owned();
        self
    }

    /// Puts packages into the cache.
    pub fn add<'p>(&self, packages: impl IntoIterator<Item = &'p Package>) {
        self.cache.add_all(packages, Packing::Zstd);
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.root.join("mnt")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("run/narfs.sock")
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// What it wrote to its log in all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The program with its flags.
    pub fn command(&self) -> Command {
        self.command_at(&self.socket())
    }

    /// The program with its flags and another socket.
    pub fn command_at(&self, socket: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_narfs"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NARFS_") {
                command.env_remove(name);
            }
        }
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        command
            .arg("snapshotter")
            .arg(flag("config", &self.directory.path().join("config.toml")))
            .arg(flag("root", &self.root))
            .arg(flag("address", socket))
            .arg(format!("--cache={}", self.server.base()))
            .arg(format!("--trusted-key={}", self.key.public()))
            .args(&self.flags)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// The program, ended by force when it does not end by itself.
    pub fn bounded(&self) -> Command {
        let program = self.command();
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", "30"])
            .arg(program.get_program());
        command.args(program.get_args()).stdin(Stdio::null());
        command
    }

    /// Starts it; it answers when this returns.
    pub async fn run(&mut self) {
        self.spawn();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(client) = Self::connect(&self.socket()).await
                && Calls(client).list(&[]).await.is_ok()
            {
                return;
            }
            let ended = self.process.as_mut().and_then(|p| p.try_wait().unwrap());
            assert!(ended.is_none(), "it ended: {ended:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "not ready\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Starts it, and does not wait.
    pub fn spawn(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .unwrap();
        let mut command = self.command();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.spawn().unwrap());
    }

    async fn connect(socket: &Path) -> Result<SnapshotsClient<Channel>, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        Ok(SnapshotsClient::new(endpoint.connect().await?))
    }

    /// A connection to it.
    pub async fn calls(&self) -> Calls {
        let client = Self::connect(&self.socket()).await;
        Calls(client.unwrap_or_else(|e| panic!("{e}\n{}", self.log())))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// SIGTERM; it has to end well.
    pub async fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        let pid = Pid::from_raw(process.id().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.try_wait().unwrap() {
                assert!(status.success(), "{status}\n{}", self.log());
                return;
            }
            assert!(
                Instant::now() < deadline,
                "SIGTERM does not end it\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Numbers of the snapshots that have a directory.
    pub fn directories(&self) -> BTreeSet<String> {
        names(&self.root.join("snapshots"))
    }

    /// Names of the views in the mount, when there are so many. The kernel may show what was a
    /// moment ago.
    pub async fn views(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let views = names(&self.mountpoint().join("views"));
            if views.len() == count {
                return views.into_iter().collect();
            }
            assert!(
                Instant::now() < deadline,
                "{count} views were expected: {views:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Names in a directory.
pub fn names(directory: &Path) -> BTreeSet<String> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

impl World {
    /// Takes away the mount that outlives the program.
    pub fn remove_mount(&self) {
        while is_mounted(&self.mountpoint()) {
            unmount(self.mountpoint(), UnmountFlags::DETACH).unwrap();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the snapshotter's log:\n{}---", self.log());
        }
        // Its keeper ends with the mount.
        while is_mounted(&self.mountpoint())
            && unmount(self.mountpoint(), UnmountFlags::DETACH).is_ok()
        {}
    }
}

/// Whether something is mounted there.
pub fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let path = path.to_string_lossy();
    table
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&path))
}

/// What containerd would call. Every call is bounded.
#[derive(Clone)]
pub struct Calls(pub SnapshotsClient<Channel>);

async fn soon<T>(
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    answer
        .expect("a call hangs")
        .map(tonic::Response::into_inner)
}

impl Calls {
    pub async fn prepare(
        &mut self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Status> {
        let request = PrepareSnapshotRequest {
            key: key.into(),
            parent: parent.into(),
            labels,
            ..Default::default()
        };
        Ok(soon(self.0.prepare(request)).await?.mounts)
    }

    pub async fn view(&mut self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let request = ViewSnapshotRequest {
            key: key.into(),
            parent: parent.into(),
            ..Default::default()
        };
        Ok(soon(self.0.view(request)).await?.mounts)
    }

    pub async fn mounts(&mut self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest {
            key: key.into(),
            ..Default::default()
        };
        Ok(soon(self.0.mounts(request)).await?.mounts)
    }

    pub async fn commit(&mut self, name: &str, key: &str) -> Result<(), Status> {
        let request = CommitSnapshotRequest {
            name: name.into(),
            key: key.into(),
            ..Default::default()
        };
        soon(self.0.commit(request)).await
    }

    pub async fn remove(&mut self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest {
            key: key.into(),
            ..Default::default()
        };
        soon(self.0.remove(request)).await
    }

    pub async fn stat(&mut self, key: &str) -> Result<Info, Status> {
        let request = StatSnapshotRequest {
            key: key.into(),
            ..Default::default()
        };
        Ok(soon(self.0.stat(request)).await?.info.unwrap())
    }

    pub async fn list(&mut self, filters: &[&str]) -> Result<Vec<Info>, Status> {
        let request = ListSnapshotsRequest {
            filters: filters.iter().map(|filter| filter.to_string()).collect(),
            ..Default::default()
        };
        let mut parts = soon(self.0.list(request)).await?;
        let mut all = Vec::new();
        while let Some(part) = parts.message().await? {
            all.extend(part.info);
        }
        Ok(all)
    }

    pub async fn cleanup(&mut self) -> Result<(), Status> {
        soon(self.0.cleanup(CleanupRequest::default())).await
    }
}
