//! Commands as on other machines and as other users: see the script of the same name.
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

/// An ordinary user's number that no account has.
pub const USER: u32 = 47_110;

/// Who runs it, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// As an ordinary user, not as root.
    pub user: bool,
    /// On a machine with a `/nix`.
    pub nix: bool,
    /// Where an ordinary user may open `/dev/fuse`.
    pub fuse: bool,
}

impl Place {
    pub const ROOT: Self = Self {
        user: false,
        nix: true,
        fuse: true,
    };
    pub const USER: Self = Self {
        user: true,
        nix: true,
        fuse: true,
    };
    /// Where nothing is installed.
    pub const BARE: Self = Self {
        user: true,
        nix: false,
        fuse: true,
    };
    pub const ALL: [Self; 4] = [
        Self::ROOT,
        Self {
            user: false,
            nix: false,
            fuse: true,
        },
        Self::USER,
        Self::BARE,
    ];

    /// A command there, with nothing of the test's environment but `PATH`.
    pub fn command(self, program: &Path) -> Command {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes mount namespaces: run it as root"
        );
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/elsewhere");
        let mut command = Command::new(script);
        if !self.nix {
            command.arg("--no-nix");
        }
        if !self.fuse {
            command.arg("--closed-fuse");
        }
        if self.user {
            command.args(["--user", &USER.to_string()]);
        }
        command.arg(program).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }
}

/// A user's home with a copy of narfs in it, and an end to the daemon that runs leave behind.
pub struct Home {
    pub directory: tempfile::TempDir,
    pub place: Place,
}

impl Home {
    pub fn new(place: Place) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("narfs-home-")
            .tempdir()
            .expect("a temporary directory");
        let narfs = directory.path().join("narfs");
        // The one in the build directory may be where other users can't look.
        fs::copy(env!("CARGO_BIN_EXE_narfs"), &narfs).expect("narfs is copied");
        fs::set_permissions(&narfs, PermissionsExt::from_mode(0o755)).expect("ours");
        fs::create_dir(directory.path().join("tmp")).expect("a directory for its own files");
        if place.user {
            for path in [directory.path(), &directory.path().join("tmp")] {
                std::os::unix::fs::chown(path, Some(USER), Some(USER)).expect("we are root");
            }
        }
        Self { directory, place }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where `narfs run` keeps what it fetched.
    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    /// `narfs` in this home, as its user.
    pub fn narfs(&self) -> Command {
        let mut command = self.place.command(&self.path().join("narfs"));
        command.env("HOME", self.path());
        command.env("TMPDIR", self.path().join("tmp"));
        command.env("NARFS_STATE_DIR", self.state());
        command
    }

    /// The daemon of the state directory, while there is one.
    pub fn daemon(&self) -> Option<u32> {
        let text = fs::read_to_string(self.state().join("lock")).ok()?;
        let pid = text.trim().parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        // The number may be somebody else's by now.
        let ours = self.path().join("narfs");
        line.starts_with(ours.as_os_str().as_bytes()).then_some(pid)
    }

    /// Ends the daemon with a signal and waits until it is gone.
    pub fn end_daemon(&self, signal: rustix::process::Signal) {
        let Some(pid) = self.daemon() else { return };
        let pid = rustix::process::Pid::from_raw(pid as i32).expect("not 0");
        // It may be gone by now.
        let _ = rustix::process::kill_process(pid, signal);
        let begun = std::time::Instant::now();
        while self.daemon().is_some() {
            assert!(begun.elapsed().as_secs() < 60, "the daemon does not end");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.end_daemon(rustix::process::Signal::TERM);
    }
}
