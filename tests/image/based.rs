//! `--from`: an ordinary image below.

use std::{fs, path::PathBuf, process::Command};

use serde_json::json;

use crate::{
    archive::{Base, Image, gzipped, tar_of},
    containerd::architecture,
    run::{Packages, Place, Served, at, serve},
    support::cache::{Packing, key},
};

struct World<'k> {
    app: String,
    server: Served<'k>,
    place: Place,
}

impl<'k> World<'k> {
    fn new(key: &'k narfs::nix::SigningKey) -> Self {
        let packages = Packages::new();
        let server = serve(packages.cache(key, Packing::Zstd));
        let place = Place::over(key, &[&server.base()]);
        let app = at(&packages.app, "");
        Self { app, server, place }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let file = self.place.tmp().with_file_name(name);
        fs::write(&file, bytes).unwrap();
        file
    }

    fn arguments(&self, base: &str, more: &[&str]) -> Vec<String> {
        let out = self.place.tmp().with_file_name("image.tar");
        let always = [
            "image",
            "build",
            "--name",
            "x:2",
            "-o",
            out.to_str().unwrap(),
            "--from",
            base,
        ];
        let all = always
            .into_iter()
            .chain(["--closure", &self.app])
            .chain(more.iter().copied());
        all.map(String::from).collect()
    }

    fn build(&self, base: &str, more: &[&str]) -> Image {
        let arguments = self.arguments(base, more);
        self.place
            .run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
            .with(0);
        Image::read(&self.place.tmp().with_file_name("image.tar"))
    }

    fn refused(&self, bytes: &[u8], more: &[&str]) -> String {
        let base = self.file("bad.tar", bytes);
        let arguments = self.arguments(base.to_str().unwrap(), more);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let said = self.place.run(&arguments).with(1).err;
        assert!(said.contains("bad.tar"), "{said}");
        self.place.assert_clean();
        assert_eq!(self.server.requests(), [], "the base is looked at first");
        said
    }
}

fn layers() -> Vec<Vec<u8>> {
    vec![tar_of(&["bin/", "bin/sh"]), tar_of(&["etc/", "etc/passwd"])]
}

fn config() -> serde_json::Value {
    json!({
        "created": "2024-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/bin", "A=1"], "Entrypoint": ["/bin/sh"], "Cmd": ["-c", "x"], "StopSignal": "SIGINT"},
        "history": [{"created_by": "a"}, {"created_by": "b", "empty_layer": true}, {"created_by": "c"}],
    })
}

#[test]
fn the_bases_layers_lie_below_as_they_are() {
    let key = key();
    let world = World::new(&key);
    for docker in [false, true] {
        let base = Base::new().image(architecture(), config(), &layers(), docker);
        let file = world.file("base.tar", &base.bytes());
        let image = world.build(file.to_str().unwrap(), &["--env", "A=2"]);
        assert_eq!(image.layers[..2], layers());
        assert_eq!(image.layers.len(), 3);
        for layer in image.manifest.layers() {
            assert_eq!(
                layer.media_type().as_ref(),
                "application/vnd.oci.image.layer.v1.tar+gzip"
            );
        }
        let want = json!({
            "Env": ["PATH=/bin", "A=2"], "Entrypoint": ["/bin/sh"], "Cmd": ["-c", "x"], "StopSignal": "SIGINT",
        });
        assert_eq!(image.config["config"], want);
        assert_eq!(image.config.get("created"), None);
        // Packed as a whole it is the same base.
        let file = world.file("base.tar.gz", &gzipped(&base.bytes()));
        let again = world.build(file.to_str().unwrap(), &["--env", "A=2"]);
        assert_eq!(again.named.digest(), image.named.digest());
    }
}

#[test]
fn what_skopeo_and_docker_save_write_will_do() {
    let key = key();
    let world = World::new(&key);
    let base = Base::new().image(architecture(), config(), &layers(), false);
    let oci = world.file("base.tar", &base.bytes());
    let docker = world.place.tmp().with_file_name("docker.tar");
    let copied = Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy"])
        .arg(format!("oci-archive:{}", oci.display()))
        .arg(format!("docker-archive:{}:base:1", docker.display()))
        .output()
        .expect("skopeo is installed by tests/setup");
    assert!(
        copied.status.success(),
        "{}",
        String::from_utf8_lossy(&copied.stderr)
    );
    let image = world.build(docker.to_str().unwrap(), &[]);
    assert_eq!(image.layers[..2], layers());
    assert_eq!(image.config["config"]["StopSignal"], "SIGINT");
    // An image of narfs is a base too, and keeps its annotations.
    let first = world.place.tmp().with_file_name("first.tar");
    fs::rename(world.place.tmp().with_file_name("image.tar"), &first).unwrap();
    let twice = world.build(first.to_str().unwrap(), &[]);
    assert_eq!(twice.layers.len(), 4);
    let notes = |n: usize| twice.manifest.layers()[n].annotations().clone();
    assert!(notes(2).is_some() && notes(2) == notes(3) && notes(0).is_none());
}

