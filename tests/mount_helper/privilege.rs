//! What the daemon may do, and may not.

use std::{fs, os::unix::fs::MetadataExt};

use rustix::process::Signal;

use crate::world::{World, said, signal, user};

/// Somebody without any rights, on every machine.
const USER: u32 = 65534;

fn fields(pid: u32, names: &[&str]) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = |name: &&str| {
        let line = status.lines().find_map(|line| line.strip_prefix(*name));
        line.expect(name)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    names.iter().map(value).collect()
}

#[test]
fn a_daemon_of_an_ordinary_user_serves_everybody_and_has_no_capability() {
    let world = World::new();
    world.mount(&format!(",setuid={USER}:{USER}"));
    let check = |daemon| {
        let ids = format!("{USER} {USER} {USER} {USER}");
        let none = "0000000000000000";
        let have = fields(
            daemon,
            &[
                "Uid:",
                "Gid:",
                "Groups:",
                "CapPrm:",
                "CapEff:",
                "CapAmb:",
                "CapInh:",
                "CapBnd:",
                "NoNewPrivs:",
                "Seccomp:",
            ],
        );
        assert_eq!(
            have,
            [&*ids, &*ids, "", none, none, none, none, none, "1", "2"]
        );
    };
    let daemon = world.daemon();
    check(daemon);
    let sum = "sha256sum <\"$1\"";
    let path = world.at(0, "data");
    let first = said(user(sum, &[&path]));
    let script = format!(
        "setpriv --reuid=12345 --regid=12345 --clear-groups -- bash -c '{sum}' bash \"$1\""
    );
    assert_eq!(said(user(&script, &[&path])), first);
    signal(daemon, Signal::KILL);
    check(world.next_daemon(daemon));
    assert_eq!(said(user(sum, &[&path])), first);
    // What it keeps is its own, and nobody else's business.
    let state = fs::metadata(world.state_dir()).unwrap();
    assert_eq!((state.uid(), state.mode() & 0o777), (USER, 0o700));
    let helper = fs::metadata(world.state_dir().join("helper.sock")).unwrap();
    assert_eq!((helper.uid(), helper.mode() & 0o777), (0, 0o600));
    let script = "setpriv --reuid=65534 --regid=65534 --clear-groups -- \
                  python3 -c 'import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' \"$1\" 2>&1 | tail -n 1 || true";
    let refused = said(user(script, &[&world.state_dir().join("helper.sock")]));
    assert!(refused.contains("Permission denied"), "{refused}");
}

#[test]
fn a_daemon_of_root_has_no_capability_and_gains_none() {
    let world = World::new();
    world.mount("");
    let none = "0000000000000000";
    let names = [
        "Uid:",
        "CapPrm:",
        "CapEff:",
        "CapBnd:",
        "CapInh:",
        "NoNewPrivs:",
        "Seccomp:",
    ];
    let have = fields(world.daemon(), &names);
    assert_eq!(have, ["0 0 0 0", none, none, none, none, "1", "2"]);
}
