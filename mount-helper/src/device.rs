//! mount(2), and a mount in descriptors.

use std::{
    ffi::CString,
    fs::OpenOptions,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    io::Errno,
    mount::MountFlags,
    process::{getegid, geteuid},
};

use crate::mountpoint::{TYPE, mounted_device};

/// What the kernel reads ahead of a sequential reader, and around a page of a mapped file that is
/// touched, in KiB. More makes sequential reads little faster, and has a program that starts wait
/// for, and fetch, what it does not touch: twice the bytes with 4 MiB.
const READ_AHEAD_KIB: u64 = 256;
/// Size of the header of what is written to the device, in bytes (`struct fuse_out_header`).
pub(crate) const HEADER: u32 = 16;
/// `FUSE_NOTIFY_RESEND` of the kernel's `fuse.h`; kernels have it since 6.9.
const RESEND: i32 = 7;

/// A mount in descriptors: what a process needs to serve it, now or after another one.
#[derive(Debug)]
pub struct Kept {
    /// `/dev/fuse`, mounted. Never a cloned one: that takes its requests along when it is closed.
    pub device: OwnedFd,
    /// The kernel's first request (`FUSE_INIT`), in a file in memory; empty before the first server.
    pub greeting: OwnedFd,
}

impl Kept {
    /// Of a device that nobody has served yet.
    ///
    /// # Errors
    /// When there is no memory for the greeting.
    pub fn new(device: OwnedFd) -> io::Result<Self> {
        let greeting = memfd_create("narfs-greeting", MemfdFlags::CLOEXEC)?;
        Ok(Self { device, greeting })
    }

    /// The same descriptors once more.
    ///
    /// # Errors
    /// When there are too many.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            device: self.device.try_clone()?,
            greeting: self.greeting.try_clone()?,
        })
    }

    /// Whether nothing is mounted any more, as the kernel says without waiting.
    pub fn is_gone(&self) -> bool {
        let mut state = [PollFd::new(&self.device, PollFlags::empty())];
        let asked = poll(&mut state, Some(&Timespec::default()));
        asked.is_ok()
            && state[0]
                .revents()
                .intersects(PollFlags::ERR | PollFlags::HUP)
    }

    /// Whether a server has answered the kernel's first request.
    pub(crate) fn is_begun(&self) -> bool {
        rustix::fs::fstat(&self.greeting).is_ok_and(|stat| stat.st_size > 0)
    }
}

/// Mounts, read-only; `None` without the privilege to do so. Nobody answers there until the device
/// is served.
///
/// # Errors
/// Of the system; that there is no `/dev/fuse` is [`io::ErrorKind::NotFound`].
pub fn mount(mountpoint: &Path, allow_other: bool, noexec: bool) -> io::Result<Option<OwnedFd>> {
    let device = match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(device) => OwnedFd::from(device),
        // fusermount3 may open it all the same.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        Err(e) => return Err(e),
    };
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let others = if allow_other { ",allow_other" } else { "" };
    let data = format!(
        "fd={},rootmode=40000,user_id={user},group_id={group},default_permissions{others}",
        device.as_raw_fd()
    );
    let data = CString::new(data).map_err(io::Error::other)?;
    let mut flags =
        MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    if noexec {
        flags |= MountFlags::NOEXEC;
    }
    match rustix::mount::mount("narfs", mountpoint, TYPE, flags, data.as_c_str()) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::PERM) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Raises the kernel's read-ahead for this mount; only root may. Where it can't be raised, the
/// reason.
///
/// # Errors
/// Of writing to the kernel's knob.
pub fn raise_read_ahead(mountpoint: &Path) -> io::Result<()> {
    // The server must not wait for itself: killed meanwhile, it would never be gone. So from the
    // kernel's table, and not by looking at the mount.
    let Some(device) = mounted_device(mountpoint) else {
        return Ok(());
    };
    let knob = format!("/sys/class/bdi/{device}/read_ahead_kb");
    std::fs::write(knob, READ_AHEAD_KIB.to_string())
}

/// Asks for what the server before had read and not answered.
///
/// # Errors
/// When the kernel can't: Linux 6.9 and later can.
pub fn send_again(device: &OwnedFd) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER as usize);
    message.extend(HEADER.to_ne_bytes());
    message.extend(RESEND.to_ne_bytes());
    message.extend(0u64.to_ne_bytes());
    rustix::io::write(device, &message)?;
    Ok(())
}
