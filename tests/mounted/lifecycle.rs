//! How mounts begin and end: refusals with reasons, orderly ends, kills, and what the next start
//! finds.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    corpus,
    gate::{mount, nar_url, serve},
    mounted::{Mounted, NARFS, Setup, alive, is_mounted, output, run, shell, wait_until},
    scripted::{Gate, Reply},
    snapshot::{assert_same, snapshot},
    truth,
};

fn zstd() -> Setup {
    let url = format!("file://{}", corpus::cache("zstd").display());
    Setup::new(url, corpus::public_key())
}

/// Runs what has to fail with this exit status; what it says.
fn refused(command: Command, status: i32) -> String {
    let shown = format!("{command:?}");
    let output = output(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{shown}: {said}");
    assert!(said.starts_with("narfs: "), "{said}");
    said
}

fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
}

#[test]
fn sigterm_unmounts_and_ends_well() {
    for signal in [Signal::TERM, Signal::INT] {
        let mounted = Mounted::prepare(zstd());
        let mut command = mounted.narfs();
        command.arg("mount").arg(mounted.path());
        let mut child = command.stderr(Stdio::null()).spawn().expect("it starts");
        wait_until("it is mounted", || {
            assert!(child.try_wait().expect("ours").is_none(), "it ended");
            mounted
                .path()
                .join(".nix-snapshotter/summary.json")
                .exists()
        });
        // In use: it has to go all the same.
        let root = corpus::store_path("redis-server");
        let held = fs::File::open(mounted.at(&root).join("bin/redis-server")).expect("open");
        let pid = Pid::from_child(&child);
        kill_process(pid, signal).expect("signalled");
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), Some(0), "{signal:?}");
        assert!(!is_mounted(&mounted.path()), "{signal:?} left the mount");
        drop(held);
    }
}

#[test]
fn umount_ends_the_daemon() {
    let mounted = Mounted::start(zstd());
    let umount = |flag: Option<&str>| {
        let mut command = mounted.narfs();
        command.arg("umount").args(flag).arg(mounted.path());
        command
    };
    let root = corpus::store_path("redis-server");
    let held = fs::File::open(mounted.at(&root).join("bin/redis-server")).expect("open");
    let said = refused(umount(None), 6);
    assert_says(&said, &["can't be unmounted", "--lazy"]);
    assert!(alive(mounted.pid()));
    drop(held);
    run(umount(None));
    wait_until("the daemon ends", || !alive(mounted.pid()));
    assert!(!is_mounted(&mounted.path()));
    let said = refused(umount(None), 6);
    assert_says(&said, &["is no mount of narfs"]);

    mounted.start_again();
    let held = fs::File::open(mounted.at(&root).join("bin/redis-server")).expect("open");
    run(umount(Some("--lazy")));
    assert!(!is_mounted(&mounted.path()));
    assert!(alive(mounted.pid()), "a file is still open");
    drop(held);
    wait_until("the daemon ends", || !alive(mounted.pid()));
}

#[test]
fn what_was_complete_survives_a_kill_without_the_network() {
    let server = serve("zstd");
    let root = corpus::store_path("redis-server");
    let trees = truth::trees(&root);
    let mounted = mount(&server);
    let compare = || {
        for (name, wanted) in &*trees {
            assert_same(name, &snapshot(&mounted.at(name)), wanted);
        }
    };
    compare();
    mounted.wait_until_idle();
    let fetched = mounted.summary()["fetchedSize"].clone();
    mounted.kill();
    server.vanish();
    server.clear();
    mounted.start_again();
    compare();
    assert_eq!(mounted.summary()["fetchedSize"], fetched);
    let requests = server.requests();
    assert!(requests.is_empty(), "{requests:?}");
}

#[test]
fn what_was_incomplete_at_a_kill_goes_on() {
    let server = serve("none");
    let root = corpus::store_path("redis-server");
    let name = root
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let trees = truth::trees(&root);
    let mounted = mount(&server);
    let gate = Gate::new();
    let url = nar_url("none", &root);
    server.on(&url, Reply::as_it_is().pausing_at(256 << 10, &gate));
    let path = mounted.at(&root).join("bin/redis-server");
    let reader = std::thread::spawn(move || fs::read(path));
    gate.wait_for(1);
    mounted.kill();
    assert!(
        reader.join().expect("no panic").is_err(),
        "read from a dead mount"
    );
    server.forget(&url);
    gate.open();
    mounted.start_again();
    assert_same(&name, &snapshot(&mounted.at(&root)), &trees[&name]);
}

