//! File systems over several layers: whatever is done in a layer, the next one and every view of it
//! show what a flat directory would be.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::{Duration, UNIX_EPOCH},
};

use rustix::fs::FileType;

use crate::{
    snapshotter::{Labels, Setup, Snapshotter},
    tree::{
        Change, Chmod, Chown, Device, Dir, Fifo, File, Link, Move, NoXattr, Remove, Stack, Symlink,
        Xattr, apply, assert_same, file, picture,
    },
};

/// Makes the layers, compares, and restarts the snapshotter before the last comparison.
fn check(layers: &[Vec<Change>]) {
    let mut snapshotter = Snapshotter::start(Setup::without_caches());
    let stack = Stack::make(&snapshotter, layers);
    snapshotter.restart();
    stack.assert_unchanged(&snapshotter);
}

#[test]
fn basic_files_of_three_layers_are_those_of_a_flat_directory() {
    check(&[
        vec![
            File("foo", b"foo\n".into(), 0o777),
            Dir("a", 0o755),
            Dir("a/b", 0o755),
            Dir("a/b/c", 0o755),
        ],
        vec![
            File("bar", b"bar\n".into(), 0o777),
            File("foo", b"bar, not foo\n".into(), 0o777),
            Remove("a/b"),
        ],
        vec![file("a/d", "d\n"), Remove("bar")],
    ]);
}

#[test]
fn layer_file_update_replaces_contents_and_modes() {
    // Three times the same size, one of them with another mode only.
    check(&[
        vec![
            Dir("etc", 0o700),
            file("etc/hosts", "mydomain 10.0.0.1"),
            file("etc/profile", "PATH=/usr/bin"),
            file("etc/untouched", "PATH=/usr/bin"),
        ],
        vec![
            file("etc/hosts", "mydomain 10.0.0.2"),
            File("etc/profile", b"PATH=/usr/bin".into(), 0o666),
            Dir("root", 0o700),
            file("root/.bashrc", "PATH=/usr/sbin:/usr/bin"),
        ],
        vec![file("etc/hosts", "mydomain 10.0.0.3")],
    ]);
}

#[test]
fn remove_directory_in_lower_layer_and_make_it_again_shows_nothing_of_the_old_one() {
    check(&[
        vec![
            Dir("lib", 0o700),
            file("lib/hidden", ""),
            Dir("lib/deep", 0o755),
            file("lib/deep/hidden", "too"),
        ],
        vec![Remove("lib"), Dir("lib", 0o750), file("lib/not-hidden", "")],
        vec![file("lib/newfile", "")],
        vec![Dir("lib/deep", 0o755), file("lib/deep/new", "")],
    ]);
}

#[test]
fn deleted_files_in_child_snapshot_stay_deleted_and_can_come_back() {
    check(&[
        vec![file("foo", "foo\n"), file("foobar", "foobar\n")],
        vec![Remove("foobar")],
        vec![],
        vec![
            Dir("foobar", 0o755),
            file("foobar/inside", "a directory now"),
        ],
        vec![Remove("foobar"), Symlink("foo", "foobar")],
    ]);
}

#[test]
fn chown_of_a_lower_layers_files_goes_with_the_upper_one() {
    check(&[
        vec![
            Dir("opt", 0o700),
            Dir("opt/a", 0o700),
            Dir("opt/a/b", 0o700),
            file("opt/a/b/file.txt", "hello"),
            Symlink("b", "opt/a/link"),
        ],
        vec![
            Chown("opt", 1, 1),
            Chown("opt/a", 1, 2),
            Chown("opt/a/b", 3, 1),
            Chown("opt/a/b/file.txt", 65_534, 100_000),
            Chown("opt/a/link", 5, 6),
        ],
    ]);
}

#[test]
fn chmod_keeps_setuid_setgid_and_sticky_bits() {
    check(&[
        vec![
            File("su", b"#!/bin/sh\n".into(), 0o4755),
            File("wall", b"#!/bin/sh\n".into(), 0o2755),
            Dir("tmp", 0o1777),
            Dir("mail", 0o2775),
            File("none", b"x".into(), 0o000),
        ],
        vec![
            Chmod("wall", 0o755),
            Chmod("none", 0o6777),
            Chmod("mail", 0o755),
            // A change of the content takes the bit away, here as there.
            File("su", b"#!/bin/bash\n".into(), 0o4711),
        ],
        vec![Chmod("tmp", 0o755), file("tmp/kept", "")],
    ]);
}

