//! Runs the binary, and looks into caches.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use narfs::nix::{NarHash, NarInfo, SigningKey, StorePathHash, TrustedKeys};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::support::cache::{Package, directory, exec, file, noise};

/// A place to run in: temporary files, a state directory, a secret key.
pub struct Place {
    pub root: TempDir,
    pub key: SigningKey,
}

impl Place {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let key = SigningKey::generate("published-1").unwrap();
        fs::create_dir(root.path().join("tmp")).unwrap();
        fs::write(root.path().join("config.toml"), "").unwrap();
        fs::write(root.path().join("key"), key.secret()).unwrap();
        Self { root, key }
    }

    /// A directory in it, not made.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_narfs"));
        command
            .arg("--config")
            .arg(self.path("config.toml"))
            .args(arguments)
            .env("TMPDIR", self.path("tmp"))
            .env("HOME", self.root.path())
            .env("NO_PROXY", "127.0.0.1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `narfs publish` with our key.
    pub fn publish(&self, from: &str, to: &str, more: &[&str]) -> Command {
        let mut command = self.command(&["publish", "--from", from, "--to", to, "--json"]);
        command.arg("--secret-key").arg(self.path("key")).args(more);
        command
    }

    /// Runs it, expects success, and gives its report.
    pub fn published(&self, from: &str, to: &str, more: &[&str]) -> serde_json::Value {
        report(&self.publish(from, to, more).output().unwrap(), 0)
    }

    /// Nothing is left of temporary files.
    pub fn assert_clean(&self) {
        let left: Vec<_> = fs::read_dir(self.path("tmp")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// The report of a run that ended with this status.
pub fn report(output: &Output, code: i32) -> serde_json::Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {errors}"))
}

/// A URL of a directory.
pub fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// Every narinfo of a cache in a directory.
pub fn narinfos(cache: &Path) -> BTreeMap<StorePathHash, NarInfo> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(cache).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "narinfo") {
            let stem = path.file_stem().unwrap().to_str().unwrap().as_bytes();
            let hash = StorePathHash::parse(stem).unwrap();
            let text = fs::read(&path).unwrap();
            found.insert(hash, NarInfo::parse(&text, &hash).unwrap());
        }
    }
    found
}

/// Checks that every path that the cache offers is there, whole, with everything it refers to;
/// how many there are.
pub fn assert_valid(cache: &Path, keys: &TrustedKeys) -> usize {
    let all = narinfos(cache);
    for (hash, info) in &all {
        let packed = fs::read(cache.join(&info.url)).expect("a narinfo's NAR");
        let file_hash = NarHash::from_bytes(Sha256::digest(&packed).into());
        assert_eq!(Some(file_hash), info.file_hash, "{}", info.url);
        assert_eq!(Some(packed.len() as u64), info.file_size);
        let nar = zstd::decode_all(&packed[..]).unwrap();
        let nar_hash = NarHash::from_bytes(Sha256::digest(&nar).into());
        assert_eq!((nar_hash, nar.len() as u64), (info.nar_hash, info.nar_size));
        assert!(cache.join(format!("{hash}.ls")).exists());
        assert!(cache.join(format!("{}.chunks", info.url)).exists());
        let signed = info
            .signatures
            .iter()
            .any(|s| keys.verify(info.fingerprint().as_bytes(), s));
        assert!(signed, "{}", info.store_path);
        for reference in &info.references {
            assert!(
                all.contains_key(&reference.hash()),
                "{} lacks {reference}",
                info.store_path
            );
        }
    }
    all.len()
}

/// Packages that refer one to the next, each of `size` bytes that do not compress; the last one
/// refers to all.
pub fn chain(count: u64, size: usize) -> Vec<Package> {
    let mut packages: Vec<Package> = Vec::new();
    for n in 0..count {
        let tree = directory([
            ("bin", directory([("run", exec(noise(n, size)))])),
            (
                "share",
                directory([("a", file("small")), ("b", file(noise(n + 1000, 70_000)))]),
            ),
        ]);
        let package = Package::new(&format!("package-{n}"), &tree);
        let references: Vec<&Package> = packages.iter().rev().take(2).collect();
        let package = package.with_references(&references);
        packages.push(package);
    }
    let all: Vec<&Package> = packages.iter().collect();
    let top = Package::new("top", &file("top")).with_references(&all);
    packages.push(top);
    packages
}

/// Waits for a child; panics if it takes for ever.
pub fn ended(child: Child) -> Output {
    child.wait_with_output().unwrap()
}
