//! What `narfs status` and `narfs upgrade` ask the helper, over a socket in the state directory.
//!
//! One line is asked, `status` or `upgrade PROGRAM`; lines `KEY VALUE` are answered. Only the user
//! that the helper runs as can connect, who may do all of it anyway.

use std::{
    ffi::OsString,
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStringExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::Mode;

/// Name of the socket in the state directory.
pub const SOCKET: &str = "helper.sock";
/// How long either end waits for the other, which has nothing to do but to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often who was dropped asks again, and after which time: a helper ends in a fraction of it.
const MOST_DROPPED: u32 = 50;
const BETWEEN: Duration = Duration::from_millis(20);
/// Longest question or answer, in bytes.
const MAX: u64 = 64 << 10;

/// How it stands with a mount, as its helper says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The helper's process.
    pub helper: u32,
    /// Where it mounted.
    pub mountpoint: String,
    /// `serving`, `starting`, `waiting` for the time of the next start, or `refusing`: the same, and
    /// requests are answered with errors meanwhile.
    pub state: String,
    /// The daemon's process, if there is one.
    pub daemon: Option<u32>,
    /// Daemons that were started in the place of another one.
    pub restarts: u64,
    /// How the last one ended, on one line.
    pub reason: String,
}

impl Status {
    fn lines(&self) -> String {
        let daemon = self.daemon.map_or(String::new(), |pid| pid.to_string());
        let reason = self.reason.replace('\n', " ");
        format!(
            "helper {}\nmountpoint {}\nstate {}\ndaemon {daemon}\nrestarts {}\nreason {reason}\n",
            self.helper, self.mountpoint, self.state, self.restarts
        )
    }

    fn parse(text: &str) -> Self {
        let value = |key| {
            let lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.filter(|(k, _)| *k == key).map(|(_, v)| v).next()
        };
        let number = |key| value(key).and_then(|text| text.parse().ok());
        let text = |key| value(key).unwrap_or_default().to_owned();
        Self {
            helper: number("helper").unwrap_or_default() as u32,
            mountpoint: text("mountpoint"),
            state: text("state"),
            daemon: number("daemon").map(|pid: u64| pid as u32),
            restarts: number("restarts").unwrap_or_default(),
            reason: text("reason"),
        }
    }
}

/// What the helper of a state directory says; `None` if there is none.
///
/// # Errors
/// When there is one that does not answer.
pub fn status(state_dir: &Path) -> io::Result<Option<Status>> {
    let answer = ask(state_dir, b"status\n")?;
    Ok(answer.map(|answer| Status::parse(&answer)))
}

/// Tells the helper of a state directory to go on with another program, in its own place and in the
/// daemon's; whether there is a helper.
///
/// # Errors
/// When there is one that does not answer, or refuses.
pub fn upgrade(state_dir: &Path, program: &Path) -> io::Result<bool> {
    let question = [b"upgrade ", program.as_os_str().as_encoded_bytes(), b"\n"].concat();
    match ask(state_dir, &question)?.as_deref() {
        None => Ok(false),
        Some("done\n") => Ok(true),
        Some(other) => Err(io::Error::other(other.trim().to_owned())),
    }
}

/// A helper that ends, or goes on as another program, drops who has connected: he asks again.
fn ask(state_dir: &Path, question: &[u8]) -> io::Result<Option<String>> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let mut dropped = 0;
    loop {
        match ask_once(state_dir, question) {
            Err(e)
                if matches!(e.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
                    && dropped < MOST_DROPPED =>
            {
                dropped += 1;
                std::thread::sleep(BETWEEN);
            }
            answered => return answered,
        }
    }
}

fn ask_once(state_dir: &Path, question: &[u8]) -> io::Result<Option<String>> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let mut stream = match UnixStream::connect(state_dir.join(SOCKET)) {
        Err(e) if matches!(e.kind(), NotFound | ConnectionRefused) => return Ok(None),
        connected => connected?,
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(question)?;
    let mut answer = String::new();
    stream.take(MAX).read_to_string(&mut answer)?;
    match answer.is_empty() {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Ok(Some(answer)),
    }
}

/// What the helper is asked.
pub(crate) enum Request {
    Status,
    Upgrade(PathBuf),
}

/// The socket, served.
pub(crate) struct Server(UnixListener);

impl Server {
    /// In the place of one that an earlier helper left. The daemon's lock makes sure that there is
    /// one helper for a state directory.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // By the mask and not afterwards: the directory may be another user's, who could put
        // something else in the socket's place.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    pub fn descriptor(&self) -> impl AsFd {
        &self.0
    }

    /// A request and where to answer it. Who is too slow is not waited for.
    pub fn take(&self) -> Option<(Request, UnixStream)> {
        let (stream, _) = self.0.accept().ok()?;
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        let mut line = Vec::new();
        let reader = BufReader::new((&stream).take(MAX));
        { reader }.read_until(b'\n', &mut line).ok()?;
        line.pop();
        let request = match line.strip_prefix(b"upgrade ") {
            Some(program) => Request::Upgrade(OsString::from_vec(program.to_vec()).into()),
            None if line == b"status" => Request::Status,
            None => return None,
        };
        Some((request, stream))
    }
}

/// Answers; whoever went away does not want to know.
pub(crate) fn answer(mut stream: UnixStream, status: &Status) {
    let _ = stream.write_all(status.lines().as_bytes());
}

/// Answers to [`Request::Upgrade`].
pub(crate) fn answer_upgrade(mut stream: UnixStream, refused: Option<&str>) {
    let text = refused.unwrap_or("done").to_owned() + "\n";
    let _ = stream.write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_dropped_asks_again() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join(SOCKET);
        let listener = UnixListener::bind(&socket).unwrap();
        let helper = std::thread::spawn(move || {
            // With the question unread that is a reset, and with it read an end without an answer.
            drop(listener.accept().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 7]).unwrap();
            drop(stream);
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 7]).unwrap();
            stream.write_all(b"state serving\n").unwrap();
            drop(stream);
            drop(listener.accept().unwrap());
            std::fs::remove_file(socket).unwrap();
        });
        let answer = status(directory.path()).unwrap().unwrap();
        assert_eq!(answer.state, "serving");
        // The same, and then it is gone.
        assert_eq!(status(directory.path()).unwrap(), None);
        helper.join().unwrap();
    }

    #[test]
    fn a_status_is_read_as_it_was_written() {
        let status = Status {
            helper: 7,
            mountpoint: "/a b".into(),
            state: "waiting".into(),
            daemon: None,
            restarts: 3,
            reason: "narfs: no such file".into(),
        };
        assert_eq!(Status::parse(&status.lines()), status);
        let status = Status {
            daemon: Some(9),
            reason: String::new(),
            ..status
        };
        assert_eq!(Status::parse(&status.lines()), status);
    }
}
