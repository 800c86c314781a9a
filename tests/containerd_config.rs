//! `narfs containerd-config`, and the files of `deploy/`: they say the same, and the real containerd
//! understands them as it is meant.

#[path = "support/corpus.rs"]
mod corpus;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name)
}

fn narfs(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_narfs"))
        .args(["--config", "/dev/null", "containerd-config"])
        .args(arguments)
        .output()
        .unwrap()
}

fn printed(arguments: &[&str]) -> String {
    let output = narfs(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A main configuration with a drop-in, as containerd sees them together.
fn in_effect(containerd: &Path, main: &str, drop_in: &str) -> toml::Table {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("conf.d")).unwrap();
    fs::write(at("conf.d/narfs.toml"), drop_in).unwrap();
    let import = format!("imports = [\"{}/*.toml\"]", at("conf.d").display());
    fs::write(at("config.toml"), main.replace("IMPORTS", &import)).unwrap();
    let output = Command::new(containerd)
        .arg("--config")
        .arg(at("config.toml"))
        .args(["config", "dump"])
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}: run tests/setup", containerd.display()));
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

/// The one of the machine's distribution: 1.6 in Debian 12.
fn installed() -> &'static Path {
    Path::new("containerd")
}

/// Another one, which `tests/setup` unpacks.
fn unpacked(version: &str) -> PathBuf {
    corpus::directory().join(format!("containerd-{version}/containerd"))
}

/// For whom the transfer service unpacks.
fn unpacks_for(config: &toml::Table) -> Vec<&str> {
    let service = &config["plugins"]["io.containerd.transfer.v1.local"];
    let list = service["unpack_config"].as_array().unwrap();
    list.iter()
        .filter_map(|entry| entry["snapshotter"].as_str())
        .collect()
}

#[test]
fn the_files_for_packagers_are_what_is_printed() {
    for version in ["1", "2"] {
        let name = format!("containerd/narfs-{version}.x.toml");
        let have = fs::read_to_string(file(&name)).unwrap();
        let want = printed(&["--version", version, "--main", "/none"]);
        assert!(
            have == want,
            "write the output of narfs containerd-config --version {version} to deploy/{name}"
        );
    }
}

#[test]
fn the_installed_version_is_found() {
    let output = Command::new("containerd").arg("--version").output();
    let text = String::from_utf8(output.expect("tests/setup installs it").stdout).unwrap();
    let major = match text
        .split_whitespace()
        .nth(2)
        .unwrap()
        .trim_start_matches('v')
        .starts_with("1.")
    {
        true => "1",
        false => "2",
    };
    let found = printed(&["--main", "/none"]);
    assert_eq!(found, printed(&["--version", major, "--main", "/none"]));
    let mut without = Command::new(env!("CARGO_BIN_EXE_narfs"));
    without
        .args(["--config", "/dev/null", "containerd-config"])
        .env("PATH", "/none");
    let output = without.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("--version 2"), "{said}");
}

#[test]
fn containerd_1_takes_the_drop_in_and_loses_nothing() {
    let main = "version = 2\nIMPORTS\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"own/pause:1\"\n";
    let drop_in = printed(&[
        "--version",
        "1",
        "--address",
        "/run/a b.sock",
        "--root",
        "/srv/narfs",
    ]);
    let config = in_effect(installed(), main, &drop_in);
    let narfs = &config["proxy_plugins"]["narfs"];
    assert_eq!(narfs["type"].as_str(), Some("snapshot"));
    assert_eq!(narfs["address"].as_str(), Some("/run/a b.sock"));
    let cri = &config["plugins"]["io.containerd.grpc.v1.cri"];
    assert_eq!(cri["sandbox_image"].as_str(), Some("own/pause:1"));
    // With --cri it takes the section's place, which is why that is not what is printed at first.
    let config = in_effect(installed(), main, &printed(&["--version", "1", "--cri"]));
    let cri = &config["plugins"]["io.containerd.grpc.v1.cri"];
    assert_eq!(cri["containerd"]["snapshotter"].as_str(), Some("narfs"));
    assert_eq!(
        cri["containerd"]["disable_snapshot_annotations"].as_bool(),
        Some(false)
    );
    assert_ne!(cri["sandbox_image"].as_str(), Some("own/pause:1"));
}

#[test]
fn containerd_1_7_knows_the_exports_and_unpacks_for_both() {
    let main = "version = 2\nIMPORTS\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"own/pause:1\"\n";
    let config = in_effect(&unpacked("1.7"), main, &printed(&["--version", "1.7"]));
    let exports = &config["proxy_plugins"]["narfs"]["exports"];
    assert_eq!(exports["root"].as_str(), Some("/var/lib/narfs"));
    assert_eq!(
        exports["enable_remote_snapshot_annotations"].as_str(),
        Some("true")
    );
    assert_eq!(unpacks_for(&config), ["narfs", "overlayfs"]);
    let cri = &config["plugins"]["io.containerd.grpc.v1.cri"];
    assert_eq!(cri["sandbox_image"].as_str(), Some("own/pause:1"));
}

