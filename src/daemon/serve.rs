//! A daemon's life: open, mount, say that it is ready, serve, end in order.

use std::{
    fs::File,
    io::Write,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{
    Terms,
    admin::{Admin, Check, Office},
    confine::Watched,
    memory, open_store, runtime,
    server::Server,
};
use crate::{
    config::{AllowOther, Config},
    content::ContentError,
    failure::{Exit, Failure},
    fuse::{self, Kept, Layout, Mount, MountError, MountOptions},
    nix::StorePath,
    store::{Lane, Store, StoreError},
};

/// How often an idle daemon looks whether it still is.
pub(crate) const IDLE_TICK: Duration = Duration::from_millis(500);
/// How long unanswered requests and unsynced bytes may hold up the end.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// What a daemon is to do.
#[derive(Debug, Default)]
pub struct Serve {
    /// Where to mount, if anywhere.
    pub mountpoint: Option<PathBuf>,
    /// Gets one line when the daemon is ready, or why it never will be.
    pub ready: Option<OwnedFd>,
    /// Whether the reason comes as people read it, and not as JSON.
    pub ready_plain: bool,
    /// A mount made by somebody else.
    pub device: Option<OwnedFd>,
    /// With it, if it is kept beyond this process: the kernel's greeting.
    pub greeting: Option<OwnedFd>,
    /// Where `device` is mounted, if that is known.
    pub served_at: Option<PathBuf>,
    /// Files that only the next daemon can read once they are replaced.
    pub watched: Option<Watched>,
    /// End after so long without a mount or a client.
    pub idle_exit: Option<Duration>,
    /// Paths to admit with their closures, and to collect last.
    pub roots: Vec<StorePath>,
}

/// What the parts of a daemon tell its main loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// A mount ended.
    MountEnded,
    /// A client asked the daemon to end.
    Stop,
    /// A file was replaced that only the next daemon can read.
    FileReplaced,
}

/// What clients and mounts share.
pub(crate) struct Shared {
    pub store: Store,
    pub options: MountOptions,
    pub mounts: AtomicUsize,
    pub clients: AtomicUsize,
    /// When the last client or mount went.
    pub last_use: Mutex<Instant>,
    pub terms: Terms,
    /// When it opened its store.
    pub begun: Instant,
    pub signals: mpsc::UnboundedSender<Signal>,
}

impl Shared {
    /// Around a store that is just opened; what happens comes to the receiver.
    pub fn new(
        config: &Config,
        store: Store,
        layout: Layout,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Signal>) {
        let (signals, received) = mpsc::unbounded_channel();
        let shared = Self {
            store,
            options: MountOptions {
                allow_other: allow_other(config.allow_other),
                threads: config.fuse_threads.count() as usize,
                layout,
                upcalls: Arc::default(),
            },
            mounts: AtomicUsize::new(0),
            clients: AtomicUsize::new(0),
            last_use: Mutex::new(Instant::now()),
            terms: Terms::of(config),
            begun: Instant::now(),
            signals,
        };
        (Arc::new(shared), received)
    }

    /// Somebody used the daemon just now.
    pub fn used(&self) {
        *self.last_use.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long nobody has used the daemon.
    fn idle(&self) -> Duration {
        if self.mounts.load(SeqCst) > 0 || self.clients.load(SeqCst) > 0 {
            return Duration::ZERO;
        }
        self.last_use
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }

    /// Looks after a mount until it ends.
    pub fn adopt(self: &Arc<Self>, mount: Mount) {
        self.mounts.fetch_add(1, SeqCst);
        let shared = self.clone();
        std::thread::spawn(move || {
            if let Err(error) = mount.join() {
                tracing::warn!(%error, "a mount ended");
            }
            shared.used();
            shared.mounts.fetch_sub(1, SeqCst);
            // The daemon may be gone already.
            let _ = shared.signals.send(Signal::MountEnded);
        });
    }
}

/// Serves until a signal, the end of its mounts, or idleness.
///
/// # Errors
/// What kept it from serving; the same goes to [`Serve::ready`].
pub fn serve(config: &Config, mut what: Serve) -> Result<(), Failure> {
    memory::limit_arenas();
    let ready = what.ready.take();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(failure) => return Err(not_ready(ready, what.ready_plain, failure)),
    };
    match start(config, &mut what, &runtime) {
        Ok(running) => {
            announce(ready);
            running.wait(config, &what, runtime)
        }
        Err(failure) => {
            runtime.shutdown_timeout(DRAIN);
            Err(not_ready(ready, what.ready_plain, failure))
        }
    }
}

