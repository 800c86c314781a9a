//! User namespaces: a containerd and a snapshotter that an ordinary user runs in one of his own, and
//! single containers in one.

use std::{
    fs,
    io::Write,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{
    containerd::Version,
    corpus::{self, Nginx},
    mounted::{output, wait_until},
    world::{NARFS, World, build, python_root},
};

/// An ordinary user: nobody, whom every machine has.
const USER: u32 = 65534;
/// The host's numbers of the namespace's others, as `/etc/subuid` would give them.
const OTHERS: u32 = 200_000;

/// Everything in the namespace, as a rootless containerd's start script does it: a `/run` of its
/// own, the snapshotter, containerd, and a container.
const SCRIPT: &str = r#"
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/containerd /run/lock
cd "$DIR"
export HOME="$DIR"
./program --config narfs.toml snapshotter --address "$DIR/narfs.sock" --root "$DIR/narfs" >narfs.log 2>&1 &
until [ -S narfs.sock ]; do sleep 0.05; done
containerd --config containerd.toml >containerd.log 2>&1 &
until ctr version >ctr.log 2>&1; do sleep 0.05; done
ctr images import --snapshotter narfs image.tar
ctr run --rm --cgroup "$CGROUP/one" --snapshotter narfs docker.io/library/python:1 "$NAME-1" \
  "$PYTHON" -c "$PROGRAM"
ctr run --detach --null-io --cgroup "$CGROUP/two" --snapshotter narfs docker.io/library/python:1 "$NAME-2" \
  "$PYTHON" -c 'import time; time.sleep(1000)'
grep " $DIR/containerd/state/.*/rootfs " /proc/mounts
ctr tasks delete --force "$NAME-2"
"#;

const PROGRAM: &str = "import os, json, zlib; open('/new', 'w').write('x'); os.chown('/new', 33, 33); \
    print(os.getuid(), os.stat('/nix/store').st_uid, os.stat('/new').st_uid, \
    json.load(open('/.nix-snapshotter/summary.json'))['paths']['total'])";

/// Control groups that the user may use, of version 1 and 2; gone with the value.
struct Delegated(Vec<PathBuf>);

impl Delegated {
    fn new(name: &str) -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let two = root.join("cgroup.controllers").exists();
        let trees = match two {
            true => vec![root.to_owned()],
            false => fs::read_dir(root)
                .expect("control groups")
                .map(|tree| tree.expect("readable").path())
                .filter(|tree| tree.join("cgroup.procs").exists())
                .collect(),
        };
        let groups: Vec<_> = trees.iter().map(|tree| tree.join(name)).collect();
        for group in &groups {
            fs::create_dir(group).expect("a control group");
            // Empty at first, and then no process may come.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let above = group.parent().expect("its tree").join(file);
                if let (false, Ok(value)) = (two, fs::read(above)) {
                    fs::write(group.join(file), value).expect("a processor");
                }
            }
            chown(group, Some(USER), Some(USER)).expect("given away");
            for file in fs::read_dir(group).expect("listed") {
                let file = file.expect("readable").path();
                chown(file, Some(USER), Some(USER)).expect("given away");
            }
        }
        if two {
            // Processes stand in leaves, and come there from below what the user has.
            fs::create_dir(groups[0].join("first")).expect("a leaf");
        }
        Self(groups)
    }

    /// Where a process has to begin: in version 2 it can only be moved below what the user has.
    fn put(&self, pid: u32) {
        for group in &self.0 {
            let first = group.join("first/cgroup.procs");
            if first.exists() {
                fs::write(first, pid.to_string()).expect("moved");
            }
        }
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for group in &self.0 {
            for _ in 0..100 {
                let inner = fs::read_dir(group).into_iter().flatten().flatten();
                inner.for_each(|entry| drop(fs::remove_dir(entry.path())));
                if fs::remove_dir(group).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}

/// Killed with all that it started: it is the first process of its namespace.
struct Namespace(Child);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process in a new user namespace, which waits for a line and then is its root.
fn namespace(directory: &Path, variables: &[(&str, &str)]) -> Namespace {
    let user = USER.to_string();
    let wait = "read _; exec setpriv --reuid 0 --regid 0 --clear-groups \
        unshare --mount --pid --fork --mount-proc --kill-child sh -c \"$SCRIPT\"";
    let child = Command::new("setpriv")
        .args(["--reuid", &user, "--regid", &user, "--clear-groups"])
        .args(["unshare", "--user", "sh", "-c", wait])
        .env("SCRIPT", SCRIPT)
        .env("DIR", directory)
        .env("CONTAINERD_ADDRESS", directory.join("containerd.sock"))
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("setpriv of util-linux");
    let namespace = Namespace(child);
    let pid = namespace.0.id();
    let own = fs::read_link("/proc/self/ns/user").expect("a namespace");
    wait_until("the user namespace is there", || {
        fs::read_link(format!("/proc/{pid}/ns/user")).is_ok_and(|its| its != own)
    });
    let map = format!("0 {USER} 1\n1 {OTHERS} 65535\n");
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), &map).expect("mapped by root, as newuidmap does");
    }
    namespace
}

