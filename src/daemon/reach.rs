//! The daemon that all runs with a state directory share: the first of them starts it.
//!
//! Whoever starts one holds a lock on the daemon's log meanwhile, so that of many commands at the
//! same moment one starts a daemon and the others find it. A daemon that is just ending, or a
//! command that uses the directory on its own, is waited for.

use std::{
    ffi::OsString,
    fs::File,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use super::{
    client::{ask, connect},
    protocol::{Info, Reply, Request},
    spawn::{background, open_log},
    terms::agree,
};
use crate::{
    config::{Config, Flags},
    failure::{Exit, Failure},
};

/// How long to wait for a daemon altogether: it has a database to open on a slow disk.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts, while somebody else has the state directory.
const POLL: Duration = Duration::from_millis(20);
/// How long a daemon stays that nobody uses: the next command finds everything in memory.
const IDLE_EXIT: &str = "--idle-exit=300s";

/// A daemon that serves what `config` says, running.
///
/// # Errors
/// When it can't be started, or the one that runs serves something else.
pub fn reach(config: &Config, flags: &Flags) -> Result<Info, Failure> {
    let deadline = Instant::now() + PATIENCE;
    let daemon = loop {
        if let Some(daemon) = running(config)? {
            break daemon;
        }
        let Some(_starting) = lock(config)? else {
            pause(deadline, || waited(config))?;
            continue;
        };
        // Somebody may have been faster.
        if let Some(daemon) = running(config)? {
            break daemon;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match background(config, flags, &[OsString::from(IDLE_EXIT)], left) {
            Ok(()) => pause(deadline, || waited(config))?,
            // In use, by a daemon that is ending or a command that works on its own.
            Err(failure) if failure.exit == Exit::Unavailable => pause(deadline, || failure)?,
            Err(failure) => return Err(failure),
        }
    };
    agree(config, &daemon)?;
    Ok(daemon)
}

/// Asks the daemon that [`reach`] found, and nobody else.
///
/// # Errors
/// Its answer, if that is one; that it is gone.
pub fn request(
    config: &Config,
    request: Request,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), Failure> {
    match connect(&config.state_dir)? {
        Some(stream) => ask(stream, request, descriptor, |_| {}),
        None => Err(Failure::new(Exit::Unavailable, "the daemon ended just now").hint("try again")),
    }
}

/// Who runs, if anybody does.
fn running(config: &Config) -> Result<Option<Info>, Failure> {
    let Some(stream) = connect(&config.state_dir)? else {
        return Ok(None);
    };
    let mut daemon = None;
    let asked = ask(stream, Request::Info, None, |reply| {
        if let Reply::Info(info) = reply {
            daemon = Some(info);
        }
    });
    match asked {
        Ok(()) => Ok(daemon),
        // It ended while we asked.
        Err(failure) if failure.exit == Exit::Unavailable => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The right to start a daemon; `None` while somebody else has it.
fn lock(config: &Config) -> Result<Option<File>, Failure> {
    // A description of its own: the daemon inherits another one, and must not inherit the lock.
    let failed = |e: std::io::Error| {
        let what = format!(
            "the state directory {} can't be used",
            config.state_dir.display()
        );
        Failure::new(Exit::System, what).because(&e)
    };
    let log = open_log(config).map_err(failed)?;
    match flock(&log, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(log)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(failed(e.into())),
    }
}

fn pause(deadline: Instant, failure: impl FnOnce() -> Failure) -> Result<(), Failure> {
    if Instant::now() >= deadline {
        return Err(failure());
    }
    std::thread::sleep(POLL);
    Ok(())
}

fn waited(config: &Config) -> Failure {
    let what = format!(
        "no daemon for {} within {} s",
        config.state_dir.display(),
        PATIENCE.as_secs()
    );
    Failure::new(Exit::Unavailable, what)
}
