//! The snapshotter's life: open the store, mount it, put right what an earlier run left, answer,
//! end without taking anything from running containers.

use std::{
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use sd_notify::NotifyState;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    directories::Directories,
    error::{MetadataError, SnapshotError},
    heal::Healed,
    native::Native,
    service::service,
    snapshots::{Options, Snapshots},
};
use crate::{
    config::{Config, NativeFiles},
    daemon::{
        Activity, Admin, Check, DRAIN, IDLE_TICK, Office, Server, Shared, Signal, Socket, answers,
        check_free, end_runtime, keeper, limit_arenas, mount_failure, open_store, runtime,
    },
    failure::{Exit, Failure},
    fuse::{self, Layout, Mount},
};

/// Where the store is mounted, in the state directory.
pub const MOUNTPOINT: &str = "mnt";
/// Calls of one client that may be under way: those that wait for a cache must not be in the way
/// of the others. containerd has one connection.
const CALLS: u32 = 4096;

/// What a snapshotter is to do.
#[derive(Debug, Clone)]
pub struct Serve {
    /// The socket for containerd.
    pub address: PathBuf,
    /// Whether layers without labels are looked at.
    pub detect: bool,
}

/// Serves until a signal, or until somebody unmounts the store.
///
/// # Errors
/// What kept it from serving.
pub fn serve(config: &Config, what: &Serve) -> Result<(), Failure> {
    limit_arenas();
    check_root(&config.state_dir)?;
    let runtime = runtime()?;
    match start(config, what, &runtime) {
        Ok(running) => running.wait(config, runtime),
        Err(failure) => {
            runtime.shutdown_timeout(DRAIN);
            Err(failure)
        }
    }
}

/// Overlayfs gets its directories in one text, where these characters stand between them.
fn check_root(root: &Path) -> Result<(), Failure> {
    match root.to_str() {
        Some(text) if !text.contains([',', ':', '\\', '"']) => Ok(()),
        _ => {
            let what = format!(
                "{} can't be the directory of a snapshotter: overlayfs takes no path with a comma, a colon, a quote, a \
                 backslash, or bytes that are no UTF-8",
                root.display()
            );
            Err(Failure::new(Exit::Usage, what).hint("use another directory with --root"))
        }
    }
}

/// What ends it; received from before it is ready.
struct Endings {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Endings {
    fn receive(runtime: &Runtime) -> Result<Self, Failure> {
        let system =
            |e: std::io::Error| Failure::new(Exit::System, "signals can't be received").because(&e);
        let _inside = runtime.enter();
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(system)?,
            interrupt: signal(SignalKind::interrupt()).map_err(system)?,
        })
    }
}

struct Running {
    shared: Arc<Shared>,
    endings: Endings,
    signals: mpsc::UnboundedReceiver<Signal>,
    server: Server,
    mountpoint: PathBuf,
    calls: Calls,
    admin: Admin,
}

/// In this order: what can be refused first, the mount after it, the sockets last.
fn start(config: &Config, what: &Serve, runtime: &Runtime) -> Result<Running, Failure> {
    let root = &config.state_dir;
    let endings = Endings::receive(runtime)?;
    check_free(&what.address)?;
    let store = open_store(config, runtime)?;
    let (shared, signals) = Shared::new(config, store.clone(), Layout::Node);
    store.keep_up();
    store.scrub();
    let mountpoint = root.join(MOUNTPOINT);
    let mut options = Options {
        detect: what.detect,
        ..Options::default()
    };
    let directories = Directories::new(root, &mountpoint);
    let wanted = config.native_files == NativeFiles::Auto;
    options.native = Native::open(root, &directories, options.overlay, wanted, &store)
        .map_err(|e| snapshot_failure(&e))?;
    if let Some(native) = &options.native {
        native.scrub(config.scrub_rate.0);
    }
    let opened = Snapshots::open(root, directories, Arc::new(store), options);
    let (snapshots, healed) = runtime.block_on(opened).map_err(|e| snapshot_failure(&e))?;
    let server = Server::start(root, shared.clone())?;
    let fresh = mount(&shared, root, &mountpoint)?;
    let answering = runtime.block_on(async {
        let calls = Calls::serve(&what.address, &snapshots).await?;
        let checks = vec![
            Check::Mount(mountpoint.clone()),
            Check::Grpc(what.address.clone()),
        ];
        let ready = answers(&checks).await;
        let office = Office {
            shared: shared.clone(),
            checks,
            sources: vec![Box::new(snapshots.clone())],
        };
        let admin = Admin::start(config, office)?;
        ready.map_err(|why| Failure::new(Exit::System, format!("not ready: {why}")))?;
        tell_the_service_manager(&snapshots, &healed);
        snapshots.heal_in_the_background(&healed);
        snapshots.keep_native();
        Ok((calls, admin))
    });
    // Containers may use one that was there before; the keeper has it, for the next try.
    let (calls, admin) = answering.inspect_err(|_: &Failure| {
        if fresh {
            abandon(&mountpoint);
        }
    })?;
    Ok(Running {
        shared,
        endings,
        signals,
        server,
        mountpoint,
        calls,
        admin,
    })
}