#[test]
fn an_ordinary_user_runs_all_of_it_in_his_own_user_namespace() {
    let nginx = Nginx::start();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    let root = python_root();
    // Where the user may read it, with its permissions.
    fs::copy(env!("CARGO_BIN_EXE_narfs"), at("program")).expect("copied");
    let cache = nginx.cache("zstd");
    let key = corpus::public_key();
    let name = "docker.io/library/python:1";
    build(
        &cache,
        &key,
        name,
        &root,
        "bin/python3.11",
        &[],
        &at("image.tar"),
    );
    let narfs = format!("caches = [\"{cache}\"]\ntrusted-keys = [\"{key}\"]\n");
    fs::write(at("narfs.toml"), narfs).expect("written");
    let here = directory.path().display();
    let containerd = format!(
        r#"version = 2
root = "{here}/containerd/root"
state = "{here}/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{here}/containerd.sock"
[ttrpc]
  address = "{here}/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{here}/opt"
[proxy_plugins.narfs]
  type = "snapshot"
  address = "{here}/narfs.sock"
"#
    );
    fs::write(at("containerd.toml"), containerd).expect("written");
    for entry in fs::read_dir(directory.path()).expect("listed") {
        chown(entry.expect("readable").path(), Some(USER), Some(USER)).expect("given away");
    }
    chown(directory.path(), Some(USER), Some(USER)).expect("given away");

    let group = format!("narfs-user-{}", std::process::id());
    let delegated = Delegated::new(&group);
    let python = root.join("bin/python3.11").display().to_string();
    let mut namespace = namespace(
        directory.path(),
        &[
            ("CGROUP", &format!("/{group}")),
            ("NAME", &group),
            ("PYTHON", &python),
            ("PROGRAM", PROGRAM),
        ],
    );
    delegated.put(namespace.0.id());
    let mut line = namespace.0.stdin.take().expect("piped");
    line.write_all(b"\n").expect("it waits");
    wait_until("the script ends", || {
        namespace.0.try_wait().expect("a child").is_some()
    });
    let logs = ["narfs.log", "containerd.log", "ctr.log"]
        .map(|log| fs::read_to_string(at(log)).unwrap_or_default())
        .concat();
    let read = |pipe: Option<&mut dyn std::io::Read>| {
        let mut text = String::new();
        pipe.map(|pipe| pipe.read_to_string(&mut text));
        text
    };
    let out = read(namespace.0.stdout.as_mut().map(|p| p as _));
    let err = read(namespace.0.stderr.as_mut().map(|p| p as _));
    let status = namespace.0.wait().expect("a child");
    assert!(status.success(), "{status}\n{out}{err}\n{logs}");
    let paths = corpus::closure(&root).len();
    assert!(out.contains(&format!("\n0 0 33 {paths}\n")), "{out}");
    let overlay = out.lines().find(|line| line.starts_with("overlay "));
    let overlay = overlay.unwrap_or_else(|| panic!("{out}"));
    assert!(
        overlay.contains("userxattr") && overlay.contains("/mnt/views/"),
        "{overlay}"
    );
}

/// What documentation says of them: they work, and containerd copies everything for them.
#[test]
fn a_container_in_a_user_namespace_gets_a_copy() {
    for version in Version::ALL {
        let world = World::start(version);
        let image = world.python_image();
        let name = world.containerd.name();
        let python = python_root().join("bin/python3.11").display().to_string();
        let run = [
            "run",
            "--rm",
            "--uidmap",
            "0:200000:65536",
            "--gidmap",
            "0:200000:65536",
            "--snapshotter",
            NARFS,
            &image,
            &name,
            &python,
            "-c",
            PROGRAM,
        ];
        let done = output(world.containerd.ctr(&run));
        world
            .containerd
            .assert_done(&done, "a container in a user namespace");
        let paths = corpus::closure(&python_root()).len();
        let want = format!("0 0 33 {paths}\n");
        assert_eq!(String::from_utf8_lossy(&done.stdout), want);
    }
}
