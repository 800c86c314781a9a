//! What others make of it: real containerds import, unpack and mount it, skopeo reads it. Running
//! containers is what the tests of the snapshotter do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    archive::{Base, Image, digest, tar_of},
    containerd::{Containerd, Setup, Version, architecture},
    corpus,
    mounted::run as text_of,
    run::Place,
};

/// A snapshotter that unpacks what there is: mountpoints.
const OVERLAYFS: &str = "overlayfs";

fn place() -> Place {
    let mut place = Place::bare();
    place.flag("--trusted-key", &corpus::public_key());
    place.flag(
        "--cache",
        &format!("file://{}", corpus::cache("zstd").display()),
    );
    place
}

fn build(place: &Place, file: &Path, name: &str, root: &str, more: &[&str]) -> serde_json::Value {
    let arguments = [
        "image",
        "build",
        "--json",
        "--name",
        name,
        "--closure",
        root,
        "-o",
        file.to_str().unwrap(),
    ];
    place.run(&[&arguments[..], more].concat()).with(0).json()
}

/// What containerd calls the snapshot of all layers (OCI image specification, "Layer ChainID").
fn chain_id(archive: &Path) -> String {
    let image = Image::read(archive);
    let ids = image.layers.iter().map(|tar| digest(tar));
    let chained = ids.reduce(|below, layer| digest(format!("{below} {layer}").as_bytes()));
    chained.unwrap()
}

/// A directory's entries, in order.
fn list(directory: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let mut paths: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

fn imported(version: Version) {
    let place = place();
    let containerd = Containerd::start(&Setup::new(version));
    let file = place.tmp().with_file_name("image.tar");
    for name in ["python3.11", "redis-server"] {
        let root = corpus::store_path(name);
        let root = root.to_str().unwrap();
        let full = format!("docker.io/library/{name}:latest");
        let said = build(&place, &file, name, root, &["--copy-to-root", root]);
        containerd.load(&file, OVERLAYFS);
        let digest = said["digest"].as_str().unwrap();
        let table = text_of(containerd.ctr(&["images", "ls", &format!("name=={full}")]));
        assert!(table.contains(digest), "{table}");
        assert!(
            table.contains(&format!("linux/{}", architecture())),
            "{table}"
        );
        let closure = corpus::closure(Path::new(root));
        let manifest = text_of(containerd.ctr(&["content", "get", digest]));
        let last = format!(
            "\"containerd.io/snapshot/nix-store-path.{}\"",
            closure.len() - 1
        );
        assert!(manifest.contains(&last), "{manifest}");
        let mount = containerd.mount_view(&chain_id(&file), OVERLAYFS);
        let mut want: Vec<_> = closure
            .iter()
            .map(|path| mount.at.join(path.strip_prefix("/").unwrap()))
            .collect();
        want.sort();
        let found = list(mount.at.join("nix/store"));
        assert_eq!(found, want);
        for mountpoint in found {
            let real = Path::new("/").join(mountpoint.strip_prefix(&mount.at).unwrap());
            assert_eq!(mountpoint.is_dir(), real.is_dir(), "{}", real.display());
        }
        let programs = list(format!("{root}/bin"));
        assert!(!programs.is_empty());
        for program in programs {
            let link = mount.at.join("bin").join(program.file_name().unwrap());
            assert_eq!(fs::read_link(link).unwrap(), program);
        }
    }
}

#[test]
fn containerd_1_6_imports_unpacks_and_mounts_it() {
    imported(Version::Installed);
}

#[test]
fn containerd_1_7_imports_unpacks_and_mounts_it() {
    imported(Version::V1_7);
}

#[test]
fn containerd_2_imports_unpacks_and_mounts_it() {
    imported(Version::V2);
}

#[test]
fn containerd_puts_it_on_top_of_its_base() {
    let place = place();
    let file = place.tmp().with_file_name("image.tar");
    let base = place.tmp().with_file_name("base.tar");
    let layers = [tar_of(&[
        "usr/",
        "usr/bin/",
        "usr/bin/sh",
        "bin -> usr/bin",
    ])];
    let image = Base::new().image(architecture(), serde_json::json!({}), &layers, false);
    fs::write(&base, image.bytes()).unwrap();
    let root = corpus::store_path("redis-server");
    let root = root.to_str().unwrap();
    let more = ["--from", base.to_str().unwrap(), "--copy-to-root", root];
    build(&place, &file, "based:1", root, &more);
    for version in Version::ALL {
        let containerd = Containerd::start(&Setup::new(version));
        containerd.load(&file, OVERLAYFS);
        let mount = containerd.mount_view(&chain_id(&file), OVERLAYFS);
        let at = |path: &str| mount.at.join(path);
        assert_eq!(fs::read_link(at("bin")).unwrap(), Path::new("usr/bin"));
        assert_eq!(fs::read(at("bin/sh")).unwrap(), b"usr/bin/sh");
        let target = fs::read_link(at("bin/redis-server")).unwrap();
        assert_eq!(target, Path::new(root).join("bin/redis-server"));
        assert!(at(&root[1..]).is_dir());
    }
}

#[test]
fn skopeo_reads_it_in_both_formats() {
    let place = place();
    let file = place.tmp().with_file_name("image.tar");
    let root = corpus::store_path("redis-server");
    let root = root.to_str().unwrap();
    let program = format!("{root}/bin/redis-server");
    let said = build(&place, &file, "redis:7", root, &["--entrypoint", &program]);
    let inspect = |format: &str, more: &[&str]| -> serde_json::Value {
        let output = Command::new("skopeo")
            .arg("inspect")
            .args(more)
            .arg(format!("{format}:{}", file.display()))
            .output()
            .expect("skopeo is installed by tests/setup");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let seen = inspect("oci-archive", &[]);
    assert_eq!(seen["Digest"], said["digest"]);
    assert_eq!(seen["Architecture"], architecture());
    assert_eq!(seen["Layers"].as_array().unwrap().len(), 1);
    let config = inspect("docker-archive", &["--config"]);
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!([program]));
    // A copy in another form has the annotations still.
    let copy = place.tmp().with_file_name("copy");
    let copied = Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy"])
        .arg(format!("oci-archive:{}", file.display()))
        .arg(format!("oci:{}:7", copy.display()))
        .output()
        .unwrap();
    assert!(copied.status.success(), "{copied:?}");
    let raw = said["digest"].as_str().unwrap().replace(':', "/");
    let manifest = fs::read_to_string(copy.join("blobs").join(raw)).unwrap();
    assert!(
        manifest.contains("containerd.io/snapshot/nix-store-path.0"),
        "{manifest}"
    );
}
