//! Containers go on when the snapshotter is killed, stopped, updated: the mount outlives it, and
//! whoever waits is answered by the next one.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use narfs::snapshotter::wire::Mount;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

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

/// The process that keeps the mount: a child of the first snapshotter, known by what it says.
fn keeper_answers(world: &World) -> bool {
    UnixStream::connect(world.root().join("keeper.sock")).is_ok()
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
    for ((package, bytes), kill) in packages.iter().zip([true, false, true, false]) {
        let gate = Gate::new();
        let nar = package.nar_url(Packing::Zstd);
        world
            .server
            .on(&nar, Reply::as_it_is().pausing_at(100_000, &gate));
        let readers = ["a", "b", "a"].map(|name| reader(&root.file(package, name)));
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
        assert!(keeper_answers(&world));
    }
    assert!(!world.log().contains("is replaced"), "{}", world.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keeper_ends_with_the_mount() {
    let mut world = World::start(&[]).await;
    assert!(keeper_answers(&world));
    world.stop().await;
    assert!(is_mounted(&world.mountpoint()) && keeper_answers(&world));
    world.remove_mount();
    until("the keeper ends", || !keeper_answers(&world)).await;
    world.run().await;
    assert!(is_mounted(&world.mountpoint()) && keeper_answers(&world));
}
