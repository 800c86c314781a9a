//! A mount of the store: made, tuned, kept in step with the store, taken down.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use fuser::{BackgroundSession, Config, INodeNo, MountOption, Notifier, Session, SessionACL};
use narfs_mount::{Kept, MountError, check, unmount, unmount_dead};
use tokio::sync::broadcast::error::RecvError;

use super::{filesystem::StoreFs, takeover, upcalls::Upcalls};
use crate::{
    store::{Event, Node, NodeId, Path as KnownPath, Store, ViewId},
    tree::{self, EntryIndex},
};

/// How to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// Let other users than the one who mounts use it.
    pub allow_other: bool,
    /// Threads that take requests from the kernel.
    pub threads: usize,
    /// What the mount's root is.
    pub layout: Layout,
    /// Where requests are counted; all mounts of a process share it.
    pub upcalls: Arc<Upcalls>,
}

/// What the root of a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// The store itself: a directory of store paths.
    #[default]
    Store,
    /// `store/`, with everything, and `views/`, with a root directory for each view.
    Node,
}

/// The kernel's number for the root of any mount.
const ROOT: u64 = 1;

impl Layout {
    fn root(self) -> NodeId {
        match self {
            Self::Store => Store::whole(),
            Self::Node => Store::top(),
        }
    }

    /// The kernel's number of a node: the root changes its number with the node that has the root's.
    pub(super) fn ino(self, node: NodeId) -> INodeNo {
        INodeNo(self.swapped(node.0))
    }

    /// The node with this number.
    pub(super) fn node(self, ino: INodeNo) -> NodeId {
        NodeId(self.swapped(ino.0))
    }

    fn swapped(self, number: u64) -> u64 {
        let root = self.root().0;
        match number {
            ROOT => root,
            n if n == root => ROOT,
            n => n,
        }
    }
}

/// A living mount. It ends when somebody unmounts it, with [`super::unmount`] or otherwise.
pub struct Mount {
    session: BackgroundSession,
    mountpoint: Option<PathBuf>,
}

impl Mount {
    /// Mounts the store's whole view on `mountpoint`.
    ///
    /// # Errors
    /// With the reason and what to do about it.
    pub fn new(
        store: &Store,
        mountpoint: &Path,
        options: &MountOptions,
    ) -> Result<Self, MountError> {
        replace_dead(mountpoint)?;
        check(mountpoint)?;
        if !Path::new("/dev/fuse").exists() {
            return Err(MountError::NoDevice);
        }
        let fs = StoreFs::new(store, options);
        let failed = |source: io::Error| match source.kind() {
            // Without privilege, fuser runs fusermount3; where that is missing too: not found.
            io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound => {
                MountError::NoPermission(mountpoint.into())
            }
            _ => MountError::Io {
                path: mountpoint.into(),
                source,
            },
        };
        let session =
            match narfs_mount::mount(mountpoint, options.allow_other, false).map_err(failed)? {
                Some(device) => Session::from_fd(fs, device, acl(options), config(options))
                    .inspect_err(|_| abandon(mountpoint)),
                None => Session::new(fs, mountpoint, &config(options)),
            };
        let session = session.map_err(failed)?;
        let mount = Self::run(store, session, Some(mountpoint.into()), options.layout)?;
        raise_read_ahead(mountpoint);
        Ok(mount)
    }

    /// Serves a `/dev/fuse` descriptor that somebody else mounted, up to the mount's end.
    ///
    /// # Errors
    /// When the kernel does not begin its protocol on it.
    pub fn serve(
        store: &Store,
        device: OwnedFd,
        options: &MountOptions,
    ) -> Result<Self, MountError> {
        let io = |source| MountError::Io {
            path: "a descriptor handed over".into(),
            source,
        };
        let acl = acl(options);
        let fs = StoreFs::new(store, options);
        let session = Session::from_fd(fs, device, acl, config(options)).map_err(io)?;
        Self::run(store, session, None, options.layout)
    }

    /// Serves a mount that is kept, from its beginning or after another process.
    ///
    /// # Errors
    /// When the mount is gone or does not begin the kernel's protocol.
    pub fn take_over(
        store: &Store,
        kept: Kept,
        options: &MountOptions,
    ) -> Result<Self, MountError> {
        let io = |source| MountError::Io {
            path: "a mount handed over".into(),
            source,
        };
        let fs = StoreFs::new(store, options);
        let (session, first) = takeover::begin(fs, kept, options).map_err(io)?;
        let mount = Self::run(store, session, None, options.layout)?;
        options.upcalls.takeovers.add(u64::from(!first));
        tracing::info!(first, "serving a mount that outlives this process");
        Ok(mount)
    }

    fn run(
        store: &Store,
        session: Session<StoreFs>,
        mountpoint: Option<PathBuf>,
        layout: Layout,
    ) -> Result<Self, MountError> {
        follow(store, session.notifier(), layout);
        let io = |source| MountError::Io {
            path: mountpoint.clone().unwrap_or_default(),
            source,
        };
        let session = session.spawn().map_err(io)?;
        Ok(Self {
            session,
            mountpoint,
        })
    }