#[test]
fn a_state_directory_has_one_daemon() {
    let first = Mounted::start(zstd());
    let second = Mounted::prepare(zstd().state(&first.state_dir()));
    let said = refused(second.mount_command(), 5);
    let (pid, directory) = (first.pid().to_string(), first.state_dir());
    assert_says(&said, &[&pid, directory.to_str().expect("UTF-8")]);
    assert!(!is_mounted(&second.path()));
    let root = corpus::store_path("redis-server");
    assert!(
        first.at(&root).join("bin/redis-server").exists(),
        "the first goes on"
    );
}

#[test]
fn a_mountpoint_that_cannot_be_used_is_refused_with_the_reason() {
    let mounted = Mounted::start(zstd());
    let other = Mounted::prepare(zstd());
    let mount_at = |path: &Path| {
        let mut command = other.narfs();
        command.args(["mount", "--background"]).arg(path);
        command
    };
    let missing = other.directory().join("missing");
    let said = refused(mount_at(&missing), 6);
    assert_says(
        &said,
        &[
            missing.to_str().expect("UTF-8"),
            "does not exist",
            "mkdir -p",
        ],
    );
    let file = other.directory().join("file");
    fs::write(&file, "").expect("written");
    let said = refused(mount_at(&file), 6);
    assert_says(&said, &[file.to_str().expect("UTF-8"), "not a directory"]);
    let said = refused(mount_at(&mounted.path()), 6);
    assert_says(&said, &["mounted there already", "narfs umount"]);
    // And the refused ones hold nothing: the same state directory mounts elsewhere.
    other.start_again();
    assert!(is_mounted(&other.path()));
}

#[test]
fn a_mount_whose_processes_were_killed_is_replaced() {
    let mounted = Mounted::start(zstd());
    mounted.kill_only();
    assert!(is_mounted(&mounted.path()));
    let mut umount = mounted.narfs();
    umount.arg("umount").arg(mounted.path());
    run(umount);
    assert!(!is_mounted(&mounted.path()));
    mounted.start_again();
    mounted.kill_only();
    let again = output(mounted.mount_command());
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success(), "{said}");
    assert_says(&said, &["without a server", "is replaced"]);
    let root = corpus::store_path("redis-server");
    assert!(mounted.at(&root).join("bin/redis-server").exists());
    mounted.find();
}

/// `command` in a mount namespace of its own, after `script` changed it; the script's parameters
/// are `args`.
pub fn in_namespace(script: &str, args: &[&Path], command: &Command) -> Command {
    let script = format!(
        "mount --make-rprivate /; {script}; shift {}; exec \"$@\"",
        args.len()
    );
    let mut wrapped = Command::new("unshare");
    wrapped.args(["-m", "/bin/bash", "-euc", &script, "bash"]);
    wrapped
        .args(args)
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

#[test]
fn without_dev_fuse_it_says_so() {
    let mounted = Mounted::prepare(zstd());
    let dev = mounted.directory().join("dev");
    fs::create_dir(&dev).expect("made");
    let script = "mount -t tmpfs none \"$1\"; mknod -m 666 \"$1/null\" c 1 3; \
                  mknod -m 666 \"$1/urandom\" c 1 9; mount --bind \"$1\" /dev";
    let said = refused(in_namespace(script, &[&dev], &mounted.mount_command()), 6);
    assert_says(&said, &["/dev/fuse", "modprobe fuse"]);
}

#[test]
fn without_privilege_it_says_what_to_do() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let mounted = Mounted::prepare(zstd());
    let directory = mounted.directory();
    fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).expect("opened");
    // An ordinary user may use what is his own; the program itself may lie where he can't go.
    let program = directory.join("narfs");
    fs::write(&program, "").expect("written");
    fs::create_dir(mounted.state_dir()).expect("made");
    for path in [mounted.state_dir(), mounted.path()] {
        chown(&path, Some(65534), Some(65534)).expect("given away");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    command
        .arg(&program)
        .args(mounted.mount_command().get_args());
    command
        .env("PATH", "/usr/bin:/bin")
        .env_remove("NARFS_CORPUS");
    let script = "mount --bind \"$1\" \"$2\"; for f in /usr/bin/fusermount3 /usr/bin/fusermount; do \
                  if [ -e $f ]; then mount --bind /dev/null $f; fi; done";
    let command = in_namespace(script, &[Path::new(NARFS), &program], &command);
    let said = refused(command, 6);
    assert_says(
        &said,
        &["no permission to mount", "fusermount3", "narfs run"],
    );
}

#[test]
fn a_read_only_state_directory_is_refused_with_its_name() {
    let mounted = Mounted::prepare(zstd());
    let state = mounted.state_dir();
    fs::create_dir(&state).expect("made");
    let script = "mount --bind \"$1\" \"$1\"; mount -o remount,ro,bind \"$1\"";
    let said = refused(in_namespace(script, &[&state], &mounted.mount_command()), 6);
    assert_says(&said, &[state.to_str().expect("UTF-8"), "ead-only"]);
    assert!(!is_mounted(&mounted.path()));
}

