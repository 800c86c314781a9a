//! Prepare, commit, view, remove: what becomes of snapshots, and what is refused.

use std::{collections::HashSet, thread};

use narfs::snapshotter::wire::Kind;
use tonic::{Code, Status};

use crate::{
    snapshotter::{Labels, Setup, Snapshotter, labels},
    tree::{Dir, File, Stack, apply, assert_same, file, picture},
};

fn start() -> Snapshotter {
    Snapshotter::start(Setup::without_caches())
}

fn none() -> Labels {
    Labels::new()
}

/// It has to have been refused so, with these words.
fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, words: &[&str]) {
    let error = outcome.expect_err("it was not refused");
    assert_eq!(error.code(), code, "{error}");
    for word in words {
        assert!(
            error.message().contains(word),
            "{word:?} is not in: {error}"
        );
    }
}

/// A committed snapshot with nothing in it.
fn committed(snapshotter: &Snapshotter, name: &str, parent: &str) {
    let key = format!("{name}-key");
    snapshotter.prepare(&key, parent, none()).expect("Prepare");
    snapshotter.commit(name, &key, none()).expect("Commit");
}

#[test]
fn basic_life_from_prepare_to_remove() {
    let snapshotter = start();
    let first = vec![File("foo", b"foo\n".into(), 0o777), Dir("a", 0o755)];
    let root = snapshotter.prepared("/tmp/preparing", "");
    apply(root.path(), &first);
    drop(root);
    snapshotter
        .commit("committed", "/tmp/preparing", none())
        .expect("Commit");
    let stat = snapshotter.stat("committed").expect("it was committed");
    assert_eq!((stat.kind(), &*stat.parent), (Kind::Committed, ""));
    let gone = snapshotter.stat("/tmp/preparing");
    refused(gone, Code::NotFound, &["/tmp/preparing"]);

    let root = snapshotter.prepared("next", "committed");
    assert_eq!(root.read("foo"), "foo\n");
    apply(root.path(), &[file("bar", "bar\n"), file("foo", "bar\n")]);
    drop(root);
    let stat = snapshotter.stat("next").expect("it was prepared");
    assert_eq!((stat.kind(), &*stat.parent), (Kind::Active, "committed"));
    snapshotter
        .commit("committed-next", "next", none())
        .expect("Commit");
    let stat = snapshotter
        .stat("committed-next")
        .expect("it was committed");
    assert_eq!((stat.kind(), &*stat.parent), (Kind::Committed, "committed"));
    assert_eq!(snapshotter.listed(&[]), ["committed", "committed-next"]);

    let root = snapshotter.viewed("view", "committed-next");
    assert_eq!(
        (root.read("foo"), root.read("bar")),
        ("bar\n".into(), "bar\n".into())
    );
    drop(root);
    snapshotter.remove("view").expect("a view can go");
    // containerd looks for this word.
    refused(
        snapshotter.remove("committed"),
        Code::FailedPrecondition,
        &["remove", "committed"],
    );
    snapshotter
        .remove("committed-next")
        .expect("it has no children");
    snapshotter
        .remove("committed")
        .expect("nor has this one now");
    snapshotter.assert_holds_only(0, 0);
}

#[test]
fn transitivity_of_parents() {
    let snapshotter = start();
    let stack = Stack::make(
        &snapshotter,
        &[
            vec![file("foo", "foo\n")],
            vec![file("foo", "foo bar\n")],
            vec![],
        ],
    );
    let parents = stack
        .names
        .iter()
        .map(|name| snapshotter.stat(name).expect("there").parent);
    let parents: Vec<_> = parents.collect();
    assert_eq!(parents, ["", "layer-0", "layer-1"]);
    let grandparent = snapshotter.stat(&parents[2]).expect("there").parent;
    assert_eq!(grandparent, "layer-0");
    assert_eq!(snapshotter.stat(&grandparent).expect("there").parent, "");
}

