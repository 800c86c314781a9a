//! A snapshotter over two caches, readers of its mount, containers on it, and what befalls them.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    corpus,
    figures::Figures,
    gauges,
    scripted::{Reply, Server, When},
    snapshot::visit,
    snapshotter::{Labels, PATIENCE, Root, Setup, Snapshotter},
    truth,
};

/// Threads that read all the time.
const READERS: &str = "16";
/// Containers at a time.
const CONTAINERS: usize = 4;
/// Files that a container reads, whole, before it ends.
const FILES: usize = 40;
/// What may be kept; the closures have several times as much.
const QUOTA: &str = "--quota=24MiB";
/// Programs whose closures are read.
const PROGRAMS: [&str; 2] = ["redis-server", "python3.11"];

/// Chance, the same for the same seed.
pub struct Chance(u64);

impl Chance {
    /// Of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// A container: its root, and the process in it that reads.
struct Container {
    key: String,
    root: Root,
    reader: Child,
}

/// See the module.
pub struct World {
    readers: Option<Child>,
    containers: Vec<Container>,
    snapshotter: Snapshotter,
    caches: [Server; 2],
    /// Store paths of each program.
    closures: Vec<Vec<String>>,
    /// Files of each program that are not empty, below `/nix/store` and below `truths`.
    files: Vec<Vec<PathBuf>>,
    truths: tempfile::TempDir,
    started: u64,
}

impl World {
    /// Restores the truth, starts everything; the readers read when this returns.
    pub fn start(seed: u64) -> Self {
        let truths = tempfile::tempdir().expect("a temporary directory");
        let closures: Vec<_> = PROGRAMS
            .iter()
            .map(|program| truth::closure(&corpus::store_path(program)))
            .collect();
        for name in closures.iter().flatten() {
            let at = truths.path().join(name);
            if !at.exists() {
                truth::restore(name, &at);
            }
        }
        let files = closures.iter().map(|names| {
            let mut files = Vec::new();
            for name in names {
                visit(
                    &truths.path().join(name),
                    Path::new(""),
                    &mut |inner, at| {
                        let found = fs::symlink_metadata(at).expect("it is there");
                        if found.is_file() && found.len() > 0 {
                            files.push(match inner.as_os_str().is_empty() {
                                true => name.into(),
                                false => Path::new(name).join(inner),
                            });
                        }
                    },
                );
            }
            files
        });
        let files = files.collect();
        let caches = ["zstd", "none"].map(|name| {
            let server = Server::start();
            server.directory(corpus::cache(name));
            server
        });
        let setup = Setup::new(&caches[0].base(), &corpus::public_key())
            .flag(&format!("--cache={}", caches[1].base()))
            .flag("--stall-timeout=2s")
            .flag(QUOTA);
        let snapshotter = Snapshotter::start(setup);
        let mut world = Self {
            readers: None,
            containers: Vec::new(),
            snapshotter,
            caches,
            closures,
            files,
            truths,
            started: 0,
        };
        for n in 0..PROGRAMS.len() {
            world.layer(n);
        }
        let mut all = world.files.concat();
        all.sort();
        all.dedup();
        let store = world.snapshotter.mountpoint().join("store");
        let list = world.list("readers", &store, &all);
        let mut command = compare();
        command.arg(list).args([READERS, &seed.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        world.readers = Some(command.spawn().expect("python3 is there"));
        world
    }

    /// The snapshotter's process.
    pub fn pid(&self) -> u32 {
        self.snapshotter.pid()
    }

    /// A layer of a closure, as containerd brings it.
    fn layer(&self, program: usize) {
        let paths = self.closures[program].iter().enumerate();
        let paths = paths.map(|(n, name)| {
            let label = format!("containerd.io/snapshot/nix-store-path.{n}");
            (label, format!("/nix/store/{name}"))
        });
        let mark = ("containerd.io/snapshot/nix-layer".into(), "true".into());
        let labels: Labels = paths.chain([mark]).collect();
        let (key, layer) = (format!("extract-{program}"), format!("layer-{program}"));
        self.snapshotter
            .prepare(&key, "", labels.clone())
            .expect("prepared");
        self.snapshotter
            .commit(&layer, &key, labels)
            .expect("committed");
    }

    /// Writes a list of files below `root` and their truths.
    fn list<'f>(
        &self,
        called: &str,
        root: &Path,
        files: impl IntoIterator<Item = &'f PathBuf>,
    ) -> PathBuf {
        let lines = files.into_iter().map(|file| {
            let [here, there] = [root, self.truths.path()].map(|at| at.join(file));
            format!("{}\t{}\n", here.display(), there.display())
        });
        let list = self.truths.path().join(format!("{called}.list"));
        fs::write(&list, lines.collect::<String>()).expect("written");
        list
    }

    /// One of the caches begins to misbehave, or both; for less time than a reader has patience.
    pub fn flap(&mut self, chance: &mut Chance, figures: &mut Figures) {
        let which = chance.below(3);
        let seconds = 0.1 + chance.below(900) as f64 / 1000.0;
        let reply = match chance.below(6) {
            0 => Reply::status(503),
            1 => Reply::status(429).header("Retry-After", "1"),
            2 => Reply::reset(),
            3 => Reply::as_it_is().cut_after(chance.below(200_000)),
            4 => Reply::as_it_is().reset_after(chance.below(200_000)),
            _ => Reply::as_it_is().trickle(1, Duration::from_millis(20)),
        };
        for (n, cache) in self.caches.iter().enumerate() {
            if which != n as u64 {
                cache.fault(When::Seconds(0.0..seconds), reply.clone());
            }
        }
        if chance.below(4) == 0 {
            let gone = &self.caches[chance.below(2) as usize];
            gone.vanish();
            std::thread::sleep(Duration::from_secs_f64(seconds));
            gone.come_back();
        }
        figures.flaps += 1;
    }

    /// A container is started: it reads some files of its closure, whole.
    pub fn start_container(&mut self, chance: &mut Chance, figures: &mut Figures) {
        if self.containers.len() >= CONTAINERS {
            return self.end_container(figures);
        }
        self.started += 1;
        let program = chance.below(PROGRAMS.len() as u64) as usize;
        let key = format!("container-{}", self.started);
        let root = self.snapshotter.prepared(&key, &format!("layer-{program}"));
        let files = &self.files[program];
        let first = chance.below(files.len() as u64) as usize;
        let some = files.iter().cycle().skip(first).take(FILES);
        let list = self.list(&key, &root.at("nix/store"), some);
        let mut command = compare();
        command.arg(list).arg("once");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let reader = command.spawn().expect("python3 is there");
        figures.containers += 1;
        self.containers.push(Container { key, root, reader });
    }

    /// The oldest container ends, when it has read everything.
    pub fn end_container(&mut self, figures: &mut Figures) {
        if self.containers.is_empty() {
            return;
        }
        let Container { key, root, reader } = self.containers.remove(0);
        figures.add(&said(reader));
        drop(root);
        self.snapshotter.remove(&key).expect("removed");
    }

    /// The snapshotter is killed, and started again.
    pub fn kill(&mut self, figures: &mut Figures) {
        self.snapshotter.kill();
        self.snapshotter.start_again();
        figures.kills += 1;
    }

    /// Ends everything, and looks whether anything is left.
    pub fn finish(mut self, figures: &mut Figures) {
        while !self.containers.is_empty() {
            self.end_container(figures);
        }
        let mut readers = self.readers.take().expect("they read");
        drop(readers.stdin.take());
        figures.add(&said(readers));
        figures.faults = self.caches.iter().map(|cache| cache.faults() as u64).sum();
        for cache in &self.caches {
            cache.heal();
        }
        for n in 0..PROGRAMS.len() {
            self.snapshotter
                .remove(&format!("layer-{n}"))
                .expect("removed");
        }
        self.snapshotter.assert_holds_only(0, 0);
        self.wait_until_idle();
    }

    /// Every number that says what goes on now goes back to zero.
    fn wait_until_idle(&self) {
        let summary = self
            .snapshotter
            .mountpoint()
            .join("store/.nix-snapshotter/summary.json");
        gauges::check_lists();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read(&summary).expect("the status");
            let summary: Value = serde_json::from_slice(&text).expect("JSON");
            // Between two tries of a fetch nothing is under way either.
            let busy = gauges::busy(&self.snapshotter.root());
            if busy.is_empty() && summary["paths"]["fetching"] == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "still busy: {busy:?} {summary}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Left over by a failure. They may wait for the mount, which ends with the snapshotter.
        for container in &mut self.containers {
            let _ = container.reader.kill();
        }
        if let Some(readers) = &mut self.readers {
            let _ = readers.kill();
        }
        let _ = std::io::stdout().flush();
    }
}

fn compare() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/soak/read-and-compare"))
}

/// What a reader says at its end.
fn said(reader: Child) -> Value {
    let output = reader.wait_with_output().expect("ours");
    assert!(output.status.success(), "a reader died: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("one line of JSON")
}
