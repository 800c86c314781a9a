//! Nix layers as clients bring them: labels, unpacking, caches.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use narfs::nix::SigningKey;
use serde_json::Value;
use tonic::Status;

use crate::{
    cache::{self, Cache, Package, Packing, directory, exec, file, noise},
    corpus,
    scripted::Server,
    snapshotter::{Labels, PATIENCE, Root, Setup, Snapshotter, names},
    truth,
};

const MARK: &str = "containerd.io/snapshot/nix-layer";
const CLOSURE: &str = "containerd.io/snapshot/nix-closure";
/// What containerd gives every layer that it prepares: under which name it will be committed.
pub const REF: &str = "containerd.io/snapshot.ref";

/// Labels of a layer that lists its store paths, which are given by their base names.
pub fn path_labels<'n>(names: impl IntoIterator<Item = &'n str>) -> Labels {
    let paths = names.into_iter().enumerate().map(|(n, name)| {
        let label = format!("containerd.io/snapshot/nix-store-path.{n}");
        (label, format!("/nix/store/{name}"))
    });
    paths.chain([(MARK.into(), "true".into())]).collect()
}

/// Labels of a layer that names its closure-info.
pub fn closure_labels(name: &str) -> Labels {
    let closure = (CLOSURE.into(), format!("/nix/store/{name}"));
    [closure, (MARK.into(), "true".into())].into()
}

/// The same labels as on a container's own snapshot: without the mark of a layer.
pub fn unmarked(mut labels: Labels) -> Labels {
    labels.remove(MARK);
    labels
}

/// Brings a layer as containerd does: prepares it under a key that is used once, unpacks it, which
/// is `fill`, and commits it under its chain id; with the labels both times.
pub fn unpack(
    snapshotter: &Snapshotter,
    chain_id: &str,
    parent: &str,
    labels: Labels,
    fill: impl FnOnce(&Root),
) -> Result<(), Status> {
    let key = format!("extract-17 {chain_id}");
    let mut labels = labels;
    labels.insert(REF.into(), chain_id.into());
    let root = snapshotter.mount(&snapshotter.prepare(&key, parent, labels.clone())?);
    fill(&root);
    drop(root);
    snapshotter.commit(chain_id, &key, labels)
}

/// What nix-snapshotter puts into a layer: a mountpoint for each path.
pub fn mountpoints<'n>(names: impl IntoIterator<Item = &'n str>) -> impl FnOnce(&Root) {
    let names: Vec<_> = names.into_iter().map(str::to_owned).collect();
    move |root| {
        fs::create_dir_all(root.at("nix/store")).expect("made");
        for name in names {
            let made = fs::create_dir(root.at("nix/store").join(name));
            made.or_else(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(e),
            })
            .expect("made");
        }
    }
}

/// A layer of these paths, in either scheme.
pub fn nix_layer<'n>(
    snapshotter: &Snapshotter,
    chain_id: &str,
    parent: &str,
    names: impl IntoIterator<Item = &'n str> + Clone,
) {
    let labels = path_labels(names.clone());
    let done = unpack(snapshotter, chain_id, parent, labels, mountpoints(names));
    done.unwrap_or_else(|e| panic!("{chain_id}: {e}"));
}

/// Base names of the store paths in a container.
pub fn store(root: &Root) -> BTreeSet<String> {
    names(&root.at("nix/store"))
}

/// Base names of the store paths in a container's status directory.
pub fn status_paths(root: &Root) -> BTreeSet<String> {
    let mut found = names(&root.at(".nix-snapshotter"));
    assert!(found.remove("summary.json"), "{found:?}");
    let path = |name: String| name.strip_suffix(".json").expect("a document").to_owned();
    found.into_iter().map(path).collect()
}

/// A document of a container's status directory.
pub fn status(root: &Root, name: &str) -> Value {
    let text = root.read(Path::new(".nix-snapshotter").join(format!("{name}.json")));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}: {text}"))
}

/// A server with the corpus's cache `zstd`.
pub fn corpus_server() -> Server {
    let server = Server::start();
    server.directory(corpus::cache("zstd"));
    server
}

/// A snapshotter over it.
pub fn over(server: &Server) -> Snapshotter {
    Snapshotter::start(Setup::new(&server.base(), &corpus::public_key()))
}

/// Base names of a program's closure, as the corpus has it.
pub fn closure(program: &str) -> Vec<String> {
    truth::closure(&corpus::store_path(program))
}

/// As `&str`.
pub fn strs(names: &[String]) -> impl Iterator<Item = &str> + Clone {
    names.iter().map(String::as_str)
}

/// A cache of packages that the test makes up.
pub struct Own {
    pub server: Server,
    pub key: &'static SigningKey,
    cache: Cache<'static>,
}

impl Own {
    pub fn new() -> Self {
        // As long as the process: a few bytes for each test.
        let key: &SigningKey = Box::leak(Box::new(cache::key()));
        let cache = Cache::new(key);
        let server = Server::start();
        server.directory(cache.path());
        Self { server, key, cache }
    }

    /// With these packages in it.
    pub fn with<'p>(packages: impl IntoIterator<Item = &'p Package>) -> Self {
        let own = Self::new();
        own.add(packages);
        own
    }

    pub fn add<'p>(&self, packages: impl IntoIterator<Item = &'p Package>) {
        self.cache.add_all(packages, Packing::Zstd);
    }

    /// Its narinfo alone: whatever reads more of it fails.
    pub fn add_narinfo(&self, package: &Package) {
        self.cache.write_narinfo(package.narinfo(Packing::Zstd));
    }

    pub fn setup(&self) -> Setup {
        Setup::new(&self.server.base(), &self.key.public())
    }

    pub fn snapshotter(&self) -> Snapshotter {
        Snapshotter::start(self.setup())
    }
}

/// A package with a program that prints its name.
pub fn tool(name: &str) -> Package {
    let script = format!("#!/bin/sh\necho {name}\n");
    let bin = directory([("tool", exec(script))]);
    Package::new(name, &directory([("bin", bin)]))
}

/// Base names of packages.
pub fn names_of<'p>(packages: impl IntoIterator<Item = &'p Package>) -> Vec<String> {
    packages.into_iter().map(|p| p.path.to_string()).collect()
}

/// A package of one file of this many bytes.
pub fn sized(name: &str, size: usize) -> Package {
    let seed = name.bytes().fold(1, |seed, b| seed * 31 + u64::from(b));
    Package::new(name, &directory([("data", file(noise(seed, size)))]))
}

/// Reads all of it in a container.
pub fn read(root: &Root, package: &Package) {
    let at = root.at(format!("nix/store/{}/data", package.path));
    fs::read(&at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
}

/// Waits until the status says that the path is here as a whole.
pub fn complete(root: &Root, package: &Package) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let document = status(root, &package.path.to_string());
        if document["state"] == "complete" {
            return;
        }
        assert!(Instant::now() < deadline, "{document}");
        thread::sleep(Duration::from_millis(10));
    }
}