struct Running {
    shared: Arc<Shared>,
    signals: mpsc::UnboundedReceiver<Signal>,
    server: Server,
    admin: Admin,
    mountpoint: Option<PathBuf>,
    /// Its mount outlives it.
    kept: bool,
}

fn start(config: &Config, what: &mut Serve, runtime: &Runtime) -> Result<Running, Failure> {
    let store = open_store(config, runtime)?;
    let (shared, signals) = Shared::new(config, store.clone(), Layout::Store);
    store.keep_up();
    store.scrub();
    let server = Server::start(&config.state_dir, shared.clone())?;
    if let Some(mountpoint) = &what.mountpoint {
        shared.adopt(Mount::new(&store, mountpoint, &shared.options).map_err(mount_failure)?);
    }
    let kept = what.greeting.is_some();
    if let Some(device) = what.device.take() {
        // Who may use the mount was decided by who made it; the kernel sees to that.
        let options = MountOptions {
            allow_other: true,
            ..shared.options.clone()
        };
        let mount = match what.greeting.take() {
            Some(greeting) => Mount::take_over(&store, Kept { device, greeting }, &options),
            None => Mount::serve(&store, device, &options),
        };
        shared.adopt(mount.map_err(mount_failure)?);
    }
    if let Some(watched) = what.watched.take() {
        let signals = shared.signals.clone();
        watched.watch(move || signals.send(Signal::FileReplaced).is_ok());
    }
    let mounts = what.mountpoint.iter().chain(&what.served_at);
    let office = Office {
        shared: shared.clone(),
        checks: mounts.cloned().map(Check::Mount).collect(),
        sources: Vec::new(),
    };
    let running = Running {
        shared,
        signals,
        server,
        admin: Admin::start(config, office)?,
        mountpoint: what.mountpoint.clone(),
        kept,
    };
    if let Err(failure) = root(&store, &what.roots, runtime) {
        running.unmount();
        return Err(failure);
    }
    Ok(running)
}

/// Admits the roots; their closures follow in the background.
fn root(store: &Store, roots: &[StorePath], runtime: &Runtime) -> Result<(), Failure> {
    if roots.is_empty() {
        return Ok(());
    }
    for path in roots {
        runtime
            .block_on(store.admit(path))
            .map_err(|e| store_failure(&e))?;
    }
    store
        .set_roots("mount", roots)
        .map_err(|e| store_failure(&e))?;
    let (store, roots) = (store.clone(), roots.to_vec());
    runtime.spawn(async move {
        let report = store.admit_closure(&roots, Lane::ReadAhead).await;
        for (path, error) in &report.failed {
            tracing::warn!(%path, %error, "in the closure of a root, but not admitted");
        }
    });
    Ok(())
}

impl Running {
    fn wait(mut self, config: &Config, what: &Serve, runtime: Runtime) -> Result<(), Failure> {
        tracing::info!(
            state_dir = %config.state_dir.display(),
            mountpoint = self.mountpoint.as_ref().map(|m| m.display().to_string()),
            caches = self.shared.store.substituters().len(),
            "serving"
        );
        let why = runtime.block_on(self.until_the_end(what.idle_exit))?;
        tracing::info!(why, "ending");
        self.unmount();
        self.server.stop();
        let mount_is_left = self.kept && self.mounts() > 0;
        self.admin.stop();
        end_runtime(runtime, mount_is_left);
        if let Err(error) = self.shared.store.flush() {
            tracing::warn!(%error, "not everything that was fetched could be made durable");
        }
        Ok(())
    }

