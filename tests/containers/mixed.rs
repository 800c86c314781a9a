//! Images of ordinary and Nix layers in any order, and Nix images on top of ordinary ones.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use narfs::nix::{Compression, StorePath};

use crate::{
    containerd::Version,
    corpus,
    oci::{Archive, Image, Layer, Owned},
    pods::pause_image,
    synthetic::{Cache, Listed, Node},
    world::{Host, LOOK, NARFS, Status, World, build, python, python_root},
};

const DIRECTORY: Owned = Owned::root(0o755);
const FILE: Owned = Owned::root(0o644);

/// An ordinary layer with a shell.
pub fn shell_layer() -> Layer {
    let busybox = fs::read(corpus::directory().join("busybox/busybox"));
    let busybox = busybox.expect("tests/setup unpacks a busybox");
    ["sh", "cat", "ls", "stat", "wc", "sleep", "test", "readlink"]
        .iter()
        .fold(
            Layer::new()
                .directory("bin", DIRECTORY)
                .file("bin/busybox", Owned::root(0o755), &busybox)
                .directory("etc", DIRECTORY)
                .file("etc/base", FILE, b"base\n")
                .file("etc/dropped", FILE, b"dropped\n"),
            |layer, name| layer.symlink(&format!("bin/{name}"), "busybox"),
        )
}

/// An ordinary layer that changes what the shell's layer has, and puts a path into the store that
/// no cache knows.
fn top_layer() -> Layer {
    Layer::new()
        .directory("etc", DIRECTORY)
        .file("etc/top", FILE, b"top\n")
        .whiteout("etc/dropped")
        .directory("nix", DIRECTORY)
        .directory("nix/store", DIRECTORY)
        .directory(
            "nix/store/00000000000000000000000000000000-plain",
            DIRECTORY,
        )
        .file(
            "nix/store/00000000000000000000000000000000-plain/file",
            FILE,
            b"plain\n",
        )
}

/// What the image of a layer order is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Shell,
    Top,
    Python,
    Redis,
}

fn union(roots: &[&Path]) -> Vec<PathBuf> {
    let closures = roots.iter().flat_map(|root| corpus::closure(root));
    closures.collect::<BTreeSet<_>>().into_iter().collect()
}

fn order(world: &World, number: usize, parts: &[Part]) {
    let python_root = python_root();
    let redis = corpus::store_path("redis-server");
    let name = format!("docker.io/library/mixed:{number}");
    let nix = |root: &Path, entrypoint: &str| {
        let file = world.build("docker.io/library/part:1", root, entrypoint);
        Layer::last_of(&file)
    };
    let image = parts.iter().fold(Image::new(&name), |image, part| {
        image.layer(match part {
            Part::Shell => shell_layer(),
            Part::Top => top_layer(),
            Part::Python => nix(&python_root, "bin/python3.11"),
            Part::Redis => nix(&redis, "bin/redis-server"),
        })
    });
    let file = world.file("mixed");
    image.entrypoint(&["/bin/sleep", "3600"]).write(&file);
    world.containerd.load(&file, NARFS);
    let container = world.containerd.start_container(&name, NARFS, &[]);
    assert_eq!(
        container.exec_well(&["/bin/cat", "/etc/base"]),
        "base\n",
        "{parts:?}"
    );
    let at = |name: &str| parts.iter().position(|part| format!("{part:?}") == name);
    if let (Some(shell), Some(top)) = (at("Shell"), at("Top")) {
        assert_eq!(
            container.exec_well(&["/bin/cat", "/etc/top"]),
            "top\n",
            "{parts:?}"
        );
        let dropped = container
            .exec(&["/bin/cat", "/etc/dropped"])
            .status
            .success();
        assert_eq!(dropped, shell > top, "{parts:?}");
        let plain = "/nix/store/00000000000000000000000000000000-plain/file";
        assert_eq!(
            container.exec_well(&["/bin/cat", plain]),
            "plain\n",
            "{parts:?}"
        );
    }
    let mut roots: Vec<&Path> = Vec::new();
    if parts.contains(&Part::Redis) {
        let program = redis.join("bin/redis-server").display().to_string();
        let printed = container.exec_well(&[&program, "--version"]);
        assert!(printed.contains("Redis server"), "{parts:?}: {printed}");
        roots.push(&redis);
    }
    if parts.contains(&Part::Python) {
        let printed = container.exec_well(&[&python(), "-c", LOOK]);
        roots.push(&python_root);
        Status::parse(&printed).assert_shows(&union(&roots));
    }
    Status::of(&container).assert_shows(&union(&roots));
    // What is written is the container's own, in the store's directory as elsewhere.
    let store = format!("echo written > /nix/store/{number}; cat /nix/store/{number}");
    assert_eq!(
        container.exec_well(&["/bin/sh", "-c", &store]),
        "written\n",
        "{parts:?}"
    );
    container.remove();
}

