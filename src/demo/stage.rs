//! A store of its own, mounted where only this process and its children see it.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::closure::Closure;
use crate::{
    content::{ContentStore, OpenOptions},
    daemon::namespace,
    failure::{Exit, Failure},
    fuse::{self, Mount, MountOptions},
    nix::TrustedKeys,
    store::{Settings, Store, WeakStore},
    substituter::{HttpOptions, Substituter, SubstituterConfig, Transport},
};

/// Threads that answer the kernel: one program reads.
const THREADS: usize = 2;
/// Tries of a NAR, and of requests: loopback needs none of them.
const TRIES: u32 = 3;

/// What has to be over before the directory can go.
#[derive(Default)]
pub struct Ending {
    /// The end has begun: whoever works for long stops.
    pub begun: Arc<AtomicBool>,
    store: Mutex<Option<WeakStore>>,
}

impl Ending {
    /// Tells everybody.
    pub fn begin(&self) {
        self.begun.store(true, Relaxed);
    }

    /// Waits until nobody has the store any more, and with it the files below the directory.
    pub fn wait(&self, patience: Duration) {
        let begun = Instant::now();
        let store = self
            .store
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        while store.as_ref().is_some_and(|s| s.upgrade().is_some()) && begun.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The store and its mount.
pub struct Stage {
    store: Store,
    mounted: Mounted,
}

/// A mount that is taken away when this is dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = fuse::unmount(&self.0, true) {
            tracing::warn!(mountpoint = %self.0.display(), %error, "not unmounted");
        }
    }
}

impl Stage {
    /// Opens a store below `dir` and mounts it.
    ///
    /// # Errors
    /// What the system does not allow.
    pub async fn set(
        dir: &Path,
        url: &str,
        public_key: &str,
        ending: &Ending,
    ) -> Result<Self, Failure> {
        let store = open(&dir.join("state"), url, public_key)?;
        *ending.store.lock().unwrap_or_else(PoisonError::into_inner) = Some(store.downgrade());
        let mountpoint = dir.join("store");
        fs::create_dir(&mountpoint).map_err(|e| Failure::from_error(Exit::System, &e))?;
        let device = namespace::mount_fuse(&mountpoint)?;
        let mounted = Mounted(mountpoint);
        let (at, serving) = (mounted.0.clone(), store.clone());
        let served = tokio::task::spawn_blocking(move || {
            let options = MountOptions {
                allow_other: true,
                threads: THREADS,
                layout: fuse::Layout::Store,
                upcalls: Arc::default(),
            };
            Mount::serve(&serving, device, &options)?;
            fuse::raise_read_ahead(&at);
            Ok(())
        });
        let served = served
            .await
            .map_err(|e| Failure::from_error(Exit::Failure, &e))?;
        served.map_err(|e: fuse::MountError| Failure::from_error(Exit::System, &e))?;
        Ok(Self { store, mounted })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mounted.0
    }

    /// Reads the first byte of the program, of which nothing is known yet; how long that took.
    ///
    /// # Errors
    /// When there is none.
    pub async fn first_byte(&self, closure: &Closure) -> Result<Duration, Failure> {
        let file = self.mountpoint().join(&closure.program);
        let name = file.display().to_string();
        let read = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            fs::File::open(&file)?.read_exact(&mut [0])?;
            Ok(begun.elapsed())
        });
        let read = read.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        read.map_err(|e| Failure::new(Exit::Failure, format!("{name} can't be read")).because(&e))
    }

    /// Runs the program from the mount; what it says. It ends with the future.
    ///
    /// # Errors
    /// When it can't be run, or fails.
    pub async fn run(&self, closure: &Closure) -> Result<String, Failure> {
        let inside = |path: &PathBuf| self.mountpoint().join(path);
        let program = inside(&closure.program);
        let mut command = match &closure.loader {
            Some(loader) => {
                let directories: Vec<_> = closure.libraries.iter().map(inside).collect();
                let directories = std::env::join_paths(directories)
                    .map_err(|e| Failure::from_error(Exit::Usage, &e))?;
                let mut command = tokio::process::Command::new(inside(loader));
                command.arg("--library-path").arg(directories).arg(&program);
                command
            }
            None => tokio::process::Command::new(&program),
        };
        command.arg("demo").arg("--read").arg(inside(&closure.data));
        // Its libraries are to be those of the closure, and its settings none.
        command.env_clear().env("NARFS_STATE_DIR", "/nonexistent");
        command.stdin(Stdio::null()).kill_on_drop(true);
        let failed =
            |what: &str| Failure::new(Exit::Failure, format!("{}: {what}", program.display()));
        let output = command
            .output()
            .await
            .map_err(|e| failed("can't be run").because(&e))?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(failed(&format!(
                "{}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ))),
        }
    }

    /// Takes the mount down and lets go of the store.
    pub fn strike(self) {}
}

fn open(dir: &Path, url: &str, public_key: &str) -> Result<Store, Failure> {
    let failure = |e: &dyn std::error::Error| Failure::from_error(Exit::Failure, e);
    // The demonstration's cache is no business of a proxy.
    let options = HttpOptions {
        proxy_from_environment: false,
        ..HttpOptions::default()
    };
    let transport = Transport::new(options).map_err(|e| failure(&e))?;
    let config = SubstituterConfig {
        url: url.to_owned(),
        ..SubstituterConfig::default()
    };
    let cache = Substituter::new(&config, &transport).map_err(|e| failure(&e))?;
    let content = ContentStore::open(dir, OpenOptions::default()).map_err(|e| failure(&e))?;
    let settings = Settings {
        keys: TrustedKeys::parse([public_key]).map_err(|e| failure(&e))?,
        ..Settings::default()
    };
    Store::new(
        content,
        vec![cache],
        settings,
        TRIES,
        tokio::runtime::Handle::current(),
    )
    .map_err(|e| failure(&e))
}
