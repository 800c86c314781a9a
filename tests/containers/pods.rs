//! Containers as a kubelet makes them: images pulled from a registry by the CRI plugin, a pod in
//! the host's network, its pause image on the same snapshotter.

use std::fs;

use crate::{
    containerd::{CRI_NAMESPACE, Version},
    corpus,
    cri::{Cri, EXITED},
    mounted::{run, wait_until},
    oci::{Image, Layer, Owned},
    registry::Registry,
    status::{LOOK, Status},
    world::{NARFS, World, python_root},
};

/// An image whose only program waits for ever: what holds a pod's namespaces.
pub fn pause_image() -> Image {
    let busybox = fs::read(corpus::directory().join("busybox/busybox"));
    let busybox = busybox.expect("tests/setup unpacks a busybox");
    let layer = Layer::new().file("busybox", Owned::root(0o755), &busybox);
    Image::new("docker.io/library/pause:1")
        .entrypoint(&["/busybox", "tail", "-f", "/dev/null"])
        .layer(layer)
}

fn pod(version: Version) {
    let registry = Registry::start();
    let sandbox = registry.reference("pause:1");
    let world = World::start_with(version, |setup| setup.cri(NARFS, &sandbox));
    let file = world.file("pause");
    pause_image().write(&file);
    registry.push(&file, "pause:1");
    let root = python_root();
    let file = world.build("docker.io/library/python:1", &root, "bin/python3.11");
    let image = registry.push(&file, "python:1");

    let cri = Cri::connect(&world.containerd.socket());
    cri.pull(&image).expect("pulled");
    let group = &world.containerd.namespace;
    let pod = cri
        .pod("python", group, &world.containerd.path("logs"))
        .expect("a pod");
    let waits = [
        "-c",
        "import time; print('started', flush=True); time.sleep(3600)",
    ];
    let container = pod.start("waits", &image, &waits).expect("started");
    let log = world.containerd.path("logs").join("waits.log");
    wait_until("the container says that it started", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("started"))
    });
    let python = root.join("bin/python3.11").display().to_string();
    let script = format!("import socket; socket.create_server(('127.0.0.1', 0)); {LOOK}");
    let (printed, status) = pod
        .exec(&container, &[&python, "-c", &script])
        .expect("run inside");
    assert_eq!(status, 0, "{printed}");
    Status::parse(&printed).assert_shows(&corpus::closure(&root));
    let ends = pod
        .start("ends", &image, &["-c", "raise SystemExit(3)"])
        .expect("started");
    wait_until("the container ends", || {
        pod.status(&ends).expect("known").0 == EXITED
    });
    assert_eq!(pod.status(&ends).expect("known"), (EXITED, 3));
    pod.remove().expect("stopped and removed");
    // Nothing is left but the images' own snapshots.
    let list = ["snapshots", "--snapshotter", NARFS, "list"];
    let left = run(world.containerd.ctr_in(CRI_NAMESPACE, &list));
    let rows: Vec<_> = left
        .lines()
        .skip(1)
        .filter(|row| !row.trim().is_empty())
        .collect();
    assert!(!rows.is_empty(), "the images have none");
    assert!(rows.iter().all(|row| row.contains("Committed")), "{left}");
}

#[test]
fn a_pod_runs_on_containerd_1_6() {
    pod(Version::Installed);
}

#[test]
fn a_pod_runs_on_containerd_1_7() {
    pod(Version::V1_7);
}

#[test]
fn a_pod_runs_on_containerd_2() {
    pod(Version::V2);
}
