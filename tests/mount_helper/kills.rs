//! Daemons that die: another takes the place, and nobody who reads notices.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{
    mounted::{run, shell, wait_until},
    support::{
        cache::{Cache, Package, Packing, directory, file},
        scripted::{Gate, Reply},
    },
    world::{World, said, signal, user},
};

/// Readers at a time.
const READERS: usize = 64;
/// Times that the daemon is killed under them; by hand, more: `NARFS_KILLS=100`.
const KILLS: u64 = 10;

#[test]
fn readers_see_nothing_of_daemons_that_are_killed() {
    let kills = std::env::var("NARFS_KILLS").map_or(KILLS, |n| n.parse().expect("a number"));
    let world = World::new();
    world.mount("");
    let mut readers = world.readers(READERS);
    let mut daemon = world.daemon();
    for _ in 0..kills {
        readers.go_on(3);
        signal(daemon, Signal::KILL);
        daemon = world.next_daemon(daemon);
    }
    readers.go_on(5);
    println!("{} over {kills} kills", readers.end());
    assert_eq!(world.status().restarts, kills);
}

#[test]
fn who_waits_for_a_name_or_for_bytes_gets_them_from_the_next_daemon() {
    let world = World::new();
    let (read, asked) = (&world.packages[2], &world.packages[3]);
    world.mount("");
    let path = world.at(2, "data");
    let number = said(user("stat -c %i \"$1\"", &[&path]));
    let (nar, narinfo) = (Gate::new(), Gate::new());
    let urls = (read.nar_url(Packing::Zstd), asked.narinfo_url());
    world.server.on(&urls.0, Reply::as_it_is().behind(&nar));
    world.server.on(&urls.1, Reply::as_it_is().behind(&narinfo));
    let reader = user("cat \"$1\" | wc -c; stat -c %i \"$1\"", &[&path]);
    let asker = user("ls \"$1\"", &[world.at(3, "data").parent().unwrap()]);
    nar.wait_for(1);
    narinfo.wait_for(1);
    // Both requests are in the daemon now, and die with it.
    for how in [Signal::KILL, Signal::TERM, Signal::KILL] {
        let daemon = world.daemon();
        signal(daemon, how);
        world.next_daemon(daemon);
    }
    nar.open();
    narinfo.open();
    assert_eq!(said(reader), format!("900000\n{number}"));
    assert_eq!(said(asker), "data\nmore\n");
}

#[test]
fn a_daemon_that_hangs_is_replaced() {
    let world = World::new();
    world.mount(",watchdog=3");
    let path = world.at(0, "more");
    assert_eq!(said(user("wc -c <\"$1\"", &[&path])), "70000\n");
    let daemon = world.daemon();
    signal(daemon, Signal::STOP);
    let waits = user("wc -c <\"$1\"", &[&world.at(1, "more")]);
    world.next_daemon(daemon);
    assert_eq!(said(waits), "70000\n");
    assert!(world.log().contains("gave no answer"), "{}", world.log());
    wait_until("the one that hung is gone", || {
        !crate::mounted::alive(daemon)
    });
}

#[test]
fn a_helper_that_is_killed_leaves_a_daemon_that_serves() {
    let world = World::new();
    world.mount("");
    let (helper, daemon) = (world.status().helper, world.daemon());
    signal(helper, Signal::KILL);
    wait_until("the helper is gone", || !crate::mounted::alive(helper));
    let path = world.at(0, "data");
    assert_eq!(said(user("wc -c <\"$1\"", &[&path])), "900000\n");
    assert!(crate::mounted::alive(daemon));
    // Nobody watches it any more, so its end is the mount's. The next start replaces what is left.
    signal(daemon, Signal::KILL);
    wait_until("the daemon is gone", || !crate::mounted::alive(daemon));
    let output = crate::mounted::output(world.command(""));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("without a server was left"), "{told}");
    assert_eq!(said(user("wc -c <\"$1\"", &[&path])), "900000\n");
}

/// Paths known to the daemon; by hand, more: `NARFS_PATHS=10000` shows how long a start takes.
const PATHS: usize = 300;

#[test]
fn what_was_known_is_known_to_the_next_daemon() {
    let count = std::env::var("NARFS_PATHS").map_or(PATHS, |n| n.parse().expect("a number"));
    let world = World::new();
    let cache = Cache::new(&world.signs);
    let many: Vec<_> = (0..count)
        .map(|n| {
            Package::new(
                &format!("many{n}"),
                &directory([("n", file(n.to_string()))]),
            )
        })
        .collect();
    let all: Vec<_> = many.iter().collect();
    let root = Package::new("root", &directory([("n", file("root"))])).with_references(&all);
    cache.add_all(&many, Packing::None);
    cache.add(&root, Packing::None);
    let from = cache.path().join(".");
    let to = world.directory.path().join("cache");
    run(shell("cp -a \"$1\" \"$2\"", &[&from, &to]));
    let mut command = world.command("");
    command
        .arg("--")
        .arg(format!("--root={}", root.path.absolute()));
    run(command);
    let list = || {
        let listed = said(user("ls \"$1\" | wc -l", &[&world.path()]));
        listed.trim().parse::<usize>().unwrap()
    };
    // Many take longer than the patience of the other tests; nothing can hang before a kill.
    let deadline = Instant::now() + Duration::from_secs(60 + count as u64 / 20);
    while list() <= count {
        assert!(Instant::now() < deadline, "the closure is not known");
        std::thread::sleep(Duration::from_millis(100));
    }
    crate::abort_when_it_hangs(&world.path());
    for _ in 0..3 {
        let requests = world.server.requests().len();
        let daemon = world.daemon();
        signal(daemon, Signal::KILL);
        let begun = Instant::now();
        assert_eq!(list(), count + 1);
        println!(
            "{count} paths: listed {} ms after the kill",
            begun.elapsed().as_millis()
        );
        let asked = world.server.requests().len() - requests;
        assert!(asked < count / 10, "{asked} requests");
    }
    let starts = world.log();
    let starts = starts
        .lines()
        .filter(|line| line.contains(" is served by "));
    starts.for_each(|line| println!("{line}"));
}