#[test]
fn ordinary_and_nix_layers_go_in_any_order() {
    use Part::{Python, Redis, Shell, Top};
    let world = World::start(Version::V1_7);
    let orders: [&[Part]; 7] = [
        &[Shell, Python],
        &[Python, Shell],
        &[Shell, Python, Top],
        &[Python, Shell, Top],
        &[Top, Redis, Shell, Python],
        &[Shell, Python, Redis, Top],
        &[Redis, Python, Shell],
    ];
    for (number, parts) in orders.into_iter().enumerate() {
        order(&world, number, parts);
    }
}

#[test]
fn a_nix_image_has_an_ordinary_base() {
    let world = World::start(Version::Installed);
    let base = world.file("base");
    let image = Image::new("docker.io/library/base:1");
    image.layer(shell_layer()).layer(top_layer()).write(&base);
    let root = python_root();
    let (file, name) = (world.file("based"), "docker.io/library/based:1");
    let cache = format!("file://{}", corpus::cache("zstd").display());
    let base = base.display().to_string();
    let more = ["--from", base.as_str()];
    build(
        &cache,
        &corpus::public_key(),
        name,
        &root,
        "bin/python3.11",
        &more,
        &file,
    );
    world.containerd.load(&file, NARFS);
    let script = format!("print(open('/etc/base').read(), open('/etc/top').read()); {LOOK}");
    let printed = world
        .containerd
        .run(name, NARFS, &[&python(), "-c", &script]);
    assert!(printed.starts_with("base\n top\n"), "{printed}");
    Status::parse(&printed).assert_shows(&corpus::closure(&root));
}

#[test]
fn the_pause_image_runs() {
    let world = World::start(Version::Installed);
    let file = world.file("pause");
    pause_image().write(&file);
    world.containerd.load(&file, NARFS);
    let name = "docker.io/library/pause:1";
    let container = world.containerd.start_container(name, NARFS, &[]);
    assert!(container.runs());
    let root = container.at("/");
    assert!(root.join("busybox").exists());
    assert!(!root.join("nix").exists(), "an ordinary image has no store");
    assert!(!root.join(".nix-snapshotter").exists(), "nor a status");
    container.remove();
}

#[test]
fn store_paths_are_files_and_links_too() {
    let cache = Cache::new();
    let add = |name: &str, node: &Node| cache.add(name, node, Compression::None, Listed::Yes);
    let text = add("text", &Node::File(b"a file of its own\n".to_vec()));
    let script = format!("#!/bin/sh\ncat {}\n", text.display());
    let program = add("program", &Node::Executable(script.into_bytes()));
    let link = add("link", &Node::Link(text.display().to_string().into_bytes()));
    let inner = Node::Link(program.display().to_string().into_bytes());
    let root = add("root", &Node::Directory(vec![inner.named("run")]));
    let names = [&text, &program, &link].map(|path| parse(path));
    cache.refer(&parse(&root), names.to_vec());
    cache.refer(&parse(&program), vec![parse(&text)]);

    let host = Host::start(Version::V1_7, &cache.url(), &cache.key(), |setup| setup);
    let (base, file) = (host.file("base"), host.file("files"));
    let image = Image::new("docker.io/library/base:1");
    image.layer(shell_layer()).write(&base);
    let base = base.display().to_string();
    let name = "docker.io/library/files:1";
    let more = ["--from", base.as_str()];
    build(&cache.url(), &cache.key(), name, &root, "run", &more, &file);
    host.containerd.load(&file, NARFS);
    let printed = host.containerd.run(name, NARFS, &[]);
    assert_eq!(printed, "a file of its own\n");
    let mount = host
        .containerd
        .mount_view(&Archive::read(&file).chain_id(), NARFS);
    let at = |path: &Path| mount.at.join(path.strip_prefix("/").expect("absolute"));
    assert_eq!(
        fs::read_to_string(at(&text)).expect("read"),
        "a file of its own\n"
    );
    assert!(fs::symlink_metadata(at(&link)).expect("there").is_symlink());
    assert!(fs::symlink_metadata(at(&program)).expect("there").is_file());
}

fn parse(path: &Path) -> StorePath {
    let name = path.file_name().expect("a name").to_string_lossy();
    StorePath::parse(&name).expect("a store path")
}
