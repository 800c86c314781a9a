//! A mount that outlives its server: this test keeps the descriptors, as a helper process or the
//! service manager would, and `narfs daemon` serves them until it is killed. Needs root.
//!
//! No reader may see an error, a wrong byte or another inode number, whatever the server was doing
//! when it died.

#[path = "../support/hangs.rs"]
mod hangs;
mod keeper;
#[path = "../support/mounted.rs"]
mod mounted;
#[path = "../support/mod.rs"]
mod support;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use hangs::abort_when_it_hangs;
use narfs::{
    fuse::{Kept, Layout, MountOptions, mount_kept, unmount},
    tree::Node,
};
use rustix::io::{FdFlags, fcntl_setfd};
use support::{
    cache::{Cache, Package, Packing, directory, file, key, noise},
    scripted::{Gate, Reply, Server},
};

/// Readers at a time.
const READERS: u64 = 64;
/// Times that the server is killed under them; by hand, more: `NARFS_KILLS=100`.
const KILLS: u64 = 12;

/// A kept mount, its server and where everything lies. This process has no file of the mount open
/// while there is no server: see `read-on`.
struct Keeper {
    directory: tempfile::TempDir,
    kept: Kept,
    cache: String,
    key: String,
    server: Option<Child>,
}

impl Keeper {
    fn mount(cache: &Server, key: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "this test needs root and /dev/fuse; it is not skipped without"
        );
        let directory = tempfile::tempdir().unwrap();
        let mountpoint = directory.path().join("mnt");
        fs::create_dir(&mountpoint).unwrap();
        let options = MountOptions {
            allow_other: true,
            threads: 2,
            layout: Layout::Store,
            upcalls: Default::default(),
        };
        let kept = mount_kept(&mountpoint, &options).unwrap();
        abort_when_it_hangs(&mountpoint);
        let mut keeper = Self {
            directory,
            kept,
            cache: cache.base(),
            key: key.into(),
            server: None,
        };
        keeper.serve();
        keeper
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    /// Starts a server, and returns when it serves.
    fn serve(&mut self) {
        let handed = self.kept.try_clone().unwrap();
        for descriptor in [&handed.device, &handed.greeting] {
            fcntl_setfd(descriptor, FdFlags::empty()).unwrap();
        }
        let (ready, told) = rustix::pipe::pipe().unwrap();
        fcntl_setfd(&ready, FdFlags::CLOEXEC).unwrap();
        let number = |descriptor: &OwnedFd| descriptor.as_raw_fd().to_string();
        let mut command = mounted::narfs();
        command
            .arg("--state-dir")
            .arg(self.directory.path().join("state"))
            .args(["--config", "/dev/null", "--cache", &self.cache])
            .args(["--trusted-key", &self.key, "daemon"])
            .args(["--fuse-fd", &number(&handed.device)])
            .args(["--greeting-fd", &number(&handed.greeting)])
            .args(["--ready-fd", &number(&told)])
            .stderr(
                File::options()
                    .create(true)
                    .append(true)
                    .open(self.directory.path().join("log"))
                    .unwrap(),
            );
        self.server = Some(command.spawn().unwrap());
        drop((handed, told));
        let mut said = String::new();
        BufReader::new(File::from(ready))
            .read_line(&mut said)
            .unwrap();
        assert_eq!(said, "ready\n", "{}", self.log());
    }

    fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        let status = server.wait().unwrap();
        assert_eq!(
            status.signal(),
            Some(9),
            "it ended by itself: {}",
            self.log()
        );
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Readers of a failed test wait until the last descriptor is closed, which is after this.
        let _ = unmount(&self.path(), true);
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        if thread::panicking() {
            eprintln!("--- the servers' log:\n{}---", self.log());
        }
    }
}

/// Where in the mount a package's file is.
fn at(keeper: &Keeper, package: &Package, name: &str) -> PathBuf {
    keeper.path().join(package.path.to_string()).join(name)
}

/// A command of a process that uses the mount; killed with the test.
fn user(script: &str, args: &[&Path]) -> Child {
    let mut command = mounted::shell(script, args);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    child.expect("bash is there")
}