/// A tmpfs that is taken away at the end.
pub struct Tmpfs(pub PathBuf);

impl Tmpfs {
    pub fn new(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).expect("made");
        let size = format!("size={size}");
        run(shell(
            "mount -t tmpfs -o \"$1\",mode=700 none \"$2\"",
            &[Path::new(&size), at],
        ));
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Files in it may be open still; it goes with them.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Fills a file system to the last byte.
pub fn fill(directory: &Path) {
    let mut filler = fs::File::create(directory.join("filler")).expect("made");
    let full = std::io::copy(&mut std::io::repeat(0), &mut filler).expect_err("it is small");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
}

#[test]
fn a_full_state_directory_serves_without_keeping() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let root = corpus::store_path("redis-server");
    let trees = truth::trees(&root);
    for cache in ["zstd", "none"] {
        let full = Tmpfs::new(&place.path().join(cache), "8m");
        let url = format!("file://{}", corpus::cache(cache).display());
        let setup = Setup::new(url, corpus::public_key()).state(&full.0);
        let mounted = Mounted::start(setup);
        fs::symlink_metadata(mounted.at(&root)).expect("it is there");
        wait_until("the closure is known", || {
            mounted.counters()["admitted"] == trees.len() as u64
        });
        fill(&full.0);
        for (name, wanted) in &*trees {
            let found = snapshot(&mounted.at(name));
            assert_same(&format!("{cache}: {name}"), &found, wanted);
        }
        drop(mounted);
    }
}

#[test]
fn roots_decide_the_exit_status() {
    let root = corpus::store_path("redis-server");
    let absent = PathBuf::from(format!("/nix/store/{}-absent", "0".repeat(32)));
    let key = "other-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
    let url = format!("file://{}", corpus::cache("zstd").display());

    let mounted = Mounted::start(zstd().root(&root));
    wait_until("the closure is known", || {
        mounted.summary()["size"].as_u64() > Some(20 << 20)
    });
    drop(mounted);

    let mounted = Mounted::prepare(zstd().root(&absent));
    assert_says(&refused(mounted.mount_command(), 3), &["-absent"]);
    assert!(!is_mounted(&mounted.path()));

    let mounted = Mounted::prepare(Setup::new(&url, key).root(&root));
    let said = refused(mounted.mount_command(), 4);
    let name = root.file_name().and_then(OsStr::to_str).expect("ASCII");
    assert_says(&said, &[name, "trusted"]);
    assert!(!is_mounted(&mounted.path()));

    // Nobody listens on the discard port.
    let setup = Setup::new("http://127.0.0.1:9", corpus::public_key()).root(&root);
    let mounted = Mounted::prepare(setup.set("--tries=1"));
    assert_says(&refused(mounted.mount_command(), 5), &[name, "127.0.0.1:9"]);
    assert!(!is_mounted(&mounted.path()));

    let mounted = Mounted::prepare(zstd());
    let mut command = mounted.mount_command();
    command.arg("--root=/nix/store/nonsense");
    let output = output(command);
    assert_eq!(output.status.code(), Some(2));

    let mounted = Mounted::prepare(Setup::new(url, "no-key"));
    refused(mounted.mount_command(), 2);
}

#[test]
fn over_nix_store_in_a_namespace_it_ends_with_the_namespace() {
    let mounted = Mounted::prepare(zstd());
    let mut mount = mounted.narfs();
    mount.args(["mount", "--background", "/nix/store"]);
    let program = corpus::store_path("redis-server").join("bin/redis-server");
    // The shell goes on in there after the mount.
    let script = "p=$1; shift; \"$@\"; grep -q '^narfs /nix/store fuse.narfs ' /proc/self/mounts; \
                  set -- \"$p\" --version";
    let shifted = in_namespace(script, &[], &mount);
    let args: Vec<_> = shifted.get_args().map(OsStr::to_owned).collect();
    let (before, after) = args.split_at(5);
    assert_eq!(
        before.last().map(OsString::as_os_str),
        Some(OsStr::new("bash"))
    );
    let mut command = Command::new("unshare");
    command.args(before).arg(&program).args(after);
    for (name, _) in shifted.get_envs().filter(|(_, value)| value.is_none()) {
        command.env_remove(name);
    }
    let said = run(command);
    assert!(said.contains("Redis server v=7.0.15"), "{said}");
    // Helper and daemon live in that namespace too, so it takes a word to end them.
    let status = narfs_mount::status(&mounted.state_dir()).expect("the helper answers");
    let status = status.expect("there is one");
    let pid = Pid::from_raw(status.helper as i32).expect("a pid");
    kill_process(pid, Signal::TERM).expect("it runs");
    wait_until("the daemon ends", || {
        !alive(status.daemon.unwrap_or_default())
    });
}