#[test]
fn prepare_and_view_with_a_key_that_exists_fail() {
    let snapshotter = start();
    committed(&snapshotter, "a", "");
    snapshotter
        .prepare("active", "a", none())
        .expect("a new key");
    snapshotter.view("view", "a", none()).expect("a new key");
    for key in ["active", "view", "a"] {
        for parent in ["", "a"] {
            let again = snapshotter.prepare(key, parent, none());
            refused(again, Code::AlreadyExists, &[key]);
            refused(
                snapshotter.view(key, parent, none()),
                Code::AlreadyExists,
                &[key],
            );
        }
    }
    assert_eq!(snapshotter.listed(&[]), ["a", "active", "view"]);
    snapshotter.assert_holds_only(3, 0);
}

#[test]
fn a_parent_has_to_exist_and_to_be_committed() {
    let snapshotter = start();
    snapshotter.prepare("active", "", none()).expect("Prepare");
    snapshotter.view("view", "", none()).expect("View");
    for (parent, code) in [
        ("missing", Code::NotFound),
        ("active", Code::InvalidArgument),
        ("view", Code::InvalidArgument),
    ] {
        refused(snapshotter.prepare("new", parent, none()), code, &[parent]);
        refused(snapshotter.view("new", parent, none()), code, &[parent]);
    }
    snapshotter.assert_holds_only(2, 0);
}

#[test]
fn a_key_has_to_be_given() {
    let snapshotter = start();
    snapshotter.prepare("active", "", none()).expect("Prepare");
    refused(
        snapshotter.prepare("", "", none()),
        Code::InvalidArgument,
        &["key"],
    );
    refused(
        snapshotter.view("", "", none()),
        Code::InvalidArgument,
        &["key"],
    );
    refused(
        snapshotter.commit("", "active", none()),
        Code::InvalidArgument,
        &["name"],
    );
    refused(
        snapshotter.commit("x", "", none()),
        Code::InvalidArgument,
        &["key"],
    );
    for outcome in [
        snapshotter.mounts("").map(drop),
        snapshotter.stat("").map(drop),
        snapshotter.remove(""),
        snapshotter.usage("").map(drop),
        snapshotter.update(Default::default(), &[]).map(drop),
    ] {
        refused(outcome, Code::InvalidArgument, &[]);
    }
    snapshotter.assert_holds_only(1, 0);
}

#[test]
fn what_does_not_exist_is_not_found() {
    let snapshotter = start();
    for outcome in [
        snapshotter.mounts("missing").map(drop),
        snapshotter.stat("missing").map(drop),
        snapshotter.remove("missing"),
        snapshotter.usage("missing").map(drop),
        snapshotter.commit("name", "missing", none()),
    ] {
        refused(outcome, Code::NotFound, &["missing"]);
    }
    assert!(snapshotter.list(&[]).expect("a list").is_empty());
}

#[test]
fn commit_of_what_is_not_active_fails() {
    let snapshotter = start();
    committed(&snapshotter, "c", "");
    snapshotter.view("view", "c", none()).expect("View");
    refused(
        snapshotter.commit("x", "view", none()),
        Code::FailedPrecondition,
        &["view"],
    );
    refused(
        snapshotter.commit("x", "c", none()),
        Code::FailedPrecondition,
        &["c"],
    );
    refused(snapshotter.stat("x"), Code::NotFound, &[]);
    snapshotter.mounts("view").expect("the view is as it was");
}

#[test]
fn commit_under_a_name_that_exists_fails_and_changes_nothing() {
    let snapshotter = start();
    committed(&snapshotter, "c", "");
    let root = snapshotter.prepared("active", "c");
    apply(root.path(), &[file("f", "kept")]);
    for name in ["c", "active"] {
        let again = snapshotter.commit(name, "active", none());
        refused(again, Code::AlreadyExists, &[name]);
    }
    assert_eq!(
        snapshotter.stat("active").expect("there").kind(),
        Kind::Active
    );
    drop(root);
    let root = snapshotter.mount(&snapshotter.mounts("active").expect("as before"));
    assert_eq!(root.read("f"), "kept");
}

