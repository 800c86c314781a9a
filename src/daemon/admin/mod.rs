//! The admin endpoint of every daemon: HTTP on `admin.sock` in the state directory (mode 0600)
//! and, where `metrics-listen` names one, on a loopback address.
//!
//! | route | answer |
//! |---|---|
//! | `GET /live` | 200 while the process takes on work; for liveness probes |
//! | `GET /ready` | 200 when what it serves answers, else 503 and what does not |
//! | `GET /metrics` | the metrics of `docs/metrics.md`, in Prometheus' text format |
//! | `GET /status.json` | the summary, as in `.nix-snapshotter/summary.json` |
//! | `GET /debug/inflight` | who waits for what since when, admissions, transfers, the last errors ([`documents::InFlight`]) |
//! | `GET /debug/metrics.json` | the metrics as JSON ([`documents::Series`]), for `narfs top` and scripts |
//!
//! Nothing here touches the mount, but for `/ready`, which asks it from another process. Acts: one
//! thread, `narfs-admin`, with a runtime of its own, so that answers come whatever the store's
//! runtime has to do; it reads what others count and takes only leaf locks.
//!
//! ```text
//! listen.rs    the sockets        routes.rs   what is answered
//! probe.rs     /live and /ready   documents.rs, views.rs   the JSON documents
//! process.rs   what the system says of this process
//! client.rs    the other end
//! ```

pub mod client;
pub mod documents;
mod listen;
mod probe;
mod process;
mod routes;
mod views;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use tokio::sync::oneshot;

pub(crate) use probe::{Check, answers};
pub use process::METRICS;

use super::{serve::Shared, socket::Socket};
use crate::{
    config::Config,
    failure::{Exit, Failure},
    metrics::Source,
};

/// Name of the socket in the state directory.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// Where probes and people ask.
pub fn admin_socket(state_dir: &Path) -> PathBuf {
    state_dir.join(ADMIN_SOCKET)
}

/// What the endpoint answers from.
pub(crate) struct Office {
    pub shared: Arc<Shared>,
    /// What has to answer for `/ready`.
    pub checks: Vec<Check>,
    /// Who else counts.
    pub sources: Vec<Box<dyn Source + Send + Sync>>,
}

/// The endpoint while it is served.
pub(crate) struct Admin {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Admin {
    /// Starts serving. A loopback address that can't be had is tried again; see the log.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn start(config: &Config, office: Office) -> Result<Self, Failure> {
        let path = admin_socket(&config.state_dir);
        let address = config.metrics_listen.address();
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let failed = |e: &dyn std::error::Error| {
            Failure::new(Exit::System, "the admin endpoint can't be started").because(e)
        };
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(e) => return drop(tell.send(Err(failed(&e)))),
            };
            let office = Arc::new(office);
            runtime.block_on(async {
                let (socket, connections) = match Socket::open(&path).await {
                    Ok(open) => open,
                    Err(failure) => return drop(tell.send(Err(failure))),
                };
                // Who started this waits for it.
                let _ = tell.send(Ok(()));
                tokio::select! {
                    () = listen::unix(&office, connections) => {}
                    () = listen::loopback(&office, address) => {}
                    // Dropped means the same.
                    _ = stopped => {}
                }
                socket.close();
            });
        };
        let thread = std::thread::Builder::new()
            .name("narfs-admin".into())
            .spawn(serve)
            .map_err(|e| failed(&e))?;
        match told.recv() {
            Ok(Ok(())) => Ok(Self { stop, thread }),
            Ok(Err(failure)) => Err(failure),
            Err(e) => Err(failed(&e)),
        }
    }

    /// No further answers.
    pub fn stop(self) {
        // That it ended by itself is fine, and so is that it panicked: it was about to end.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}
