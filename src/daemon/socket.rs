//! The socket that containerd connects to: private, never taken from a living server, made again
//! when its directory vanishes.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream as Blocking,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinHandle,
};

use crate::failure::{Exit, Failure};

/// How often it is looked whether the socket is still there.
const WATCH: Duration = Duration::from_secs(2);
/// How long not to accept after a failure: out of descriptors, most likely.
const BREATHE: Duration = Duration::from_millis(100);
/// Connections that may wait to be served.
const WAITING: usize = 64;

/// A listening socket and the file that leads to it.
struct Bound {
    listener: UnixListener,
    /// Device and inode of the file.
    file: (u64, u64),
}

/// Refuses a path that a living server answers at, or that is no socket.
///
/// # Errors
/// With what to do.
pub fn check_free(path: &Path) -> Result<(), Failure> {
    let refuse = |what: String, hint: &str| Err(Failure::new(Exit::Unavailable, what).hint(hint));
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => refuse(
            format!("{} is there and is no socket", path.display()),
            "move it away, or use another path with --address",
        ),
        Ok(_) if Blocking::connect(path).is_ok() => refuse(
            format!("another server answers at {}", path.display()),
            "end it first, or use another path with --address",
        ),
        _ => Ok(()),
    }
}

/// Makes the socket, mode 0600, in a directory that is made with mode 0700 if it is missing.
fn bind(path: &Path) -> io::Result<Bound> {
    if let Some(directory) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    // Under another name first, so that it is never there with another mode; a dead one is replaced.
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, PermissionsExt::from_mode(0o600))?;
    let meta = fs::symlink_metadata(&new)?;
    fs::rename(&new, path)?;
    Ok(Bound {
        listener,
        file: (meta.dev(), meta.ino()),
    })
}

/// A socket while it is served. Connections come out of the receiver that [`Socket::open`] gives.
pub struct Socket {
    path: PathBuf,
    watcher: JoinHandle<()>,
}

impl Socket {
    /// Makes the socket and begins to accept.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn open(
        path: &Path,
    ) -> Result<(Self, mpsc::Receiver<io::Result<UnixStream>>), Failure> {
        check_free(path)?;
        let bound = bind(path).map_err(|e| {
            let what = format!("the socket {} can't be made", path.display());
            Failure::new(Exit::System, what).because(&e)
        })?;
        let (sender, connections) = mpsc::channel(WAITING);
        let watched = path.to_owned();
        let watcher = tokio::spawn(async move { watch(&watched, bound, sender).await });
        let path = path.to_owned();
        Ok((Self { path, watcher }, connections))
    }

    /// No further connections.
    pub fn close(self) {
        self.watcher.abort();
        // A dead one is replaced by the next.
        let _ = fs::remove_file(&self.path);
    }
}

/// Accepts, and makes the socket again where it is gone.
async fn watch(path: &Path, mut bound: Bound, sender: mpsc::Sender<io::Result<UnixStream>>) {
    let mut tick = tokio::time::interval(WATCH);
    let mut told = false;
    loop {
        tokio::select! {
            accepted = bound.listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if sender.send(Ok(stream)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(BREATHE).await;
                }
            },
            _ = tick.tick() => {
                let there = fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()));
                if there == Some(bound.file) {
                    told = false;
                    continue;
                }
                match check_free(path).map_err(|e| e.to_string()).and_then(|()| bind(path).map_err(|e| e.to_string())) {
                    Ok(again) => {
                        tracing::warn!(socket = %path.display(), "the socket was gone and is made again");
                        bound = again;
                    }
                    Err(error) if !told => {
                        tracing::error!(socket = %path.display(), error, "the socket is gone and can't be made again yet");
                        told = true;
                    }
                    Err(_) => {}
                }
            }
        }
    }
}