    /// Where it is mounted, if this process mounted it.
    pub fn mountpoint(&self) -> Option<&Path> {
        self.mountpoint.as_deref()
    }

    /// Whether somebody unmounted it.
    pub fn ended(&self) -> bool {
        self.session.guard.is_finished()
    }

    /// Unmounts, and waits for the last request to be answered.
    ///
    /// # Errors
    /// Of the system call, mostly because the mount is in use.
    pub fn unmount(self) -> io::Result<()> {
        if let Some(mountpoint) = &self.mountpoint {
            unmount(mountpoint, false)?;
        }
        self.join()
    }

    /// Waits for a mount to end that somebody else unmounts.
    ///
    /// # Errors
    /// Of the session.
    pub fn join(self) -> io::Result<()> {
        self.session.join()
    }
}

/// Mounts, for whoever keeps the mount and lets others serve it ([`Mount::take_over`]). Nobody
/// answers there until then. Needs the privilege to mount.
///
/// # Errors
/// With the reason and what to do about it.
pub fn mount_kept(mountpoint: &Path, options: &MountOptions) -> Result<Kept, MountError> {
    check(mountpoint)?;
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => MountError::NoDevice,
        _ => MountError::Io {
            path: mountpoint.into(),
            source,
        },
    };
    match narfs_mount::mount(mountpoint, options.allow_other, false).map_err(failed)? {
        Some(device) => Kept::new(device)
            .map_err(failed)
            .inspect_err(|_| abandon(mountpoint)),
        None => Err(MountError::NoPermission(mountpoint.into())),
    }
}

/// Takes away what a dead server left, so that there can be a mount again.
fn replace_dead(mountpoint: &Path) -> Result<(), MountError> {
    if unmount_dead(mountpoint)? {
        tracing::warn!(
            mountpoint = %mountpoint.display(),
            "a mount without a server was left and is replaced; programs that used it have to be started again"
        );
    }
    Ok(())
}

/// Takes away a mount that nobody would ever answer at.
fn abandon(mountpoint: &Path) {
    // There is an error to be told already; that this fails too adds nothing to it.
    let _ = unmount(mountpoint, true);
}

pub(super) fn acl(options: &MountOptions) -> SessionACL {
    if options.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    }
}

pub(super) fn config(options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("narfs".into()),
        MountOption::Subtype("narfs".into()),
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
    ];
    config.acl = acl(options);
    config.n_threads = Some(options.threads.max(1));
    config
}

/// Raises the kernel's read-ahead for this mount; only root may.
pub fn raise_read_ahead(mountpoint: &Path) {
    if let Err(error) = narfs_mount::raise_read_ahead(mountpoint) {
        tracing::debug!(mountpoint = %mountpoint.display(), %error, "read-ahead stays as it is");
    }
}

/// Tells the kernel what the store has dropped or replaced; on a thread of its own, since the
/// kernel may take its time, and up to the store's end.
fn follow(store: &Store, notifier: Notifier, layout: Layout) {
    let mut events = store.events();
    let store = store.downgrade();
    std::thread::spawn(move || {
        loop {
            let event = events.blocking_recv();
            let Some(store) = store.upgrade() else { return };
            match event {
                Ok(Event::ContentDropped(nar)) => {
                    for path in store.paths_with(nar) {
                        forget_pages(&notifier, &path);
                    }
                }
                Ok(Event::Replaced { old, path, views }) => {
                    for view in views.into_iter().chain([ViewId::WHOLE]) {
                        let root = layout.ino(NodeId::of(Node::Root(view)));
                        // A name that the kernel does not know needs no invalidation.
                        let _ = notifier.inval_entry(root, path.to_string().as_ref());
                    }
                    tracing::debug!(slot = old.0, %path, "replaced");
                }
                Ok(Event::ViewGone(name)) => {
                    let views = layout.ino(NodeId::of(Node::Views));
                    // As above.
                    let _ = notifier.inval_entry(views, name.as_str().as_ref());
                }
                // Whatever was missed may concern any path.
                Err(RecvError::Lagged(_)) => {
                    for path in store.loaded_paths() {
                        forget_pages(&notifier, &path);
                    }
                }
                Err(RecvError::Closed) => return,
            }
        }
    });
}

/// Drops what the kernel has cached of a path's files.
fn forget_pages(notifier: &Notifier, path: &KnownPath) {
    for entry in (0..path.tree.len()).map(EntryIndex) {
        if matches!(path.tree.node(entry), Some(tree::Node::Regular { .. })) {
            let node = NodeId::of(Node::Entry {
                view: ViewId::WHOLE,
                slot: path.slot,
                entry,
            });
            // An inode that the kernel does not know has nothing to be dropped.
            let _ = notifier.inval_inode(INodeNo(node.0), 0, 0);
        }
    }
}
