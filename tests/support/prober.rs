//! Somebody who looks at a mount all the time, whatever else happens, as a monitoring agent or a
//! shell's prompt would: `statfs`, `stat`, names that nobody asked for yet, the status document.
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    time::{Duration, Instant},
};

/// Far above what an answer takes, and far below what any of the faults lasts that it runs beside.
const BOUND: Duration = Duration::from_secs(10);
/// Between two looks.
const EVERY: Duration = Duration::from_millis(10);

/// See the module.
pub struct Prober {
    stop: Arc<AtomicBool>,
    looks: mpsc::Receiver<Duration>,
}

impl Prober {
    /// Begins to look at the mount at `mount`, in which `known` is a store path that is known.
    pub fn start(mount: &Path, known: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (said, looks) = mpsc::channel();
        let (over, mount, known) = (stop.clone(), mount.to_owned(), known.to_owned());
        std::thread::spawn(move || {
            let mut n = 0;
            while !over.load(SeqCst) {
                n += 1;
                let begun = Instant::now();
                look(&mount, &known, n);
                if said.send(begun.elapsed()).is_err() {
                    return;
                }
                std::thread::sleep(EVERY);
            }
        });
        Self { stop, looks }
    }

    /// Stops; how often it looked, and the longest time that one look took. Fails if one got no
    /// answer, or a wrong one.
    pub fn finish(self) -> (usize, Duration) {
        // One more, from now on: what hangs now is found.
        let mut all: Vec<_> = self.looks.try_iter().collect();
        match self.looks.recv_timeout(BOUND) {
            Ok(look) => all.push(look),
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the mount does not answer"),
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("the mount answered wrongly"),
        }
        self.stop.store(true, SeqCst);
        let longest = all.iter().max().copied().unwrap_or_default();
        assert!(longest < BOUND, "an answer took {longest:?}");
        (all.len(), longest)
    }
}

fn look(mount: &Path, known: &Path, n: usize) {
    let space = rustix::fs::statvfs(mount).expect("statfs");
    assert!(space.f_blocks > 0, "statfs of zeros");
    assert!(fs::symlink_metadata(mount).expect("the root").is_dir());
    fs::symlink_metadata(known).expect("a known path");
    let fresh: [PathBuf; 2] = [
        known.join(format!("nobody-asked-{n}")),
        mount.join(format!("no-store-path-{n}")),
    ];
    for path in fresh {
        let error = fs::symlink_metadata(&path).expect_err("it is not there");
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
    }
    let summary = fs::read(mount.join(".nix-snapshotter/summary.json")).expect("the status");
    serde_json::from_slice::<serde_json::Value>(&summary).expect("JSON");
}
