//! What every case here has: a cache with a few packages, a mountpoint, the helper, and deadlines
//! after which the mount is aborted, so that nothing hangs for ever.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::OnceLock,
};

use narfs::{fuse::unmount, nix::SigningKey};
use narfs_mount::Status;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    mounted::{self, alive, is_mounted, wait_until},
    support::{
        cache::{Cache, Package, Packing, directory, file, key, noise},
        scripted::Server,
    },
};

/// The helper as a program of its own, compiled if it is not.
pub fn helper() -> &'static Path {
    static HELPER: OnceLock<PathBuf> = OnceLock::new();
    HELPER.get_or_init(|| {
        let narfs = Path::new(mounted::NARFS);
        let profile = narfs.parent().unwrap();
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        build.args([
            "build",
            "--locked",
            "--offline",
            "--quiet",
            "-p",
            "narfs-mount",
            "--bins",
        ]);
        build.args(profile.ends_with("release").then_some("--release"));
        build.arg("--target-dir").arg(profile.parent().unwrap());
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        mounted::run(build);
        profile.join("narfs-mount")
    })
}

/// See the module.
pub struct World {
    pub directory: tempfile::TempDir,
    pub server: Server,
    pub signs: SigningKey,
    pub key: String,
    pub packages: Vec<Package>,
}

impl World {
    pub fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "these tests need root and /dev/fuse; they are not skipped without"
        );
        let key = key();
        let packages: Vec<_> = (0..4)
            .map(|n| {
                let files = [
                    ("data", file(noise(n, 900_000))),
                    ("more", file(noise(n + 9, 70_000))),
                ];
                Package::new(&format!("p{n}"), &directory(files))
            })
            .collect();
        let cache = Cache::new(&key);
        cache.add_all(&packages[..2], Packing::None);
        cache.add_all(&packages[2..], Packing::Zstd);
        let server = Server::start();
        let directory = tempfile::tempdir().unwrap();
        let kept = directory.path().join("cache");
        mounted::run(mounted::shell(
            "cp -a \"$1\" \"$2\"",
            &[cache.path(), &kept],
        ));
        server.directory(kept);
        fs::create_dir(directory.path().join("mnt")).unwrap();
        fs::write(directory.path().join("config.toml"), "").unwrap();
        // Other users have to get through.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), open).unwrap();
        Self {
            directory,
            server,
            key: key.public().to_string(),
            signs: key,
            packages,
        }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// A file of a package in the mount.
    pub fn at(&self, package: usize, name: &str) -> PathBuf {
        let package = self.packages[package].path.to_string();
        self.path().join(package).join(name)
    }

    /// The options that mount(8) hands on.
    pub fn options(&self, more: &str) -> String {
        let state = self.state_dir();
        format!(
            "trusted-key={},state-dir={}{more}",
            self.key,
            state.display()
        )
    }

    /// `narfs-mount` on the mountpoint.
    pub fn command(&self, more: &str) -> Command {
        let mut command = self.clean(helper());
        command.arg(self.server.base()).arg(self.path());
        command.arg("-o").arg(self.options(more));
        command.arg("--program").arg(mounted::NARFS);
        command
    }

    /// A program with nothing of the environment's settings.
    pub fn clean(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NARFS_") {
                command.env_remove(name);
            }
        }
        command.env("NARFS_CONFIG", self.directory.path().join("config.toml"));
        command
    }

    /// A verb of narfs with the mount's state directory.
    pub fn narfs(&self, arguments: &[&str]) -> Command {
        let mut command = self.clean(Path::new(mounted::NARFS));
        command
            .arg("--state-dir")
            .arg(self.state_dir())
            .args(arguments);
        command
    }

    /// Mounts; the mount answers when this returns.
    pub fn mount(&self, more: &str) {
        mounted::run(self.command(more));
        crate::abort_when_it_hangs(&self.path());
    }

    pub fn status(&self) -> Status {
        let status = narfs_mount::status(&self.state_dir()).expect("it answers");
        status.unwrap_or_else(|| panic!("there is no helper; the log:\n{}", self.log()))
    }

    /// The daemon, once there is one that serves.
    pub fn daemon(&self) -> u32 {
        let mut daemon = None;
        wait_until("a daemon serves", || {
            let status = narfs_mount::status(&self.state_dir()).ok().flatten();
            let serving = status.filter(|status| status.state == "serving");
            daemon = serving.and_then(|status| status.daemon);
            daemon.is_some()
        });
        daemon.unwrap()
    }

    /// Waits for another daemon than this one.
    pub fn next_daemon(&self, last: u32) -> u32 {
        let mut next = last;
        wait_until("the next daemon serves", || {
            next = self.daemon();
            next != last
        });
        next
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.state_dir().join("daemon.log")).unwrap_or_default()
    }

    /// Readers that compare what they read with the truth, until they are ended.
    pub fn readers(&self, count: usize) -> Readers {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/takeover/read-on");
        let mut command = Command::new(script);
        command.arg(count.to_string());
        let truths = self.directory.path().join("truths");
        fs::create_dir_all(&truths).unwrap();
        for (n, package) in self.packages.iter().enumerate() {
            for name in ["data", "more"] {
                let tree = package.tree();
                let node = tree.node(tree.resolve(name.as_bytes()).unwrap());
                let Some(narfs::tree::Node::Regular { size, offset, .. }) = node else {
                    panic!("{name} is a file")
                };
                let truth = truths.join(format!("{name}{n}"));
                let bytes = &package.nar[offset as usize..(offset + size) as usize];
                fs::write(&truth, bytes).unwrap();
                command.arg(self.at(n, name)).arg(truth);
            }
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("python3 is there");
        Readers {
            input: process.stdin.take(),
            lines: BufReader::new(process.stdout.take().unwrap()).lines(),
            process,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let status = narfs_mount::status(&self.state_dir()).ok().flatten();
        while is_mounted(&self.path()) && unmount(&self.path(), true).is_ok() {}
        for pid in status
            .iter()
            .flat_map(|status| [Some(status.helper), status.daemon])
        {
            if let Some(pid) = pid.filter(|pid| alive(*pid)) {
                signal(pid, Signal::KILL);
            }
        }
        if std::thread::panicking() {
            eprintln!("--- the log:\n{}---", self.log());
        }
    }
}

/// See [`World::readers`].
pub struct Readers {
    process: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Readers {
    /// Waits for so many lines, each of 50 reads; what the last one says.
    pub fn go_on(&mut self, lines: usize) -> String {
        let said = self.lines.by_ref().take(lines).map(Result::unwrap).last();
        let said = said.expect("the readers go on");
        assert_ne!(said, "failed", "the readers saw it: their words are above");
        said
    }

    /// Ends them; what they say at the end: the number of reads, and the longest one.
    pub fn end(mut self) -> String {
        drop(self.input.take());
        let last = self.lines.by_ref().map(Result::unwrap).last();
        assert!(
            self.process.wait().unwrap().success(),
            "the readers saw it: their words are above"
        );
        last.expect("they say how many")
    }
}

pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).expect("a process");
    kill_process(pid, signal).expect("it runs");
}

/// A command of a process that uses the mount: this one has no file of it open.
pub fn user(script: &str, args: &[&Path]) -> Child {
    let mut command = mounted::shell(script, args);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    child.expect("bash is there")
}

pub fn said(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A program of a few lines of shell.
pub fn program(path: &Path, text: &str) {
    let mut file = File::create(path).unwrap();
    write!(file, "#!/bin/sh\n{text}\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(path, executable).unwrap();
}
