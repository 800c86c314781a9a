//! The control socket: a thread that accepts, a thread for each client.

use std::{
    io::{BufRead, BufReader, IoSliceMut, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{
    protocol::{Envelope, Info, Reply, Request, SOCKET},
    serve::{Shared, Signal},
    service,
};
use crate::{
    failure::{Exit, Failure},
    fuse::Mount,
};

/// How long a client may take to say what it wants, and to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest request, in bytes: a few thousand store paths.
const MAX_REQUEST: u64 = 4 << 20;

/// The socket while it is served.
pub(crate) struct Server {
    path: PathBuf,
    stopping: Arc<AtomicBool>,
}

impl Server {
    /// Starts serving; the state directory's lock is held, so a socket that is there is a dead one.
    pub fn start(state_dir: &Path, shared: Arc<Shared>) -> Result<Self, Failure> {
        let path = state_dir.join(SOCKET);
        let failed = |e: std::io::Error| {
            Failure::new(
                Exit::System,
                format!("the control socket {} can't be made", path.display()),
            )
            .because(&e)
        };
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).map_err(failed)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(SeqCst) {
                    return;
                }
                match stream {
                    Ok(stream) => {
                        let shared = shared.clone();
                        // Counted here already, so that no client is overlooked by an idle daemon.
                        shared.clients.fetch_add(1, SeqCst);
                        std::thread::spawn(move || client(stream, &shared));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a client could not be accepted");
                        // Out of descriptors, most likely: wait for some to be closed.
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        });
        Ok(Self { path, stopping })
    }

    /// No further clients.
    pub fn stop(&self) {
        self.stopping.store(true, SeqCst);
        // Wakes the accepting thread; that it fails means that nobody accepts.
        let _ = UnixStream::connect(&self.path);
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "the control socket was gone");
        }
    }
}

fn client(stream: UnixStream, shared: &Arc<Shared>) {
    if let Err(error) = converse(stream, shared) {
        // A client that went away is no fault of ours.
        tracing::debug!(%error, "a client's conversation ended");
    }
    shared.used();
    shared.clients.fetch_sub(1, SeqCst);
}

fn converse(mut stream: UnixStream, shared: &Arc<Shared>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (line, device) = receive(&stream)?;
    let mut say = |reply: &Reply| -> std::io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        stream.write_all(&line)
    };
    let envelope: Envelope = match serde_json::from_slice(&line) {
        Ok(envelope) => envelope,
        Err(e) => {
            return say(&Reply::Refused {
                message: format!("the request can't be read: {e}"),
            });
        }
    };
    let version = env!("CARGO_PKG_VERSION");
    if envelope.version != version && !matches!(envelope.request, Request::Stop | Request::Info) {
        let message = format!(
            "the daemon is narfs {version}, this is narfs {}; end it (it starts anew by itself), or use its version",
            envelope.version
        );
        return say(&Reply::Refused { message });
    }
    match envelope.request {
        Request::Info => say(&Reply::Info(Info {
            pid: std::process::id(),
            version: version.into(),
            caches: shared
                .store
                .substituters()
                .iter()
                .map(|s| s.name().to_owned())
                .collect(),
            terms: shared.terms.clone(),
            mounts: shared.mounts.load(SeqCst),
            counters: shared
                .store
                .counters()
                .all()
                .into_iter()
                .map(|(name, n)| (name.to_owned(), n))
                .collect(),
        })),
        Request::Attach => {
            let reply = match device {
                Some(device) => attach(device, shared),
                None => Reply::Refused {
                    message: "no descriptor of /dev/fuse came along".into(),
                },
            };
            say(&reply)
        }
        Request::Stop => {
            let told = shared.signals.send(Signal::Stop);
            say(&if told.is_ok() {
                Reply::Done
            } else {
                Reply::Refused {
                    message: "it is ending".into(),
                }
            })
        }
        request => service::handle(&shared.store, request, &mut |reply| say(&reply)),
    }
}

fn attach(device: OwnedFd, shared: &Arc<Shared>) -> Reply {
    // Who may use the mount was decided by who made it; the kernel sees to that.
    let options = crate::fuse::MountOptions {
        allow_other: true,
        // For one program's /nix/store, whatever else is served here.
        layout: crate::fuse::Layout::Store,
        ..shared.options.clone()
    };
    match Mount::serve(&shared.store, device, &options) {
        Ok(mount) => {
            shared.adopt(mount);
            Reply::Done
        }
        Err(e) => Reply::from(&Failure::from_error(Exit::System, &e)),
    }
}

/// One line, and the descriptor that may come with its first byte.
fn receive(stream: &UnixStream) -> std::io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0u8; 1];
    let got = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut first)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let device = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let mut line = first[..got.bytes].to_vec();
    BufReader::new(stream.take(MAX_REQUEST)).read_until(b'\n', &mut line)?;
    Ok((line, device))
}
