//! Listing large directories while daemons are killed.

use std::process::Child;

use rustix::process::Signal;

use crate::{
    mounted::{run, shell},
    support::cache::{Cache, Item, Package, Packing, file},
    world::{World, said, signal, user},
};

/// Directories, each listed for the first time: of what was listed before the kernel knows the names.
const DIRECTORIES: usize = 6;
/// Names of 40 bytes in each: many requests of the kernel for one listing.
const NAMES: usize = 3000;

fn name(n: usize) -> String {
    format!("{n:040}")
}

#[test]
fn a_large_directory_is_listed_whole_and_once_while_daemons_are_killed() {
    let world = World::new();
    let names: Vec<_> = (0..NAMES).map(name).collect();
    let empty = |name: &String| (name.clone().into_bytes(), file(""));
    let wide = || Item::Directory(names.iter().map(empty).collect());
    let directories: Vec<_> = (0..DIRECTORIES).map(|n| n.to_string()).collect();
    let all = directories
        .iter()
        .map(|name| (name.clone().into_bytes(), wide()));
    let package = Package::new("wide", &Item::Directory(all.collect()));
    let cache = Cache::new(&world.signs);
    cache.add(&package, Packing::None);
    let from = cache.path().join(".");
    let to = world.directory.path().join("cache");
    run(shell("cp -a \"$1\" \"$2\"", &[&from, &to]));
    world.mount("");
    let root = world.path().join(package.path.to_string());
    assert_eq!(
        said(user("ls \"$1\" | wc -l", &[&root])).trim(),
        DIRECTORIES.to_string()
    );

    // Slow enough that each goes on under several daemons; the second of a pair comes in between.
    let script = "exec python3 -c '
import os, sys, time
time.sleep(float(sys.argv[2]))
names = []
with os.scandir(sys.argv[1]) as entries:
    for entry in entries:
        names.append(entry.name)
        if len(names) % 100 == 0:
            time.sleep(0.1)
print(len(names), len(set(names)), min(names), max(names))
' \"$1\" ";
    let list = |directory: &String, after: &str| {
        user(&format!("{script}{after}"), &[&root.join(directory)])
    };
    let mut readers: Vec<Child> = directories
        .iter()
        .flat_map(|directory| [list(directory, "0"), list(directory, "0.7")])
        .collect();
    let mut kills = 0;
    while readers[0].try_wait().unwrap().is_none() {
        let daemon = world.daemon();
        signal(daemon, Signal::KILL);
        world.next_daemon(daemon);
        kills += 1;
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert!(
        kills >= 3,
        "only {kills} daemons were killed while it was listed"
    );
    let whole = format!("{NAMES} {NAMES} {} {}\n", name(0), name(NAMES - 1));
    for reader in readers {
        assert_eq!(said(reader), whole);
    }
    println!(
        "{} listings of {NAMES} names, {kills} daemons killed",
        2 * DIRECTORIES
    );
}
