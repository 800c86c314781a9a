//! The keeper's part: `narfs snapshotter` is killed, ended and started again, and whoever uses its
//! mount sees nothing of it.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use narfs::fuse::unmount;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    abort_when_it_hangs,
    mounted::{self, wait_until},
    support::{
        cache::{Cache, Package, Packing, directory, file, key, noise},
        scripted::{Gate, Reply, Server},
    },
    user,
};

struct Snapshotter {
    directory: tempfile::TempDir,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Snapshotter {
    fn start(cache: &Server, key: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "this test needs root and /dev/fuse; it is not skipped without"
        );
        let directory = tempfile::tempdir().unwrap();
        let arguments = vec![
            "--config=/dev/null".into(),
            format!("--cache={}", cache.base()),
            format!("--trusted-key={key}"),
            "snapshotter".into(),
            format!("--address={}", directory.path().join("s.sock").display()),
            format!("--root={}", directory.path().join("root").display()),
        ];
        let mut snapshotter = Self {
            directory,
            arguments,
            process: None,
        };
        snapshotter.serve();
        abort_when_it_hangs(&snapshotter.mount());
        snapshotter
    }

    fn mount(&self) -> PathBuf {
        self.directory.path().join("root/mnt")
    }

    fn serve(&mut self) {
        let log = self.directory.path().join("log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut command = mounted::narfs();
        command.args(&self.arguments).stderr(log);
        self.process = Some(command.spawn().unwrap());
        wait_until("it is ready", || self.is_ready());
    }

    /// What a health check sees. Nothing here looks at the mount.
    fn is_ready(&self) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.directory.path().join("root/admin.sock"))
        else {
            return false;
        };
        let asked = stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n");
        let mut answer = String::new();
        asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.contains(" 200 ")
    }

    fn end(&mut self, signal: Signal) {
        let mut process = self.process.take().unwrap();
        let pid = Pid::from_child(&process);
        kill_process(pid, signal).unwrap();
        process.wait().unwrap();
        assert!(mounted::is_mounted(&self.mount()), "the mount is left");
    }

    fn keeper_answers(&self) -> bool {
        UnixStream::connect(self.directory.path().join("root/keeper.sock")).is_ok()
    }
}

impl Drop for Snapshotter {
    fn drop(&mut self) {
        let _ = unmount(&self.mount(), true);
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.directory.path().join("log"));
            eprintln!("--- the log:\n{}---", log.unwrap_or_default());
        }
    }
}

#[test]
fn a_snapshotter_that_ends_leaves_its_mount_to_the_next() {
    let key = key();
    let lib = Package::new("lib", &directory([("data", file(noise(1, 300_000)))]));
    let cache = Cache::new(&key);
    cache.add(&lib, Packing::Zstd);
    let server = Server::start();
    server.directory(cache.path());
    let mut snapshotter = Snapshotter::start(&server, &key.public().to_string());
    let path = snapshotter.mount().join(format!("store/{}/data", lib.path));
    let gate = Gate::new();
    server.on(&lib.nar_url(Packing::Zstd), Reply::as_it_is().behind(&gate));
    let reader = user("cat \"$1\" | wc -c; stat -c %i \"$1\"", &[&path]);
    gate.wait_for(1);
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
        snapshotter.end(signal);
        snapshotter.serve();
    }
    gate.open();
    let said = String::from_utf8(reader.wait_with_output().unwrap().stdout).unwrap();
    let number = mounted::run(mounted::shell("stat -c %i \"$1\"", &[&path]));
    assert_eq!(said, format!("300000\n{number}"));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let here = snapshotter.mount().display().to_string();
    assert_eq!(mounts.matches(&here).count(), 1, "it is the same mount");

    // Unmounting is a verb of its own, and ends both.
    let mut umount = mounted::narfs();
    umount.arg("umount").arg(snapshotter.mount());
    mounted::run(umount);
    let mut process = snapshotter.process.take().unwrap();
    assert!(process.wait().unwrap().success());
    wait_until("the keeper ends with the mount", || {
        !snapshotter.keeper_answers()
    });
    snapshotter.serve();
    assert!(mounted::is_mounted(&snapshotter.mount()), "a new one");
}

#[test]
fn a_dead_keeper_is_replaced() {
    let key = key();
    let server = Server::start();
    let mut snapshotter = Snapshotter::start(&server, &key.public().to_string());
    let parent = snapshotter.process.as_ref().unwrap().id().to_string();
    let mut find = Command::new("pgrep");
    find.args(["--parent", &parent, "--full", "keep-mount"]);
    let keeper = mounted::run(find);
    let keeper: i32 = keeper.trim().parse().expect("there is a keeper");
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
    wait_until("it is gone", || !snapshotter.keeper_answers());
    // The process that serves the mount still has it; with its end the mount is dead.
    assert!(snapshotter.is_ready());
    snapshotter.end(Signal::KILL);
    snapshotter.serve();
    let names = mounted::run(mounted::shell("ls \"$1\"", &[&snapshotter.mount()]));
    assert_eq!(names, "store\nviews\n");
    assert!(snapshotter.keeper_answers());
}
