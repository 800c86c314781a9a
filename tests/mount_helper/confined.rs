//! What the kernel lets a confined daemon do: by asking it as a thread that is confined as a daemon is,
//! and by what a daemon answers.

use std::{
    fs::{self, File},
    io::ErrorKind::PermissionDenied,
    os::unix::net::UnixStream,
    path::Path,
};

use narfs::{
    config::{self, Environment, Flags},
    daemon::confine::confine,
};
use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};

use crate::{
    admin,
    mounted::{NARFS, run, wait_until},
    support::cache::Packing,
    world::{World, helper, said, user},
};

/// Settings of a daemon that reads from a cache in a directory, with a netrc file.
fn settings(world: &World) -> Vec<(&'static str, Vec<String>)> {
    let at = |name: &str| world.directory.path().join(name).display().to_string();
    vec![
        ("caches", vec![format!("file://{}", at("cache"))]),
        ("state-dir", vec![at("state")]),
        ("netrc-file", vec![at("netrc")]),
    ]
}

#[test]
fn what_a_daemon_does_not_need_is_out_of_its_reach() {
    let world = World::new();
    let directory = world.directory.path().to_owned();
    let at = move |name: &str| directory.join(name);
    fs::create_dir(at("state")).unwrap();
    fs::write(at("netrc"), "").unwrap();
    fs::write(at("other"), "").unwrap();
    let flags = Flags {
        config: Some(at("config.toml")),
        settings: settings(&world),
    };
    let config = config::load(&Environment::of_process().unwrap(), &flags).unwrap();
    let a_nar = at("cache").join(&world.packages[0].nar_url(Packing::None)[1..]);
    // It holds for this thread alone.
    let confined = move || {
        let confined = confine(&config, Some(&at("mnt")));
        assert_eq!(
            confined.lacking, [""; 0],
            "a kernel for these tests has all of it"
        );
        let refused = |what: &str, opened: std::io::Result<File>| match opened {
            Ok(_) => panic!("{what} is within reach"),
            Err(e) => assert_eq!(e.kind(), PermissionDenied, "{what}: {e}"),
        };
        for file in ["/etc/shadow", "/etc/crontab", "/root", "/tmp"] {
            if Path::new(file).exists() {
                refused(file, File::open(file));
            }
        }
        assert!(Path::new("/etc/shadow").exists(), "or this shows nothing");
        refused("a file beside the state", File::open(at("other")));
        refused("a file in the mount", File::open(at("mnt")));
        for place in ["new", "cache/new", "netrc"].map(&at) {
            let opened = File::options().create(true).append(true).open(&place);
            refused(&format!("to write {}", place.display()), opened);
        }
        refused(
            "to write a program",
            File::options().append(true).open("/usr/bin/env"),
        );
        for file in ["/proc/self/status", "/etc/hosts", "/proc/self/exe"] {
            File::open(file).unwrap_or_else(|e| panic!("{file}: {e}"));
        }
        File::open(a_nar).expect("a file of the cache");
        File::open(at("netrc")).expect("the netrc file");
        // All that is done in a state directory.
        let [here, there] = ["state/a", "state/b/c"].map(&at);
        fs::create_dir(at("state/b")).unwrap();
        fs::write(&here, "1").unwrap();
        fs::rename(&here, &there).unwrap();
        File::options()
            .write(true)
            .truncate(true)
            .open(&there)
            .unwrap();
        fs::remove_file(&there).unwrap();
        fs::remove_dir(at("state/b")).unwrap();
        // And calls that it never makes: other answers than this one come from further on.
        let none = unmount(at("cache"), UnmountFlags::DETACH);
        assert_eq!(none, Err(Errno::PERM));
        assert_eq!(confined.watched.replaced(), None);
    };
    std::thread::spawn(confined).join().unwrap();
    File::open("/etc/shadow").expect("the other threads of this test go on as they were");
}

/// The helper with a cache in a directory.
fn mount_on_directory(world: &World, more: &str) {
    let mut command = world.clean(helper());
    let cache = world.directory.path().join("cache");
    command.arg(format!("file://{}", cache.display()));
    command.arg(world.path()).arg("-o").arg(world.options(more));
    command.arg("--program").arg(NARFS);
    run(command);
    crate::abort_when_it_hangs(&world.path());
}

/// Where a cache has a symbolic link that leads out of it, the kernel keeps a daemon from following.
#[test]
fn a_confined_daemon_reads_its_cache_and_nothing_beside_it() {
    for confined in [true, false] {
        let world = World::new();
        let file = world.packages[0].nar_url(Packing::None);
        let inside = world.directory.path().join("cache").join(&file[1..]);
        let outside = world.directory.path().join("outside");
        fs::rename(&inside, &outside).unwrap();
        std::os::unix::fs::symlink(&outside, &inside).unwrap();
        mount_on_directory(&world, if confined { "" } else { ",confine=false" });
        // `wc -c` alone would ask for the size only.
        let read = "sha256sum \"$1\" >/dev/null 2>&1 && echo read || echo failed";
        assert_eq!(said(user(read, &[&world.at(1, "data")])), "read\n");
        let expected = if confined { "failed\n" } else { "read\n" };
        let have = said(user(read, &[&world.at(0, "data")]));
        assert_eq!(have, expected, "confined: {confined}");
    }
}

#[test]
fn a_credentials_file_that_is_replaced_is_read_by_the_next_daemon() {
    let world = World::new();
    let netrc = world.directory.path().join("netrc");
    fs::write(&netrc, "").unwrap();
    world.mount(&format!(",netrc-file={}", netrc.display()));
    assert_eq!(
        said(user("cat \"$1\" | wc -c", &[&world.at(0, "more")])),
        "70000\n"
    );
    let daemon = world.daemon();
    let fresh = world.directory.path().join("fresh");
    fs::write(&fresh, "machine localhost login me password secret\n").unwrap();
    fs::rename(&fresh, &netrc).unwrap();
    let next = world.next_daemon(daemon);
    assert_eq!(
        said(user("cat \"$1\" | wc -c", &[&world.at(1, "more")])),
        "70000\n"
    );
    assert!(
        world.log().contains("replaced; the next daemon reads it"),
        "{}",
        world.log()
    );
    assert_eq!(world.daemon(), next, "one change is one start");
}

#[test]
fn it_is_ready_only_while_its_mount_is_there_and_answers() {
    let world = World::new();
    world.mount("");
    admin::get(&world.state_dir(), "/ready");
    // Somebody uses it, so that daemon and connection outlive the unmounting.
    let path = world.at(0, "data");
    let holds = user("exec 3<\"$1\"; echo; sleep 600", &[&path]);
    wait_until("the file is open", || {
        let open = fs::read_link(format!("/proc/{}/fd/3", holds.id()));
        open.is_ok_and(|open| open == path)
    });
    run(crate::mounted::shell("umount -l \"$1\"", &[&world.path()]));
    let stream = UnixStream::connect(world.state_dir().join("admin.sock")).unwrap();
    let (status, body) = admin::ask(stream, "/ready", "narfs");
    assert!(
        status.contains(" 503 ") && body.contains("is no mount of narfs"),
        "{status}: {body}"
    );
    admin::get(&world.state_dir(), "/live");
    let mut holds = holds;
    holds.kill().unwrap();
    holds.wait().unwrap();
}
