//! Runs the binary in a world of its own: its state directory, its temporary files, its caches.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use narfs::nix::SigningKey;
use tempfile::TempDir;

use crate::support::{
    cache::{self, Cache, Package, Packing},
    scripted::Server,
};

/// Longer than anything here takes; only what hangs meets it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
}

impl Ended {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: output.stdout,
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Panics unless it ended with this status.
    pub fn with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.err, self.text());
        self
    }

    /// Standard output.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(String::from).collect()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.out).expect("JSON")
    }
}

/// A place to run in.
pub struct Place {
    root: TempDir,
    /// Flags in front of the verb.
    pub flags: Vec<OsString>,
}

impl Place {
    /// Without any flag for caches or keys.
    pub fn bare() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("tmp")).unwrap();
        fs::write(root.path().join("config.toml"), "").unwrap();
        Self {
            root,
            flags: Vec::new(),
        }
    }

    /// With this key and these caches, in this order; `tries` is 1.
    pub fn over(key: &SigningKey, caches: &[&str]) -> Self {
        let mut place = Self::bare();
        place.flag("--trusted-key", &key.public());
        place.flag("--tries", "1");
        caches.iter().for_each(|url| place.flag("--cache", url));
        place
    }

    pub fn flag(&mut self, name: &str, value: &str) {
        self.flags.extend([name.into(), value.into()]);
    }

    pub fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    pub fn tmp(&self) -> PathBuf {
        self.root.path().join("tmp")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_narfs"));
        command
            .env_clear()
            .env("TMPDIR", self.tmp())
            .arg("--config")
            .arg(self.root.path().join("config.toml"))
            .arg("--state-dir")
            .arg(self.state())
            .args(&self.flags)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        Ended::of(self.command(args).output().unwrap())
    }

    /// A daemon without a mount, until it is dropped; its control socket answers.
    pub fn daemon(&self) -> Running {
        let mut command = self.command(&["daemon"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let running = Running(command.spawn().unwrap());
        until(|| self.state().join("control.sock").exists());
        running
    }

    /// Files of the state directory that end so.
    pub fn content(&self, suffix: &str) -> Vec<PathBuf> {
        files(&self.state().join("content"), suffix)
    }

    /// Nothing is left of what was only needed for a moment.
    pub fn assert_clean(&self) {
        assert_eq!(files(&self.tmp(), ""), Vec::<PathBuf>::new(), "left behind");
    }
}

fn files(directory: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(directory).map(|all| all.map(|e| e.unwrap().path()).collect::<Vec<_>>());
    let mut entries = entries.unwrap_or_default();
    entries.retain(|path| path.to_string_lossy().ends_with(suffix));
    entries.sort();
    entries
}

/// A process that ends with its value.
pub struct Running(pub Child);

impl Running {
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn ended(mut self) -> Ended {
        let status = self.0.wait().unwrap();
        let mut read = Vec::new();
        let mut err = String::new();
        use std::io::Read;
        self.0
            .stdout
            .take()
            .map(|mut out| out.read_to_end(&mut read));
        self.0
            .stderr
            .take()
            .map(|mut out| out.read_to_string(&mut err));
        Ended {
            code: status.code(),
            out: read,
            err,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until something that goes on elsewhere is so.
pub fn until(mut so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !so() {
        assert!(begun.elapsed() < PATIENCE, "it never came so");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A cache while it is served.
pub struct Served<'k> {
    server: Server,
    pub cache: Cache<'k>,
}

impl std::ops::Deref for Served<'_> {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

/// A server over the files of a cache.
pub fn serve(cache: Cache<'_>) -> Served<'_> {
    let server = Server::start();
    server.directory(cache.path());
    Served { server, cache }
}

/// Three packages: `app` refers to `lib` and `data`, `lib` to `data`.
pub struct Packages {
    pub app: Package,
    pub lib: Package,
    pub data: Package,
}

impl Packages {
    pub fn new() -> Self {
        use cache::{directory, exec, file, link, noise};
        let data = Package::new(
            "data-1",
            &directory([("big", file(noise(1, 3 << 20))), ("empty", file(""))]),
        );
        let lib = Package::new(
            "lib-1",
            &directory([
                ("data", link(&format!("{}/big", data.path.absolute()))),
                ("libx.so", file(noise(2, 9000))),
            ]),
        )
        .with_references(&[&data]);
        let app = Package::new(
            "app-1",
            &directory([
                (
                    "bin",
                    directory([
                        ("app", exec("#!/bin/sh\necho app\n")),
                        ("same", link("app")),
                    ]),
                ),
                ("circle", link("circle")),
                ("lib", link(&format!("../{}", lib.path))),
                ("out", link("/etc/passwd")),
                ("up", link("bin/../bin/app")),
            ]),
        )
        .with_references(&[&data, &lib]);
        Self { app, lib, data }
    }

    pub fn all(&self) -> [&Package; 3] {
        [&self.app, &self.lib, &self.data]
    }

    pub fn cache<'k>(&self, key: &'k SigningKey, packing: Packing) -> Cache<'k> {
        let cache = Cache::new(key);
        cache.add_all(self.all(), packing);
        cache
    }
}

/// A path in the store.
pub fn at(package: &Package, inside: &str) -> String {
    match inside {
        "" => package.path.absolute(),
        inside => format!("{}/{inside}", package.path.absolute()),
    }
}

/// Requests for archives.
pub fn nars(server: &Server) -> Vec<crate::support::scripted::Request> {
    server
        .requests()
        .into_iter()
        .filter(|r| r.path.contains("/nar/") || r.path.starts_with("/nar"))
        .collect()
}
