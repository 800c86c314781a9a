//! From the command line to a mount that answers.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::ExitCode,
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, WaitOptions, setsid, waitpid},
};

use crate::{
    Failure, MountError,
    device::{Kept, mount},
    exit,
    launch::{Launch, User},
    log,
    mountpoint::{check, mounted_by_narfs, unmount, unmount_dead},
    notify::{self, Manager},
    options::{HELP, Options, Wanted},
    process::{self, adopt},
    say, warn,
    watch::{Helper, Start},
};

/// The programs that mount(8) calls by these names begin so.
const BY_MOUNT: &str = "mount.";
/// Exit statuses that mount(8) knows: wrong usage, and failure.
const MOUNT_USAGE: u8 = 1;
const MOUNT_FAILURE: u8 = 32;
/// Where `narfs` is looked for when `PATH` does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How this program was called: enough to be called so again.
#[derive(Debug, Clone)]
pub struct Called {
    /// The program's file.
    pub file: PathBuf,
    /// What it is called: `narfs-mount`, or `mount.narfs` by mount(8).
    pub name: OsString,
    /// Arguments before those of the helper: the verb, where it is a part of `narfs`.
    pub before: Vec<OsString>,
    /// Arguments of the helper.
    pub arguments: Vec<OsString>,
    /// The `narfs` to start, where that is known.
    pub program: Option<PathBuf>,
}

impl Called {
    /// As a program of its own.
    pub fn directly() -> Self {
        let mut arguments = env::args_os();
        let name = arguments.next().unwrap_or_default();
        Self {
            file: env::current_exe().unwrap_or_else(|_| PathBuf::from(&name)),
            name,
            before: Vec::new(),
            arguments: arguments.collect(),
            program: None,
        }
    }

    fn by_mount(&self) -> bool {
        let name = Path::new(&self.name).file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(BY_MOUNT.as_bytes())
    }
}

/// Does what the arguments say.
pub fn run(called: &Called) -> ExitCode {
    match act(called) {
        Ok(status) => status,
        Err(failure) => {
            if !failure.text.is_empty() {
                // Nobody may be there to read it; the exit status says the same.
                let _ = writeln!(std::io::stderr(), "{}", failure.text);
            }
            ExitCode::from(match failure.exit {
                exit if !called.by_mount() => exit,
                exit::USAGE => MOUNT_USAGE,
                _ => MOUNT_FAILURE,
            })
        }
    }
}

fn act(called: &Called) -> Result<ExitCode, Failure> {
    let options = match Options::parse(called.arguments.iter().cloned(), called.by_mount())? {
        Wanted::Help => {
            print!("{HELP}");
            return Ok(ExitCode::SUCCESS);
        }
        Wanted::Version => {
            println!("narfs-mount {}", env!("CARGO_PKG_VERSION"));
            return Ok(ExitCode::SUCCESS);
        }
        Wanted::Probe(mountpoint) => {
            let answer = rustix::fs::statfs(&mountpoint);
            return answer
                .map(|_| ExitCode::SUCCESS)
                .map_err(|e| Failure::system(mountpoint.display(), e));
        }
        Wanted::Mount(options) => options,
    };
    let resumed = match options.resume {
        Some((device, greeting)) => {
            let own = |number| adopt(number).map_err(|e| Failure::system("--resume", e));
            Some(Kept {
                device: own(device)?,
                greeting: own(greeting)?,
            })
        }
        None => notify::received().map_err(|e| Failure::system("descriptors handed over", e))?,
    };
    // What was handed over has been in the background, if anything is.
    let waits = match options.foreground || options.fake || resumed.is_some() {
        true => None,
        false => match into_background()? {
            Side::Parent(status) => return Ok(status),
            Side::Child(told) => Some(told),
        },
    };
    // No directory that somebody may want to unmount is held; all paths are absolute.
    env::set_current_dir("/").map_err(|e| Failure::system("/", e))?;
    serve(called, &options, resumed, waits)?;
    Ok(ExitCode::SUCCESS)
}

enum Side {
    /// Ends as the child did, or well if that goes on.
    Parent(ExitCode),
    /// Goes on, and says there when the mount answers.
    Child(OwnedFd),
}

fn into_background() -> Result<Side, Failure> {
    let failed = |e| Failure::system("a process can't be started", e);
    let (ready, told) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let Some(child) = process::fork().map_err(failed)? else {
        setsid().map_err(|e| failed(e.into()))?;
        return Ok(Side::Child(told));
    };
    drop(told);
    let mut answers = [0];
    let status = match File::from(ready).read(&mut answers) {
        Ok(1) => ExitCode::SUCCESS,
        // It said why, and ends.
        _ => ExitCode::from(status_of(child)),
    };
    Ok(Side::Parent(status))
}

