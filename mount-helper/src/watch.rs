//! One daemon after the other, to the mount's end.
//!
//! A daemon that ended is replaced at once. One that ended soon after its start, or never served,
//! counts as a crash: the next is started after a while that doubles with each crash in a row. After
//! [`PATIENCE`] crashes requests are refused instead of left waiting, and a start is tried now and
//! then. Every [`Start::watchdog`] another process asks the mount; without an answer in that time
//! the daemon is killed, which is replaced then like any other.

use std::{
    fs::File,
    io::Write,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::Signal,
};

use crate::{
    Called, Failure, Status, control,
    device::{Kept, raise_read_ahead},
    launch::{Daemon, Launch},
    mountpoint::{mounted_by_narfs, unmount},
    notify::Manager,
    probe::{Answer, Prober},
    process::{Signals, leave_open},
    refuse::Refusing,
    say, warn,
};

/// Longest time without a look at everything.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A daemon that lived so long did not crash at its start.
const STEADY: Duration = Duration::from_secs(10);
/// One that served and then was ended by somebody is no crash either, however often that happens. If
/// it lived shorter than this, the next one waits a moment: a machine without memory, whose kernel
/// kills them, is not to do nothing but start daemons.
const ENDED_BY_SOMEBODY: Duration = Duration::from_millis(300);
/// The wait after the third crash in a row; there is none before. Also that after a daemon that
/// somebody ended soon after its start.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Crashes in a row after which requests are refused.
const PATIENCE: u32 = 9;
/// The wait between two starts then.
const REFUSING_WAIT: Duration = Duration::from_secs(30);
/// How long a daemon that is to end may take.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// What the start leaves to the watch.
pub(crate) struct Start {
    pub called: Called,
    pub mountpoint: PathBuf,
    /// Zero: a daemon that hangs is left alone.
    pub watchdog: Duration,
    pub ready_timeout: Duration,
    /// Whether the mount was made now: it goes if its first daemon does not serve.
    pub fresh: bool,
    /// Who waits for the mount to answer.
    pub waits: Option<OwnedFd>,
}

enum State {
    Running(Daemon),
    Waiting { until: Instant },
    Refusing { until: Instant, refusing: Refusing },
}

/// What is to be done next.
enum Next {
    GoOn,
    End,
}

pub(crate) struct Helper {
    launch: Launch,
    kept: Kept,
    manager: Manager,
    start: Start,
    signals: Signals,
    control: Option<control::Server>,
    /// When to try again to open it, once that was tried.
    control_at: Option<Instant>,
    state: State,
    /// Crashes in a row.
    crashes: u32,
    starts: u64,
    reason: String,
    prober: Prober,
    /// Whether a daemon has served.
    served: bool,
}

impl Helper {
    pub fn new(
        launch: Launch,
        kept: Kept,
        manager: Manager,
        start: Start,
    ) -> Result<Self, Failure> {
        let signals = Signals::new().map_err(|e| Failure::system("signals", e))?;
        let now = Instant::now();
        let prober = Prober::new(
            start.called.clone(),
            start.mountpoint.clone(),
            start.watchdog,
            manager.watchdog,
        );
        Ok(Self {
            launch,
            kept,
            manager,
            start,
            signals,
            control: None,
            control_at: None,
            state: State::Waiting { until: now },
            crashes: 0,
            starts: 0,
            reason: String::new(),
            prober,
            served: false,
        })
    }

    /// Serves to the mount's end.
    pub fn run(mut self) -> Result<(), Failure> {
        if !self.start.fresh {
            self.open_control();
        }
        while let Next::GoOn = self.turn()? {}
        self.manager.forget();
        say(format_args!(
            "{} has ended",
            self.start.mountpoint.display()
        ));
        Ok(())
    }

    fn turn(&mut self) -> Result<Next, Failure> {
        self.start_when_due()?;
        if self.control.is_none() && self.control_at.is_some_and(|at| at <= Instant::now()) {
            self.open_control();
        }
        let woken = self.wait()?;
        if woken.signal && self.signals.take() {
            return self.end();
        }
        if woken.ready {
            self.listen();
        }
        if woken.ended && matches!(self.died()?, Next::End) {
            return Ok(Next::End);
        }
        if woken.called {
            self.answer();
        }
        if woken.requests
            && let State::Refusing { refusing, .. } = &mut self.state
        {
            refusing.answer();
        }
        self.watch(woken.probed);
        self.prober.collect();
        let alone = !matches!(self.state, State::Running(_));
        match alone && self.kept.is_gone() {
            true => Ok(Next::End),
            false => Ok(Next::GoOn),
        }
    }

