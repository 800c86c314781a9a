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
    status::{LOOK, Status},
    synthetic::{Cache, Listed, Node},
    world::{Host, NARFS, World, build, python, python_root},
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

/// A small closure: a script, a file that it shows, a link, and a directory that refers to all.
struct Small {
    cache: Cache,
    text: PathBuf,
    program: PathBuf,
    link: PathBuf,
    root: PathBuf,
}

impl Small {
    fn new() -> Self {
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
        Self {
            cache,
            text,
            program,
            link,
            root,
        }
    }

    /// What Nix's `closureInfo` makes of it.
    fn closure_info(&self) -> PathBuf {
        let paths = [&self.text, &self.program, &self.link, &self.root];
        let lines: String = paths
            .iter()
            .map(|path| format!("{}\n", path.display()))
            .collect();
        let list = Node::File(lines.into_bytes()).named("store-paths");
        let tree = Node::Directory(vec![list]);
        let info = self
            .cache
            .add("closure-info", &tree, Compression::None, Listed::Yes);
        self.cache
            .refer(&parse(&info), paths.map(|path| parse(path)).to_vec());
        info
    }

    /// The image of it on top of a shell, loaded; its file.
    fn load(&self, host: &Host, name: &str, more: &[&str]) -> PathBuf {
        let (base, file) = (host.file("base"), host.file("small"));
        let image = Image::new("docker.io/library/base:1");
        image.layer(shell_layer()).write(&base);
        let base = base.display().to_string();
        let more = [&["--from", base.as_str()], more].concat();
        let (url, key) = (self.cache.url(), self.cache.key());
        build(&url, &key, name, &self.root, "run", &more, &file);
        host.containerd.load(&file, NARFS);
        file
    }

    fn host(&self, version: Version) -> Host {
        Host::start(version, &self.cache.url(), &self.cache.key(), |setup| setup)
    }
}

#[test]
fn store_paths_are_files_and_links_too() {
    let small = Small::new();
    let host = small.host(Version::V1_7);
    let name = "docker.io/library/small:1";
    let file = small.load(&host, name, &[]);
    assert_eq!(host.containerd.run(name, NARFS, &[]), "a file of its own\n");
    let mount = host
        .containerd
        .mount_view(&Archive::read(&file).chain_id(), NARFS);
    let at = |path: &Path| mount.at.join(path.strip_prefix("/").expect("absolute"));
    let text = fs::read_to_string(at(&small.text)).expect("read");
    assert_eq!(text, "a file of its own\n");
    let kind = |path: &Path| fs::symlink_metadata(at(path)).expect("there").file_type();
    assert!(kind(&small.link).is_symlink());
    assert!(kind(&small.program).is_file());
    assert!(kind(&small.root).is_dir());
}

fn closure_info(version: Version) {
    let small = Small::new();
    let info = small.closure_info().display().to_string();
    let host = small.host(version);
    let name = "docker.io/library/info:1";
    let more = ["--closure-info", info.as_str(), "--scheme", "closure"];
    let file = small.load(&host, name, &more);
    let archive = Archive::read(&file);
    let layer = archive.layers().pop().expect("a layer");
    let annotations = layer["annotations"].to_string();
    assert!(
        annotations.contains("containerd.io/snapshot/nix-closure"),
        "{annotations}"
    );
    assert!(!annotations.contains("nix-store-path"), "{annotations}");
    assert_eq!(host.containerd.run(name, NARFS, &[]), "a file of its own\n");
    let container = host
        .containerd
        .start_container(name, NARFS, &["/bin/sleep", "3600"]);
    let paths = [&small.text, &small.program, &small.link, &small.root];
    Status::of(&container).assert_shows_at_least(&paths.map(Clone::clone));
}

#[test]
fn an_image_that_names_a_closure_info_runs() {
    closure_info(Version::V1_7);
}

#[test]
fn an_image_that_names_a_closure_info_runs_where_annotations_are_lost() {
    closure_info(Version::Installed);
}

fn parse(path: &Path) -> StorePath {
    let name = path.file_name().expect("a name").to_string_lossy();
    StorePath::parse(&name).expect("a store path")
}
