//! Under a service manager: readiness, watchdog, and descriptors that come back.

use std::{
    process::{Child, Stdio},
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    mounted::{alive, is_mounted, run, wait_until},
    supervisor::Supervisor,
    world::{World, signal},
};

fn start(world: &World, supervisor: &Supervisor, more: &str) -> Child {
    let mut command = world.command(more);
    command.arg("-f").stderr(Stdio::inherit());
    let service = supervisor.start(&command);
    supervisor.wait_for("READY=1");
    service
}

#[test]
fn a_service_that_is_restarted_or_killed_gets_its_mount_back() {
    let world = World::new();
    let supervisor = Supervisor::new(world.directory.path());
    let mut service = start(&world, &supervisor, "");
    crate::abort_when_it_hangs(&world.path());
    let stored = ["narfs-greeting", "narfs-device"];
    assert_eq!(supervisor.stored(), stored);
    let mut readers = world.readers(16);
    for how in [Signal::TERM, Signal::KILL, Signal::TERM, Signal::KILL] {
        readers.go_on(2);
        let daemon = world.daemon();
        signal(service.id(), how);
        service.wait().unwrap();
        // The manager would end it too, with the rest of the service.
        wait_until("the daemon ends", || !alive(daemon));
        assert!(is_mounted(&world.path()));
        assert_eq!(supervisor.stored(), stored);
        service = start(&world, &supervisor, "");
        assert_ne!(world.daemon(), daemon);
    }
    readers.go_on(2);
    println!("{} over 4 restarts of the service", readers.end());

    // Unmounting ends the service, and nothing of it comes back.
    let mut umount = world.narfs(&["umount"]);
    umount.arg(world.path());
    run(umount);
    assert!(service.wait().unwrap().success());
    wait_until("the store is empty", || supervisor.stored().is_empty());
}

#[test]
fn the_watchdog_is_told_of_mounts_that_answer() {
    let world = World::new();
    let mut supervisor = Supervisor::new(world.directory.path());
    supervisor.watchdog = Some(Duration::from_secs(3));
    // The helper's own patience is longer than the test.
    let mut service = start(&world, &supervisor, ",watchdog=600");
    crate::abort_when_it_hangs(&world.path());
    wait_until("it is told", || supervisor.count("WATCHDOG=1") >= 4);
    let daemon = world.daemon();
    signal(daemon, Signal::STOP);
    // One may have been asked before it was stopped.
    std::thread::sleep(Duration::from_secs(3));
    let told = supervisor.count("WATCHDOG=1");
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(
        supervisor.count("WATCHDOG=1"),
        told,
        "told of a mount that gives no answer"
    );
    // What the manager does then.
    signal(service.id(), Signal::ABORT);
    service.wait().unwrap();
    signal(daemon, Signal::KILL);
    let mut service = start(&world, &supervisor, "");
    assert_ne!(world.daemon(), daemon);
    signal(service.id(), Signal::KILL);
    service.wait().unwrap();
}
