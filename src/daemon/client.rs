//! The other end of the control socket: a running daemon, or else the store itself.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{
    open_store_in,
    protocol::{Envelope, Reply, Request, SOCKET},
    runtime,
    scratch::scratch_directory,
    service,
};
use crate::{
    config::Config,
    failure::{Exit, Failure},
};

/// A connection to the daemon of a state directory; `None` if none runs.
///
/// # Errors
/// When there is a socket that can't be used.
pub fn connect(state_dir: &Path) -> Result<Option<UnixStream>, Failure> {
    let socket = state_dir.join(SOCKET);
    match UnixStream::connect(&socket) {
        Ok(stream) => Ok(Some(stream)),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(e) => {
            let what = format!("the daemon's socket {} can't be used", socket.display());
            Err(Failure::new(Exit::Unavailable, what).because(&e))
        }
    }
}

/// Asks the daemon, or the store if none runs; hands every reply to `each`, the last one too.
///
/// # Errors
/// When neither can be reached, and when the answer is that it failed.
pub fn call(config: &Config, request: Request, mut each: impl FnMut(Reply)) -> Result<(), Failure> {
    if let Some(stream) = connect(&config.state_dir)? {
        return ask(stream, request, None, each);
    }
    let runtime = runtime()?;
    // Where nothing was ever kept, looking at it makes no state directory.
    let nothing = match request.needs_state() && !config.state_dir.exists() {
        true => Some(scratch_directory()?),
        false => None,
    };
    let dir = nothing
        .as_ref()
        .map_or(&*config.state_dir, |dir| dir.path());
    let store = open_store_in(config, dir, &runtime)?;
    let mut failure = None;
    let told = service::handle(&store, request, &mut |reply| {
        failure = failure.take().or(failure_of(&reply));
        each(reply);
        Ok(())
    });
    told.map_err(|e| Failure::new(Exit::Failure, "the answer can't be told").because(&e))?;
    store
        .flush()
        .map_err(|e| Failure::from_error(Exit::System, &e))?;
    failure.map_or(Ok(()), Err)
}

/// Asks over `stream`, with a descriptor if one belongs to the request.
///
/// # Errors
/// As [`call`].
pub fn ask(
    stream: UnixStream,
    request: Request,
    descriptor: Option<BorrowedFd<'_>>,
    mut each: impl FnMut(Reply),
) -> Result<(), Failure> {
    let lost = |e: &dyn std::error::Error| {
        Failure::new(Exit::Unavailable, "the daemon does not answer").because(e)
    };
    let envelope = Envelope {
        version: env!("CARGO_PKG_VERSION").into(),
        request,
    };
    let mut line = serde_json::to_vec(&envelope).map_err(|e| lost(&e))?;
    line.push(b'\n');
    send(&stream, &line, descriptor).map_err(|e| lost(&e))?;
    for line in BufReader::new(&stream).split(b'\n') {
        let line = line.map_err(|e| lost(&e))?;
        let reply: Reply = serde_json::from_slice(&line).map_err(|e| lost(&e))?;
        let (last, failure) = (reply.is_last(), failure_of(&reply));
        each(reply);
        if last {
            return failure.map_or(Ok(()), Err);
        }
    }
    Err(Failure::new(
        Exit::Unavailable,
        "the daemon ended in the middle of its answer",
    ))
}

fn send(
    mut stream: &UnixStream,
    line: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let (first, rest) = line.split_at(1);
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    sendmsg(
        stream,
        &[io::IoSlice::new(first)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    stream.write_all(rest)
}

fn failure_of(reply: &Reply) -> Option<Failure> {
    match reply {
        Reply::Failed {
            exit,
            message,
            causes,
            hint,
        } => Some(Failure {
            exit: Exit::from_code(*exit),
            what: message.clone(),
            causes: causes.clone(),
            hint: hint.clone(),
        }),
        Reply::Refused { message } => Some(Failure::new(Exit::Unavailable, message.clone())),
        _ => None,
    }
}
