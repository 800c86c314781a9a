//! Whether the mount answers, asked now and then by another process: one that is killed while it
//! waits for its own mount is never gone, and neither is the mount.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{Called, notify, warn};

/// What there is to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing new.
    Open,
    /// It answers.
    Good,
    /// It gave none in time.
    Late,
}

/// Who asks.
pub(crate) struct Prober {
    called: Called,
    mountpoint: PathBuf,
    /// How long an answer may take; zero: nobody asks.
    patience: Duration,
    every: Duration,
    asking: Option<Asking>,
    next: Instant,
    /// Processes that were killed and may take their time.
    left: Vec<Child>,
}

struct Asking {
    child: Child,
    end: OwnedFd,
    since: Instant,
}

impl Prober {
    /// `wanted` is how often somebody else wants to know, if somebody does.
    pub fn new(
        called: Called,
        mountpoint: PathBuf,
        patience: Duration,
        wanted: Option<Duration>,
    ) -> Self {
        let own = patience / 3;
        // Half of it is what sd_watchdog_enabled(3) advises; the answer takes its time too.
        let every = wanted.map_or(own, |wanted| own.min(wanted / 3));
        Self {
            called,
            mountpoint,
            patience,
            every,
            asking: None,
            next: Instant::now(),
            left: Vec::new(),
        }
    }

    /// There is somebody new to answer.
    pub fn begin(&mut self) {
        self.next = Instant::now() + self.every;
    }

    /// When there is something to do at the latest, if ever.
    pub fn next_look(&self) -> Option<Instant> {
        let asked = self.asking.as_ref().map(|asking| asking.since);
        let at = asked.map_or(self.next, |since| since + self.patience);
        (!self.patience.is_zero()).then_some(at)
    }

    /// Can be read when there is an answer.
    pub fn descriptor(&self) -> Option<&OwnedFd> {
        self.asking.as_ref().map(|asking| &asking.end)
    }

    /// Asks when it is time; `answered` if the descriptor can be read.
    pub fn look(&mut self, answered: bool) -> Answer {
        let now = Instant::now();
        if self.patience.is_zero() {
            return Answer::Open;
        }
        match &mut self.asking {
            Some(asking) if answered => {
                let good = asking.child.wait().is_ok_and(|status| status.success());
                self.asking = None;
                self.begin();
                if good { Answer::Good } else { Answer::Open }
            }
            Some(asking) if now >= asking.since + self.patience => {
                self.stop();
                self.begin();
                Answer::Late
            }
            None if now >= self.next => {
                match self.ask() {
                    Ok(asking) => self.asking = Some(asking),
                    Err(error) => {
                        warn(format_args!("the mount can't be asked: {error}"));
                        self.begin();
                    }
                }
                Answer::Open
            }
            _ => Answer::Open,
        }
    }

    fn ask(&self) -> io::Result<Asking> {
        // Also where an update has replaced or removed the file.
        let mut command = Command::new("/proc/self/exe");
        command.arg0(&self.called.name).args(&self.called.before);
        command.arg("--probe").arg(&self.mountpoint);
        notify::hide_from(&mut command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let end = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        let since = Instant::now();
        Ok(Asking { child, end, since })
    }

    /// Nobody is asked any more.
    pub fn stop(&mut self) {
        if let Some(mut asking) = self.asking.take() {
            // It may be waiting for the next daemon's answer, and ends with that.
            let _ = asking.child.kill();
            self.left.push(asking.child);
        }
    }

    /// Collects who was killed and is gone by now.
    pub fn collect(&mut self) {
        self.left
            .retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
    }
}
