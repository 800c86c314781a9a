//! Starting one daemon, as the user it is to be.

use std::{
    ffi::OsString,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown, fchown},
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Instant,
};

use rustix::{
    fs::OFlags,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, geteuid, kill_process, pidfd_open},
};

use crate::{Failure, device::Kept, notify, process};

/// Name of the log of a daemon in the background, in the state directory.
const LOG: &str = "daemon.log";
/// The log is begun anew when it is larger, in bytes.
const MAX_LOG: u64 = 4 << 20;
/// What is kept of a daemon's last words, in bytes.
const MAX_WORDS: usize = 16 << 10;
/// Where users are looked up; a name service is not asked, so that none of its code runs here.
const PASSWD: &str = "/etc/passwd";

/// An ordinary user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    uid: u32,
    gid: u32,
    home: PathBuf,
}

impl User {
    /// By name or by `UID:GID`.
    pub fn find(name: &str) -> Result<Self, Failure> {
        let table = std::fs::read_to_string(PASSWD).map_err(|e| Failure::system(PASSWD, e))?;
        Self::find_in(&table, name).ok_or_else(|| {
            let what = format!("setuid={name}: {PASSWD} has no such user, and it is no UID:GID");
            Failure::usage(what)
        })
    }

    fn find_in(table: &str, name: &str) -> Option<Self> {
        if let Some((uid, gid)) = name.split_once(':') {
            return Some(Self {
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home: "/".into(),
            });
        }
        let mut rows = table
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>());
        let row = rows.find(|row| row.len() >= 6 && row[0] == name && !name.is_empty())?;
        Some(Self {
            uid: row[2].parse().ok()?,
            gid: row[3].parse().ok()?,
            home: row[5].into(),
        })
    }
}

/// What every daemon is started with.
pub(crate) struct Launch {
    pub program: PathBuf,
    pub settings: Vec<OsString>,
    pub arguments: Vec<OsString>,
    pub state_dir: PathBuf,
    pub mountpoint: PathBuf,
    pub user: Option<User>,
    /// Whether it is told to end when this process is killed.
    pub dies_with_us: bool,
    /// Whether it logs into the state directory, and not to this process's standard error.
    pub logs: bool,
}

