//! Stores over scripted caches, and readers that compare with the truth.

use std::{ops::Deref, path::Path as FsPath, sync::Arc, time::Duration};

use narfs::{
    content::{ContentStore, OpenOptions},
    nix::{SigningKey, TrustedKeys},
    store::{Lane, NodeId, Path, Settings, Step, Store, StoreError, ViewId},
    substituter::{HttpOptions, RetryPolicy, Substituter, SubstituterConfig, Transport},
    tree::{self, EntryIndex},
};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::support::{cache::Package, scripted::Server};

/// Longer than anything here takes; only what hangs meets it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How a store is set up.
#[derive(Clone)]
pub struct Setup {
    pub settings: Settings,
    pub http: HttpOptions,
    pub tries: u32,
    /// Whether unsigned paths are taken.
    pub trusted: bool,
}

impl Setup {
    /// Trusts `key`, tries twice, waits for little between tries and for long for answers.
    pub fn trusting(key: &SigningKey) -> Self {
        let millisecond = Duration::from_millis(1);
        let retry = RetryPolicy {
            tries: 2,
            base: millisecond,
            too_many_requests: millisecond,
            ..RetryPolicy::default()
        };
        Self {
            settings: Settings {
                keys: TrustedKeys::parse([key.public().as_str()]).unwrap(),
                ..Settings::default()
            },
            http: HttpOptions {
                retry,
                proxy_from_environment: false,
                ..HttpOptions::default()
            },
            tries: 2,
            trusted: false,
        }
    }

    /// With these settings changed.
    pub fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// A store in `state` over these caches.
    pub fn open(&self, state: &FsPath, caches: &[&Server]) -> Store {
        let content = ContentStore::open(state, OpenOptions { wait: PATIENCE }).unwrap();
        let transport = Transport::new(self.http.clone()).unwrap();
        let substituter = |server: &&Server| {
            let config = SubstituterConfig {
                url: server.base(),
                trusted: self.trusted,
                ..SubstituterConfig::default()
            };
            Substituter::new(&config, &transport).unwrap()
        };
        let caches = caches.iter().map(substituter).collect();
        Store::new(
            content,
            caches,
            self.settings.clone(),
            self.tries,
            Handle::current(),
        )
        .unwrap()
    }

    /// A store in a directory of its own.
    pub fn store(&self, caches: &[&Server]) -> World {
        let state = tempfile::tempdir().unwrap();
        World {
            store: self.open(state.path(), caches),
            state,
        }
    }
}

/// A store and its state directory.
pub struct World {
    pub store: Store,
    pub state: TempDir,
}

impl Deref for World {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

/// A server over the files of a directory.
pub fn serve(directory: &FsPath) -> Server {
    let server = Server::start();
    server.directory(directory);
    server
}

/// The outcome, or a panic where it hangs.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("hangs")
}

/// Waits until something that goes on in the background is so.
pub async fn until(mut so: impl FnMut() -> bool) {
    soon(async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// The answer of a step.
pub async fn answer<T>(step: Step<T>) -> Result<T, StoreError> {
    match step {
        Step::Ready(answer) => answer,
        Step::Wait(answer) => soon(answer).await,
    }
}

/// The root directory.
pub fn root() -> NodeId {
    NodeId::of(narfs::store::Node::Root(ViewId::WHOLE))
}

/// The bytes of a file, out of its archive.
pub fn truth(package: &Package, name: &str) -> Vec<u8> {
    let tree = package.tree();
    let entry = tree.resolve(name.as_bytes()).expect("in the archive");
    let Some(tree::Node::Regular { size, offset, .. }) = tree.node(entry) else {
        panic!("{name} is no file")
    };
    package.nar[offset as usize..(offset + size) as usize].to_vec()
}

/// Its admitted path.
pub async fn admitted(store: &Store, package: &Package) -> Arc<Path> {
    soon(store.admit(&package.path)).await.unwrap()
}

/// Up to `size` bytes at `offset` of a file, by name.
pub async fn read(
    store: &Store,
    package: &Package,
    name: &str,
    offset: u64,
    size: u32,
) -> Result<Vec<u8>, StoreError> {
    let path = soon(store.admit(&package.path)).await?;
    let entry = path
        .tree
        .resolve(name.as_bytes())
        .ok_or(StoreError::NoEntry)?;
    soon(store.read_file(&path, entry, offset, size)).await
}

/// A whole file, by name, as the kernel reads it: 128 KiB at a time.
pub async fn read_all(store: &Store, package: &Package, name: &str) -> Result<Vec<u8>, StoreError> {
    let mut all = Vec::new();
    loop {
        let part = read(store, package, name, all.len() as u64, 128 << 10).await?;
        if part.is_empty() {
            return Ok(all);
        }
        all.extend(part);
    }
}

/// Every file of the package reads as it should, whatever the store believes the tree to be.
pub async fn all_right(store: &Store, package: &Package) {
    let tree = package.tree();
    let path = admitted(store, package).await;
    path.tree.same_as(&tree).unwrap();
    for entry in (0..tree.len()).map(EntryIndex) {
        if let Some(tree::Node::Regular { .. }) = tree.node(entry) {
            let name = String::from_utf8(tree.path_of(entry)).unwrap();
            let bytes = read_all(store, package, &name).await.unwrap();
            assert!(bytes == truth(package, &name), "{name} reads wrong");
        }
    }
}

/// The right bytes or an error, nothing else: what every fault has to come to.
pub fn never_wrong(outcome: Result<Vec<u8>, StoreError>, right: &[u8]) -> Option<StoreError> {
    match outcome {
        Ok(bytes) => {
            assert!(bytes == right, "wrong bytes were served");
            None
        }
        Err(error) => {
            assert!(!error.is_absence(), "an error became absence: {error}");
            Some(error)
        }
    }
}

/// Fetches and verifies everything of a package.
pub async fn fetched(store: &Store, package: &Package) -> Result<(), StoreError> {
    let path = soon(store.admit(&package.path)).await?;
    soon(store.prefetch(&path, Lane::Demand)).await
}

/// Everything that was fetched is on the disk.
pub async fn flushed(store: &Store) {
    let store = store.clone();
    tokio::task::spawn_blocking(move || store.flush().unwrap())
        .await
        .unwrap();
}
