//! What goes into a report. Files of the system and of the state directory are read, and the
//! daemon is asked; the mount is not touched, not even looked at: of mounts, the kernel's table
//! tells.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    config::{Config, LogFormat, Secrets},
    content::LOG_FILE,
    daemon::admin::client::Client,
    fuse,
};

/// The end of a log that is included, in bytes: a day of a quiet daemon, an hour of a loud one.
const LOG: u64 = 1 << 20;
/// Most lines of the listing of the state directory.
const ENTRIES: usize = 20_000;

/// One file of the archive.
pub(super) struct Piece {
    pub name: &'static str,
    pub what: &'static str,
    pub text: String,
}

/// Everything.
pub(super) fn all(config: &Config) -> Vec<Piece> {
    let piece = |name, what, text| Piece { name, what, text };
    let mut pieces = vec![
        piece("version.txt", "versions", versions()),
        piece(
            "config.toml",
            "the configuration in effect, and where each value is from",
            config.to_toml(Secrets::Masked) + &warnings(config),
        ),
        piece("system.txt", "the machine and its limits", system(config)),
        piece(
            "mounts.txt",
            "mounts of narfs and FUSE, from the kernel's table",
            mounts(config),
        ),
        piece(
            "state.txt",
            "names and sizes in the state directory",
            state(config),
        ),
        piece("log.txt", "the end of the daemon's log", log(config)),
    ];
    let routes = [
        ("live.txt", "whether the daemon lives", "/live"),
        ("metrics.txt", "what was counted", "/metrics"),
        ("status.json", "totals over the store paths", "/status.json"),
        (
            "inflight.json",
            "who waits, what is fetched, the last errors",
            "/debug/inflight",
        ),
    ];
    let client = Client::new(&config.state_dir);
    for (name, what, route) in routes {
        let asked = client.as_ref().map_err(ToString::to_string);
        let answer = asked.and_then(|client| client.get(route).map_err(|e| e.to_string()));
        let text = match answer {
            Ok(body) => String::from_utf8_lossy(&body).into_owned(),
            Err(why) => format!("{why}\n"),
        };
        pieces.push(piece(name, what, text));
    }
    pieces
}

fn versions() -> String {
    let mut text = format!(
        "narfs {}\nbuilt for {} {}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS
    );
    let program = std::env::current_exe();
    let program = program.map_or_else(|e| e.to_string(), |p| p.display().to_string());
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "program {program}");
    text
}

fn warnings(config: &Config) -> String {
    let files = config
        .files
        .iter()
        .map(|f| format!("# file: {}\n", f.display()));
    let warnings = config.warnings.iter().map(|w| format!("# warning: {w}\n"));
    files.chain(warnings).collect()
}

/// A file of the system, or why there is none.
fn file(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| format!("{e}\n"))
}

fn system(config: &Config) -> String {
    let mut text = String::new();
    let user = rustix::process::geteuid().as_raw();
    let _ = writeln!(text, "effective user {user}");
    for path in [
        "/proc/version",
        "/etc/os-release",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/meminfo",
        "/proc/self/limits",
        "/proc/sys/fs/fuse/max_request_timeout",
        "/proc/sys/fs/fuse/default_request_timeout",
        "/proc/sys/fs/file-nr",
        "/proc/sys/fs/mount-max",
        "/proc/sys/user/max_user_namespaces",
        "/etc/fuse.conf",
    ] {
        let _ = write!(text, "\n== {path}\n{}", file(path));
    }
    let _ = writeln!(text, "\n== /dev/fuse");
    let device = fs::metadata("/dev/fuse").map(|m| format!("mode {:o}", m.mode()));
    let _ = writeln!(text, "{}", device.unwrap_or_else(|e| e.to_string()));
    let _ = writeln!(text, "\n== file system of {}", config.state_dir.display());
    let room = rustix::fs::statvfs(&config.state_dir).map(|s| {
        let free = s.f_bavail * s.f_frsize;
        let all = s.f_blocks * s.f_frsize;
        format!("{free} bytes free of {all}, {} inodes free", s.f_favail)
    });
    let _ = writeln!(text, "{}", room.unwrap_or_else(|e| e.to_string()));
    text
}

/// Mounts that concern us.
fn mounts(config: &Config) -> String {
    let state = config.state_dir.display().to_string();
    let table = file("/proc/self/mountinfo");
    let ours = |line: &&str| line.contains("fuse") || line.contains(&state);
    let mut text: String = table
        .lines()
        .filter(ours)
        .map(|line| format!("{line}\n"))
        .collect();
    let _ = writeln!(text, "({} mounts in all)", table.lines().count());
    text
}

/// Names and sizes below the state directory. What something is mounted on is not looked at.
fn state(config: &Config) -> String {
    let mounted: HashSet<PathBuf> = fuse::mountpoints().into_iter().collect();
    let mut text = String::from("bytes allocated mode modified name\n");
    let mut lines = 0;
    // Canonical, as the kernel's table has it.
    let root = config.state_dir.canonicalize();
    let root = root.unwrap_or_else(|_| config.state_dir.clone());
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) => {
                let _ = writeln!(text, "{}: {e}", directory.display());
                continue;
            }
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            lines += 1;
            if lines > ENTRIES {
                return text + "(more)\n";
            }
            let name = path.strip_prefix(&root).unwrap_or(&path).display();
            if mounted.contains(&path) {
                let _ = writeln!(text, "- - - - {name} (a mount: not looked at)");
                continue;
            }
            match fs::symlink_metadata(&path) {
                Ok(m) => {
                    let allocated = m.blocks() * 512;
                    let (size, mode, time) = (m.len(), m.mode(), m.mtime());
                    let _ = writeln!(text, "{size} {allocated} {mode:o} {time} {name}");
                    // Snapshots hold other people's files.
                    if m.is_dir() && !path.ends_with("snapshots") {
                        directories.push(path);
                    }
                }
                Err(e) => {
                    let _ = writeln!(text, "- - - - {name}: {e}");
                }
            }
        }
    }
    text
}

fn log(config: &Config) -> String {
    if config.log_format == LogFormat::Journald {
        return journal();
    }
    let path = config.state_dir.join(LOG_FILE);
    match tail(&path) {
        Ok(text) => text,
        Err(e) => format!(
            "{}: {e}\n(a daemon in the foreground logs to its standard error)\n",
            path.display()
        ),
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(LOG)))?;
    let mut bytes = Vec::new();
    file.take(LOG).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn journal() -> String {
    let mut command = Command::new("journalctl");
    command.args([
        "--identifier=narfs",
        "--lines=5000",
        "--no-pager",
        "--output=short-iso",
    ]);
    match command.stdin(Stdio::null()).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(e) => format!("journalctl: {e}\n"),
    }
}
