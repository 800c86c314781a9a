//! Native files: containers read what is here whole from copies, and miss nothing when those go.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    admin::metrics,
    containerd::{Container, Version},
    corpus,
    mounted::{output, run, wait_until},
    world::{NARFS, World, python, python_root},
};

/// Prints one line about everything in the store paths that it is given: names, kinds, modes, times, links, content.
const ALL: &str = r#"
import hashlib, os, stat, sys
h, n = hashlib.sha256(), 0
def tell(path):
    global n
    s = os.lstat(path)
    content = b""
    if stat.S_ISLNK(s.st_mode):
        content = os.readlink(path).encode()
    elif stat.S_ISREG(s.st_mode):
        with open(path, "rb") as f:
            content = hashlib.sha256(f.read()).digest()
    size = 0 if stat.S_ISDIR(s.st_mode) else s.st_size
    h.update(repr((path, s.st_mode, s.st_uid, s.st_gid, int(s.st_mtime), size, content)).encode())
    n += 1
    if stat.S_ISDIR(s.st_mode):
        for name in sorted(os.listdir(path)):
            tell(path + "/" + name)
for path in sys.argv[1:]:
    tell(path)
print(n, h.hexdigest())
"#;

/// Those words, for a python.
fn all() -> Vec<String> {
    let mut words = vec!["-I".to_owned(), "-c".to_owned(), ALL.to_owned()];
    let paths = corpus::closure(&python_root()).into_iter();
    words.extend(paths.map(|path| path.display().to_string()));
    words
}

fn told(container: &Container<'_>) -> String {
    let words: Vec<_> = [python()].into_iter().chain(all()).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    container.exec_well(&words)
}

/// A container of python that waits.
fn waiting<'w>(world: &'w World, image: &str) -> Container<'w> {
    let words = [&python(), "-I", "-c", "import time; time.sleep(3600)"];
    world.containerd.start_container(image, NARFS, &words)
}

/// containerd waits a while before it tries again to connect to a snapshotter that was gone.
fn configured(world: &World, configuration: &str) {
    world.snapshotter.configure(configuration);
    let list = ["snapshots", "--snapshotter", NARFS, "list"];
    wait_until("containerd has the snapshotter again", || {
        output(world.containerd.ctr(&list)).status.success()
    });
}

fn names(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.expect("listed").path()).collect();
    names.sort();
    names
}

fn inside(path: &Path) -> &Path {
    path.strip_prefix("/nix/store").expect("a store path")
}

/// The copies of one store path or file, in whichever layer.
fn copy_of(native: &Path, path: &Path) -> PathBuf {
    let layers = names(&native.join("files"));
    let found = layers.iter().map(|layer| layer.join(inside(path)));
    let found = found.filter(|copy| copy.exists()).collect::<Vec<_>>();
    assert_eq!(found.len(), 1, "{layers:?} {}", path.display());
    found[0].clone()
}

fn read(container: &Container<'_>, path: &Path) -> String {
    let script = format!(
        "print(__import__('hashlib').sha256(open({:?}, 'rb').read()).hexdigest())",
        path.display().to_string()
    );
    container.exec_well(&[&python(), "-I", "-c", &script])
}

#[test]
fn containers_read_native_files_and_miss_none_that_goes() {
    let world = World::configured(Version::Installed, "native-files = \"auto\"\n");
    let native = world.snapshotter.root().join("native");
    let image = world.python_image();
    let first = waiting(&world, &image);
    let mut real = Command::new(python());
    real.args(all());
    let truth = run(real);
    // Reads, and so fetches, everything.
    assert_eq!(told(&first), truth);
    let count = corpus::closure(&python_root()).len();
    let whole = |tree: &PathBuf| names(&tree.join("nix/store")).len() == count;
    wait_until("there is a tree of all paths", || {
        names(&native.join("trees")).iter().any(whole)
    });

    let second = waiting(&world, &image);
    let mounts = second.exec_well(&[
        &python(),
        "-c",
        "print(open('/proc/self/mountinfo').read())",
    ]);
    let root = mounts.lines().find(|line| line.contains(" / / "));
    assert!(
        root.is_some_and(|line| line.contains("/native/trees/")),
        "{mounts}"
    );
    assert_eq!(told(&second), truth);
    // The status directory is found by name as ever.
    let status = "print(open('/.nix-snapshotter/summary.json').read())";
    assert!(
        second
            .exec_well(&[&python(), "-c", status])
            .contains("fetchedSize")
    );

    // It is the copy that is read: one that says something else is believed.
    let lib = python_root().join("lib/python3.11");
    let (changed, opened, unopened) = (
        lib.join("argparse.py"),
        lib.join("_pydecimal.py"),
        lib.join("turtle.py"),
    );
    let copy = copy_of(&native, &changed);
    let right = fs::read(&copy).expect("a copy");
    assert_eq!(right, fs::read(&changed).expect("the real one"));
    let mut wrong = right.clone();
    wrong[0] ^= 1;
    fs::write(&copy, &wrong).expect("written");
    let third = waiting(&world, &image);
    let sum = |path: &Path| {
        let mut native = Command::new("sha256sum");
        native.arg(path);
        run(native).split(' ').next().map(str::to_owned)
    };
    assert_eq!(Some(read(&third, &changed).trim().to_owned()), sum(&copy));
    assert_ne!(sum(&copy), sum(&changed));
    fs::write(&copy, &right).expect("written");

    // All copies go under containers that run: nobody sees an error or anything else.
    assert_eq!(Some(read(&third, &opened).trim().to_owned()), sum(&opened));
    for copies in names(&native.join("files"))
        .iter()
        .flat_map(|layer| names(layer))
    {
        match copies.is_dir() {
            true => fs::remove_dir_all(copies),
            false => fs::remove_file(copies),
        }
        .expect("removed");
    }
    for path in [&unopened, &opened, &changed] {
        assert_eq!(
            Some(read(&third, path).trim().to_owned()),
            sum(path),
            "{}",
            path.display()
        );
    }
    assert_eq!(told(&third), truth);
    assert_eq!(told(&waiting(&world, &image)), truth);
}