fn status_of(child: Pid) -> u8 {
    let ended = waitpid(Some(child), WaitOptions::empty());
    let status = ended
        .ok()
        .flatten()
        .and_then(|(_, status)| status.exit_status());
    status.map_or(1, |status| status as u8)
}

fn serve(
    called: &Called,
    options: &Options,
    resumed: Option<Kept>,
    waits: Option<OwnedFd>,
) -> Result<(), Failure> {
    let mountpoint = &options.mountpoint;
    let program = options.program.clone().or_else(|| called.program.clone());
    let program = program.map_or_else(|| find_program(&called.file), Ok)?;
    if program.starts_with(mountpoint) || called.file.starts_with(mountpoint) {
        let what = format!(
            "{} would lie in the mount at {}, which it is to serve\n  hint: install narfs elsewhere",
            program.display(),
            mountpoint.display()
        );
        return Err(Failure::usage(what));
    }
    let manager = Manager::of_process();
    let user = options.user.as_deref().map(User::find).transpose()?;
    let (state_dir, log_format) = match &options.state_dir {
        Some(directory) => {
            let absolute = std::path::absolute(directory);
            let absolute = absolute.map_err(|e| Failure::system(directory.display(), e))?;
            (absolute, options.log_format.clone())
        }
        None => Launch::ask_settings(&program, &options.settings, user.as_ref())?,
    };
    log::begin(log::Form::named(&log_format));
    let mut settings = options.settings.clone();
    if user.is_some() {
        // A user's own default would be another one.
        settings.push(joined("--state-dir=", state_dir.as_os_str()));
    }
    let launch = Launch {
        program,
        settings,
        arguments: options.arguments.clone(),
        state_dir,
        mountpoint: mountpoint.clone(),
        user,
        dies_with_us: manager.is_there(),
        logs: waits.is_some() || options.resume.is_some() && !options.foreground,
    };
    if options.fake {
        return Ok(check(mountpoint)?);
    }
    launch.prepare()?;
    let (kept, fresh) = match resumed.filter(|kept| !kept.is_gone()) {
        Some(kept) => {
            say(format_args!(
                "{} is there, and goes on",
                mountpoint.display()
            ));
            (kept, false)
        }
        None => (mount_anew(options)?, true),
    };
    if fresh {
        manager.forget();
        manager.store(&kept);
    }
    let start = Start {
        called: called.clone(),
        mountpoint: mountpoint.clone(),
        watchdog: options.watchdog,
        ready_timeout: options.ready_timeout,
        fresh,
        waits,
    };
    let helper = Helper::new(launch, kept, manager, start);
    let served = helper.and_then(Helper::run);
    served.inspect_err(|_| {
        if fresh && mounted_by_narfs(mountpoint) {
            // There is an error to be told already; that this fails too adds nothing to it.
            let _ = unmount(mountpoint, true);
        }
    })
}

fn joined(before: &str, value: &OsStr) -> OsString {
    let mut text = OsString::from(before);
    text.push(value);
    text
}

/// Mounts, in the place of what a dead server left.
fn mount_anew(options: &Options) -> Result<Kept, Failure> {
    let mountpoint = &options.mountpoint;
    if unmount_dead(mountpoint)? {
        warn(format_args!(
            "a mount without a server was left on {} and is replaced; programs that used it have to be started again",
            mountpoint.display()
        ));
    }
    check(mountpoint)?;
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => MountError::NoDevice,
        _ => MountError::Io {
            path: mountpoint.clone(),
            source,
        },
    };
    let device = mount(mountpoint, true, options.noexec).map_err(failed)?;
    let device = device.ok_or_else(|| MountError::NoPermission(mountpoint.clone()))?;
    let kept = Kept::new(device).map_err(failed).inspect_err(|_| {
        // As above.
        let _ = unmount(mountpoint, true);
    })?;
    Ok(kept)
}

/// `narfs`, beside this program or in `PATH`.
fn find_program(own: &Path) -> Result<PathBuf, Failure> {
    let path = env::var_os("PATH").unwrap_or_else(|| PATH.into());
    let beside = own.parent().map(Path::to_owned);
    let candidates = beside.into_iter().chain(env::split_paths(&path));
    let mut files = candidates.map(|directory| directory.join("narfs"));
    files.find(|file| file.is_file()).ok_or_else(|| {
        let what =
            "narfs is neither beside narfs-mount nor in PATH\n  hint: name it with --program";
        Failure::new(exit::SYSTEM, what)
    })
}