#[test]
fn directory_permission_on_commit_is_what_the_last_layer_made_it() {
    check(&[
        vec![
            Dir("dir1", 0o700),
            Dir("dir2", 0o700),
            Dir("dir3", 0o700),
            Dir("dir4", 0o700),
            file("dir4/f1", "..."),
            Dir("dir5", 0o700),
            file("dir5/f1", "..."),
            Chown("dir1", 1, 1),
            Chown("dir2", 1, 1),
            Chown("dir3", 1, 1),
            Chown("dir5", 1, 1),
            Chown("dir5/f1", 1, 1),
        ],
        vec![
            Chown("dir2", 0, 0),
            Remove("dir3"),
            Chown("dir4", 1, 1),
            Chown("dir4/f1", 1, 1),
        ],
        vec![
            Dir("dir3", 0o700),
            Chown("dir3", 1, 1),
            Remove("dir5"),
            Dir("dir5", 0o700),
            Chown("dir5", 1, 1),
        ],
    ]);
}

#[test]
fn move_file_from_lower_layer_leaves_nothing_behind() {
    check(&[
        vec![
            Dir("dir1", 0o700),
            file("dir1/f1", "Hello"),
            Dir("dir2", 0o700),
            file("dir2/f2", "..."),
        ],
        vec![
            Dir("dir3", 0o700),
            file("dir3/f1", "Hello"),
            Remove("dir1"),
            Link("dir2/f2", "dir3/f2"),
            Remove("dir2/f2"),
        ],
    ]);
}

#[test]
fn rename_of_files_over_files_and_to_new_names() {
    check(&[
        vec![
            Dir("somefiles", 0o700),
            file("somefiles/f1", "was here first!"),
            file("somefiles/f2", "nothing interesting"),
        ],
        vec![
            file("somefiles/f1-overwrite", "new content 1"),
            Move("somefiles/f1-overwrite", "somefiles/f1"),
            Move("somefiles/f2", "somefiles/f3"),
        ],
        vec![Move("somefiles/f3", "somefiles/f2")],
    ]);
}

#[test]
fn rename_of_directories_of_this_layer_and_of_a_lower_one() {
    check(&[
        vec![
            Dir("dir1", 0o750),
            Chown("dir1", 7, 8),
            file("dir1/inside", "moved along"),
            Symlink("inside", "dir1/link"),
        ],
        vec![
            Move("dir1", "dir2"),
            Dir("new", 0o700),
            file("new/f", ""),
            Move("new", "newer"),
        ],
        vec![Dir("dir1", 0o755), Move("newer", "dir1/newer")],
    ]);
}

#[test]
fn hard_links_of_a_layer_stay_links_in_the_next() {
    check(&[
        vec![
            File("one", b"linked\n".into(), 0o640),
            Dir("d", 0o755),
            Link("one", "d/two"),
            Link("one", "three"),
            file("alone", ""),
        ],
        vec![Remove("three"), Link("alone", "d/alone")],
        vec![file("other", "x")],
    ]);
}

#[test]
fn symlinks_hold_their_targets_whatever_they_are() {
    check(&[
        vec![
            Symlink("/nix/store/nothing", "absolute"),
            Symlink("../../outside", "relative"),
            Symlink("loop", "loop"),
            Dir("usr", 0o755),
            Dir("usr/bin", 0o755),
            Symlink("usr/bin", "bin"),
            file("bin/tool", "through the link"),
        ],
        vec![
            Remove("absolute"),
            Symlink("elsewhere", "absolute"),
            Remove("bin"),
            Dir("bin", 0o755),
            file("bin/tool", "a directory of its own"),
        ],
    ]);
}

#[test]
fn xattrs_and_capabilities_are_kept_and_can_be_taken_away() {
    // cap_net_raw=ep, as setcap writes it.
    const PING: &[u8] =
        b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    check(&[
        vec![
            File("ping", b"\x7fELF".into(), 0o755),
            Xattr("ping", "security.capability", PING),
            Dir("d", 0o755),
            Xattr("d", "user.note", b"a directory"),
            file("f", ""),
            Xattr("f", "user.one", b"1"),
            Xattr("f", "user.two", b"\x00\xff binary"),
            Xattr("f", "trusted.three", b"3"),
        ],
        vec![
            Xattr("f", "user.one", b"changed"),
            NoXattr("f", "user.two"),
            file("d/made", "copies the directory up"),
            Chmod("ping", 0o750),
        ],
    ]);
}

#[test]
fn device_nodes_and_pipes_are_made_and_deleted() {
    check(&[
        vec![
            Dir("dev", 0o755),
            Device("dev/null", FileType::CharacterDevice, 1, 3),
            Device("dev/loop7", FileType::BlockDevice, 7, 7),
            Fifo("dev/initctl"),
        ],
        vec![
            Chown("dev/null", 0, 5),
            Remove("dev/loop7"),
            Device("dev/zero", FileType::CharacterDevice, 1, 5),
            Remove("dev/initctl"),
        ],
    ]);
}

