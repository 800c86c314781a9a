//! A process that keeps the mount alive while the snapshotter is away, and does nothing else.
//!
//! The kernel ends a mount when the last process lets go of the descriptor it was made with, and
//! every container with it. So the snapshotter starts `narfs keep-mount` beside itself, once for a
//! mount, which holds the descriptors ([`Kept`]) and hands them to each next snapshotter over
//! `keeper.sock` in the state directory. Readers that wait meanwhile are answered by that one.
//!
//! A request is one byte, `g` (give) or `e` (end); the answer to the first is the mount's number in
//! the kernel's table, `MAJOR:MINOR`, and a newline, with both descriptors in its first byte. The
//! next narfs may be another version: this stays as it is.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{FdFlags, fcntl_setfd},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

use crate::{daemon::namespace::detached, fuse::Kept};

/// Name of the socket in the state directory.
const SOCKET: &str = "keeper.sock";
/// How often the keeper looks whether there still is a mount. It does not wait for that in
/// `poll`: the kernel would wake it for each request.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer, in bytes.
const ANSWER: usize = 64;

const GIVE: u8 = b'g';
const END: u8 = b'e';

/// This program, even where an update has replaced or removed its file.
pub(super) const OWN_PROGRAM: &str = "/proc/self/exe";

/// Where the keeper of a state directory answers.
pub fn socket(root: &Path) -> PathBuf {
    root.join(SOCKET)
}

/// Starts a keeper for a mount, whose number in the kernel's table is `mount`.
///
/// # Errors
/// When it does not say that it keeps it.
pub(super) fn start(root: &Path, kept: &Kept, mount: &str) -> io::Result<()> {
    let kept = kept.try_clone()?;
    for descriptor in [&kept.device, &kept.greeting] {
        fcntl_setfd(descriptor, FdFlags::empty())?;
    }
    let mut command = Command::new(OWN_PROGRAM);
    command
        .arg0("narfs")
        .arg("keep-mount")
        .arg(format!("--device-fd={}", kept.device.as_raw_fd()))
        .arg(format!("--greeting-fd={}", kept.greeting.as_raw_fd()))
        .arg(format!("--mount={mount}"))
        .arg(socket(root))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // It outlives whoever reads the snapshotter's.
        .stderr(Stdio::null());
    let mut keeper = detached(&mut command).spawn()?;
    let mut told = String::new();
    if let Some(output) = keeper.stdout.take() {
        // Up to its end of file, which comes with the word or with the process's end.
        output.take(ANSWER as u64).read_to_string(&mut told)?;
    }
    match told.as_str() {
        "kept\n" => Ok(()),
        other => Err(io::Error::other(format!(
            "it did not say that it keeps the mount, but {other:?}"
        ))),
    }
}

/// What the keeper of a state directory keeps, if there is one; and the mount's number.
///
/// # Errors
/// When there is one that does not answer as it should.
pub(super) fn fetch(root: &Path) -> io::Result<Option<(Kept, String)>> {
    let Some(mut stream) = connect(root)? else {
        return Ok(None);
    };
    stream.write_all(&[GIVE])?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; ANSWER];
    let got = recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let mut descriptors = descriptors.by_ref().flatten();
    let (Some(device), Some(greeting)) = (descriptors.next(), descriptors.next()) else {
        return Err(io::Error::other("it handed no descriptors over"));
    };
    let mount = String::from_utf8_lossy(&text[..got.bytes])
        .trim()
        .to_owned();
    Ok(Some((Kept { device, greeting }, mount)))
}

/// Ends the keeper of a state directory, if there is one: a mount that nobody serves is gone then.
pub(super) fn end(root: &Path) {
    let told = connect(root).and_then(|stream| match stream {
        Some(mut stream) => {
            stream.write_all(&[END])?;
            // Its end of file is its end.
            stream.read_to_end(&mut Vec::new()).map(drop)
        }
        None => Ok(()),
    });
    if let Err(error) = told {
        tracing::warn!(%error, "the keeper of an earlier mount can't be ended");
    }
}

fn connect(root: &Path) -> io::Result<Option<UnixStream>> {
    match UnixStream::connect(socket(root)) {
        Ok(stream) => {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(Some(stream))
        }
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// What a keeper is started with.
#[derive(Debug)]
pub struct Keep {
    /// Where to answer.
    pub socket: PathBuf,
    /// The mount.
    pub kept: Kept,
    /// Its number in the kernel's table.
    pub mount: String,
    /// Gets a line when it is kept, and is closed.
    pub ready: Option<OwnedFd>,
}

/// Keeps a mount until it is unmounted and nobody uses it, or it is told to end.
///
/// # Errors
/// When the socket can't be made.
pub fn keep(what: Keep) -> io::Result<()> {
    let listener = listen(&what.socket)?;
    let own = std::fs::symlink_metadata(&what.socket)?;
    if let Some(ready) = what.ready {
        File::from(ready).write_all(b"kept\n")?;
    }
    let interval = Timespec {
        tv_sec: LOOK_EVERY.as_secs() as _,
        tv_nsec: 0,
    };
    while !over(&what.kept.device) {
        let mut wait = [PollFd::new(&listener, PollFlags::IN)];
        // Whatever went wrong with a client is over with it; a signal is no reason to end.
        if matches!(poll(&mut wait, Some(&interval)), Ok(1..))
            && let Ok((stream, _)) = listener.accept()
            && matches!(answer(stream, &what.kept, &what.mount), Ok(true))
        {
            break;
        }
    }
    let same = |found: std::fs::Metadata| (found.dev(), found.ino()) == (own.dev(), own.ino());
    if std::fs::symlink_metadata(&what.socket).is_ok_and(same) {
        std::fs::remove_file(&what.socket)?;
    }
    Ok(())
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

/// Whether the kernel has ended the mount.
fn over(device: &OwnedFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut look = [PollFd::new(device, PollFlags::empty())];
    match poll(&mut look, Some(&now)) {
        Ok(_) => look[0].revents().contains(PollFlags::ERR),
        Err(_) => false,
    }
}

/// Answers one request; whether it was to end.
fn answer(mut stream: UnixStream, kept: &Kept, mount: &str) -> io::Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = [0];
    stream.read_exact(&mut request)?;
    match request[0] {
        GIVE => {
            let descriptors = [kept.device.as_fd(), kept.greeting.as_fd()];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(io::Error::other("no room for the descriptors"));
            }
            let text = format!("{mount}\n");
            let text = [IoSlice::new(text.as_bytes())];
            sendmsg(&stream, &text, &mut control, SendFlags::NOSIGNAL)?;
            Ok(false)
        }
        request => Ok(request == END),
    }
}

/// Standard output as a descriptor that can be closed.
pub fn standard_output() -> io::Result<OwnedFd> {
    crate::daemon::namespace::adopt(1 as RawFd)
}
