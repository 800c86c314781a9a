//! What others make of it: the real containerd imports, unpacks and mounts it, skopeo reads it.
//! Running containers is what the tests of the snapshotter do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use rustix::mount::{UnmountFlags, unmount};

use crate::{
    archive::{Base, tar_of},
    corpus,
    rooted::architecture,
    run::{Place, until},
};

/// A containerd of its own, without anything that touches the machine. Ends with its value.
struct Containerd {
    directory: tempfile::TempDir,
    process: Child,
}

impl Containerd {
    fn start() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "containerd needs root; this test is not skipped without"
        );
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display();
        let config = format!(
            r#"version = 2
root = "{at}/root"
state = "{at}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{at}/sock"
[ttrpc]
  address = "{at}/sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{at}/opt"
"#
        );
        fs::write(directory.path().join("config.toml"), config).unwrap();
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let process = Command::new("containerd")
            .arg("--config")
            .arg(directory.path().join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd is installed by tests/setup");
        let containerd = Self { directory, process };
        until(|| containerd.ctr(&["version"]).status.success());
        containerd
    }

    fn ctr(&self, arguments: &[&str]) -> Output {
        Command::new("ctr")
            .arg("--address")
            .arg(self.directory.path().join("sock"))
            .args(arguments)
            .env_remove("CONTAINERD_SNAPSHOTTER")
            .output()
            .expect("ctr comes with containerd")
    }

    /// What it printed.
    fn well(&self, arguments: &[&str]) -> String {
        let output = self.ctr(arguments);
        let log = || fs::read_to_string(self.directory.path().join("log")).unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {output:?}\n{}",
            log()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn mountpoint(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Each fails where there is nothing to do any more.
        let _ = unmount(self.mountpoint(), UnmountFlags::DETACH);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

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

#[test]
fn containerd_imports_unpacks_and_mounts_it() {
    let (place, containerd) = (place(), Containerd::start());
    let file = place.tmp().with_file_name("image.tar");
    for name in ["python3.11", "redis-server"] {
        let root = corpus::store_path(name);
        let root = root.to_str().unwrap();
        let full = format!("docker.io/library/{name}:latest");
        let said = build(&place, &file, name, root, &["--copy-to-root", root]);
        containerd.well(&[
            "images",
            "import",
            "--snapshotter",
            "overlayfs",
            file.to_str().unwrap(),
        ]);
        let table = containerd.well(&["images", "ls", &format!("name=={full}")]);
        assert!(table.contains(said["digest"].as_str().unwrap()), "{table}");
        assert!(
            table.contains(&format!("linux/{}", architecture())),
            "{table}"
        );
        let manifest = containerd.well(&["content", "get", said["digest"].as_str().unwrap()]);
        let first = format!(
            "\"containerd.io/snapshot/nix-store-path.{}\"",
            corpus::closure(Path::new(root)).len() - 1
        );
        assert!(manifest.contains(&first), "{manifest}");
        fs::create_dir_all(containerd.mountpoint()).unwrap();
        let at = containerd.mountpoint();
        containerd.well(&[
            "images",
            "mount",
            "--snapshotter",
            "overlayfs",
            &full,
            at.to_str().unwrap(),
        ]);
        let mut found: Vec<_> = fs::read_dir(at.join("nix/store"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        found.sort();
        let mut want: Vec<_> = corpus::closure(Path::new(root))
            .iter()
            .map(|path| at.join(path.strip_prefix("/").unwrap()))
            .collect();
        want.sort();
        assert_eq!(found, want);
        for (mountpoint, path) in found.iter().zip(&want) {
            let real = Path::new("/").join(path.strip_prefix(&at).unwrap());
            assert_eq!(mountpoint.is_dir(), real.is_dir(), "{}", real.display());
        }
        let real: Vec<_> = fs::read_dir(format!("{root}/bin"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert!(!real.is_empty());
        for name in real {
            let target = fs::read_link(at.join("bin").join(&name)).unwrap();
            assert_eq!(target, Path::new(root).join("bin").join(name));
        }
        unmount(&at, UnmountFlags::empty()).unwrap();
        containerd.well(&["images", "rm", "--sync", &full]);
        containerd.ctr(&[
            "snapshots",
            "--snapshotter",
            "overlayfs",
            "rm",
            at.to_str().unwrap(),
        ]);
    }
}

#[test]
fn containerd_puts_it_on_top_of_its_base() {
    let (place, containerd) = (place(), Containerd::start());
    let file = place.tmp().with_file_name("image.tar");
    let base = place.tmp().with_file_name("base.tar");
    let layers = [tar_of(&[
        "usr/",
        "usr/bin/",
        "usr/bin/sh",
        "bin -> usr/bin",
    ])];
    let bytes = Base::new()
        .image(architecture(), serde_json::json!({}), &layers, false)
        .bytes();
    fs::write(&base, bytes).unwrap();
    let root = corpus::store_path("redis-server");
    let root = root.to_str().unwrap();
    let more = ["--from", base.to_str().unwrap(), "--copy-to-root", root];
    build(&place, &file, "based:1", root, &more);
    containerd.well(&[
        "images",
        "import",
        "--snapshotter",
        "overlayfs",
        file.to_str().unwrap(),
    ]);
    fs::create_dir_all(containerd.mountpoint()).unwrap();
    let at = containerd.mountpoint();
    let mount = [
        "images",
        "mount",
        "--snapshotter",
        "overlayfs",
        "docker.io/library/based:1",
    ];
    containerd.well(&[&mount[..], &[at.to_str().unwrap()]].concat());
    assert_eq!(fs::read_link(at.join("bin")).unwrap(), Path::new("usr/bin"));
    assert_eq!(fs::read(at.join("bin/sh")).unwrap(), b"usr/bin/sh");
    let target = fs::read_link(at.join("bin/redis-server")).unwrap();
    assert_eq!(target, Path::new(root).join("bin/redis-server"));
    assert!(at.join(&root[1..]).is_dir());
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
