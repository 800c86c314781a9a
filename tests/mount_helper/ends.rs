//! The end of a mount is a verb of its own, and ends everything that belongs to it.

use std::fs;

use crate::{
    mounted::{alive, is_mounted, output, run, shell, wait_until},
    support::{
        cache::Packing,
        scripted::{Gate, Reply},
    },
    world::{World, said, user},
};

fn umount(world: &World, flag: Option<&str>) -> std::process::Command {
    let mut command = world.narfs(&["umount"]);
    command.args(flag).arg(world.path());
    command
}

#[test]
fn umount_ends_mount_daemon_and_helper() {
    let world = World::new();
    for flag in [None, Some("--lazy"), Some("--force")] {
        world.mount("");
        let (helper, daemon) = (world.status().helper, world.daemon());
        run(umount(&world, flag));
        assert!(!is_mounted(&world.path()));
        wait_until("all of it ends", || !alive(helper) && !alive(daemon));
    }
}

#[test]
fn a_lazy_end_is_the_last_users() {
    let world = World::new();
    world.mount("");
    let (helper, daemon) = (world.status().helper, world.daemon());
    let fifo = world.directory.path().join("fifo");
    run(shell("mkfifo \"$1\"", &[&fifo]));
    let script = "exec 9<\"$1\"; read -r _ <\"$2\"; wc -c <&9";
    let holder = user(script, &[&world.at(0, "data"), &fifo]);
    wait_until("the file is open", || {
        fs::read_link(format!("/proc/{}/fd/9", holder.id()))
            .is_ok_and(|to| to.starts_with(world.path()))
    });
    assert_eq!(
        output(umount(&world, None)).status.code(),
        Some(6),
        "it is in use"
    );
    run(umount(&world, Some("--lazy")));
    assert!(!is_mounted(&world.path()));
    assert!(alive(helper) && alive(daemon), "a file is still open");
    fs::write(&fifo, "go on\n").unwrap();
    assert_eq!(said(holder), "900000\n");
    wait_until("all of it ends", || !alive(helper) && !alive(daemon));
}

#[test]
fn a_forced_end_is_an_error_to_who_waits() {
    let world = World::new();
    world.mount("");
    let (helper, daemon) = (world.status().helper, world.daemon());
    let gate = Gate::new();
    let url = world.packages[2].nar_url(Packing::Zstd);
    world.server.on(&url, Reply::as_it_is().behind(&gate));
    let reader = user(
        "cat \"$1\" >/dev/null || echo error",
        &[&world.at(2, "data")],
    );
    gate.wait_for(1);
    run(umount(&world, Some("--force")));
    let output = reader.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "error\n");
    assert!(!is_mounted(&world.path()));
    wait_until("all of it ends", || !alive(helper) && !alive(daemon));
    gate.open();
}

#[test]
fn sigterm_to_the_helper_unmounts() {
    let world = World::new();
    world.mount("");
    let (helper, daemon) = (world.status().helper, world.daemon());
    crate::world::signal(helper, rustix::process::Signal::TERM);
    wait_until("all of it ends", || !alive(helper) && !alive(daemon));
    assert!(!is_mounted(&world.path()));
}
