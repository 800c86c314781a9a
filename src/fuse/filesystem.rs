//! The callbacks of a mount: each asks the store and hands its answer to the reply.

use std::{cell::RefCell, ffi::OsStr, io, os::unix::ffi::OsStrExt, sync::Arc, time::Duration};

use fuser::{
    Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use super::{
    convert::{NEVER_THERE, NOT_THERE_NOW, errno, file_attr, file_type, nothing, time_to_live},
    mount::{Layout, MountOptions},
    upcalls::{Asked, Opcode, Upcalls},
};
use crate::{
    store::{
        ATTRIBUTE_PREFIX, Attr, Directory, Found, Kind, Lasts, NodeId, Step, Store, StoreError,
    },
    trace,
};

/// Requests the kernel may have under way for read-ahead and the like. A reader of many files
/// over a slow link needs as many as there are connections, several times over.
const MAX_BACKGROUND: u16 = 512;
/// Largest read, in bytes: what `max_pages` allows with pages of 4 KiB.
const MAX_READ: u32 = 1024 * 1024;
/// Block size that `statfs` counts in, in bytes.
const BLOCK: u64 = 4096;

/// The store as a file system.
pub(super) struct StoreFs {
    store: Store,
    layout: Layout,
    upcalls: Arc<Upcalls>,
}

/// A reply that can be an error.
trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),+) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })+
    };
}

refuse!(
    ReplyEntry,
    ReplyAttr,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus
);

impl StoreFs {
    pub(super) fn new(store: &Store, options: &MountOptions) -> Self {
        Self {
            store: store.clone(),
            layout: options.layout,
            upcalls: options.upcalls.clone(),
        }
    }

    fn id(&self, ino: INodeNo) -> NodeId {
        self.layout.node(ino)
    }

    /// A request about `ino` came.
    fn comes(&self, opcode: Opcode, request: &Request, ino: INodeNo) -> Asked {
        self.upcalls.comes(opcode, request, self.id(ino))
    }

    /// Passes an answer on, now or when it comes.
    fn answer<T, R>(
        &self,
        asked: Asked,
        step: Step<T>,
        reply: R,
        done: impl FnOnce(R, T) + Send + 'static,
    ) where
        T: Send + 'static,
        R: Refuse,
    {
        match step {
            Step::Ready(Ok(found)) => {
                done(reply, found);
                self.upcalls.answered(asked, false);
            }
            Step::Ready(Err(error)) => self.refuse(asked, reply, &error),
            Step::Wait(future) => {
                let mut waits = self.upcalls.waits(asked);
                self.store.runtime().spawn(async move {
                    match future.await {
                        Ok(found) => done(reply, found),
                        Err(error) => {
                            waits.error(errno(&error));
                            reply.refuse(errno(&error));
                        }
                    }
                });
            }
        }
    }

    fn refuse(&self, mut asked: Asked, reply: impl Refuse, error: &StoreError) {
        self.upcalls.error(errno(error));
        reply.refuse(errno(error));
        asked.failed();
        self.upcalls.answered(asked, false);
    }
}