#[test]
fn modification_times_are_kept() {
    let snapshotter = Snapshotter::start(Setup::without_caches());
    let root = snapshotter.prepared("active", "");
    let time = UNIX_EPOCH + Duration::new(86_400, 123_456_789);
    fs::write(root.at("f"), "old").expect("written");
    let f = fs::File::options().write(true).open(root.at("f"));
    f.expect("open").set_modified(time).expect("set");
    drop(root);
    snapshotter
        .commit("layer", "active", Labels::new())
        .expect("Commit");
    let root = snapshotter.prepared("next", "layer");
    fs::set_permissions(root.at("f"), PermissionsExt::from_mode(0o600)).expect("copied up");
    let found = fs::metadata(root.at("f")).expect("there");
    assert_eq!(found.modified().expect("a time"), time);
}

/// The root directory of a snapshot without a parent can be entered by everybody.
#[test]
fn root_permission_is_0755() {
    let snapshotter = Snapshotter::start(Setup::without_caches());
    for (key, root) in [
        ("active", snapshotter.prepared("active", "")),
        ("view", snapshotter.viewed("view", "")),
    ] {
        let meta = fs::metadata(root.path()).expect("there");
        assert_eq!(meta.mode() & 0o7777, 0o755, "{key}");
        assert_eq!((meta.uid(), meta.gid()), (0, 0), "{key}");
    }
}

/// As in containerd's overlayfs snapshotter: images whose user has to own the root rely on it.
#[test]
fn the_new_root_directory_takes_over_its_parents_owner() {
    let snapshotter = Snapshotter::start(Setup::without_caches());
    let root = snapshotter.prepared("a0", "");
    apply(root.path(), &[Chown("", 1000, 2000)]);
    drop(root);
    snapshotter
        .commit("c0", "a0", Labels::new())
        .expect("Commit");
    let owner = |root: &crate::snapshotter::Root| {
        let meta = fs::metadata(root.path()).expect("there");
        (meta.uid(), meta.gid())
    };
    let root = snapshotter.prepared("a1", "c0");
    assert_eq!(owner(&root), (1000, 2000));
    drop(root);
    snapshotter
        .commit("c1", "a1", Labels::new())
        .expect("Commit");
    // Not from the bottom: from the parent, which has it in turn.
    let root = snapshotter.prepared("a2", "c1");
    apply(root.path(), &[Chown("", 5, 6)]);
    drop(root);
    snapshotter
        .commit("c2", "a2", Labels::new())
        .expect("Commit");
    assert_eq!(owner(&snapshotter.prepared("a3", "c2")), (5, 6));
    assert_eq!(owner(&snapshotter.viewed("v2", "c2")), (5, 6));
    assert_eq!(owner(&snapshotter.viewed("v0", "c0")), (1000, 2000));
}

/// As many layers as an image may have.
#[test]
fn a_hundred_and_twenty_eight_layers_can_be_mounted() {
    let snapshotter = Snapshotter::start(Setup::without_caches());
    let mut layers = vec![vec![
        File("bottom", b"way at the bottom\n".into(), 0o777),
        File("overwriteme", b"FIRST!\n".into(), 0o777),
        Dir("addhere", 0o755),
        Dir("onlyme", 0o755),
        File("onlyme/bottom", b"bye!\n".into(), 0o777),
    ]];
    for n in 1..128 {
        let leaked = |text: String| &*Box::leak(text.into_boxed_str());
        layers.push(vec![
            File("overwriteme", format!("{n} WAS HERE!\n").into(), 0o777),
            File(leaked(format!("addhere/file-{n}")), b"same\n".into(), 0o755),
            Remove("onlyme"),
            Dir("onlyme", 0o755),
            File(
                leaked(format!("onlyme/file-{n}")),
                b"only me!\n".into(),
                0o777,
            ),
        ]);
    }
    let stack = Stack::make(&snapshotter, &layers);
    assert_eq!(stack.names.len(), 128);
    let root = snapshotter.prepared("container", stack.top());
    assert_same("a container", &picture(root.path()), &stack.pictures[127]);
    assert_eq!(root.read("overwriteme"), "127 WAS HERE!\n");
    assert_eq!(
        fs::read_dir(root.at("addhere")).expect("there").count(),
        127
    );
}

#[test]
fn two_children_of_one_layer_do_not_see_each_other() {
    let snapshotter = Snapshotter::start(Setup::without_caches());
    let base = vec![file("f", "base"), Dir("d", 0o755), file("d/g", "base")];
    let stack = Stack::make(&snapshotter, &[base]);
    let one = snapshotter.prepared("one", stack.top());
    let two = snapshotter.prepared("two", stack.top());
    apply(
        one.path(),
        &[file("f", "one"), Remove("d"), file("one", "")],
    );
    assert_same("the other", &picture(two.path()), &stack.pictures[0]);
    apply(two.path(), &[file("d/g", "two")]);
    assert_eq!(
        (one.read("f"), two.read("f")),
        ("one".into(), "base".into())
    );
    assert!(!one.at("d").exists() && !two.at("one").exists());
    drop((one, two));
    stack.assert_unchanged(&snapshotter);
}