#[test]
fn readers_see_nothing_of_servers_that_are_killed() {
    let kills = std::env::var("NARFS_KILLS").map_or(KILLS, |n| n.parse().expect("a number"));
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
    // Fetched in parts, and in one stream.
    cache.add_all(&packages[..2], Packing::None);
    cache.add_all(&packages[2..], Packing::Zstd);
    let server = Server::start();
    server.directory(cache.path());
    let mut keeper = Keeper::mount(&server, &key.public().to_string());
    let truths = tempfile::tempdir().unwrap();
    let mut readers =
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/takeover/read-on"));
    readers.arg(READERS.to_string());
    for (n, package) in packages.iter().enumerate() {
        for name in ["data", "more"] {
            let tree = package.tree();
            let Some(Node::Regular { size, offset, .. }) =
                tree.node(tree.resolve(name.as_bytes()).unwrap())
            else {
                panic!("{name} is a file")
            };
            let truth = truths.path().join(format!("{name}{n}"));
            let bytes = &package.nar[offset as usize..(offset + size) as usize];
            fs::write(&truth, bytes).unwrap();
            readers.arg(at(&keeper, package, name)).arg(truth);
        }
    }
    let mut readers = readers
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is there");
    let mut compared = BufReader::new(readers.stdout.take().unwrap()).lines();
    // A line says that 50 more were compared; some of the next are from before it was read.
    let mut go_on = |lines: usize| -> String {
        let said = compared.by_ref().take(lines).map(Result::unwrap).last();
        said.expect("the readers go on")
    };
    for _ in 0..kills {
        assert_ne!(go_on(3), "failed");
        keeper.kill();
        keeper.serve();
    }
    let total = go_on(5);
    drop(readers.stdin.take());
    assert!(
        readers.wait().unwrap().success(),
        "the readers saw it: their words are above"
    );
    println!("{total} reads compared over {kills} kills");
}

#[test]
fn who_waits_gets_his_answer_from_the_next_server() {
    let key = key();
    let lib = Package::new("lib", &directory([("data", file(noise(1, 300_000)))]));
    let other = Package::new("other", &directory([("data", file(noise(2, 10)))]));
    let cache = Cache::new(&key);
    cache.add_all([&lib, &other], Packing::Zstd);
    let server = Server::start();
    server.directory(cache.path());
    let mut keeper = Keeper::mount(&server, &key.public().to_string());
    let (read, name) = (at(&keeper, &lib, "data"), at(&keeper, &other, "data"));
    let number = fs::metadata(&read).unwrap().ino();
    let truth = keeper.directory.path().join("truth");
    let start = lib.nar.len() - 300_000;
    let found = (0..=start).find(|at| lib.nar[*at..].starts_with(&noise(1, 16)));
    fs::write(&truth, &lib.nar[found.unwrap()..][..300_000]).unwrap();
    let (nar, narinfo) = (Gate::new(), Gate::new());
    let urls = (lib.nar_url(Packing::Zstd), other.narinfo_url());
    server.on(&urls.0, Reply::as_it_is().behind(&nar));
    server.on(&urls.1, Reply::as_it_is().behind(&narinfo));
    let reader = user("sha256sum <\"$1\"", &[&read]);
    let asker = user("stat -c %s \"$1\"", &[&name]);
    nar.wait_for(1);
    narinfo.wait_for(1);
    // Both requests are in the server now, and die with it. Twice: a request that was sent again
    // is as good as one that was not.
    for _ in 0..2 {
        keeper.kill();
        keeper.serve();
    }
    nar.open();
    narinfo.open();
    let said = |child: Child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let sum = mounted::run(mounted::shell("sha256sum <\"$1\"", &[&truth]));
    assert_eq!(said(reader), sum, "the reader sees nothing of it");
    assert_eq!(said(asker), "10\n", "nor does who asks for a path");
    assert_eq!(fs::metadata(&read).unwrap().ino(), number);
}

#[test]
fn a_mount_that_nobody_ever_answered_is_served_by_the_next() {
    let key = key();
    let lib = Package::new("lib", &directory([("data", file("bytes"))]));
    let cache = Cache::new(&key);
    cache.add(&lib, Packing::Zstd);
    let server = Server::start();
    server.directory(cache.path());
    let mut keeper = Keeper::mount(&server, &key.public().to_string());
    let path = at(&keeper, &lib, "data");
    // Opened while there is no server at all.
    let before = user("sleep 0.1; cat \"$1\"", &[&path]);
    keeper.kill();
    thread::sleep(Duration::from_millis(300));
    keeper.serve();
    assert_eq!(before.wait_with_output().unwrap().stdout, b"bytes");
}