impl Launch {
    /// The state directory that `program` would use with these settings, and the form of its log lines.
    pub fn ask_settings(
        program: &Path,
        settings: &[OsString],
        user: Option<&User>,
    ) -> Result<(PathBuf, String), Failure> {
        let mut command = Command::new(program);
        let keys = ["log-format", "state-dir"];
        command.arg("config").args(settings).args(keys);
        if let Some(user) = user {
            command.env("HOME", &user.home);
        }
        notify::hide_from(&mut command);
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = output
            .output()
            .map_err(|e| Failure::system(format_args!("{} can't be run", program.display()), e))?;
        if !output.status.success() {
            // It said why.
            return Err(Failure {
                exit: output.status.code().map_or(1, |code| code as u8),
                text: String::new(),
            });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let text = text.trim_end_matches('\n');
        let (log_format, state_dir) = text.split_once('\n').unwrap_or(("", text));
        Ok((PathBuf::from(state_dir), log_format.to_owned()))
    }

    /// Makes the state directory, of the daemon's user, if there is none.
    pub fn prepare(&self) -> Result<(), Failure> {
        let what = |e| {
            let directory = self.state_dir.display();
            Failure::system(
                format_args!("the state directory {directory} can't be made"),
                e,
            )
        };
        if !self.state_dir.exists() {
            if let Some(parent) = self.state_dir.parent() {
                std::fs::create_dir_all(parent).map_err(what)?;
            }
            let made = DirBuilder::new().mode(0o700).create(&self.state_dir);
            made.map_err(what)?;
        }
        // Also one that was made for it beforehand, and not for this user.
        let own = geteuid().as_raw();
        let found = std::fs::metadata(&self.state_dir).map_err(what)?;
        let empty = || std::fs::read_dir(&self.state_dir).map(|mut names| names.next().is_none());
        match &self.user {
            Some(user) if found.uid() == own && empty().map_err(what)? => {
                chown(&self.state_dir, Some(user.uid), Some(user.gid)).map_err(what)
            }
            _ => Ok(()),
        }
    }

    /// The log, to be written to its end.
    pub fn log(&self) -> Result<File, Failure> {
        let path = self.state_dir.join(LOG);
        let opened = self.open_log(&path).map_err(|e| {
            let what = format!("the daemon's log {} can't be written", path.display());
            let mut failure = Failure::system(what, e);
            failure.text += "\n  hint: use another directory with state-dir";
            failure
        })?;
        Ok(opened)
    }

    fn open_log(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        // The directory may be another user's, who must not choose what is opened here.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.custom_flags(flags.bits() as i32);
        let log = options.create(true).append(true).mode(0o600).open(path)?;
        let found = log.metadata()?;
        if !found.is_file() || found.nlink() != 1 {
            return Err(io::Error::other("it is no file of its own"));
        }
        if found.len() > MAX_LOG {
            log.set_len(0)?;
        }
        if let Some(user) = &self.user {
            fchown(&log, Some(user.uid), Some(user.gid))?;
        }
        Ok(log)
    }

    /// Starts a daemon on the mount.
    pub fn start(&self, kept: &Kept) -> Result<Daemon, Failure> {
        let mut command = Command::new(&self.program);
        if self.logs {
            let log = self.log()?;
            command.stdout(Stdio::null()).stderr(log);
        }
        self.spawn(command, kept).map_err(|e| {
            Failure::system(format_args!("{} can't be run", self.program.display()), e)
        })
    }

    fn spawn(&self, mut command: Command, kept: &Kept) -> io::Result<Daemon> {
        let handed = kept.try_clone()?;
        let (ready, told) = pipe_with(PipeFlags::CLOEXEC)?;
        command.arg("daemon").arg("--ready-plain");
        for (flag, descriptor) in [
            ("fuse", &handed.device),
            ("greeting", &handed.greeting),
            ("ready", &told),
        ] {
            let number = process::leave_open(descriptor)?;
            command.arg(format!("--{flag}-fd={number}"));
        }
        command.arg("--served-at").arg(&self.mountpoint);
        command.args(&self.settings).args(&self.arguments);
        command.stdin(Stdio::null()).current_dir("/");
        notify::hide_from(&mut command);
        if let Some(user) = &self.user {
            command.env("HOME", &user.home);
        }
        let ids = self.user.as_ref().map(|user| (user.uid, user.gid));
        process::confine(&mut command, self.dies_with_us, ids);
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        Ok(Daemon {
            end: pidfd_open(pid, PidfdFlags::empty())?,
            ready: Some(File::from(ready)),
            child,
            pid,
            words: Vec::new(),
            started: Instant::now(),
            serves: false,
        })
    }
}

/// A daemon that runs, or has ended and was not collected.
pub(crate) struct Daemon {
    child: Child,
    pub pid: Pid,
    /// Can be read when it has ended, with all of its threads.
    pub end: OwnedFd,
    /// Where it says that it serves, or why it can't.
    pub ready: Option<File>,
    words: Vec<u8>,
    pub started: Instant,
    pub serves: bool,
}

impl Daemon {
    /// Reads what it says, when there is something to read; whether it serves since now.
    pub fn listen(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let read = self.ready.as_mut().map(|ready| ready.read(&mut bytes));
        match read {
            Some(Ok(size @ 1..)) if self.words.len() < MAX_WORDS => {
                self.words.extend(&bytes[..size]);
            }
            _ => self.ready = None,
        }
        let now = !self.serves && self.words.starts_with(b"ready\n");
        self.serves |= now;
        now
    }

    pub fn signal(&self, signal: Signal) {
        // It may have ended; it is not collected, so the number is still its own.
        let _ = kill_process(self.pid, signal);
    }

    /// Collects one that has ended: how, and in words.
    pub fn collect(mut self) -> (Option<ExitStatus>, String) {
        // All that it said is in the pipe by now.
        while self.ready.is_some() {
            self.listen();
        }
        let status = self.child.wait().ok();
        let words = String::from_utf8_lossy(&self.words);
        let words = words.trim();
        let reason = match status {
            _ if !self.serves && !words.is_empty() => words.to_owned(),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("it ended with status {code}"),
                (None, Some(signal)) => format!("it was killed by signal {signal}"),
                _ => "it ended".into(),
            },
            None => "it ended".into(),
        };
        (status, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names_or_numbers() {
        let table = "root:x:0:0:root:/root:/bin/sh\nnarfs:x:990:991::/var/lib/narfs:/bin/false\n";
        let user = |uid, gid, home: &str| {
            Some(User {
                uid,
                gid,
                home: home.into(),
            })
        };
        assert_eq!(
            User::find_in(table, "narfs"),
            user(990, 991, "/var/lib/narfs")
        );
        assert_eq!(User::find_in(table, "7:8"), user(7, 8, "/"));
        for nobody in ["", "nobody", "7:", "x:1"] {
            assert_eq!(User::find_in(table, nobody), None, "{nobody:?}");
        }
    }
}
