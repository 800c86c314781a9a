//! Nix layers on each other and among ordinary layers, in any order.

use std::{collections::BTreeSet, fs, process::Command};

use crate::{
    cache::{Package, directory, file},
    nix::{
        Own, closure, corpus_server, mountpoints, names_of, nix_layer, over, path_labels, status,
        status_paths, store, strs, tool, unpack,
    },
    snapshotter::{Labels, Root, Snapshotter, names},
    tree::{Dir, File, Remove, Symlink, apply, file as text},
};

fn all<'p>(packages: impl IntoIterator<Item = &'p Package>) -> BTreeSet<String> {
    names_of(packages).into_iter().collect()
}

/// A layer of files.
fn ordinary(snapshotter: &Snapshotter, name: &str, parent: &str, fill: impl FnOnce(&Root)) {
    unpack(snapshotter, name, parent, Labels::new(), fill)
        .unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// What the program of [`tool`] says.
fn runs(root: &Root, package: &Package) -> String {
    let program = root.at(format!("nix/store/{}/bin/tool", package.path));
    let output = Command::new(&program).output();
    let output = output.unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// An image with `fromImage`.
#[test]
fn a_nix_layer_on_ordinary_layers_adds_its_paths_to_them() {
    let package = tool("one");
    let own = Own::with([&package]);
    let snapshotter = own.snapshotter();
    ordinary(&snapshotter, "base", "", |root| {
        apply(
            root.path(),
            &[
                Dir("etc", 0o755),
                text("etc/os-release", "ID=base\n"),
                Dir("nix", 0o700),
                text("nix/note", "of the base"),
                Dir("tmp", 0o1777),
            ],
        );
    });
    ordinary(&snapshotter, "base-2", "base", |root| {
        apply(root.path(), &[text("etc/passwd", "root\n"), Remove("tmp")]);
    });
    nix_layer(&snapshotter, "nix", "base-2", strs(&names_of([&package])));
    let root = snapshotter.prepared("container", "nix");
    assert_eq!(runs(&root, &package), "one\n");
    assert_eq!(root.read("etc/os-release"), "ID=base\n");
    assert_eq!(root.read("etc/passwd"), "root\n");
    assert_eq!(root.read("nix/note"), "of the base");
    assert!(!root.at("tmp").exists());
    assert_eq!(status_paths(&root), all([&package]));
    assert_eq!(names(root.path()), ["etc", "nix"].map(String::from).into());
}

#[test]
fn ordinary_layers_on_a_nix_layer_change_what_they_like() {
    let packages = [tool("one"), tool("two"), tool("three")];
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let names = names_of(&packages);
    nix_layer(&snapshotter, "nix", "", strs(&names));
    ordinary(&snapshotter, "files", "nix", |root| {
        apply(root.path(), &[Dir("etc", 0o755), text("etc/motd", "hi")]);
        fs::write(root.at(format!("nix/store/{}/bin/tool", names[0])), "other").expect("written");
        fs::remove_dir_all(root.at(format!("nix/store/{}", names[1]))).expect("removed");
    });
    ordinary(&snapshotter, "more", "files", |root| {
        assert_eq!(root.read("etc/motd"), "hi");
        apply(root.path(), &[File("etc/motd", b"ho".into(), 0o600)]);
    });
    let root = snapshotter.prepared("container", "more");
    assert_eq!(root.read("etc/motd"), "ho");
    assert_eq!(
        root.read(format!("nix/store/{}/bin/tool", names[0])),
        "other"
    );
    assert!(!root.at(format!("nix/store/{}", names[1])).exists());
    assert_eq!(runs(&root, &packages[2]), "three\n");
    // The layer below is as it was.
    let below = snapshotter.prepared("other", "nix");
    assert_eq!(store(&below), all(&packages));
    assert_eq!(runs(&below, &packages[0]), "one\n");
}

/// What a layer takes away a later one can bring again.
#[test]
fn a_path_removed_by_an_ordinary_layer_comes_back_with_a_later_nix_layer() {
    let packages = [tool("one"), tool("two")];
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let names = names_of(&packages);
    nix_layer(&snapshotter, "nix", "", strs(&names));
    ordinary(&snapshotter, "without", "nix", |root| {
        for name in &names {
            fs::remove_dir_all(root.at(format!("nix/store/{name}"))).expect("removed");
        }
    });
    assert_eq!(
        store(&snapshotter.prepared("between", "without")),
        BTreeSet::new()
    );
    nix_layer(&snapshotter, "again", "without", strs(&names[..1]));
    let root = snapshotter.prepared("container", "again");
    assert_eq!(store(&root), all(&packages[..1]));
    assert_eq!(runs(&root, &packages[0]), "one\n");
}

/// nix-snapshotter's images have a layer for each group of paths.
#[test]
fn several_nix_layers_show_the_union_and_so_does_the_status() {
    let packages: Vec<_> = (0..6).map(|n| tool(&format!("p{n}"))).collect();
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let names = names_of(&packages);
    // They overlap, and the last one brings nothing new.
    let groups = [&names[0..3], &names[2..5], &names[5..6], &names[0..1]];
    let mut parent = String::new();
    for (n, group) in groups.iter().enumerate() {
        let name = format!("layer-{n}");
        nix_layer(&snapshotter, &name, &parent, strs(group));
        let root = snapshotter.viewed(&format!("view-{n}"), &name);
        let until = groups[..=n].iter().copied().flatten().cloned().collect();
        assert_eq!(store(&root), until, "{name}");
        assert_eq!(status_paths(&root), until, "{name}");
        assert_eq!(status(&root, "summary")["paths"]["total"], until.len());
        parent = name;
    }
    let root = snapshotter.prepared("container", &parent);
    for (n, package) in packages.iter().enumerate() {
        assert_eq!(runs(&root, package), format!("p{n}\n"));
    }
    assert_eq!(status_paths(&root), all(&packages));
    let summary = status(&root, "summary");
    assert_eq!(summary["fetchedSize"], summary["size"], "{summary}");
}

#[test]
fn the_layers_of_an_image_in_any_order_are_one_root() {
    let packages = [tool("one"), tool("two")];
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let names = names_of(&packages);
    ordinary(&snapshotter, "0", "", |root| {
        apply(root.path(), &[text("f", "0"), text("g", "0")]);
    });
    nix_layer(&snapshotter, "1", "0", strs(&names[..1]));
    ordinary(&snapshotter, "2", "1", |root| {
        apply(root.path(), &[text("f", "2"), Dir("bin", 0o755)]);
    });
    // A Nix layer with links of its own, as copyToRoot makes them.
    let target: &'static str = format!("/nix/store/{}/bin/tool", names[1]).leak();
    let fill = |root: &Root| {
        mountpoints(strs(&names[1..]))(root);
        apply(root.path(), &[Symlink(target, "bin/tool")]);
    };
    unpack(&snapshotter, "3", "2", path_labels(strs(&names[1..])), fill).expect("a layer");
    ordinary(&snapshotter, "4", "3", |root| {
        apply(root.path(), &[Remove("g"), text("h", "4")]);
    });
    let root = snapshotter.prepared("container", "4");
    assert_eq!((root.read("f"), root.read("h")), ("2".into(), "4".into()));
    assert!(!root.at("g").exists());
    assert_eq!(store(&root), all(&packages));
    assert_eq!(status_paths(&root), all(&packages));
    assert_eq!(
        fs::read_link(root.at("bin/tool")).expect("a link").to_str(),
        Some(target)
    );
    assert_eq!(
        (runs(&root, &packages[0]), runs(&root, &packages[1])),
        ("one\n".into(), "two\n".into())
    );
    let mounts = snapshotter.mounts("container").expect("there");
    assert_eq!(mounts.len(), 1);
    assert_eq!(
        crate::snapshotter::lowers(&mounts[0]).len(),
        7,
        "five layers, two views"
    );
}

/// A base image may have been built with paths of its own in /nix/store.
#[test]
fn paths_unpacked_by_an_ordinary_layer_stand_beside_those_of_a_nix_layer() {
    let package = tool("lazy");
    let own = Own::with([&package]);
    let snapshotter = own.snapshotter();
    let unpacked = Package::new("unpacked", &directory([("f", file(""))]));
    let unpacked = unpacked.path.to_string();
    ordinary(&snapshotter, "base", "", |root| {
        let path = root.at(format!("nix/store/{unpacked}"));
        fs::create_dir_all(&path).expect("made");
        fs::write(path.join("f"), "in the tar").expect("written");
    });
    nix_layer(&snapshotter, "nix", "base", strs(&names_of([&package])));
    let root = snapshotter.prepared("container", "nix");
    assert_eq!(root.read(format!("nix/store/{unpacked}/f")), "in the tar");
    assert_eq!(runs(&root, &package), "lazy\n");
    assert_eq!(status_paths(&root), all([&package]));
}

/// As images in practice: a base of the C library and more, a layer for the program.
#[test]
fn real_closures_in_two_layers_run() {
    let server = corpus_server();
    let snapshotter = over(&server);
    let (redis, python) = (closure("redis-server"), closure("python3.11"));
    nix_layer(&snapshotter, "redis", "", strs(&redis));
    nix_layer(&snapshotter, "python", "redis", strs(&python));
    let root = snapshotter.prepared("container", "python");
    let both: BTreeSet<_> = redis.iter().chain(&python).cloned().collect();
    assert_eq!((store(&root), status_paths(&root)), (both.clone(), both));
    for (program, says) in [("redis-server", "v=7.0.15"), ("python3.11", "Python 3.11")] {
        let path = crate::corpus::store_path(program).join("bin").join(program);
        let mut chroot = Command::new("/usr/sbin/chroot");
        chroot
            .arg(root.path())
            .arg(path)
            .arg("--version")
            .env_clear();
        let output = chroot.output().expect("chroot(8) is there");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            said.contains(says),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