    fn start_when_due(&mut self) -> Result<(), Failure> {
        let (State::Waiting { until } | State::Refusing { until, .. }) = &self.state else {
            return Ok(());
        };
        if *until > Instant::now() {
            return Ok(());
        }
        // Whoever refuses has to be gone before.
        self.state = State::Waiting {
            until: Instant::now() + LOOK_EVERY,
        };
        match self.launch.start(&self.kept) {
            Ok(daemon) => {
                self.starts += 1;
                self.state = State::Running(daemon);
                Ok(())
            }
            Err(failure) if self.start.fresh && !self.served => Err(failure),
            Err(failure) => {
                self.crashed(failure.text);
                Ok(())
            }
        }
    }

    /// Waits for something to do, and says what.
    fn wait(&self) -> Result<Woken, Failure> {
        let timeout = self.next_look().saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as _,
            tv_nsec: timeout.subsec_nanos() as _,
        };
        let mut watched = vec![(
            Kind::Signal,
            PollFd::new(self.signals.descriptor(), PollFlags::IN),
        )];
        let mut add = |kind, descriptor| watched.push((kind, descriptor));
        let socket = self.control.as_ref().map(control::Server::descriptor);
        if let Some(socket) = &socket {
            add(Kind::Called, PollFd::new(socket, PollFlags::IN));
        }
        match &self.state {
            State::Running(daemon) => {
                add(Kind::Ended, PollFd::new(&daemon.end, PollFlags::IN));
                if let Some(ready) = &daemon.ready {
                    add(Kind::Ready, PollFd::new(ready, PollFlags::IN));
                }
            }
            State::Refusing { refusing, .. } => {
                add(
                    Kind::Requests,
                    PollFd::new(refusing.device(), PollFlags::IN),
                );
            }
            State::Waiting { .. } => {}
        }
        if let Some(probe) = self.prober.descriptor() {
            add(Kind::Probed, PollFd::new(probe, PollFlags::IN));
        }
        let (kinds, mut descriptors): (Vec<_>, Vec<_>) = watched.into_iter().unzip();
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(Failure::system("poll", e)),
        }
        let mut woken = Woken::default();
        for (kind, descriptor) in kinds.iter().zip(&descriptors) {
            if !descriptor.revents().is_empty() {
                woken.set(*kind);
            }
        }
        Ok(woken)
    }

    /// When there is something to do at the latest.
    fn next_look(&self) -> Instant {
        let mut at = Instant::now() + LOOK_EVERY;
        match &self.state {
            State::Waiting { until } | State::Refusing { until, .. } => at = at.min(*until),
            State::Running(daemon) if !daemon.serves => {
                at = at.min(daemon.started + self.start.ready_timeout);
            }
            State::Running(_) => at = self.prober.next_look().map_or(at, |look| at.min(look)),
        }
        at
    }

    /// Takes note of what the daemon says.
    fn listen(&mut self) {
        let State::Running(daemon) = &mut self.state else {
            return;
        };
        if !daemon.listen() {
            return;
        }
        let (pid, after) = (daemon.pid, daemon.started.elapsed());
        self.prober.begin();
        if !std::mem::replace(&mut self.served, true) {
            self.open_control();
            // Not before: the kernel sets it anew when the first daemon has answered its first question.
            if let Err(error) = raise_read_ahead(&self.start.mountpoint) {
                warn(format_args!("read-ahead stays as it is: {error}"));
            }
            self.announce();
        }
        say(format_args!(
            "{} is served by process {pid}, after {} ms",
            self.start.mountpoint.display(),
            after.as_millis()
        ));
        self.manager.tell(&format!(
            "READY=1\nSTATUS=served by process {pid}\nWATCHDOG=1"
        ));
    }

    /// Whoever waits for the mount may go; nothing of his is held any longer.
    fn announce(&mut self) {
        let Some(waits) = self.start.waits.take() else {
            return;
        };
        if let (Ok(log), Ok(nothing)) = (self.launch.log(), File::open("/dev/null")) {
            // Where one can't be put in place, the terminal stays in use; nothing depends on it.
            let _ = rustix::stdio::dup2_stdin(&nothing);
            let _ = rustix::stdio::dup2_stdout(&log);
            let _ = rustix::stdio::dup2_stderr(&log);
        }
        // He may have given up.
        let _ = File::from(waits).write_all(b"r");
    }

    /// Once more after a while if it can't be opened, on a full disk mostly.
    fn open_control(&mut self) {
        let first = self.control_at.is_none();
        self.control_at = Some(Instant::now() + LOOK_EVERY);
        match control::Server::open(&self.launch.state_dir) {
            Ok(server) => self.control = Some(server),
            Err(error) if first => warn(format_args!(
                "`narfs status` and `narfs upgrade` can't ask here for now: {}: {error}",
                self.launch.state_dir.join(control::SOCKET).display()
            )),
            Err(_) => {}
        }
    }

    /// The daemon has ended.
    fn died(&mut self) -> Result<Next, Failure> {
        let waiting = State::Waiting {
            until: Instant::now(),
        };
        let State::Running(daemon) = std::mem::replace(&mut self.state, waiting) else {
            return Ok(Next::GoOn);
        };
        let (pid, lived, serves) = (daemon.pid, daemon.started.elapsed(), daemon.serves);
        let (status, reason) = daemon.collect();
        self.prober.stop();
        if self.kept.is_gone() {
            return Ok(Next::End);
        }
        if self.start.fresh && !self.served {
            let exit = status.and_then(|status| status.code());
            let text = match reason.starts_with("narfs: ") {
                true => reason,
                false => format!("narfs: the daemon did not serve: {reason}"),
            };
            return Err(Failure {
                exit: exit.map_or(1, |code| code.max(1) as u8),
                text,
            });
        }
        warn(format_args!("process {pid} served no longer: {reason}"));
        let by_somebody = status.is_some_and(|status| {
            use std::os::unix::process::ExitStatusExt;
            status.success() || matches!(status.signal(), Some(libc::SIGKILL | libc::SIGTERM))
        });
        if serves && (lived >= STEADY || by_somebody) {
            self.crashes = 0;
            self.reason = reason;
            if lived < ENDED_BY_SOMEBODY {
                let until = Instant::now() + FIRST_WAIT;
                self.state = State::Waiting { until };
            }
        } else {
            self.crashed(reason);
        }
        Ok(Next::GoOn)
    }

    /// Waits before the next start.
    fn crashed(&mut self, reason: String) {
        self.crashes += 1;
        self.reason = reason;
        let now = Instant::now();
        if self.crashes < PATIENCE || !self.kept.is_begun() {
            let doubled = self.crashes.saturating_sub(3).min(PATIENCE);
            let wait = match self.crashes {
                0..3 => Duration::ZERO,
                _ => FIRST_WAIT * 2u32.pow(doubled),
            };
            self.state = State::Waiting { until: now + wait };
            return;
        }
        let what = format!(
            "no daemon could be kept running, {} in a row ended: requests get I/O errors, the next start is in {} s \
             or with `narfs upgrade`. The last one: {}",
            self.crashes,
            REFUSING_WAIT.as_secs(),
            self.reason
        );
        warn(&what);
        self.manager
            .tell(&format!("STATUS={}", what.replace('\n', " ")));
        let until = now + REFUSING_WAIT;
        self.state = match Refusing::begin(&self.kept) {
            Ok(refusing) => State::Refusing { until, refusing },
            Err(_) => State::Waiting { until },
        };
    }

    fn status(&self) -> Status {
        let (state, daemon) = match &self.state {
            State::Running(daemon) => (
                if daemon.serves { "serving" } else { "starting" },
                Some(daemon.pid.as_raw_nonzero().get() as u32),
            ),
            State::Waiting { .. } => ("waiting", None),
            State::Refusing { .. } => ("refusing", None),
        };
        Status {
            helper: std::process::id(),
            mountpoint: self.start.mountpoint.display().to_string(),
            state: state.into(),
            daemon,
            restarts: self.starts.saturating_sub(1),
            reason: self.reason.clone(),
        }
    }

    fn answer(&mut self) {
        let asked = self.control.as_ref().and_then(control::Server::take);
        match asked {
            Some((control::Request::Status, stream)) => control::answer(stream, &self.status()),
            Some((control::Request::Upgrade(program), stream)) => {
                let usable = program.is_absolute()
                    && program.is_file()
                    && !program.starts_with(&self.start.mountpoint);
                let refused = "it is no program outside of the mount";
                control::answer_upgrade(stream, (!usable).then_some(refused));
                if usable {
                    self.upgrade(&program);
                }
            }
            None => {}
        }
    }

    /// Ends the daemon in order, with what it has not answered left for the next, and becomes the
    /// new program. Returns where that is not possible; the daemon starts again then.
    fn upgrade(&mut self, program: &Path) {
        say(format_args!("going on with {}", program.display()));
        self.stop_daemon();
        self.prober.stop();
        self.crashes = 0;
        self.launch.program = program.to_owned();
        self.state = State::Waiting {
            until: Instant::now(),
        };
        let called = &self.start.called;
        // A helper that is a part of narfs goes on as the new one; else its own file may be new.
        let file = match called.before.is_empty() {
            true => &called.file,
            false => program,
        };
        let handed = leave_open(&self.kept.device)
            .and_then(|device| Ok((device, leave_open(&self.kept.greeting)?)));
        let Ok((device, greeting)) = handed else {
            return;
        };
        let mut command = Command::new(file);
        command.arg0(&called.name).args(&called.before);
        command.arg("--resume").arg(format!("{device},{greeting}"));
        command.arg("--program").arg(program);
        command.args(without_ours(&called.arguments));
        let error = command.exec();
        warn(format_args!("{} can't be run: {error}", file.display()));
        for descriptor in [&self.kept.device, &self.kept.greeting] {
            // They were open without it a moment ago.
            let _ = rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC);
        }
    }

    /// Somebody wants this process to end.
    fn end(&mut self) -> Result<Next, Failure> {
        let shown = self.start.mountpoint.display();
        if self.manager.is_there() {
            say(format_args!(
                "ending; {shown} is left to the service manager"
            ));
            self.manager.tell("STOPPING=1");
            self.stop_daemon();
            // Not "forgotten": it comes back.
            self.manager = Manager::nobody();
            return Ok(Next::End);
        }
        say(format_args!("ending, and unmounting {shown}"));
        if mounted_by_narfs(&self.start.mountpoint)
            && let Err(error) = unmount(&self.start.mountpoint, false)
                .or_else(|_| unmount(&self.start.mountpoint, true))
        {
            warn(format_args!("{shown} is not unmounted: {error}"));
        }
        self.stop_daemon();
        Ok(Next::End)
    }

    /// Ends the daemon in order, or at least at all.
    fn stop_daemon(&mut self) {
        let waiting = State::Waiting {
            until: Instant::now(),
        };
        let State::Running(daemon) = std::mem::replace(&mut self.state, waiting) else {
            return;
        };
        daemon.signal(Signal::TERM);
        if !ends_within(&daemon.end, ENDS_WITHIN) {
            warn(format_args!(
                "process {} does not end, and is killed",
                daemon.pid
            ));
            daemon.signal(Signal::KILL);
            if !ends_within(&daemon.end, ENDS_WITHIN) {
                return;
            }
        }
        let _ = daemon.collect();
    }

    /// Whether the mount answers, and what follows from that.
    fn watch(&mut self, probed: bool) {
        let State::Running(daemon) = &self.state else {
            return;
        };
        if !daemon.serves {
            if daemon.started.elapsed() >= self.start.ready_timeout {
                warn(format_args!(
                    "process {} does not come to serve, and is killed",
                    daemon.pid
                ));
                daemon.signal(Signal::KILL);
            }
            return;
        }
        match self.prober.look(probed) {
            Answer::Open => {}
            Answer::Good => self.manager.tell("WATCHDOG=1"),
            Answer::Late => {
                warn(format_args!(
                    "process {} gave no answer for {} s, and is killed",
                    daemon.pid,
                    self.start.watchdog.as_secs_f32()
                ));
                daemon.signal(Signal::KILL);
            }
        }
    }
}

