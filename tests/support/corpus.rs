//! The real binary caches that `tests/setup` makes with Debian's nix, and the servers for them:
//! nginx for HTTP, moto for S3. Each server is one process that ends with its value here.
//!
//! A test that needs them fails where they are missing and says what to run; none is skipped.
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Where `tests/setup` puts everything: `$NARFS_CORPUS`, else `target/corpus`.
pub fn directory() -> PathBuf {
    std::env::var_os("NARFS_CORPUS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/corpus"),
        PathBuf::from,
    )
}

/// The public key that signs every cache, as `name:base64`.
pub fn public_key() -> String {
    read("public-key").trim().to_owned()
}

/// The store path of `python3.11`, `redis-server`, `many-files`, or with `tests/setup --all` of
/// `ffmpeg`, `imagemagick`, `gcc-12`: in the real `/nix/store`, to be compared with.
pub fn store_path(name: &str) -> PathBuf {
    let paths: BTreeMap<String, PathBuf> =
        serde_json::from_str(&read("paths.json")).expect("paths.json is what tests/setup wrote");
    paths
        .get(name)
        .unwrap_or_else(|| panic!("the corpus has no {name}: run tests/setup, or with --all"))
        .clone()
}

/// The store paths of a closure, the root among them, as the real nix knows them.
pub fn closure(root: &Path) -> Vec<PathBuf> {
    let output = Command::new("nix-store")
        .args([OsStr::new("-qR"), root.as_os_str()])
        .stderr(Stdio::null())
        .output()
        .expect("nix-store is installed by tests/setup");
    assert!(output.status.success(), "nix-store -qR {}", root.display());
    let text = String::from_utf8(output.stdout).expect("store paths are ASCII");
    text.lines().map(PathBuf::from).collect()
}

/// The directory of the cache `name`, for `file://`.
pub fn cache(name: &str) -> PathBuf {
    let directory = directory().join("caches").join(name);
    assert!(
        directory.is_dir(),
        "no cache {}: run tests/setup",
        directory.display()
    );
    directory
}

/// Names of all caches.
pub fn caches() -> Vec<String> {
    let entries = fs::read_dir(directory().join("caches")).expect("run tests/setup");
    let mut names: Vec<String> = entries
        .map(|e| e.expect("readable").file_name().into_string())
        .map(|name| name.expect("names of caches are ASCII"))
        .collect();
    names.sort();
    names
}

/// What was asked of an [`Nginx`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// With the cache's name in front: `/zstd/nix-cache-info`.
    pub path: String,
    pub status: u16,
    /// Of the body, without headers.
    pub bytes: u64,
    /// `bytes=0-99`; none if the whole was asked for.
    pub range: Option<String>,
}

/// nginx with every cache of the corpus on a free loopback port.
pub struct Nginx {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    server: Process,
    prefix: tempfile::TempDir,
}

impl Nginx {
    pub fn start() -> Self {
        let prefix = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(support("serve-caches"));
        command.arg("--prefix").arg(prefix.path());
        command.arg(directory().join("caches"));
        let (server, url) = Process::start(command);
        Self {
            url,
            server,
            prefix,
        }
    }

    /// The URL of a cache.
    pub fn cache(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    /// Every request that was answered so far, in order of the answers' ends. nginx writes a line when
    /// the whole answer is handed to the kernel, which may be a moment after the client has its last byte.
    pub fn requests(&self) -> Vec<Request> {
        let log = fs::read_to_string(self.prefix.path().join("access.log")).unwrap_or_default();
        log.lines().filter_map(parse_request).collect()
    }
}

/// `GET /zstd/x.ls 200 1467 range="-" agent="…"`, as `nginx.conf.in` has it. Connections that were
/// closed unused have no path and are no requests.
fn parse_request(line: &str) -> Option<Request> {
    let (fields, rest) = line.split_once(" range=\"")?;
    let [method, path, status, bytes] = fields.split(' ').collect::<Vec<_>>()[..] else {
        return None;
    };
    let range = rest.split('"').next().filter(|r| *r != "-");
    Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        status: status.parse().ok()?,
        bytes: bytes.parse().ok()?,
        range: range.map(str::to_owned),
    })
}

/// An S3 server with some caches of the corpus, each in the bucket of its name (region `us-east-1`).
/// Unsigned requests are refused.
pub struct S3 {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    server: Process,
    log: tempfile::NamedTempFile,
}

impl S3 {
    pub fn start(caches: &[&str]) -> Self {
        Self::over(caches.iter().map(|name| cache(name)))
    }

    /// With the content of these directories, each in the bucket of its name.
    pub fn over(directories: impl IntoIterator<Item = PathBuf>) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/bin/python");
        assert!(python.exists(), "no S3 server: run tests/setup");
        let mut command = Command::new(python);
        command
            .arg(support("serve-s3"))
            .arg("--log")
            .arg(log.path());
        command.args(directories);
        let (server, url) = Process::start(command);
        Self { url, server, log }
    }

    /// Lines of `METHOD PATH RANGE CREDENTIAL` for every request after the uploads, `-` for what was not sent.
    pub fn requests(&self) -> Vec<String> {
        let log = fs::read_to_string(self.log.path()).expect("the log is there");
        let lines = log.lines().filter(|line| !line.ends_with(" upload"));
        lines.map(str::to_owned).collect()
    }
}

/// A child that prints its URL when it is ready, and is killed when dropped.
struct Process(Child);

impl Process {
    fn start(mut command: Command) -> (Self, String) {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut process =
            Self(child.unwrap_or_else(|e| panic!("{}: {e}", command.get_program().display())));
        let stdout = process.0.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("UTF-8 from our own script");
        assert!(
            line.starts_with("http://"),
            "{} did not start; its words are above",
            command.get_program().display()
        );
        (process, line.trim().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails where it has ended already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn support(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/support")
        .join(name)
}

fn read(name: &str) -> String {
    let file = directory().join(name);
    fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}: run tests/setup", file.display()))
}