#[test]
fn containerd_2_takes_the_drop_in_with_cri_and_loses_nothing() {
    let main = "version = 3\nIMPORTS\n\
        [plugins.\"io.containerd.cri.v1.images\"]\nmax_concurrent_downloads = 17\n\
        [plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"own/pause:1\"\n\
        [plugins.\"io.containerd.cri.v1.runtime\".containerd]\ndefault_runtime_name = \"own\"\n";
    let drop_in = printed(&["--version", "2"]);
    let config = in_effect(&unpacked("2"), main, &drop_in);
    let images = &config["plugins"]["io.containerd.cri.v1.images"];
    assert_eq!(images["snapshotter"].as_str(), Some("narfs"));
    assert_eq!(
        images["disable_snapshot_annotations"].as_bool(),
        Some(false)
    );
    assert_eq!(images["max_concurrent_downloads"].as_integer(), Some(17));
    assert_eq!(
        images["pinned_images"]["sandbox"].as_str(),
        Some("own/pause:1")
    );
    let runtime = &config["plugins"]["io.containerd.cri.v1.runtime"]["containerd"];
    assert_eq!(runtime["default_runtime_name"].as_str(), Some("own"));
    let exports = &config["proxy_plugins"]["narfs"]["exports"];
    assert_eq!(exports["root"].as_str(), Some("/var/lib/narfs"));
    assert_eq!(unpacks_for(&config), ["narfs", "overlayfs"]);
    // What the note about files of version 2 is for.
    let old = "version = 2\nIMPORTS\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"own/pause:1\"\n";
    let config = in_effect(&unpacked("2"), old, &drop_in);
    let images = &config["plugins"]["io.containerd.cri.v1.images"];
    assert_ne!(
        images["pinned_images"]["sandbox"].as_str(),
        Some("own/pause:1")
    );
}

#[test]
fn what_stands_in_the_way_is_said_beside_the_output() {
    let directory = tempfile::tempdir().unwrap();
    let main = directory.path().join("config.toml");
    fs::write(
        &main,
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n",
    )
    .unwrap();
    let shown = main.to_str().unwrap();
    let output = narfs(&["--version", "1", "--cri", "--main", shown]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("imports nothing") && said.contains("would be lost"),
        "{said}"
    );
    assert!(said.contains(shown));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        printed(&["--version", "1", "--cri", "--main", "/none"])
    );
}

#[test]
fn systemd_understands_the_unit() {
    let directory = tempfile::tempdir().unwrap();
    let unit = fs::read_to_string(file("systemd/narfs-snapshotter.service")).unwrap();
    let place = "/usr/local/bin/narfs ";
    assert!(unit.contains(&format!("ExecStart={place}snapshotter ")));
    // Where it is now; that the program is there belongs to what is looked at.
    let here = unit.replace(place, &format!("{} ", env!("CARGO_BIN_EXE_narfs")));
    let path = directory.path().join("narfs-snapshotter.service");
    fs::write(&path, here).unwrap();
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&path)
        .output()
        .expect("systemd-analyze is installed by tests/setup");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// Whatever gives a service a mount namespace keeps its mounts from containerd (systemd.exec(5),
/// "Sandboxing").
#[test]
fn the_units_mounts_reach_everybody() {
    const OWN_NAMESPACE: [&str; 27] = [
        "PrivateTmp",
        "PrivateDevices",
        "PrivateMounts",
        "PrivateUsers",
        "ProtectSystem",
        "ProtectHome",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectProc",
        "ProcSubset",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "InaccessiblePaths",
        "ExecPaths",
        "NoExecPaths",
        "TemporaryFileSystem",
        "BindPaths",
        "BindReadOnlyPaths",
        "RootDirectory",
        "RootImage",
        "MountImages",
        "ExtensionImages",
        "MountFlags",
        "MountAPIVFS",
        "DynamicUser",
    ];
    let unit = fs::read_to_string(file("systemd/narfs-snapshotter.service")).unwrap();
    let keys: Vec<&str> = unit
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    let bad: Vec<_> = keys
        .iter()
        .filter(|key| OWN_NAMESPACE.contains(key))
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
    for key in [
        "Type",
        "KillMode",
        "Restart",
        "Before",
        "CapabilityBoundingSet",
    ] {
        assert!(keys.contains(&key), "{key} is missing");
    }
}