#[test]
fn committed_snapshots_have_no_mounts() {
    let snapshotter = start();
    committed(&snapshotter, "c", "");
    refused(
        snapshotter.mounts("c"),
        Code::FailedPrecondition,
        &["c", "committed"],
    );
}

/// containerd unmounts before it commits, but does not wait for everyone; and `nerdctl commit`
/// commits what a container is writing to, once.
#[test]
fn commit_while_it_is_mounted_keeps_what_was_written() {
    let snapshotter = start();
    let root = snapshotter.prepared("active", "");
    apply(root.path(), &[file("before", "1")]);
    snapshotter.commit("c", "active", none()).expect("Commit");
    drop(root);
    assert_eq!(snapshotter.viewed("v", "c").read("before"), "1");
}

#[test]
fn remove_frees_the_key_for_another_kind_of_snapshot() {
    let snapshotter = start();
    committed(&snapshotter, "committed-1", "");
    let root = snapshotter.prepared("reuse-1", "committed-1");
    apply(root.path(), &[file("f", "of the first one")]);
    drop(root);
    snapshotter.remove("reuse-1").expect("an active one can go");
    let root = snapshotter.viewed("reuse-1", "committed-1");
    assert!(!root.at("f").exists(), "the first one's file");
    drop(root);
    snapshotter.remove("reuse-1").expect("a view can go");
    let root = snapshotter.prepared("reuse-1", "");
    assert!(!root.at("f").exists(), "the first one's file");
    drop(root);
    snapshotter
        .remove("committed-1")
        .expect("it has no children");
    snapshotter
        .commit("committed-1", "reuse-1", none())
        .expect("the name is free");
    assert_eq!(snapshotter.listed(&[]), ["committed-1"]);
    snapshotter.assert_holds_only(1, 0);
}

#[test]
fn remove_intermediate_snapshot_fails_until_its_children_are_gone() {
    let snapshotter = start();
    committed(&snapshotter, "base", "");
    committed(&snapshotter, "inter", "base");
    snapshotter
        .prepare("top", "inter", none())
        .expect("Prepare");
    snapshotter.view("look", "inter", none()).expect("View");
    let fail = |key| {
        refused(
            snapshotter.remove(key),
            Code::FailedPrecondition,
            &[key, "remove"],
        )
    };
    fail("inter");
    fail("base");
    snapshotter.remove("top").expect("it has no children");
    fail("inter");
    snapshotter.remove("look").expect("it has no children");
    snapshotter.remove("inter").expect("they are gone");
    snapshotter.remove("base").expect("they are gone");
    snapshotter.assert_holds_only(0, 0);
}

/// containerd writes its own metadata first and may ask again for what was done.
#[test]
fn remove_twice_is_not_found() {
    let snapshotter = start();
    committed(&snapshotter, "c", "");
    snapshotter.remove("c").expect("it is there");
    refused(snapshotter.remove("c"), Code::NotFound, &["c"]);
}

/// A container may be removed before its mount is gone.
#[test]
fn remove_of_a_mounted_snapshot_leaves_the_mount_to_its_users() {
    let snapshotter = start();
    let stack = Stack::make(&snapshotter, &[vec![file("f", "base")]]);
    let root = snapshotter.prepared("container", stack.top());
    snapshotter
        .remove("container")
        .expect("nothing has it as its parent");
    assert_eq!(root.read("f"), "base");
    drop(root);
    snapshotter.assert_holds_only(1, 0);
    stack.assert_unchanged(&snapshotter);
}