/// The arguments without those that an upgrade gives.
fn without_ours(arguments: &[std::ffi::OsString]) -> Vec<std::ffi::OsString> {
    let mut rest = arguments.iter();
    let mut kept = Vec::new();
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("--resume" | "--program") => drop(rest.next()),
            Some("--") => {
                kept.push(argument.clone());
                kept.extend(rest.by_ref().cloned());
            }
            _ => kept.push(argument.clone()),
        }
    }
    kept
}

fn ends_within(end: &OwnedFd, time: Duration) -> bool {
    let deadline = Instant::now() + time;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as _,
            tv_nsec: left.subsec_nanos() as _,
        };
        match poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&timeout)) {
            Ok(found) => return found > 0,
            Err(_) if left.is_zero() => return false,
            Err(_) => {}
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Signal,
    Called,
    Ended,
    Ready,
    Requests,
    Probed,
}

/// What there is to do.
#[derive(Default)]
struct Woken {
    signal: bool,
    called: bool,
    ended: bool,
    ready: bool,
    requests: bool,
    probed: bool,
}

impl Woken {
    fn set(&mut self, kind: Kind) {
        *match kind {
            Kind::Signal => &mut self.signal,
            Kind::Called => &mut self.called,
            Kind::Ended => &mut self.ended,
            Kind::Ready => &mut self.ready,
            Kind::Requests => &mut self.requests,
            Kind::Probed => &mut self.probed,
        } = true;
    }
}
