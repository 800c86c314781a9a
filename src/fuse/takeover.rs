//! Serving a mount that another process served before, without its users noticing.
//!
//! The kernel keeps a mount as long as anybody has the descriptor of `/dev/fuse` it was made with.
//! So whoever is to outlive the server (a helper process, the service manager) keeps two
//! descriptors, together a [`Kept`]: the device, and a file in memory with the *greeting*, the
//! `FUSE_INIT` request with which the kernel began the protocol. It is sent once in the life of a
//! mount, and a session of `fuser` begins with it. So every session of ours is begun over a socket
//! pair: the greeting goes in at the other end, the session answers, and then the device takes the
//! place of the session's end. The answer is passed on to the kernel, which takes one and refuses the
//! later ones. A later server then asks for what was read and never answered to be sent again,
//! which comes with the highest bit of its number set.
//!
//! The session has to answer every greeting alike, or kernel and server would believe different
//! things: what is negotiated is a pure function of the greeting, see `StoreFs::init`.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use fuser::Session;
use narfs_mount::Kept;
use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
};

use super::{
    filesystem::StoreFs,
    mount::{MountOptions, acl, config},
};

/// The smallest buffer that the kernel gives requests to is 8 KiB; later it wants room for the
/// largest write that it may send.
const REQUEST: usize = 128 * 1024;
/// `FUSE_INIT` of the kernel's `fuse.h`.
const INIT: u32 = 26;

/// A session on a kept mount, and whether it is the first.
///
/// # Errors
/// When the mount is gone, or the greeting is none.
pub(super) fn begin(
    fs: StoreFs,
    kept: Kept,
    options: &MountOptions,
) -> io::Result<(Session<StoreFs>, bool)> {
    let memory = File::from(kept.greeting);
    let mut greeting = vec![0; memory.metadata()?.len() as usize];
    memory.read_exact_at(&mut greeting, 0)?;
    let first = greeting.is_empty();
    if first {
        greeting = receive(&kept.device)?;
    }
    check(&greeting)?;
    let (session, answer) = greet(fs, &greeting, options)?;
    if first {
        // Before the kernel has its answer: a mount in use whose greeting is lost has no future.
        memory.write_all_at(&greeting, 0)?;
    }
    match rustix::io::write(&kept.device, &answer) {
        // The kernel waits for no answer: it has had one. It would still wait for it had a server
        // before died between the two steps.
        Err(Errno::NOENT) if !first => {}
        written => drop(written?),
    }
    put_in_place(&kept.device, &session)?;
    if !first {
        resend(&kept.device);
    }
    Ok((session, first))
}

/// The kernel's first request.
fn receive(device: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut request = vec![0; REQUEST];
    loop {
        match rustix::io::read(device, &mut request) {
            Ok(size) => {
                request.truncate(size);
                return Ok(request);
            }
            // One that was taken back, or a signal.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
            Err(Errno::NODEV) => {
                return Err(io::Error::new(
                    io::ErrorKind::NotConnected,
                    "it is not mounted any more",
                ));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Its length, and what it asks for, as the header (`struct fuse_in_header`) says them.
fn check(greeting: &[u8]) -> io::Result<()> {
    let field = |at: usize| {
        let bytes = greeting.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let whole = field(0).is_some_and(|length| length as usize == greeting.len());
    if whole && field(4) == Some(INIT) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "the greeting is not the kernel's FUSE_INIT; the mount can't be taken over, unmount it",
    ))
}

/// A session that was begun with `greeting`, and its answer.
fn greet(
    fs: StoreFs,
    greeting: &[u8],
    options: &MountOptions,
) -> io::Result<(Session<StoreFs>, Vec<u8>)> {
    let (kernel, ours) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    send(&kernel, greeting, SendFlags::NOSIGNAL)?;
    let session = Session::from_fd(fs, ours, acl(options), config(options))?;
    let mut answer = vec![0; REQUEST];
    // It stands there already: the session answers before it is one.
    let (size, _) = recv(&kernel, &mut answer[..], RecvFlags::DONTWAIT)?;
    answer.truncate(size);
    Ok((session, answer))
}

/// The device takes the place of the descriptor that the session uses.
#[allow(unsafe_code)]
fn put_in_place(device: &OwnedFd, session: &Session<StoreFs>) -> io::Result<()> {
    // SAFETY: both descriptors are open and stay so. The session owns the second one's number and
    // uses it to read requests and write answers, from its first step on, which comes later; nobody
    // else has it. What it denoted, our end of the socket pair, is closed by the call.
    let done = unsafe {
        libc::dup3(
            device.as_raw_fd(),
            session.as_fd().as_raw_fd(),
            libc::O_CLOEXEC,
        )
    };
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Asks for what the server before had read and not answered.
fn resend(device: &OwnedFd) {
    if let Err(error) = narfs_mount::send_again(device) {
        tracing::warn!(
            %error,
            "the kernel does not send again what the last process left unanswered (Linux 6.9 does); who waits for it \
             has to be interrupted"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_greeting_is_one() {
        let mut greeting = vec![0; 104];
        greeting[..4].copy_from_slice(&104u32.to_ne_bytes());
        greeting[4..8].copy_from_slice(&INIT.to_ne_bytes());
        assert!(check(&greeting).is_ok());
        for wrong in [&greeting[..103], &greeting[..2], b""] {
            assert!(check(wrong).is_err(), "{wrong:?}");
        }
        greeting[4] = 1;
        assert!(check(&greeting).is_err());
    }
}
