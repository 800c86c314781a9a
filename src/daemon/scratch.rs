//! A store for one command that must not touch the state directory: in a private directory that
//! goes with the command, also when it fails or is interrupted.

use std::time::Duration;

use tempfile::TempDir;
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};

use super::{open_store_in, runtime};
use crate::{
    config::{Config, Quota},
    failure::{Exit, Failure},
    store::Store,
};

/// How long threads that are decoding may hold up the end.
const END: Duration = Duration::from_secs(1);

/// A directory of mode 0700 below `TMPDIR` that is removed when it is dropped.
///
/// # Errors
/// When it can't be made.
pub fn scratch_directory() -> Result<TempDir, Failure> {
    tempfile::Builder::new()
        .prefix("narfs-")
        .tempdir()
        .map_err(|e| {
            let what = format!(
                "no directory can be made in {}",
                std::env::temp_dir().display()
            );
            Failure::new(Exit::System, what)
                .because(&e)
                .hint("set TMPDIR to a directory with room")
        })
}

/// Does `work` with a store that is empty at first and gone afterwards.
///
/// # Errors
/// What `work` says; what keeps the store from being made; that it was interrupted.
pub fn with_scratch_store<T>(
    config: &Config,
    work: impl AsyncFnOnce(&Store) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let runtime = runtime()?;
    // Before the directory is there, so that no signal leaves it behind.
    let mut signals = Signals::catch(&runtime)?;
    let dir = scratch_directory()?;
    let outcome = attempt(config, &dir, &runtime, &mut signals, work);
    // With the tasks go the last handles of the store.
    runtime.shutdown_timeout(END);
    if let Err(error) = dir.close() {
        tracing::warn!(%error, "a temporary directory could not be removed");
    }
    outcome
}

fn attempt<T>(
    config: &Config,
    dir: &TempDir,
    runtime: &Runtime,
    signals: &mut Signals,
    work: impl AsyncFnOnce(&Store) -> Result<T, Failure>,
) -> Result<T, Failure> {
    // What is dropped at the end anyway needs no quota.
    let mut config = config.clone();
    config.quota = Quota::Unlimited;
    config.keep_free = Quota::Unlimited;
    let store = open_store_in(&config, dir.path(), runtime)?;
    runtime.block_on(async {
        tokio::select! {
            outcome = work(&store) => outcome,
            () = signals.any() => Err(Failure::new(Exit::Interrupted, "interrupted")),
        }
    })
}

/// The signals that end a command, caught instead.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on.
    ///
    /// # Errors
    /// When the system does not let us.
    pub(crate) fn catch(runtime: &Runtime) -> Result<Self, Failure> {
        let _inside = runtime.enter();
        let catch = |kind| {
            signal(kind)
                .map_err(|e| Failure::new(Exit::System, "signals can't be received").because(&e))
        };
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them, and says which.
    pub(crate) async fn next(&mut self) -> rustix::process::Signal {
        use rustix::process::Signal;
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hangup.recv() => Signal::HUP,
        }
    }

    /// Waits for one of them.
    pub(crate) async fn any(&mut self) {
        self.next().await;
    }
}