#[test]
fn one_of_many_who_prepare_the_same_key_gets_it() {
    let snapshotter = start();
    committed(&snapshotter, "base", "");
    let outcomes: Vec<_> = thread::scope(|scope| {
        let tries = (0..40).map(|n| {
            let snapshotter = &snapshotter;
            scope.spawn(move || match n % 4 {
                0 => snapshotter.view("key", "base", none()),
                _ => snapshotter.prepare("key", "base", none()),
            })
        });
        let tries: Vec<_> = tries.collect();
        tries
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for outcome in lost {
        refused(outcome, Code::AlreadyExists, &["key"]);
    }
    assert_eq!(
        snapshotter.mounts("key").expect("its mounts"),
        won[0].clone().expect("ok")
    );
    snapshotter.assert_holds_only(2, 0);
}

#[test]
fn many_who_prepare_keys_of_their_own_get_directories_of_their_own() {
    let snapshotter = start();
    let stack = Stack::make(&snapshotter, &[vec![file("f", "base")]]);
    let uppers: HashSet<_> = thread::scope(|scope| {
        let (snapshotter, top) = (&snapshotter, stack.top());
        let tries = (0..50).map(|n| {
            scope.spawn(move || {
                let root = snapshotter.prepared(&format!("key-{n}"), top);
                std::fs::write(root.at("f"), format!("{n}")).expect("written");
                drop(root);
                let key = format!("key-{n}");
                let mounts = snapshotter.mounts(&key).expect("it is there");
                let root = snapshotter.mount(&mounts);
                assert_eq!(root.read("f"), format!("{n}"));
                drop(root);
                snapshotter
                    .commit(&format!("layer-of-{n}"), &key, none())
                    .expect("Commit");
                crate::snapshotter::option(&mounts[0], "upperdir")
                    .expect("an upper")
                    .to_owned()
            })
        });
        let tries: Vec<_> = tries.collect();
        tries
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .collect()
    });
    assert_eq!(uppers.len(), 50);
    stack.assert_unchanged(&snapshotter);
    assert_eq!(snapshotter.listed(&["parent==layer-0"]).len(), 50);
}

/// containerd puts the namespace into the key and tells it besides.
#[test]
fn snapshots_of_one_name_in_keys_of_two_namespaces_are_two() {
    let snapshotter = start();
    let keys = ["default/1/sha256:abc", "k8s.io/2/sha256:abc"];
    for key in keys {
        snapshotter.in_namespace(key.split('/').next().expect("a namespace"));
        let active = format!("{key} extract-1");
        let root = snapshotter.prepared(&active, "");
        apply(root.path(), &[file("whose", key)]);
        drop(root);
        snapshotter.commit(key, &active, none()).expect("Commit");
    }
    for key in keys {
        let view = snapshotter.viewed(&format!("{key} view"), key);
        assert_eq!(view.read("whose"), key);
        drop(view);
        snapshotter.remove(&format!("{key} view")).expect("Remove");
    }
    assert_eq!(snapshotter.listed(&[]), keys);
    snapshotter.remove(keys[0]).expect("Remove");
    assert_eq!(snapshotter.listed(&[]), keys[1..]);
}

#[test]
fn close_and_open_again_keeps_everything() {
    let mut snapshotter = start();
    let layers = [
        vec![file("f", "1"), Dir("d", 0o700)],
        vec![file("d/g", "2")],
    ];
    let stack = Stack::make(&snapshotter, &layers);
    let root = snapshotter.prepared("active", stack.top());
    apply(root.path(), &[file("written", "before the restart")]);
    let wanted = picture(root.path());
    drop(root);
    snapshotter
        .view("view", stack.top(), labels([("l", "v")]))
        .expect("View");
    let list = |snapshotter: &Snapshotter| {
        let mut all = snapshotter.list(&[]).expect("a list");
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    };
    let before = list(&snapshotter);
    let mounts = snapshotter.mounts("active").expect("there");
    for kill in [false, true, false] {
        match kill {
            true => snapshotter.kill(),
            false => snapshotter.stop(),
        }
        snapshotter.start_again();
        assert_eq!(list(&snapshotter), before);
        assert_eq!(snapshotter.mounts("active").expect("there"), mounts);
    }
    assert_same(
        "active",
        &picture(snapshotter.mount(&mounts).path()),
        &wanted,
    );
    stack.assert_unchanged(&snapshotter);
    // And new ones do not take the place of old ones.
    let new = snapshotter.prepared("new", stack.top());
    assert!(!new.at("written").exists());
    drop(new);
    assert_same(
        "active",
        &picture(snapshotter.mount(&mounts).path()),
        &wanted,
    );
}
