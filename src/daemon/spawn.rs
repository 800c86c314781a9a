//! A daemon in the background: started with the same settings, waited for until it is ready.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{FdFlags, fcntl_setfd},
    pipe::{PipeFlags, pipe_with},
};
use serde::{Deserialize, Serialize};

use crate::{
    config::{Config, Flags},
    content::LOG_FILE,
    failure::{Exit, Failure},
};

/// How long a daemon that said why it failed may take to end.
const LETS_GO_WITHIN: Duration = Duration::from_secs(6);

/// The log is begun anew when it is larger, in bytes.
const MAX_LOG: u64 = 4 << 20;

/// A failure on its way from the daemon to who waits for it.
#[derive(Serialize, Deserialize)]
struct Told {
    exit: u8,
    what: String,
    causes: Vec<String>,
    hint: Option<String>,
}

pub(super) fn encode_failure(failure: &Failure) -> String {
    let told = Told {
        exit: failure.exit.code(),
        what: failure.what.clone(),
        causes: failure.causes.clone(),
        hint: failure.hint.clone(),
    };
    serde_json::to_string(&told).unwrap_or_else(|_| failure.what.clone())
}

fn decode_failure(text: &str) -> Failure {
    match serde_json::from_str::<Told>(text) {
        Ok(told) => Failure {
            exit: Exit::from_code(told.exit),
            what: told.what,
            causes: told.causes,
            hint: told.hint,
        },
        Err(_) => Failure::new(Exit::Failure, "the daemon ended before it was ready"),
    }
}

/// A descriptor that was handed over by number, as this process's own.
///
/// # Errors
/// When there is no such descriptor.
pub fn inherited(number: RawFd) -> Result<OwnedFd, Failure> {
    super::namespace::adopt(number).map_err(|e| {
        Failure::new(
            Exit::Usage,
            format!("descriptor {number} was not handed over"),
        )
        .because(&e)
    })
}

/// Starts `narfs daemon ARGS…` with these settings, and returns when it is ready.
///
/// # Errors
/// The daemon's own failure, or that it was not ready in `patience`.
pub fn background(
    config: &Config,
    flags: &Flags,
    args: &[OsString],
    patience: Duration,
) -> Result<(), Failure> {
    let failed = |e: &dyn std::error::Error| {
        Failure::new(Exit::System, "the daemon can't be started").because(e)
    };
    let program = std::env::current_exe().map_err(|e| failed(&e))?;
    let (ready, told) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(&e))?;
    fcntl_setfd(&told, FdFlags::empty()).map_err(|e| failed(&e))?;
    let unwritable = |e: std::io::Error| {
        let what = format!(
            "the daemon's log {} can't be written",
            config.state_dir.join(LOG_FILE).display()
        );
        Failure::new(Exit::System, what)
            .because(&e)
            .hint("use another directory with --state-dir")
    };
    let mut log = open_log(config).map_err(unwritable)?;
    // On a full disk the line is lost, and the daemon starts nevertheless.
    let _ = writeln!(
        log,
        "--- narfs {} started by process {}",
        env!("CARGO_PKG_VERSION"),
        std::process::id()
    );
    let mut command = Command::new(program);
    command
        .args(flags.to_args())
        .arg("daemon")
        .arg(format!("--ready-fd={}", told.as_raw_fd()))
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(|e| failed(&e))?)
        .stderr(log);
    // When all is well not waited for: it outlives this process, and whoever inherits it collects it.
    let mut daemon = super::namespace::detached(&mut command)
        .spawn()
        .map_err(|e| failed(&e))?;
    drop(told);
    let text = match wait(File::from(ready), patience) {
        Ok(text) => text,
        Err(e) => return Err(failed(&e)),
    };
    match text.as_deref() {
        Some("ready\n") => Ok(()),
        Some(text) => {
            let log = config.state_dir.join(LOG_FILE);
            let failure = decode_failure(text);
            until_it_ended(&mut daemon);
            match failure.hint {
                Some(_) => Err(failure),
                None => Err(failure.hint(format!("its log is {}", log.display()))),
            }
        }
        None => {
            let what = format!("the daemon was not ready within {} s", patience.as_secs());
            let log = config.state_dir.join(LOG_FILE);
            Err(Failure::new(Exit::Unavailable, what).hint(format!("its log is {}", log.display())))
        }
    }
}

/// Waits for a daemon that failed to let go of its state directory, so that the next try finds it free.
fn until_it_ended(daemon: &mut Child) {
    let deadline = Instant::now() + LETS_GO_WITHIN;
    // One that can't be waited for has ended, as far as anybody can tell.
    while let Ok(None) = daemon.try_wait() {
        if Instant::now() >= deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// All that the daemon says; `None` when the time is up.
fn wait(mut ready: File, patience: Duration) -> std::io::Result<Option<String>> {
    let deadline = std::time::Instant::now() + patience;
    let mut text = String::new();
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as _,
            tv_nsec: left.subsec_nanos() as _,
        };
        if poll(
            &mut [PollFd::new(&ready.as_fd(), PollFlags::IN)],
            Some(&timeout),
        )? == 0
        {
            return Ok(None);
        }
        let mut bytes = [0; 4096];
        match ready.read(&mut bytes)? {
            0 => return Ok(Some(text)),
            n => text.push_str(&String::from_utf8_lossy(&bytes[..n])),
        }
    }
}

/// The log of the state directory's daemon; made together with the directory, if need be.
pub(super) fn open_log(config: &Config) -> std::io::Result<File> {
    make_private(&config.state_dir)?;
    let path = config.state_dir.join(LOG_FILE);
    let large = std::fs::metadata(&path).is_ok_and(|m| m.len() > MAX_LOG);
    let mut options = OpenOptions::new();
    options
        .create(true)
        .write(true)
        .append(!large)
        .truncate(large);
    options.open(path)
}

/// Makes a directory that nobody else can look into; one that exists stays as it is.
fn make_private(dir: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}
