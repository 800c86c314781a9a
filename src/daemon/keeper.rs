//! The keeper: a process that holds a mount while no daemon serves it, and does nothing else.
//!
//! A daemon that is killed, ends or is replaced would take its mount along, and every program that
//! uses it with it. So the first one that mounts starts a keeper and hands it the mount's two
//! descriptors ([`Kept`]); each later one gets copies of them over a socket in the state directory
//! and takes the mount over. Whoever reads in between waits.
//!
//! The keeper is `narfs keep-mount`. It reads no configuration, no mount and no file, has one
//! thread, and ends when the mount does, or when it is told to.

use std::{
    ffi::OsString,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, FdFlags, fcntl_setfd},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

use super::namespace::{adopt, detached};
use crate::{
    failure::{Exit, Failure},
    fuse::Kept,
};

/// Name of the keeper's socket in the state directory.
pub const SOCKET: &str = "keeper.sock";
/// How often the keeper looks whether the mount is still there. It does not wait on the device for
/// that: the kernel would wake it for every request.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long either end waits for the other, which has nothing to do but to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a keeper is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    HandOver = b'h' as isize,
    End = b'e' as isize,
}

/// The mount that the keeper of a state directory holds; `None` if there is no keeper.
///
/// # Errors
/// When there is one that does not answer.
pub fn ask(state_dir: &Path) -> Result<Option<Kept>, Failure> {
    let Some(stream) = say(state_dir, Ask::HandOver)? else {
        return Ok(None);
    };
    match receive(&stream) {
        // It will notice in a moment, and end.
        Ok(kept) if is_gone(&kept.device) => Ok(None),
        Ok(kept) => Ok(Some(kept)),
        Err(e) if has_ended(&e) => Ok(None),
        Err(e) => Err(unusable(state_dir, &e)),
    }
}

/// Tells the keeper of a state directory to let go of its mount.
///
/// # Errors
/// When there is one that does not answer.
pub fn end(state_dir: &Path) -> Result<(), Failure> {
    if let Some(mut stream) = say(state_dir, Ask::End)? {
        // It says nothing, and its end is the answer.
        let ended = stream.read(&mut [0]);
        match ended {
            Err(e) if !has_ended(&e) => return Err(unusable(state_dir, &e)),
            _ => {}
        }
    }
    Ok(())
}

/// Starts a keeper for a mount.
///
/// # Errors
/// When it can't be started; the mount is as it was.
pub fn start(state_dir: &Path, kept: &Kept) -> Result<(), Failure> {
    let failed = |e: &dyn std::error::Error| {
        Failure::new(Exit::System, "the keeper of the mount can't be started").because(e)
    };
    let path = state_dir.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&e)),
        _ => {}
    }
    // Bound here, so that it answers from the first moment on.
    let listener = UnixListener::bind(&path).map_err(|e| failed(&e))?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).map_err(|e| failed(&e))?;
    let handed = kept.try_clone().map_err(|e| failed(&e))?;
    let descriptors = [handed.device, handed.greeting, OwnedFd::from(listener)];
    let mut args: Vec<OsString> = vec!["keep-mount".into()];
    for (flag, descriptor) in ["device", "greeting", "socket"].iter().zip(&descriptors) {
        fcntl_setfd(descriptor, FdFlags::empty()).map_err(|e| failed(&e))?;
        args.push(format!("--{flag}-fd={}", descriptor.as_raw_fd()).into());
    }
    let program = std::env::current_exe().map_err(|e| failed(&e))?;
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Not waited for: it outlives this process, and whoever inherits it collects it.
    drop(detached(&mut command).spawn().map_err(|e| failed(&e))?);
    Ok(())
}

/// Holds the mount until it ends or somebody says so.
///
/// # Errors
/// When the descriptors are none.
pub fn keep(device: OwnedFd, greeting: OwnedFd, socket: OwnedFd) -> Result<(), Failure> {
    let failed = |e: &dyn std::error::Error| {
        Failure::new(Exit::System, "the mount can't be kept").because(e)
    };
    let (kept, listener) = (Kept { device, greeting }, UnixListener::from(socket));
    listener.set_nonblocking(true).map_err(|e| failed(&e))?;
    let wait = Timespec {
        tv_sec: LOOK_EVERY.as_secs() as _,
        tv_nsec: 0,
    };
    loop {
        let mut calls = [PollFd::new(&listener, PollFlags::IN)];
        match poll(&mut calls, Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(failed(&e)),
        }
        if is_gone(&kept.device) {
            return Ok(());
        }
        if let Ok((stream, _)) = listener.accept()
            // Whoever asked and went away asks again, if he still wants it.
            && answer(stream, &kept).unwrap_or(Ask::HandOver) == Ask::End
        {
            return Ok(());
        }
    }
}

/// Whether nothing is mounted any more, as the kernel says without waiting.
fn is_gone(device: &OwnedFd) -> bool {
    let mut state = [PollFd::new(device, PollFlags::empty())];
    let asked = poll(&mut state, Some(&Timespec::default()));
    asked.is_ok()
        && state[0]
            .revents()
            .intersects(PollFlags::ERR | PollFlags::HUP)
}

fn answer(mut stream: UnixStream, kept: &Kept) -> io::Result<Ask> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut asked = [0];
    stream.read_exact(&mut asked)?;
    if asked[0] == Ask::End as u8 {
        return Ok(Ask::End);
    }
    let descriptors = [&kept.device, &kept.greeting].map(std::os::fd::AsFd::as_fd);
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for two descriptors"));
    }
    let hello = [IoSlice::new(b"k")];
    sendmsg(&stream, &hello, &mut control, SendFlags::NOSIGNAL)?;
    Ok(Ask::HandOver)
}

/// A connection to the keeper that was asked; `None` if there is none.
fn say(state_dir: &Path, what: Ask) -> Result<Option<UnixStream>, Failure> {
    let mut stream = match UnixStream::connect(state_dir.join(SOCKET)) {
        Ok(stream) => stream,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(unusable(state_dir, &e)),
    };
    let said = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.write_all(&[what as u8]));
    match said {
        Ok(()) => Ok(Some(stream)),
        Err(e) if has_ended(&e) => Ok(None),
        Err(e) => Err(unusable(state_dir, &e)),
    }
}

/// Whether the keeper ended while it was asked: its mount is gone.
fn has_ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn receive(stream: &UnixStream) -> io::Result<Kept> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut hello = [0];
    let got = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut hello)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    match (descriptors.next(), descriptors.next()) {
        (Some(device), Some(greeting)) => Ok(Kept { device, greeting }),
        _ => Err(io::Error::other("it hands nothing over")),
    }
}

fn unusable(state_dir: &Path, error: &io::Error) -> Failure {
    let socket = state_dir.join(SOCKET);
    let what = format!(
        "the keeper of the mount does not answer at {}",
        socket.display()
    );
    Failure::new(Exit::Unavailable, what).because(error).hint(
        "end the process `narfs keep-mount`; what uses its mount then has to be started again",
    )
}

/// The three descriptors that `narfs keep-mount` is given by number.
///
/// # Errors
/// When one of them was not.
pub fn handed(device: i32, greeting: i32, socket: i32) -> Result<[OwnedFd; 3], Failure> {
    let take = |number| {
        adopt(number).map_err(|e| {
            let what = format!("descriptor {number} was not handed over");
            Failure::new(Exit::Usage, what).because(&e)
        })
    };
    Ok([take(device)?, take(greeting)?, take(socket)?])
}
