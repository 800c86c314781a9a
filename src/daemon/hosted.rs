//! A daemon in the process of a verb, for the program that the verb starts (`narfs trace`).
//!
//! It serves the control socket of its state directory as any daemon does, so that `narfs run`
//! finds it there and does not start another.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, sync::mpsc};

use super::{DRAIN, Server, Shared, Signal, open_store};
use crate::{
    config::Config,
    failure::Failure,
    fuse::{Layout, Upcalls},
    store::Store,
};

/// How long a mount may take to go when the last program that sees it ended.
const GOES_WITHIN: Duration = Duration::from_secs(1);

/// The daemon, until [`Hosted::end`].
pub(crate) struct Hosted {
    shared: Arc<Shared>,
    server: Server,
    /// What nobody here acts on: it ends with its verb.
    _signals: mpsc::UnboundedReceiver<Signal>,
}

impl Hosted {
    /// Opens the store of the configured state directory and waits for clients.
    ///
    /// # Errors
    /// As [`open_store`]; when the socket can't be made.
    pub fn start(config: &Config, runtime: &Runtime) -> Result<Self, Failure> {
        let store = open_store(config, runtime)?;
        let (shared, signals) = Shared::new(config, store, Layout::Store);
        shared.store.keep_up();
        let server = Server::start(&config.state_dir, shared.clone())?;
        Ok(Self {
            shared,
            server,
            _signals: signals,
        })
    }

    /// What it serves.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// What the kernel asked of it.
    pub fn upcalls(&self) -> &Upcalls {
        &self.shared.options.upcalls
    }

    /// No more clients and no more tasks; what it knows can still be looked at.
    pub fn end(&self, runtime: Runtime) {
        self.server.stop();
        let begun = Instant::now();
        while self.shared.mounts.load(SeqCst) > 0 && begun.elapsed() < GOES_WITHIN {
            std::thread::sleep(Duration::from_millis(2));
        }
        runtime.shutdown_timeout(DRAIN);
        if let Err(error) = self.shared.store.flush() {
            tracing::warn!(%error, "not everything that was fetched could be made durable");
        }
    }
}
