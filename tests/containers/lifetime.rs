//! Containers go on while containerd, the snapshotter and the cache stop, die and come back.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::{
    containerd::{Container, Version},
    corpus,
    mounted::{output, read_json, run, wait_until},
    status::{LOOK, Status},
    world::{NARFS, World, python, python_root},
};

/// Longest that a read may wait for a cache that is gone, before it fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// A container of python that waits.
fn waiting<'w>(world: &'w World, image: &str) -> Container<'w> {
    let script = "import json, os, time; time.sleep(3600)";
    let words = [&python(), "-I", "-c", script];
    world.containerd.start_container(image, NARFS, &words)
}

/// Python works in a container that runs, and sees its closure.
fn assert_works(container: &Container<'_>) {
    assert!(container.runs(), "the container ended");
    let printed = container.exec_well(&[&python(), "-c", LOOK]);
    let closure = corpus::closure(&python_root());
    Status::parse(&printed).assert_shows(&closure);
}

#[test]
fn containerd_stops_and_dies_under_containers() {
    let world = World::start(Version::Installed);
    let image = world.python_image();
    let container = waiting(&world, &image);
    let before = world.containerd.snapshots(NARFS);
    world.containerd.stop();
    world.containerd.start_again();
    assert_works(&container);
    world.containerd.kill();
    world.containerd.start_again();
    assert_works(&container);
    assert_eq!(world.containerd.snapshots(NARFS), before);
    let another = waiting(&world, &image);
    assert_works(&another);
    another.remove();
    container.remove();
    let left = world.containerd.snapshots(NARFS);
    assert!(
        left.iter()
            .all(|row| row.last().is_some_and(|kind| kind == "Committed")),
        "{left:?}"
    );
}

#[test]
fn removed_images_leave_nothing_but_what_was_fetched() {
    let world = World::start(Version::Installed);
    let image = world.python_image();
    let words = [&python(), "-c", "import json"];
    world.containerd.run(&image, NARFS, &words);
    let views = || {
        fs::read_dir(world.snapshotter.root().join("mnt/views"))
            .expect("listed")
            .count()
    };
    let snapshots = || {
        let directory = world.snapshotter.root().join("snapshots");
        fs::read_dir(directory).expect("listed").count()
    };
    wait_until("the container's snapshot is gone", || snapshots() == 1);
    assert_eq!(views(), 1);
    let fetched = world.snapshotter.summary()["fetchedSize"].clone();
    run(world
        .containerd
        .ctr(&["images", "remove", "--sync", &image]));
    assert_eq!(world.containerd.snapshots(NARFS), Vec::<Vec<String>>::new());
    wait_until("what the snapshots had is gone", || {
        views() == 0 && snapshots() == 0
    });
    let left = world.snapshotter.summary();
    assert!(
        left["fetchedSize"].as_u64() >= fetched.as_u64(),
        "{left}, {fetched}"
    );
    // And it is not fetched again for the next image of the same paths.
    world.link.cut();
    let nars = || world.nginx.requests().len();
    let before = nars();
    let image = world.python_image();
    world.containerd.run(&image, NARFS, &words);
    assert_eq!(nars(), before);
}

/// containerd waits a while between tries to connect to a snapshotter that was gone, and fails
/// what is asked of it meanwhile.
fn reconnected(world: &World) {
    let list = ["snapshots", "--snapshotter", NARFS, "list"];
    wait_until("containerd has the snapshotter again", || {
        output(world.containerd.ctr(&list)).status.success()
    });
}

/// The snapshotter ends in one way and is started again.
fn snapshotter_ends(end: impl Fn(&World)) {
    let world = World::start(Version::Installed);
    let image = world.python_image();
    let container = waiting(&world, &image);
    assert_works(&container);
    let before = world.containerd.snapshots(NARFS);
    // What is read for the first time while nobody serves it waits for the next one.
    let unread = format!("{}/bin/pydoc3.11", python_root().display());
    let (at, wanted) = (
        container.at(&unread),
        fs::read(&unread).expect("the real one"),
    );
    end(&world);
    assert!(container.runs(), "the container ended with the snapshotter");
    let reader = thread::spawn(move || fs::read(at));
    thread::sleep(Duration::from_millis(200));
    world.snapshotter.start_again();
    let read = reader.join().expect("no panic");
    assert_eq!(
        read.expect("no reader sees that the snapshotter changed"),
        wanted
    );
    reconnected(&world);
    assert!(container.runs(), "the container ended with the snapshotter");
    assert_eq!(world.containerd.snapshots(NARFS), before);
    assert_works(&container);
    // As do new ones, of images unpacked before.
    let another = waiting(&world, &image);
    assert_works(&another);
    another.remove();
    container.remove();
}