impl Filesystem for StoreFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_HAS_RESEND,
            // Status files and growing directories rely on it; kernels have it since 2014.
            InitFlags::FUSE_AUTO_INVAL_DATA,
        ] {
            if let Err(missing) = config.add_capabilities(wanted) {
                tracing::debug!(?missing, "not offered by the kernel");
            }
        }
        // A value that the kernel finds too large comes back as the largest that it takes.
        let _ = config.set_max_background(MAX_BACKGROUND);
        if let Err(most) = config.set_max_readahead(MAX_READ) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_write(MAX_READ);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let layout = self.layout;
        let mut asked = self.comes(Opcode::Lookup, req, parent);
        let step = self.store.lookup(self.id(parent), name.as_bytes());
        if matches!(step, Step::Wait(_)) || trace::recorder().is_some() {
            asked = asked.named(name.as_bytes());
        }
        if let Step::Ready(Ok(Found::Never | Found::NotNow)) = step {
            asked.absent();
        }
        self.answer(asked, step, reply, move |reply, found| match found {
            // A name leads to the same node for ever, even where the node's attributes change.
            Found::Node(attr) => {
                let (name, attr_ttl) = (time_to_live(Lasts::Forever), time_to_live(attr.lasts));
                let attr = file_attr(&attr, layout.ino(attr.node));
                reply.entry_with_ttls(&name, &attr_ttl, &attr, Generation(0));
            }
            Found::Never => reply.entry(&NEVER_THERE, &nothing(), Generation(0)),
            Found::NotNow => reply.entry(&NOT_THERE_NOW, &nothing(), Generation(0)),
        });
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let asked = self.comes(Opcode::Getattr, req, ino);
        let attr = self.store.attr(self.id(ino));
        self.answer(asked, attr, reply, move |reply, attr| {
            reply.attr(&time_to_live(attr.lasts), &file_attr(&attr, ino));
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let asked = self.comes(Opcode::Readlink, req, ino);
        let target = self.store.readlink(self.id(ino));
        self.answer(asked, target, reply, |reply, target| reply.data(&target));
    }

    /// Not needed, and said so: the kernel then opens without asking.
    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.upcalls.counts(Opcode::Open);
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.upcalls.counts(Opcode::Opendir);
        reply.error(Errno::ENOSYS);
    }

    /// So that `close` never asks.
    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let node = self.id(ino);
        let asked = self.comes(Opcode::Read, req, ino);
        BUFFER.with_borrow_mut(
            |buffer| match self.store.read_now(node, offset, size, buffer) {
                Some(Ok(())) => {
                    reply.data(buffer);
                    self.upcalls.hit(&asked);
                    self.upcalls.answered(asked.range(offset, size), false);
                }
                Some(Err(error)) => self.refuse(asked.range(offset, size), reply, &error),
                None => {
                    let store = self.store.clone();
                    let read = async move { store.read(node, offset, size).await };
                    self.answer(
                        asked.range(offset, size),
                        Step::Wait(Box::pin(read)),
                        reply,
                        |reply, bytes| reply.data(&bytes),
                    );
                }
            },
        );
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let layout = self.layout;
        let asked = self.comes(Opcode::Readdir, req, ino);
        let directory = self.store.directory(self.id(ino));
        self.answer(asked, directory, reply, move |mut reply, directory| {
            fill(&directory, offset, |attr, next, name| {
                reply.add(layout.ino(attr.node), next, file_type(attr.kind), name)
            });
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let layout = self.layout;
        let asked = self.comes(Opcode::Readdirplus, req, ino);
        let directory = self.store.directory(self.id(ino));
        self.answer(asked, directory, reply, move |mut reply, directory| {
            fill(&directory, offset, |attr, next, name| {
                // One time-out is for name and attributes here, so the shorter of the two.
                let (ttl, ino) = (time_to_live(attr.lasts), layout.ino(attr.node));
                reply.add(ino, next, name, &ttl, &file_attr(attr, ino), Generation(0))
            });
            reply.ok();
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.upcalls.counts(Opcode::Statfs);
        let (bytes, entries) = self.store.extent();
        // Never zero: `df` leaves out what has no blocks.
        let blocks = bytes.div_ceil(BLOCK).max(1);
        reply.statfs(
            blocks,
            0,
            0,
            entries.max(1),
            0,
            BLOCK as u32,
            255,
            BLOCK as u32,
        );
    }

    /// Programs ask whether a file is a terminal.
    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.upcalls.counts(Opcode::Ioctl);
        reply.error(Errno::ENOTTY);
    }

    /// Every byte of a file is data, for the kernel's own default answer.
    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        self.upcalls.counts(Opcode::Lseek);
        reply.error(Errno::ENOSYS);
    }

    /// `user.narfs.*`; all others are not there. Never ENOSYS: the kernel would not ask again for
    /// any, in the whole life of the mount.
    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.upcalls.counts(Opcode::Getxattr);
        let prefix = ATTRIBUTE_PREFIX.as_bytes();
        let Some(name) = name.as_bytes().strip_prefix(prefix) else {
            return reply.error(Errno::NO_XATTR);
        };
        let attributes = self.store.attributes(self.id(ino));
        let found = attributes.iter().find(|(n, _)| n.as_bytes() == name);
        match found {
            Some((_, value)) => sized(reply, size, value.as_bytes()),
            None => reply.error(Errno::NO_XATTR),
        }
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.upcalls.counts(Opcode::Listxattr);
        let mut names = Vec::new();
        // Where overlays stand on this mount, what is listed would be copied with every file that
        // a container changes, and be wrong from then on.
        if self.layout == Layout::Store {
            for (name, _) in self.store.attributes(self.id(ino)) {
                names.extend([ATTRIBUTE_PREFIX, name, "\0"].concat().bytes());
            }
        }
        sized(reply, size, &names);
    }
}

/// An extended attribute, or how large a buffer has to be for it.
fn sized(reply: ReplyXattr, room: u32, value: &[u8]) {
    match value.len() as u32 {
        size if room == 0 => reply.size(size),
        size if size > room => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

/// Lists a directory from `offset` on until `add` says that the reply is full. Offsets 0 and 1
/// are `.` and `..`; the rest is the store's, moved up by two.
fn fill(directory: &Directory, offset: u64, mut add: impl FnMut(&Attr, u64, &OsStr) -> bool) {
    let (itself, parent) = directory.itself();
    for (at, node, name) in [(0, itself, "."), (1, parent, "..")] {
        let attr = Attr {
            node,
            kind: Kind::Directory,
            size: 0,
            mtime: Duration::ZERO,
            lasts: Lasts::No,
        };
        if offset <= at && add(&attr, at + 1, OsStr::new(name)) {
            return;
        }
    }
    for entry in directory.entries(offset.saturating_sub(2)) {
        if add(&entry.attr, entry.next + 2, OsStr::from_bytes(&entry.name)) {
            return;
        }
    }
}
