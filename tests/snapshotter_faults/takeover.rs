//! Containers go on when the snapshotter is killed, stopped, updated: the mount outlives it, and
//! whoever waits is answered by the next one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use narfs::snapshotter::wire::Mount;
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Signal, kill_process},
};

use crate::{
    support::{
        cache::{Package, Packing, directory, file, noise},
        scripted::{Gate, Reply},
    },
    world::{PATIENCE, World, is_mounted, nix_labels},
};

/// A container's root, mounted as containerd would.
struct Root(tempfile::TempDir);

impl Root {
    fn mount(mounts: &[Mount]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let [only] = mounts else {
            panic!("one mount was expected: {mounts:?}")
        };
        let data = std::ffi::CString::new(only.options.join(",")).unwrap();
        let flags = MountFlags::empty();
        mount(&*only.source, root.path(), &*only.r#type, flags, &*data).unwrap();
        Self(root)
    }

    /// A file of a package in it.
    fn file(&self, package: &Package, name: &str) -> PathBuf {
        let path = package.path.absolute();
        self.0.path().join(&path[1..]).join(name)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

/// A process of its own that reads a file: one that waited for a mount it keeps alive would not end.
fn reader(path: &Path) -> Child {
    Command::new("sha256sum")
        .arg(path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn digest(reader: Child) -> String {
    let output = tokio::task::spawn_blocking(move || reader.wait_with_output().unwrap());
    let output = tokio::time::timeout(PATIENCE, output)
        .await
        .expect("a reader hangs")
        .unwrap();
    assert!(output.status.success(), "a reader failed: {output:?}");
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

/// SHA-256 as the reader prints it.
fn digest_of(bytes: &[u8]) -> String {
    let mut hasher = narfs::nix::NarHasher::new();
    hasher.update(bytes);
    let hash = hasher.finish();
    hash.as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn package(seed: u64) -> (Package, [Vec<u8>; 2]) {
    let bytes = [noise(seed, 3_000_000), noise(seed + 1, 500_000)];
    let items = directory([("a", file(bytes[0].clone())), ("b", file(bytes[1].clone()))]);
    (Package::new(&format!("data{seed}"), &items), bytes)
}

/// The process that keeps the mount.
fn keeper(world: &World) -> Option<Pid> {
    let socket = world.root().join("keeper.sock").display().to_string();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.unwrap();
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let arguments = fs::read(entry.path().join("cmdline")).ok()?;
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        arguments.contains(&socket).then_some(pid)
    });
    processes.filter_map(Pid::from_raw).next()
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_in_containers_see_neither_kill_nor_stop() {
    let mut world = World::start(&[]).await;
    let packages = [1, 10, 20, 30].map(package);
    world.add(packages.iter().map(|(package, _)| package));
    let mut calls = world.calls().await;
    let labels = nix_labels(packages.iter().map(|(package, _)| package));
    calls.prepare("e", "", labels).await.unwrap();
    calls.commit("layer", "e").await.unwrap();
    let root = Root::mount(&calls.prepare("c", "layer", [].into()).await.unwrap());
    let keeper_at_first = keeper(&world).expect("a keeper");
    for ((package, bytes), kill) in packages.iter().zip([true, false, true, false]) {
        let gate = Gate::new();
        let nar = package.nar_url(Packing::Zstd);
        world
            .server
            .on(&nar, Reply::as_it_is().pausing_at(100_000, &gate));
        let readers = ["a", "b", "a"].map(|name| reader(&root.file(&package, name)));
        if world.server.count(&nar) == 0 {
            let gate = gate.clone();
            tokio::task::spawn_blocking(move || gate.wait_for(1))
                .await
                .unwrap();
        }
        match kill {
            true => world.kill(),
            false => world.stop().await,
        }
        world.run().await;
        gate.open();
        world.server.on(&nar, Reply::as_it_is());
        for (reader, expected) in readers.into_iter().zip([0, 1, 0]) {
            assert_eq!(digest(reader).await, digest_of(&bytes[expected]));
        }
        let mut calls = world.calls().await;
        calls.mounts("c").await.unwrap();
        assert_eq!(keeper(&world), Some(keeper_at_first));
    }
    assert!(!world.log().contains("is replaced"), "{}", world.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keeper_ends_with_the_mount() {
    let mut world = World::start(&[]).await;
    assert!(keeper(&world).is_some());
    world.stop().await;
    assert!(is_mounted(&world.mountpoint()) && keeper(&world).is_some());
    world.remove_mount();
    until("the keeper ends", || keeper(&world).is_none()).await;
    assert!(!world.root().join("keeper.sock").exists());
    world.run().await;
    assert!(is_mounted(&world.mountpoint()) && keeper(&world).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_keeper_a_dead_mount_is_replaced() {
    let mut world = World::start(&[]).await;
    let (package, bytes) = package(1);
    world.add([&package]);
    let mut calls = world.calls().await;
    calls
        .prepare("e", "", nix_labels([&package]))
        .await
        .unwrap();
    calls.commit("layer", "e").await.unwrap();
    calls.prepare("c", "layer", [].into()).await.unwrap();
    let keeper = keeper(&world).unwrap();
    kill_process(keeper, Signal::KILL).unwrap();
    world.kill();
    world.run().await;
    assert!(
        world
            .log()
            .contains("a mount without a server was left and is replaced")
    );
    let mut calls = world.calls().await;
    let root = Root::mount(&calls.mounts("c").await.unwrap());
    let read = digest(reader(&root.file(&package, "b"))).await;
    assert_eq!(read, digest_of(&bytes[1]));
}
