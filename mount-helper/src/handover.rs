//! A mount's descriptors over a socket: the *keeper*, and those who ask it.
//!
//! Where the service manager starts the next server itself, as with `narfs snapshotter`, nobody has
//! to be started or watched: a process that only keeps the mount is enough. It has one thread, and
//! ends when the mount does, or when it is told to.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

use crate::device::Kept;

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

/// The mount that the keeper behind `socket` holds; `None` if there is no keeper.
///
/// # Errors
/// When there is one that does not answer.
pub fn ask(socket: &Path) -> io::Result<Option<Kept>> {
    let Some(stream) = say(socket, Ask::HandOver)? else {
        return Ok(None);
    };
    match receive(&stream) {
        // It will notice in a moment, and end.
        Ok(kept) if kept.is_gone() => Ok(None),
        Ok(kept) => Ok(Some(kept)),
        Err(e) if has_ended(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Tells the keeper behind `socket` to let go of its mount.
///
/// # Errors
/// When there is one that does not answer.
pub fn end(socket: &Path) -> io::Result<()> {
    if let Some(mut stream) = say(socket, Ask::End)? {
        // It says nothing, and its end is the answer.
        let ended = stream.read(&mut [0]);
        match ended {
            Err(e) if !has_ended(&e) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Holds the mount until it ends or somebody says so at `socket`, which listens.
///
/// # Errors
/// When the descriptors are none.
pub fn keep(kept: &Kept, socket: OwnedFd) -> io::Result<()> {
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    let wait = Timespec {
        tv_sec: LOOK_EVERY.as_secs() as _,
        tv_nsec: 0,
    };
    loop {
        let mut calls = [PollFd::new(&listener, PollFlags::IN)];
        match poll(&mut calls, Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        if kept.is_gone() {
            return Ok(());
        }
        if let Ok((stream, _)) = listener.accept()
            // Whoever asked and went away asks again, if he still wants it.
            && answer(stream, kept).unwrap_or(Ask::HandOver) == Ask::End
        {
            return Ok(());
        }
    }
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
    let descriptors = [&kept.device, &kept.greeting].map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for two descriptors"));
    }
    let hello = [IoSlice::new(b"k")];
    sendmsg(&stream, &hello, &mut control, SendFlags::NOSIGNAL)?;
    Ok(Ask::HandOver)
}

/// A connection to the keeper that was asked; `None` if there is none.
fn say(socket: &Path, what: Ask) -> io::Result<Option<UnixStream>> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let mut stream = match UnixStream::connect(socket) {
        Err(e) if matches!(e.kind(), NotFound | ConnectionRefused) => return Ok(None),
        connected => connected?,
    };
    let said = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.write_all(&[what as u8]));
    match said {
        Ok(()) => Ok(Some(stream)),
        Err(e) if has_ended(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether the keeper ended while it was asked: its mount is gone.
fn has_ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn receive(stream: &UnixStream) -> io::Result<Kept> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
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