#[test]
fn of_several_images_the_one_for_the_platform_is_taken() {
    let key = key();
    let world = World::new(&key);
    let other = tar_of(&["other"]);
    let base = Base::new()
        .image("s390x", json!({}), std::slice::from_ref(&other), false)
        .image(architecture(), json!({}), &layers(), false);
    let bytes = base.bytes();
    let file = world.file("base.tar", &bytes);
    let file = file.to_str().unwrap();
    assert_eq!(world.build(file, &[]).layers.len(), 3);
    let image = world.build(file, &["--platform", "linux/s390x"]);
    assert_eq!(image.layers[0], other);
    assert_eq!(image.config["architecture"], "s390x");
    world.server.clear();
    let said = world.refused(&bytes, &["--platform", "linux/riscv64"]);
    assert!(
        said.contains("linux/riscv64") && said.contains("linux/s390x"),
        "{said}"
    );
    // One for another machine alone is meant, unless something else is said.
    let alone = Base::new().image("s390x", json!({}), &[other], false);
    let file = world.file("alone.tar", &alone.bytes());
    let image = world.build(file.to_str().unwrap(), &[]);
    assert_eq!(image.config["architecture"], "s390x");
}

#[test]
fn a_base_that_is_none_or_damaged_is_refused() {
    let key = key();
    let world = World::new(&key);
    let whole = || Base::new().image(architecture(), config(), &layers(), false);
    let bytes = whole().bytes();
    let named = |part: &str, base: &Base| {
        let found = base
            .files
            .iter()
            .find(|(_, bytes)| String::from_utf8_lossy(bytes).contains(part));
        found.unwrap().0.clone()
    };
    let layer = |base: &Base| {
        let gz = base
            .files
            .iter()
            .find(|(_, bytes)| bytes.starts_with(&[0x1f, 0x8b]));
        gz.unwrap().0.clone()
    };
    let (mut no_layer, mut no_config, mut bad_config, mut bad_layer, mut short) =
        (whole(), whole(), whole(), whole(), whole());
    no_layer.files.remove(&layer(&whole()));
    no_config.files.remove(&named("rootfs", &whole()));
    bad_config
        .files
        .get_mut(&named("rootfs", &whole()))
        .unwrap()
        .push(b' ');
    let damaged = bad_layer.files.get_mut(&layer(&whole())).unwrap();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    short.files.get_mut(&layer(&whole())).unwrap().pop();
    let two = whole().image(architecture(), json!({}), &layers(), false);
    for (bytes, why) in [
        (b"no archive".to_vec(), "no tar archive"),
        (bytes[..bytes.len() / 2].to_vec(), "no tar archive"),
        (tar_of(&["a"]), "neither an index.json"),
        (tar_of(&["index.json"]), "cannot be understood"),
        (Base::new().bytes(), "no image"),
        (no_layer.bytes(), "is not in the archive"),
        (no_config.bytes(), "no image"),
        (bad_config.bytes(), "is damaged"),
        (short.bytes(), "bytes, not"),
        (two.bytes(), "several images"),
    ] {
        let said = world.refused(&bytes, &[]);
        assert!(said.contains(why), "{why}: {said}");
    }
    // The content of layers is looked at when it is copied; nothing is written then.
    let file = world.file("bad.tar", &bad_layer.bytes());
    let arguments = world.arguments(file.to_str().unwrap(), &[]);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let said = world.place.run(&arguments).with(1).err;
    assert!(
        said.contains("is damaged") && said.contains("export it anew"),
        "{said}"
    );
    assert!(!world.place.tmp().with_file_name("image.tar").exists());
    let left = fs::read_dir(world.place.tmp().parent().unwrap()).unwrap();
    let left: Vec<_> = left.map(|e| e.unwrap().file_name()).collect();
    assert!(
        !left
            .iter()
            .any(|name| name.to_string_lossy().contains(".narfs-image")),
        "{left:?}"
    );
}