    async fn until_the_end(
        &mut self,
        idle_exit: Option<Duration>,
    ) -> Result<&'static str, Failure> {
        let system =
            |e: std::io::Error| Failure::new(Exit::System, "signals can't be received").because(&e);
        let mut terminate = signal(SignalKind::terminate()).map_err(system)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system)?;
        let mut activity = Activity::default();
        let mut tick = tokio::time::interval(IDLE_TICK);
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok("SIGTERM"),
                _ = interrupt.recv() => return Ok("SIGINT"),
                told = self.signals.recv() => match told {
                    Some(Signal::Stop) | None => return Ok("asked to"),
                    Some(Signal::FileReplaced) => return Ok("the next one reads a file that was replaced"),
                    Some(Signal::MountEnded)
                        if (self.mountpoint.is_some() || self.kept) && self.mounts() == 0 =>
                    {
                        return Ok("unmounted");
                    }
                    Some(Signal::MountEnded) => {}
                },
                _ = tick.tick() => {
                    activity.look(&self.shared.store);
                    if idle_exit.is_some_and(|limit| self.shared.idle() >= limit) {
                        return Ok("idle");
                    }
                }
            }
        }
    }

    fn mounts(&self) -> usize {
        self.shared.mounts.load(SeqCst)
    }

    /// Takes the mount down, lazily if it is in use, and waits a little for its last requests.
    fn unmount(&self) {
        let Some(mountpoint) = &self.mountpoint else {
            return;
        };
        if self.mounts() == 0 {
            return;
        }
        if let Err(error) = fuse::unmount(mountpoint, true) {
            tracing::error!(mountpoint = %mountpoint.display(), %error, "not unmounted");
            return;
        }
        let begun = Instant::now();
        while self.mounts() > 0 && begun.elapsed() < DRAIN {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Ends what a daemon does. Where its mount outlives it, what readers wait for is not dropped:
/// dropped answers are errors, but of one that never comes the kernel sends the request once more,
/// to the next process.
pub(crate) fn end_runtime(runtime: Runtime, mount_is_left: bool) {
    match mount_is_left {
        true => std::mem::forget(runtime),
        false => runtime.shutdown_timeout(DRAIN),
    }
}

/// Whether the store is at work; when it comes to rest, memory goes back to the system.
#[derive(Default)]
pub(crate) struct Activity {
    fetched: u64,
    quiet_ticks: u32,
}

impl Activity {
    /// Ticks without a byte after which a store rests.
    const AT_REST: u32 = 4;

    /// To be called every [`IDLE_TICK`].
    pub fn look(&mut self, store: &Store) {
        let fetched = store.counters().fetched.get();
        if fetched != self.fetched {
            *self = Self {
                fetched,
                quiet_ticks: 0,
            };
            return;
        }
        self.quiet_ticks = self.quiet_ticks.saturating_add(1);
        if self.quiet_ticks == Self::AT_REST {
            memory::give_back();
        }
    }
}

fn announce(ready: Option<OwnedFd>) {
    if let Some(fd) = ready {
        // Whoever waited may have given up.
        let _ = File::from(fd).write_all(b"ready\n");
    }
}

fn not_ready(ready: Option<OwnedFd>, plain: bool, failure: Failure) -> Failure {
    if let Some(fd) = ready {
        let text = match plain {
            true => failure.to_string(),
            false => super::spawn::encode_failure(&failure),
        };
        // As above.
        let _ = File::from(fd).write_all(text.as_bytes());
    }
    failure
}

fn allow_other(setting: AllowOther) -> bool {
    match setting {
        AllowOther::Yes => true,
        AllowOther::No => false,
        AllowOther::Auto => {
            rustix::process::geteuid().is_root() || fuse_conf_allows(Path::new("/etc/fuse.conf"))
        }
    }
}

fn fuse_conf_allows(path: &Path) -> bool {
    std::fs::read_to_string(path)
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"))
}

pub(crate) fn mount_failure(error: MountError) -> Failure {
    Failure::from_error(Exit::System, &error)
}

/// The exit status and message for an error of the store.
pub(crate) fn store_failure(error: &StoreError) -> Failure {
    let exit = match error.root() {
        StoreError::Absent { .. } | StoreError::NoEntry => Exit::NotFound,
        StoreError::Untrusted { .. } | StoreError::Damaged { .. } => Exit::Untrusted,
        StoreError::ForeignStore { .. } => Exit::Usage,
        StoreError::Fetch { .. } | StoreError::TimedOut { .. } => Exit::Unavailable,
        _ => Exit::Failure,
    };
    let failure = Failure::from_error(exit, error);
    match hint_for(error.root()) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What to do about an error, where its message does not say so.
fn hint_for(error: &StoreError) -> Option<&'static str> {
    Some(match error {
        StoreError::Absent { .. } => {
            "compare the store path letter by letter, or add the cache that has it with --cache"
        }
        StoreError::Fetch { .. } => {
            "try again when the cache can be reached, or add another one with --cache"
        }
        StoreError::Damaged { .. } => {
            "add another cache that has it with --cache, and tell the operators of this one; it is asked again in ten minutes"
        }
        StoreError::NarInfo { .. } => "add another cache that has it with --cache",
        StoreError::Content(ContentError::NoSpace { .. }) => {
            "free disk space (`narfs gc` drops what nothing holds), or set another --state-dir"
        }
        _ => return None,
    })
}