/// Serves the mount that an earlier process left with the keeper, or else mounts the store in the
/// state directory, in the place of what a dead server left there; whether it was mounted now.
fn mount(shared: &Arc<Shared>, root: &Path, mountpoint: &Path) -> Result<bool, Failure> {
    let (store, options) = (&shared.store, &shared.options);
    let take_over = |kept| Mount::take_over(store, kept, options).map_err(mount_failure);
    // Until somebody serves it, nothing may touch the mountpoint: it would wait for us.
    let mounted = fuse::mounted_by_narfs(mountpoint);
    match keeper::ask(root)? {
        Some(kept) if mounted => {
            shared.adopt(take_over(kept)?);
            return Ok(false);
        }
        Some(kept) => {
            tracing::warn!(
                mountpoint = %mountpoint.display(),
                "the store was unmounted while containers used it; they are served as long as this process lives"
            );
            shared.adopt(take_over(kept)?);
            keeper::end(root)?;
        }
        None => {}
    }
    if !mounted {
        make_mountpoint(mountpoint)?;
    }
    if fuse::unmount_dead(mountpoint).map_err(mount_failure)? {
        tracing::warn!(
            mountpoint = %mountpoint.display(),
            "a mount without a server was left and is replaced; containers that used it have to be started again"
        );
    }
    let kept = fuse::mount_kept(mountpoint, options).map_err(mount_failure)?;
    let served = keeper::start(root, &kept).and_then(|()| take_over(kept));
    shared.adopt(served.inspect_err(|_| abandon(mountpoint))?);
    fuse::raise_read_ahead(mountpoint);
    Ok(true)
}

fn make_mountpoint(mountpoint: &Path) -> Result<(), Failure> {
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o755).create(mountpoint);
    made.map_err(|e| {
        let what = format!("the mountpoint {} can't be made", mountpoint.display());
        Failure::new(Exit::System, what).because(&e)
    })
}

/// Takes away a mount that nobody would ever answer at.
fn abandon(mountpoint: &Path) {
    // There is an error to be told already; that this fails too adds nothing to it.
    let _ = fuse::unmount(mountpoint, true);
}

fn tell_the_service_manager(snapshots: &Snapshots, healed: &Healed) {
    let count = snapshots.count();
    tracing::info!(snapshots = count, damaged = healed.damaged.len(), "ready");
    let status = format!("serving {count} snapshots");
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)]) {
        tracing::warn!(%error, "the service manager can't be told");
    }
}

/// The socket for containerd and who answers there.
struct Calls {
    socket: Socket,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Calls {
    async fn serve(address: &Path, snapshots: &Snapshots) -> Result<Self, Failure> {
        let (socket, connections) = Socket::open(address).await?;
        let (stop, stopped) = oneshot::channel();
        let server = tonic::transport::Server::builder()
            .max_concurrent_streams(CALLS)
            .add_service(service(snapshots.clone()))
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), async {
                // Dropped means the same.
                let _ = stopped.await;
            });
        Ok(Self {
            socket,
            stop,
            server: tokio::spawn(server),
        })
    }

    /// No new calls; those under way may end.
    async fn end(self) {
        self.socket.close();
        // That it ended by itself is fine.
        let _ = self.stop.send(());
        if tokio::time::timeout(DRAIN, self.server).await.is_err() {
            tracing::warn!("calls were under way and are cut off; containerd tries them again");
        }
    }
}

impl Running {
    fn wait(mut self, config: &Config, runtime: Runtime) -> Result<(), Failure> {
        tracing::info!(
            root = %config.state_dir.display(),
            caches = self.shared.store.substituters().len(),
            "serving"
        );
        let why = runtime.block_on(self.until_the_end());
        tracing::info!(why, "ending");
        if let Err(error) = sd_notify::notify(&[NotifyState::Stopping]) {
            tracing::debug!(%error, "the service manager can't be told");
        }
        runtime.block_on(self.calls.end());
        self.admin.stop();
        self.server.stop();
        end_runtime(runtime, fuse::mounted_by_narfs(&self.mountpoint));
        if let Err(error) = self.shared.store.flush() {
            tracing::warn!(%error, "not everything that was fetched could be made durable");
        }
        Ok(())
    }

    async fn until_the_end(&mut self) -> &'static str {
        let mut activity = Activity::default();
        let mut tick = tokio::time::interval(IDLE_TICK);
        loop {
            tokio::select! {
                _ = self.endings.terminate.recv() => return "SIGTERM",
                _ = self.endings.interrupt.recv() => return "SIGINT",
                told = self.signals.recv() => match told {
                    Some(Signal::Stop) | None => return "asked to",
                    // The only mount of its own; others are those of `narfs run`.
                    Some(Signal::MountEnded) if !fuse::mounted_by_narfs(&self.mountpoint) => {
                        return "unmounted";
                    }
                    Some(Signal::MountEnded | Signal::FileReplaced) => {}
                },
                _ = tick.tick() => activity.look(&self.shared.store),
            }
        }
    }
}

fn snapshot_failure(error: &SnapshotError) -> Failure {
    let exit = match error {
        SnapshotError::Metadata(MetadataError::Failed { .. } | MetadataError::NoSpace { .. }) => {
            Exit::System
        }
        SnapshotError::Io { .. } => Exit::System,
        _ => Exit::Failure,
    };
    Failure::from_error(exit, error)
}
