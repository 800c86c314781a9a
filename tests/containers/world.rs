//! What every test here starts: caches behind a link, the snapshotter, containerd, and images.

use std::{
    ops::Deref,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

use crate::{
    containerd::{Containerd, Setup, Version},
    corpus::{self, Nginx},
    link::Link,
    mounted::{narfs, run},
    snapshotter::Snapshotter,
};

/// The snapshotter's name to containerd.
pub const NARFS: &str = "narfs";

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
        Self::with(version, Snapshotter::start(cache, key), change)
    }

    /// With a snapshotter that was started.
    fn with(
        version: Version,
        snapshotter: Snapshotter,
        change: impl FnOnce(Setup) -> Setup,
    ) -> Self {
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

    /// The same with a configuration file of the snapshotter.
    pub fn configured(version: Version, configuration: &str) -> Self {
        let nginx = Nginx::start();
        let link = Link::start(&nginx.url);
        let cache = format!("{}/zstd", link.url());
        let snapshotter = Snapshotter::configured(&cache, &corpus::public_key(), configuration);
        Self {
            host: Host::with(version, snapshotter, |setup| setup),
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
