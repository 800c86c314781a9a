//! The callbacks of a mount: each asks the store and hands its answer to the reply.

use std::{cell::RefCell, ffi::OsStr, io, os::unix::ffi::OsStrExt, time::Duration};

use fuser::{
    Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use super::{
    convert::{NEVER_THERE, NOT_THERE_NOW, errno, file_attr, file_type, nothing, time_to_live},
    mount::Layout,
};
use crate::store::{Attr, Directory, Found, Kind, Lasts, NodeId, Step, Store, StoreError};

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
}

impl StoreFs {
    pub(super) fn new(store: Store, layout: Layout) -> Self {
        Self { store, layout }
    }

    fn id(&self, ino: INodeNo) -> NodeId {
        self.layout.node(ino)
    }

    /// Passes an answer on, now or when it comes.
    fn answer<T, R>(
        &self,
        step: Step<T>,
        reply: R,
        done: impl FnOnce(R, Result<T, StoreError>) + Send + 'static,
    ) where
        T: Send + 'static,
        R: Send + 'static,
    {
        match step {
            Step::Ready(result) => done(reply, result),
            Step::Wait(future) => {
                self.store
                    .runtime()
                    .spawn(async move { done(reply, future.await) });
            }
        }
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

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let layout = self.layout;
        let step = self.store.lookup(self.id(parent), name.as_bytes());
        self.answer(step, reply, move |reply, found| match found {
            // A name leads to the same node for ever, even where the node's attributes change.
            Ok(Found::Node(attr)) => {
                let (name, attr_ttl) = (time_to_live(Lasts::Forever), time_to_live(attr.lasts));
                let attr = file_attr(&attr, layout.ino(attr.node));
                reply.entry_with_ttls(&name, &attr_ttl, &attr, Generation(0));
            }
            Ok(Found::Never) => reply.entry(&NEVER_THERE, &nothing(), Generation(0)),
            Ok(Found::NotNow) => reply.entry(&NOT_THERE_NOW, &nothing(), Generation(0)),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let attr = self.store.attr(self.id(ino));
        self.answer(attr, reply, move |reply, attr| match attr {
            Ok(attr) => reply.attr(&time_to_live(attr.lasts), &file_attr(&attr, ino)),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.answer(
            self.store.readlink(self.id(ino)),
            reply,
            |reply, target| match target {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    /// Not needed, and said so: the kernel then opens without asking.
    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
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
        _req: &Request,
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
        BUFFER.with_borrow_mut(
            |buffer| match self.store.read_now(node, offset, size, buffer) {
                Some(Ok(())) => reply.data(buffer),
                Some(Err(error)) => reply.error(errno(&error)),
                None => {
                    let store = self.store.clone();
                    self.store.runtime().spawn(async move {
                        match store.read(node, offset, size).await {
                            Ok(bytes) => reply.data(&bytes),
                            Err(error) => reply.error(errno(&error)),
                        }
                    });
                }
            },
        );
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let layout = self.layout;
        self.answer(
            self.store.directory(self.id(ino)),
            reply,
            move |mut reply, directory| match directory {
                Ok(directory) => {
                    fill(&directory, offset, |attr, next, name| {
                        reply.add(layout.ino(attr.node), next, file_type(attr.kind), name)
                    });
                    reply.ok();
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let layout = self.layout;
        self.answer(
            self.store.directory(self.id(ino)),
            reply,
            move |mut reply, directory| match directory {
                Ok(directory) => {
                    fill(&directory, offset, |attr, next, name| {
                        // One time-out is for name and attributes here, so the shorter of the two.
                        let (ttl, ino) = (time_to_live(attr.lasts), layout.ino(attr.node));
                        reply.add(ino, next, name, &ttl, &file_attr(attr, ino), Generation(0))
                    });
                    reply.ok();
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
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
        reply.error(Errno::ENOSYS);
    }

    /// There are none; said once, the kernel does not ask again.
    fn getxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
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
