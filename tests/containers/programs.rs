//! Real programs from Nix images, imported and run with `ctr`.

use std::{path::Path, process::Command};

use narfs::nix::Compression;

use crate::{
    containerd::Version,
    corpus,
    mounted::{read_json, run, wait_until},
    oci::Archive,
    status::{LOOK, Status},
    synthetic::{Cache, Listed, Node},
    world::{NARFS, World, build, python_root},
};

/// Python at work: what it prints has to be what the real store's python prints.
const WORK: &str = "import json, http.client, email.message, sqlite3, decimal, ctypes, \
    xml.etree.ElementTree, asyncio, unittest, hashlib, sys, zlib; \
    rows = sqlite3.connect(':memory:').execute('select 6 * 7').fetchall(); \
    print(sys.version, rows, decimal.Decimal(2).sqrt(), zlib.crc32(b'narfs'), \
    hashlib.sha256(b'narfs').hexdigest())";

/// Builds an image and loads it: that brings narinfos and listings, and nothing of what is in the
/// store paths. Its name.
fn loaded(world: &World, name: &str, root: &Path, program: &str) -> String {
    let nars = || {
        let requests = world.nginx.requests();
        let nars = requests
            .iter()
            .filter(|request| request.path.starts_with("/zstd/nar/"));
        nars.count()
    };
    // What an earlier program began is finished in the background.
    wait_until("nothing is fetched any more", || {
        world.snapshotter.summary()["paths"]["fetching"] == 0
    });
    let before = nars();
    let (image, file) = world.nix_image(name, root, program);
    assert_eq!(nars(), before, "unpacking fetched content");
    let top = Archive::read(&file).chain_id();
    let view = world.containerd.mount_view(&top, NARFS);
    let summary = read_json(&view.at.join(".nix-snapshotter/summary.json"));
    let count = corpus::closure(root).len();
    assert_eq!(summary["paths"]["total"], count, "{summary}");
    if before == 0 {
        assert_eq!(summary["fetchedSize"], 0, "{summary}");
    }
    image
}

fn python(world: &World) {
    let root = python_root();
    let image = loaded(world, "python", &root, "bin/python3.11");
    let program = root.join("bin/python3.11").display().to_string();
    let script = format!("{WORK}; {LOOK}");
    let printed = world
        .containerd
        .run(&image, NARFS, &[&program, "-I", "-c", &script]);
    let mut native = Command::new(root.join("bin/python3.11"));
    native.args(["-I", "-c", WORK]);
    assert_eq!(printed.lines().next(), run(native).lines().next());
    let status = Status::parse(&printed);
    status.assert_shows(&corpus::closure(&root));
    let percent = status.fetched_percent();
    println!("python3.11: {percent} % fetched when the program looked");
    assert!(percent > 0.0, "{}", status.summary);
    // What a program starts depends on its exit status too.
    let output = world
        .containerd
        .run_once(&image, NARFS, &[&program, "-c", "raise SystemExit(7)"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}

fn redis(world: &World) {
    let root = corpus::store_path("redis-server");
    let image = loaded(world, "redis", &root, "bin/redis-server");
    let server = root.join("bin/redis-server").display().to_string();
    let container = world
        .containerd
        .start_container(&image, NARFS, &[&server, "--save", ""]);
    let client = root.join("bin/redis-cli").display().to_string();
    wait_until("redis answers", || {
        assert!(container.runs(), "redis ended");
        container.exec(&[&client, "ping"]).stdout == b"PONG\n"
    });
    container.exec_well(&[&client, "set", "key", "of narfs"]);
    assert_eq!(container.exec_well(&[&client, "get", "key"]), "of narfs\n");
    let status = Status::of(&container);
    status.assert_shows(&corpus::closure(&root));
    println!("redis-server: {} % fetched", status.fetched_percent());
    container.remove();
}

fn ffmpeg(world: &World) {
    let root = corpus::store_path("ffmpeg");
    let image = loaded(world, "ffmpeg", &root, "bin/ffmpeg");
    let program = root.join("bin/ffmpeg").display().to_string();
    let printed = world.containerd.run(&image, NARFS, &[&program, "-version"]);
    let mut native = Command::new(root.join("bin/ffmpeg"));
    native.arg("-version");
    assert_eq!(printed, run(native));
    // Silence, at the pace of a clock, for ever.
    let endless = [
        &program, "-nostdin", "-re", "-f", "lavfi", "-i", "anullsrc", "-f", "null", "-",
    ];
    let container = world.containerd.start_container(&image, NARFS, &endless);
    let status = Status::of(&container);
    status.assert_shows(&corpus::closure(&root));
    println!("ffmpeg: {} % fetched", status.fetched_percent());
    let untouched = &status.summary["paths"]["known"];
    let untouched = untouched.as_u64().expect("a number");
    assert!(untouched > 0, "everything was fetched: {}", status.summary);
    assert!(container.runs());
    container.remove();
}

fn programs(version: Version, number: &str) {
    let world = World::start(version);
    let found = world.containerd.version_text();
    assert!(
        found.starts_with(number),
        "containerd is {found}, not {number}"
    );
    python(&world);
    redis(&world);
    ffmpeg(&world);
}

#[test]
fn real_programs_run_on_containerd_1_6() {
    // Other distributions, and later Debians, have later versions; then this is one of the others.
    programs(Version::Installed, "");
}

#[test]
fn real_programs_run_on_containerd_1_7_by_its_transfer_service() {
    programs(Version::V1_7, "1.7.");
}

#[test]
fn real_programs_run_on_containerd_2_by_its_transfer_service() {
    programs(Version::V2, "2.");
}

#[test]
fn what_no_cache_has_fails_the_import_with_the_reason() {
    let world = World::start(Version::V1_7);
    let cache = Cache::new();
    let tree = Node::Directory(vec![Node::Executable(vec![]).named("run")]);
    let root = cache.add("nowhere", &tree, Compression::Zstd, Listed::Yes);
    let (file, name) = (world.file("nowhere"), "docker.io/library/nowhere:1");
    build(&cache.url(), &cache.key(), name, &root, "run", &[], &file);
    let said = refused_import(&world, &file);
    let root = root.file_name().expect("a name").to_string_lossy();
    assert!(said.contains(&*root), "{said}");
    assert!(
        said.contains(&world.link.url()),
        "the cache is not named: {said}"
    );
    let left = world.containerd.snapshots(NARFS);
    assert!(left.is_empty(), "taken for unpacked: {left:?}");
}

#[test]
fn a_cache_out_of_reach_fails_the_import_and_the_next_one_works() {
    let world = World::start(Version::V1_7);
    let root = corpus::store_path("redis-server");
    let file = world.build("docker.io/library/redis:1", &root, "bin/redis-server");
    world.link.cut();
    let said = refused_import(&world, &file);
    let closure = corpus::closure(&root);
    let names = closure.iter().filter_map(|path| path.file_name()?.to_str());
    let named = names.filter(|name| said.contains(name)).count();
    assert!(named > 0, "no store path is named: {said}");
    assert!(
        said.contains(&world.link.url()),
        "the cache is not named: {said}"
    );
    world.link.mend();
    world.containerd.load(&file, NARFS);
    let image = "docker.io/library/redis:1";
    let program = root.join("bin/redis-server").display().to_string();
    let printed = world.containerd.run(image, NARFS, &[&program, "--version"]);
    assert!(printed.contains("Redis server"), "{printed}");
}

/// An import that has to fail; what `ctr` says.
fn refused_import(world: &World, file: &Path) -> String {
    let output = world.containerd.transfer(file, NARFS);
    assert!(!output.status.success(), "imported what can't be had");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