#[test]
fn the_snapshotter_stops_under_containers() {
    snapshotter_ends(|world| world.snapshotter.stop());
}

#[test]
fn the_snapshotter_is_killed_under_containers() {
    snapshotter_ends(|world| world.snapshotter.kill());
}

#[test]
fn the_snapshotter_starts_without_the_network() {
    let world = World::start(Version::Installed);
    let image = world.python_image();
    let words = [&python(), "-c", "import json"];
    world.containerd.run(&image, NARFS, &words);
    world.snapshotter.stop();
    world.link.cut();
    world.snapshotter.start_again();
    reconnected(&world);
    // All that this run reads was read before; the container is new.
    world.containerd.run(&image, NARFS, &words);
}

/// A file in a store path of which nothing is here yet: the store path's status document, and the
/// file as seen through the container.
fn untouched(container: &Container<'_>, closure: &[PathBuf]) -> (PathBuf, PathBuf) {
    for path in closure {
        let name = path.file_name().expect("a name").to_string_lossy();
        let document = container.at(format!("/.nix-snapshotter/{name}.json"));
        if read_json(&document)["state"] != "known" {
            continue;
        }
        if let Some(file) = some_file(&container.at(path)) {
            return (document, file);
        }
    }
    panic!("everything was touched");
}

/// A file that is not empty.
fn some_file(at: &Path) -> Option<PathBuf> {
    let found = fs::symlink_metadata(at).expect("known without its content");
    if found.is_file() {
        return (found.len() > 0).then(|| at.to_owned());
    }
    let entries = found.is_dir().then(|| fs::read_dir(at).expect("listed"))?;
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    paths.iter().find_map(|path| some_file(path))
}

#[test]
fn a_cache_dies_and_returns_in_the_life_of_a_container() {
    let world = World::start(Version::Installed);
    let root = corpus::store_path("ffmpeg");
    let (image, _) = world.nix_image("ffmpeg", &root, "bin/ffmpeg");
    let program = root.join("bin/ffmpeg").display().to_string();
    let endless = [
        &program, "-nostdin", "-re", "-f", "lavfi", "-i", "anullsrc", "-f", "null", "-",
    ];
    let container = world.containerd.start_container(&image, NARFS, &endless);
    let version = || container.exec_well(&[&program, "-version"]);
    let wanted = version();
    // Whatever was begun is finished: then the next thing that is read is cached or it is not.
    wait_until("nothing is fetched any more", || {
        Status::of(&container).summary["paths"]["fetching"] == 0
    });
    world.link.cut();
    assert_eq!(version(), wanted, "what is here can be read");
    let (document, file) = untouched(&container, &corpus::closure(&root));
    let started = Instant::now();
    let error = fs::read(&file).expect_err("nothing of it is here");
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error()),
        "{error}"
    );
    assert!(
        started.elapsed() < DEADLINE,
        "it failed after {:?}",
        started.elapsed()
    );
    let status = read_json(&document);
    let why = status["error"]
        .as_str()
        .or(status["lastError"]["message"].as_str());
    let why = why.unwrap_or_else(|| panic!("no reason: {status}"));
    assert!(!why.is_empty());
    println!("while the cache is gone: {why}");
    assert_eq!(version(), wanted, "what is here can still be read");

    world.link.mend();
    let mut bytes = Vec::new();
    wait_until("it can be read", || match fs::read(&file) {
        Ok(read) => {
            bytes = read;
            true
        }
        Err(_) => false,
    });
    let store = file
        .components()
        .skip_while(|part| part.as_os_str() != "nix");
    let native = Path::new("/").join(store.collect::<PathBuf>());
    assert_eq!(
        bytes,
        fs::read(native).expect("the real one"),
        "other bytes"
    );
    let status = read_json(&document);
    assert!(status.get("error").is_none(), "the error stays: {status}");
    assert!(container.runs());
    container.remove();
}
