//! The kernel protocol, and nothing but that: callbacks that ask the store and reply.
//!
//! A callback never blocks: what the store knows is answered on the session's thread, what has
//! to be waited for is handed to the runtime together with its owned reply. This is the only
//! module that knows `fuser`.
//!
//! ```text
//! filesystem.rs   the callbacks           convert.rs     attributes, time-outs, errno
//! mount.rs        a mount and its tuning  takeover.rs    a mount that outlives its server
//! upcalls.rs      what the kernel asked, counted, and who waits
//! ```
//!
//! What is mounted where, and mount(2) itself, are in the crate of the mount helper.

mod convert;
mod filesystem;
mod mount;
mod takeover;
mod upcalls;

pub use mount::{Layout, Mount, MountOptions, mount_kept, raise_read_ahead};
pub use narfs_mount::{
    Kept, MountError, check, force, mounted_by_narfs, mounted_device, mountpoints, unmount,
    unmount_dead,
};
pub use upcalls::{METRICS, Opcode, Upcalls, Waiting};