#[test]
fn a_copy_that_the_disk_changed_is_found_and_mended() {
    let with_scrub = "native-files = \"auto\"\nscrub-rate = \"1GB\"\n";
    let world = World::configured(Version::Installed, "native-files = \"auto\"\n");
    let native = world.snapshotter.root().join("native");
    let image = world.python_image();
    let first = waiting(&world, &image);
    let truth = told(&first);
    let file = python_root().join("lib/python3.11/argparse.py");
    let copies = || -> Vec<PathBuf> {
        let layers = names(&native.join("files"));
        let found = layers.iter().map(|layer| layer.join(inside(&file)));
        found.filter(|copy| copy.exists()).collect()
    };
    wait_until("there is a copy", || copies().len() == 1);
    let second = waiting(&world, &image);
    assert_eq!(told(&second), truth);

    // As the disk would: neither size nor time tell.
    let copy = copies().remove(0);
    let right = fs::read(&copy).expect("a copy");
    let mut wrong = right.clone();
    wrong[right.len() / 2] ^= 1;
    fs::write(&copy, &wrong).expect("written");
    assert_ne!(told(&second), truth);
    configured(&world, with_scrub);
    wait_until("the copy is mended", || {
        fs::read(&copy).is_ok_and(|bytes| bytes == right)
    });
    assert_eq!(told(&second), truth);
    assert_eq!(told(&waiting(&world, &image)), truth);
    let root = world.snapshotter.root();
    wait_until("it is counted", || {
        metrics(&root)["narfs_native_files_mended_total"] == 1.0
    });
    assert!(metrics(&root)["narfs_native_files_bytes"] > 0.0);
}

#[test]
fn native_files_go_first_when_room_is_needed_and_with_their_image() {
    let world = World::configured(Version::Installed, "native-files = \"auto\"\n");
    let native = world.snapshotter.root().join("native");
    let image = world.python_image();
    let container = waiting(&world, &image);
    let truth = told(&container);
    let fetched = || {
        world.snapshotter.summary()["fetchedSize"]
            .as_u64()
            .expect("a number")
    };
    let kept = fetched();
    let copies = || -> usize {
        let layers = names(&native.join("files"));
        layers.iter().map(|layer| names(layer).len()).sum()
    };
    wait_until("there are copies", || copies() > 0);
    let second = waiting(&world, &image);

    // What a kill in the middle of making them leaves is taken away by the next start, which finds the rest.
    world.snapshotter.kill();
    fs::create_dir_all(native.join("tmp/half/a/copy")).expect("made");
    fs::create_dir_all(native.join("trees/nobody's")).expect("made");
    world.snapshotter.start_again();
    assert!(!native.join("tmp/half").exists() && !native.join("trees/nobody's").exists());
    let all = copies();
    assert!(all > 0);
    assert_eq!(told(&second), truth);

    // With room for what was fetched and nothing beside it.
    configured(
        &world,
        &format!("native-files = \"auto\"\nquota = \"{}B\"\n", kept * 5 / 4),
    );
    // As many as have to.
    wait_until("copies went", || copies() < all);
    // Content did not: all of it can be read without the cache.
    world.link.cut();
    assert_eq!(told(&second), truth);

    container.remove();
    second.remove();
    run(world
        .containerd
        .ctr(&["images", "remove", "--sync", &image]));
    wait_until("the layer's trees went", || {
        names(&native.join("trees")).is_empty()
    });
}
