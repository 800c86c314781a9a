//! The mounts themselves, as containerd's overlayfs snapshotter has them, so that whatever reads
//! them (the differ's comparisons, nerdctl, debuggers) finds what it knows.

use std::{fs, io::ErrorKind, path::Path};

use narfs::snapshotter::wire::Mount;

use crate::{
    snapshotter::{Labels, Setup, Snapshotter, lowers, option},
    tree::{Stack, file},
};

fn start() -> (Snapshotter, Stack) {
    let snapshotter = Snapshotter::start(Setup::without_caches());
    let stack = Stack::make(
        &snapshotter,
        &[vec![file("f", "0"), file("g", "0")], vec![file("f", "1")]],
    );
    (snapshotter, stack)
}

fn one(mounts: Vec<Mount>) -> Mount {
    let [mount] = &mounts[..] else {
        panic!("one mount is enough: {mounts:?}")
    };
    assert_eq!(mount.target, "");
    mount.clone()
}

fn options(mount: &Mount) -> Vec<&str> {
    mount.options.iter().map(String::as_str).collect()
}

#[test]
fn without_a_parent_it_is_a_writable_bind_mount() {
    let (snapshotter, _) = start();
    let mount = one(snapshotter
        .prepare("a", "", Labels::new())
        .expect("Prepare"));
    assert_eq!(
        (&*mount.r#type, options(&mount)),
        ("bind", vec!["rw", "rbind"])
    );
    assert!(Path::new(&mount.source).starts_with(snapshotter.root()));
    let again = snapshotter.mounts("a").expect("there");
    assert_eq!(again, std::slice::from_ref(&mount));
    let root = snapshotter.mount(&again);
    fs::write(root.at("new"), "x").expect("writable");
    assert!(Path::new(&mount.source).join("new").exists());
}

#[test]
fn on_a_parent_it_is_an_overlay_with_the_layers_from_top_to_bottom() {
    let (snapshotter, stack) = start();
    let mount = one(snapshotter
        .prepare("a", stack.top(), Labels::new())
        .expect("Prepare"));
    assert_eq!((&*mount.r#type, &*mount.source), ("overlay", "overlay"));
    let [upper, lower] = &lowers(&mount)[..] else {
        panic!("two lowers: {mount:?}")
    };
    assert_eq!(fs::read_to_string(upper.join("f")).expect("there"), "1");
    assert_eq!(fs::read_to_string(lower.join("f")).expect("there"), "0");
    let upperdir = Path::new(option(&mount, "upperdir").expect("an upper"));
    let workdir = Path::new(option(&mount, "workdir").expect("a work directory"));
    assert_eq!(upperdir.parent(), workdir.parent());
    for directory in [upperdir, workdir] {
        assert_eq!(fs::read_dir(directory).expect("there").count(), 0);
    }
    assert!(!options(&mount).contains(&"ro"));
    // The same lowers stand in several mounts, which the index of overlayfs does not allow.
    let index = Path::new("/sys/module/overlay/parameters/index").exists();
    assert_eq!(options(&mount).contains(&"index=off"), index);
    assert_eq!(snapshotter.mounts("a").expect("there"), [mount]);
}

#[test]
fn a_view_of_one_layer_is_a_read_only_bind_mount_of_it() {
    let (snapshotter, stack) = start();
    let bottom = &stack.names[0];
    let mount = one(snapshotter.view("v", bottom, Labels::new()).expect("View"));
    assert_eq!(
        (&*mount.r#type, options(&mount)),
        ("bind", vec!["ro", "rbind"])
    );
    let active = one(snapshotter
        .prepare("a", bottom, Labels::new())
        .expect("Prepare"));
    assert_eq!(lowers(&active), [Path::new(&mount.source)]);
    assert_eq!(snapshotter.mounts("v").expect("there"), [mount]);
}

#[test]
fn a_view_of_several_layers_is_an_overlay_without_an_upper() {
    let (snapshotter, stack) = start();
    let mount = one(snapshotter
        .view("v", stack.top(), Labels::new())
        .expect("View"));
    assert_eq!(mount.r#type, "overlay");
    assert_eq!(
        (option(&mount, "upperdir"), option(&mount, "workdir")),
        (None, None)
    );
    assert_eq!(lowers(&mount).len(), 2);
    assert_eq!(snapshotter.mounts("v").expect("there"), [mount]);
}

/// The option alone is not enough: a real mount has to refuse.
#[test]
fn a_view_can_not_be_written_to() {
    let (snapshotter, stack) = start();
    for (key, parent) in [("v0", ""), ("v1", &*stack.names[0]), ("v2", stack.top())] {
        let root = snapshotter.viewed(key, parent);
        for refused in [
            fs::write(root.at("testfile"), "testcontent"),
            fs::create_dir(root.at("d")),
            fs::write(root.at("f"), "changed"),
            fs::remove_file(root.at("f")),
        ] {
            let error = refused.expect_err("a view can be written to");
            assert_eq!(
                error.kind(),
                ErrorKind::ReadOnlyFilesystem,
                "{key}: {error}"
            );
        }
        drop(root);
        snapshotter.remove(key).expect("a view can go");
    }
    stack.assert_unchanged(&snapshotter);
}

/// What was written is there again when a container's task starts anew.
#[test]
fn mounts_can_be_mounted_again_and_have_what_was_written() {
    let (snapshotter, stack) = start();
    let root = snapshotter.prepared("a", stack.top());
    fs::write(root.at("f"), "mine").expect("written");
    fs::remove_file(root.at("g")).expect("removed");
    drop(root);
    for _ in 0..2 {
        let root = snapshotter.mount(&snapshotter.mounts("a").expect("there"));
        assert_eq!(root.read("f"), "mine");
        assert!(!root.at("g").exists());
    }
}
