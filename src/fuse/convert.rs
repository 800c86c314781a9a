//! The store's answers in the kernel's terms.

use std::time::{Duration, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo};

use crate::{
    content::ContentError,
    store::{Attr, Kind, Lasts, NodeId, StoreError},
};

/// For what never changes. The kernel counts in jiffies, so not more than it can: ten years.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// For directories that grow: a path that just became known may be missing in a listing so long.
const SHORTLY: Duration = Duration::from_secs(1);
/// For names that will never be there.
pub(super) const NEVER_THERE: Duration = FOREVER;
/// For names at the store's root that no cache has now.
pub(super) const NOT_THERE_NOW: Duration = Duration::from_secs(5);

/// How long the kernel may keep an answer.
pub(super) fn time_to_live(lasts: Lasts) -> Duration {
    match lasts {
        Lasts::Forever => FOREVER,
        Lasts::Shortly => SHORTLY,
        Lasts::No => Duration::ZERO,
    }
}

/// The type of a node.
pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File { .. } => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
    }
}

/// Attributes as Nix has them: owned by root, never writable, all times the same.
pub(super) fn file_attr(attr: &Attr, ino: INodeNo) -> FileAttr {
    let time = UNIX_EPOCH + attr.mtime;
    FileAttr {
        ino,
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: match attr.kind {
            Kind::Directory | Kind::File { executable: true } => 0o555,
            Kind::File { executable: false } => 0o444,
            Kind::Symlink => 0o777,
        },
        // One for directories too: `find` then does not count on it for subdirectories.
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The answer "there is nothing", which the kernel may keep as well: inode 0.
pub(super) fn nothing() -> FileAttr {
    let nothing = Attr {
        node: NodeId(0),
        kind: Kind::Symlink,
        size: 0,
        mtime: Duration::ZERO,
        lasts: Lasts::No,
    };
    file_attr(&nothing, INodeNo(0))
}

/// The error number of an error. Only a certain absence is `ENOENT`.
pub(super) fn errno(error: &StoreError) -> Errno {
    match error.root() {
        StoreError::Absent { .. } | StoreError::NoEntry => Errno::ENOENT,
        StoreError::NoNode => Errno::ESTALE,
        StoreError::NotADirectory => Errno::ENOTDIR,
        StoreError::IsADirectory => Errno::EISDIR,
        StoreError::WrongKind => Errno::EINVAL,
        StoreError::Unkept { .. } => Errno::ENOSPC,
        StoreError::Content(e) => match e {
            ContentError::NoSpace { .. } => Errno::ENOSPC,
            _ => Errno::EIO,
        },
        StoreError::Untrusted { .. }
        | StoreError::ForeignStore { .. }
        | StoreError::NarInfo { .. }
        | StoreError::Fetch { .. }
        | StoreError::TimedOut { .. }
        | StoreError::Damaged { .. }
        | StoreError::ListingLies { .. }
        | StoreError::Listing { .. }
        | StoreError::Tree(_)
        | StoreError::Shared(_)
        | StoreError::Stopping => Errno::EIO,
    }
}
