//! Many containers of one closure share its inodes and its page cache; a closure of many paths is
//! one mount.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use narfs::nix::{Compression, StorePath};

use crate::{
    containerd::{Container, Version, mounts_below},
    mixed::shell_layer,
    mounted::run,
    oci::Image,
    synthetic::{Cache, Listed, Node},
    world::{Host, NARFS, World, build, python, python_root},
};

/// Containers of one closure.
const CONTAINERS: usize = 100;

/// How much the daemon may grow between the tenth container and the last, in bytes: less than
/// 100 KiB for each, or memory would follow the number of containers.
const GROWTH: u64 = 8 << 20;

/// Bytes of a file in the page cache, as `mincore` tells through this path.
fn resident(file: &Path) -> u64 {
    let mut command = Command::new("fincore");
    command
        .args(["--bytes", "--noheadings", "--output", "RES"])
        .arg(file);
    run(command).trim().parse().expect("a number")
}

#[test]
fn a_hundred_containers_of_one_closure_share_everything() {
    let world = World::start(Version::Installed);
    let root = python_root();
    let image = world.python_image();
    let program = python();
    let script = [
        &program,
        "-I",
        "-c",
        "import json, sqlite3, asyncio, time; time.sleep(3600)",
    ];
    let start = || world.containerd.start_container(&image, NARFS, &script);
    let first = start();
    let settled = |container: &Container<'_>| {
        // Imported: from now on it only sleeps.
        let wait = "import time
while True:
 maps = open('/proc/1/maps').read()
 \
            if '_sqlite3' in maps and '_asyncio' in maps: break
 time.sleep(.02)";
        container.exec_well(&[&python(), "-c", wait]);
    };
    settled(&first);
    let reads = world.snapshotter.counters()["reads"];
    let mut containers = vec![first];
    containers.extend((1..10).map(|_| start()));
    settled(containers.last().expect("ten"));
    let memory = world.snapshotter.memory();
    containers.extend((10..CONTAINERS).map(|_| start()));
    settled(containers.last().expect("a hundred"));
    let grown = world.snapshotter.memory().saturating_sub(memory);
    println!("memory of the daemon: {memory} bytes with 10 containers, {grown} more with 100");
    assert!(containers.iter().all(Container::runs));
    let more = world.snapshotter.counters()["reads"] - reads;
    println!("reads: {reads} for the first container, {more} for all others");
    // Whatever else the machine does may have the kernel drop pages, which are then read once more,
    // for all of them. Reads of their own would be a hundred times those of the first one.
    assert!(
        more < reads * CONTAINERS as u64 / 10,
        "the others read again what the first one had read"
    );
    assert!(grown < GROWTH, "the daemon grew by {grown} bytes");

    // One inode, and one page cache: what is read through one is there in all of them.
    let file = root.join("bin/python3.11");
    let inodes: BTreeSet<u64> = containers
        .iter()
        .map(|container| inode(container, &file))
        .collect();
    assert_eq!(inodes.len(), 1, "inodes of one file: {inodes:?}");
    let unread = unread_file(&containers[0], &root);
    let size = fs::metadata(containers[0].at(&unread))
        .expect("there")
        .len();
    assert_eq!(
        resident(&containers[1].at(&unread)),
        0,
        "{}",
        unread.display()
    );
    fs::read(containers[0].at(&unread)).expect("read through the first");
    for container in &containers {
        let pages = resident(&container.at(&unread));
        assert!(pages >= size, "{}: {pages} of {size}", unread.display());
    }
}

fn inode(container: &Container<'_>, file: &Path) -> u64 {
    fs::metadata(container.at(file)).expect("there").ino()
}

/// A file of some size that no program has read so far.
fn unread_file(container: &Container<'_>, root: &Path) -> PathBuf {
    let modules = root.join("lib/python3.11");
    let entries = fs::read_dir(container.at(&modules)).expect("listed");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    let files = names.into_iter().map(|name| modules.join(name));
    let mut files = files.filter(|file| {
        let at = container.at(file);
        fs::metadata(&at).is_ok_and(|found| found.is_file() && found.len() > 20_000)
            && resident(&at) == 0
    });
    files
        .next()
        .expect("python's closure has a module that was not imported")
}

/// Store paths of a large closure.
const PATHS: usize = 5000;

#[test]
fn a_closure_of_5000_paths_is_one_mount() {
    let cache = Cache::new();
    let names: Vec<StorePath> = (0..PATHS - 1)
        .map(|number| {
            let text = Node::File(format!("path {number}\n").into_bytes());
            let tree = Node::Directory(vec![text.named("file")]);
            let path = cache.add(&format!("p{number}"), &tree, Compression::None, Listed::Yes);
            parse(&path)
        })
        .collect();
    let last = Path::new(&names[PATHS - 2].absolute()).join("file");
    let script = format!(
        "#!/bin/sh\nls /nix/store | wc -l\ncat {}\nsleep 3600\n",
        last.display()
    );
    let tree = Node::Directory(vec![Node::Executable(script.into_bytes()).named("run")]);
    let root = cache.add("all", &tree, Compression::None, Listed::Yes);
    cache.refer(&parse(&root), names);

    let host = Host::start(Version::V1_7, &cache.url(), &cache.key(), |setup| setup);
    let (base, file) = (host.file("base"), host.file("large"));
    Image::new("docker.io/library/base:1")
        .layer(shell_layer())
        .write(&base);
    let base = base.display().to_string();
    let name = "docker.io/library/large:1";
    let more = ["--from", base.as_str()];
    build(&cache.url(), &cache.key(), name, &root, "run", &more, &file);
    host.containerd.load(&file, NARFS);

    let mounts = || [host.containerd.path(""), host.snapshotter.root()].map(|at| mounts_below(&at));
    let before = mounts().concat();
    let container = host.containerd.start_container(name, NARFS, &[]);
    let new = mounts().concat();
    assert_eq!(new.len(), before.len() + 1, "{new:?}");
    let table = format!("/proc/{}/mounts", container.pid);
    let inside = fs::read_to_string(table).expect("the kernel's table");
    let inside: Vec<_> = inside.lines().collect();
    let of_store = inside.iter().filter(|line| line.contains("/nix")).count();
    assert_eq!(of_store, 0, "{inside:?}");
    let count = container.exec_well(&["/bin/sh", "-c", "ls /nix/store | wc -l"]);
    assert_eq!(count.trim(), PATHS.to_string());
    let text = container.exec_well(&["/bin/cat", &last.display().to_string()]);
    assert_eq!(text, format!("path {}\n", PATHS - 2));
    let documents = fs::read_dir(container.at("/.nix-snapshotter")).expect("listed");
    assert_eq!(
        documents.count(),
        PATHS + 1,
        "the summary and one for each path"
    );
    container.remove();
}

fn parse(path: &Path) -> StorePath {
    let name = path.file_name().expect("a name").to_string_lossy();
    StorePath::parse(&name).expect("a store path")
}
