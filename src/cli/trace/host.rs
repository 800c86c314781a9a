//! The run itself: a daemon here, and the program as `narfs run` runs it.

use std::{
    io::IsTerminal, os::unix::process::ExitStatusExt, process::ExitStatus, time::SystemTime,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::{
    TraceArgs,
    document::{Document, Ended},
    gather::{self, Run},
};
use crate::{
    cli::{Exit, Failure},
    config::{Config, Flags},
    daemon::{
        Hosted, runtime,
        scratch::{Signals, scratch_directory},
    },
    failure::printable,
    trace,
};

/// The key whose flag says that there is a state directory to use.
const STATE_DIR: &str = "state-dir";

/// Runs the program and returns what was recorded.
///
/// # Errors
/// When it can't be started.
pub(super) fn record(
    config: &Config,
    flags: &Flags,
    args: &TraceArgs,
) -> Result<Document, Failure> {
    let named = flags.settings.iter().any(|(key, _)| *key == STATE_DIR);
    let cold = !args.warm && !named;
    let runtime = runtime()?;
    // Before there is a directory to be left behind.
    let mut signals = Signals::catch(&runtime)?;
    let scratch = cold.then(scratch_directory).transpose()?;
    let (mut config, mut flags) = (config.clone(), flags.clone());
    if let Some(scratch) = &scratch {
        config.state_dir = scratch.path().join("state");
    }
    flags.settings.retain(|(key, _)| *key != STATE_DIR);
    let state_dir = config.state_dir.to_string_lossy().into_owned();
    flags.settings.push((STATE_DIR, vec![state_dir]));

    let began = SystemTime::now();
    let recorder = trace::begin();
    let hosted = Hosted::start(&config, &runtime)?;
    let status = runtime.block_on(program(&flags, args, &mut signals));
    let took = recorder.now();
    hosted.end(runtime);
    let status = status?;
    let shown = |text: &std::ffi::OsStr| printable(&text.to_string_lossy());
    let command = std::iter::once(printable(&args.program.absolute()))
        .chain(args.args.iter().map(|arg| shown(arg)));
    let run = Run {
        command: command.collect(),
        began,
        cold,
        took,
        ended: Ended {
            status: status.code(),
            signal: status.signal(),
        },
    };
    let document = gather::gather(run, &recorder.so_far(), hosted.store(), hosted.upcalls());
    drop(hosted);
    if let Some(Err(error)) = scratch.map(tempfile::TempDir::close) {
        tracing::warn!(%error, "a temporary directory could not be removed");
    }
    Ok(document)
}

async fn program(
    flags: &Flags,
    args: &TraceArgs,
    signals: &mut Signals,
) -> Result<ExitStatus, Failure> {
    let failed = |e: &dyn std::error::Error| {
        Failure::new(Exit::System, "the program can't be started").because(e)
    };
    let narfs = std::env::current_exe().map_err(|e| failed(&e))?;
    let mut command = Command::new(narfs);
    command.args(flags.to_args()).arg("run");
    command.arg(args.program.absolute()).args(&args.args);
    let mut child = command.kill_on_drop(true).spawn().map_err(|e| failed(&e))?;
    // From a terminal an interrupt reaches the program as it reaches us.
    let at_a_terminal = std::io::stdin().is_terminal() || std::io::stderr().is_terminal();
    let mut asked_before = false;
    loop {
        tokio::select! {
            status = child.wait() => return status.map_err(|e| failed(&e)),
            signal = signals.next() => {
                let interrupt = signal == Signal::INT;
                match (asked_before, interrupt && at_a_terminal) {
                    (true, _) => send(&child, Signal::KILL),
                    (false, true) => {}
                    (false, false) => send(&child, signal),
                }
                asked_before = true;
            }
        }
    }
}

fn send(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| Pid::from_raw(id as i32));
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::debug!(%error, "the program ended meanwhile");
    }
}
