//! What the snapshotter knows of its snapshots: stat, list, update, usage; and cleanup.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, SystemTime},
};

use narfs::snapshotter::wire::{Info, Kind, Timestamp};
use tonic::Code;

use crate::{
    snapshotter::{Labels, PATIENCE, Setup, Snapshotter, labels},
    tree::{Dir, File, Link, Remove, Symlink, apply, file},
};

fn start() -> Snapshotter {
    Snapshotter::start(Setup::without_caches())
}

fn none() -> Labels {
    Labels::new()
}

fn time(stamp: Option<Timestamp>) -> SystemTime {
    let stamp = stamp.expect("every snapshot has its times");
    let (seconds, nanos) = (stamp.seconds as u64, stamp.nanos as u32);
    SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)
}

/// Two committed ones, two active ones, two views: with and without a parent.
const BASE: [(&str, Kind, &str); 6] = [
    ("c1", Kind::Committed, ""),
    ("c2", Kind::Committed, "c1"),
    ("a1", Kind::Active, "c2"),
    ("a2", Kind::Active, ""),
    ("v1", Kind::View, "c2"),
    ("v2", Kind::View, ""),
];

fn make_base(snapshotter: &Snapshotter) {
    let root = || labels([("containerd.io/gc.root", "now")]);
    for (name, kind, parent) in BASE {
        match kind {
            Kind::Committed => {
                let key = format!("{name}-a");
                snapshotter.prepare(&key, parent, root()).expect("Prepare");
                snapshotter.commit(name, &key, root()).expect("Commit");
            }
            Kind::View => drop(snapshotter.view(name, parent, root()).expect("View")),
            _ => drop(snapshotter.prepare(name, parent, root()).expect("Prepare")),
        }
    }
}

#[test]
fn stat_active_says_what_was_prepared() {
    let snapshotter = start();
    let given = labels([
        ("containerd.io/gc.root", "2026"),
        ("a/b.c", "with, \"signs\"="),
    ]);
    let mounts = snapshotter
        .prepare("preparing", "", given.clone())
        .expect("Prepare");
    fs::write(snapshotter.mount(&mounts).at("foo"), "foo\n").expect("written");
    let stat = snapshotter.stat("preparing").expect("there");
    assert_eq!(stat.name, "preparing");
    assert_eq!((stat.kind(), &*stat.parent), (Kind::Active, ""));
    assert_eq!(stat.labels, given);
}

#[test]
fn stat_committed_says_what_was_committed() {
    let snapshotter = start();
    let root = snapshotter.prepared("preparing", "");
    fs::write(root.at("foo"), "foo\n").expect("written");
    snapshotter
        .commit("committed", "preparing", none())
        .expect("Commit");
    let stat = snapshotter.stat("committed").expect("there");
    assert_eq!(stat.name, "committed");
    assert_eq!((stat.kind(), &*stat.parent), (Kind::Committed, ""));
}

#[test]
fn stat_in_walk_says_the_same_as_the_walk() {
    let snapshotter = start();
    make_base(&snapshotter);
    let all = snapshotter.list(&[]).expect("a list");
    assert_eq!(all.len(), BASE.len());
    for info in all {
        assert_eq!(snapshotter.stat(&info.name).expect("there"), info);
    }
}

#[test]
fn labels_of_a_commit_are_those_given_with_it() {
    let snapshotter = start();
    let (of_active, of_committed) = (
        labels([
            ("containerd.io/snapshot.ref", "sha256:x"),
            ("only", "active"),
        ]),
        labels([
            ("containerd.io/snapshot.ref", "sha256:x"),
            ("only", "committed"),
            ("more", "1"),
        ]),
    );
    snapshotter.prepare("key", "", of_active).expect("Prepare");
    snapshotter
        .commit("name", "key", of_committed.clone())
        .expect("Commit");
    assert_eq!(
        snapshotter.stat("name").expect("there").labels,
        of_committed
    );
    let by_label = [r#"labels."containerd.io/snapshot.ref"=="sha256:x",parent=="""#];
    assert_eq!(snapshotter.listed(&by_label), ["name"]);
    // What the active one alone had is not inherited.
    snapshotter
        .prepare("key", "", labels([("a", "b")]))
        .expect("Prepare");
    snapshotter.commit("bare", "key", none()).expect("Commit");
    assert_eq!(snapshotter.stat("bare").expect("there").labels, none());
}

#[test]
fn times_are_those_of_making_committing_and_updating() {
    let snapshotter = start();
    let begun = SystemTime::now();
    make_base(&snapshotter);
    let ended = SystemTime::now();
    for (name, ..) in BASE {
        let stat = snapshotter.stat(name).expect("there");
        let created = time(stat.created_at);
        assert!(begun <= created && created <= ended, "{name}: {created:?}");
        assert_eq!(stat.created_at, stat.updated_at, "{name}");
    }
    // A committed snapshot begins when it is committed.
    snapshotter.prepare("key", "", none()).expect("Prepare");
    let prepared = time(snapshotter.stat("key").expect("there").created_at);
    std::thread::sleep(Duration::from_millis(2));
    snapshotter.commit("name", "key", none()).expect("Commit");
    let stat = snapshotter.stat("name").expect("there");
    assert!(time(stat.created_at) > prepared);
    let before = SystemTime::now();
    let updated = snapshotter
        .update(stat.clone(), &["labels"])
        .expect("Update");
    let after = SystemTime::now();
    assert_eq!(updated.created_at, stat.created_at);
    let at = time(updated.updated_at);
    assert!(before <= at && at <= after, "{at:?}");
    assert_eq!(snapshotter.stat("name").expect("there"), updated);
}

#[test]
fn update_changes_labels_as_the_field_mask_says_and_nothing_else() {
    let snapshotter = start();
    make_base(&snapshotter);
    for (name, kind, parent) in BASE {
        let told = |info: &Info| (info.name.clone(), info.kind(), info.parent.clone());
        let same = (name.to_owned(), kind, parent.to_owned());
        let before = snapshotter.stat(name).expect("there");
        let given = labels([
            ("l1", "v1"),
            ("l2", "v2"),
            ("l3", "v3"),
            ("containerd.io/gc.root", "then"),
        ]);
        // Without a mask: everything that can change.
        let info = Info {
            parent: "doesnotexist".into(),
            kind: Kind::Unknown.into(),
            labels: given.clone(),
            ..before.clone()
        };
        let updated = snapshotter.update(info, &[]).expect("Update");
        assert_eq!((told(&updated), &updated.labels), (same.clone(), &given));
        assert_eq!(updated.created_at, before.created_at);
        // Some labels, one of which is not given any more.
        let info = Info {
            labels: labels([("l1", "updated"), ("l4", "v4")]),
            ..updated
        };
        let updated = snapshotter
            .update(info, &["labels.l1", "labels.l2"])
            .expect("Update");
        let wanted = labels([
            ("l1", "updated"),
            ("l3", "v3"),
            ("containerd.io/gc.root", "then"),
        ]);
        assert_eq!((told(&updated), &updated.labels), (same.clone(), &wanted));
        // A label with dots and slashes in its key.
        let info = Info {
            labels: labels([("containerd.io/gc.root", "later")]),
            ..updated
        };
        let updated = snapshotter
            .update(info, &["labels.containerd.io/gc.root"])
            .expect("Update");
        assert_eq!(updated.labels["containerd.io/gc.root"], "later");
        assert_eq!(updated.labels.len(), 3);
        // All of them.
        let wanted = labels([("l4", "v4")]);
        let info = Info {
            labels: wanted.clone(),
            ..updated
        };
        let updated = snapshotter
            .update(info.clone(), &["labels"])
            .expect("Update");
        assert_eq!((told(&updated), &updated.labels), (same, &wanted));
        // What can't change, alone or among what can.
        for mask in [
            &["parent"][..],
            &["labels.l4", "kind"],
            &["name"],
            &["created_at"],
        ] {
            let info = Info {
                labels: labels([("l4", "lost")]),
                ..info.clone()
            };
            let error = snapshotter.update(info, mask).expect_err("immutable");
            assert_eq!(error.code(), Code::InvalidArgument, "{mask:?}: {error}");
        }
        assert_eq!(snapshotter.stat(name).expect("there").labels, wanted);
    }
    let missing = Info {
        name: "missing".into(),
        ..Info::default()
    };
    let error = snapshotter
        .update(missing, &["labels"])
        .expect_err("missing");
    assert_eq!(error.code(), Code::NotFound);
}

#[test]
fn updated_labels_last() {
    let mut snapshotter = start();
    make_base(&snapshotter);
    let mut stat = snapshotter.stat("c1").expect("there");
    stat.labels
        .insert("containerd.io/gc.ref.content".into(), "x".into());
    let updated = snapshotter.update(stat, &[]).expect("Update");
    snapshotter.kill();
    snapshotter.start_again();
    assert_eq!(snapshotter.stat("c1").expect("there"), updated);
}

#[test]
fn walk_takes_what_the_filters_take() {
    let snapshotter = start();
    let with = |l: &str| match l {
        "" => labels([("containerd.io/gc.root", "check-walk")]),
        l => labels([("containerd.io/gc.root", "check-walk"), ("l", l)]),
    };
    let prepare = |key: &str, parent: &str, l: &str| {
        drop(snapshotter.prepare(key, parent, with(l)).expect("Prepare"));
    };
    prepare("a-np", "", "");
    prepare("p-tmp", "", "");
    snapshotter.commit("p", "p-tmp", with("")).expect("Commit");
    prepare("a", "p", "");
    snapshotter.view("v", "p", with("")).expect("View");
    prepare("p-wl-tmp", "", "");
    snapshotter
        .commit("p-wl", "p-wl-tmp", with("1"))
        .expect("Commit");
    prepare("a-wl", "p-wl", "2");
    snapshotter.view("v-wl", "p-wl", with("3")).expect("View");
    prepare("a-np-wl", "", "2");
    // None of it: neither label nor anything else that is asked for.
    snapshotter
        .prepare("other", "", labels([("unlike", "x")]))
        .expect("Prepare");

    const ROOT: &str = r#"labels."containerd.io/gc.root"==check-walk"#;
    let all = ["a", "a-np", "a-np-wl", "a-wl", "p", "p-wl", "v", "v-wl"];
    let and_root = |filter: &str| format!("{filter},{ROOT}");
    let cases: [(&[&str], &[&str]); 19] = [
        (&[ROOT], &all),
        (
            &[&and_root("kind==active")],
            &["a", "a-np", "a-np-wl", "a-wl"],
        ),
        (&[&and_root("kind==view")], &["v", "v-wl"]),
        (&[&and_root("kind==committed")], &["p", "p-wl"]),
        (&[&and_root("kind!=active")], &["p", "p-wl", "v", "v-wl"]),
        (&["name==p", "name==a-np-wl"], &["a-np-wl", "p"]),
        (&["name==p,name==a-np-wl"], &[]),
        (&["name==a-wl,labels.l"], &["a-wl"]),
        (&["name==a,labels.l"], &[]),
        (&["parent==p"], &["a", "v"]),
        (&[&and_root(r#"parent!="""#)], &["a", "a-wl", "v", "v-wl"]),
        (&[r#"parent=="",kind==active,labels.l"#], &["a-np-wl"]),
        (&["labels.l"], &["a-np-wl", "a-wl", "p-wl", "v-wl"]),
        (&["labels.l==2"], &["a-np-wl", "a-wl"]),
        (&["labels.l~=[13]", "name==a"], &["a", "p-wl", "v-wl"]),
        (&["name~=/^a-/"], &["a-np", "a-np-wl", "a-wl"]),
        (&[r#"name~="-wl$",kind~=^[vc]"#], &["p-wl", "v-wl"]),
        (&["labels.missing"], &[]),
        (
            &["kind==committed", "labels.unlike"],
            &["other", "p", "p-wl"],
        ),
    ];
    for (filters, wanted) in cases {
        assert_eq!(snapshotter.listed(filters), wanted, "{filters:?}");
    }
    assert_eq!(snapshotter.listed(&[]).len(), all.len() + 1);
}

#[test]
fn a_filter_that_cannot_be_read_is_refused_with_the_place() {
    let snapshotter = start();
    snapshotter.prepare("a", "", none()).expect("Prepare");
    for filter in ["kind=active", "labels.\"open==x", "name==", "name~=(", "=="] {
        for filters in [&[filter][..], &["kind==active", filter]] {
            let error = snapshotter.list(filters).expect_err("no filter");
            assert_eq!(error.code(), Code::InvalidArgument, "{filter}: {error}");
            let quoted = format!("{filter:?}");
            assert!(error.message().contains(&quoted), "{filter}: {error}");
        }
    }
}

/// A list is longer than a message may be.
#[test]
fn a_thousand_snapshots_are_listed_each_once() {
    let snapshotter = start();
    let long = labels([("long", &*"x".repeat(20_000))]);
    std::thread::scope(|scope| {
        for part in 0..8 {
            let (snapshotter, long) = (&snapshotter, &long);
            scope.spawn(move || {
                for n in (part..1000).step_by(8) {
                    let key = format!("key-{n:04}");
                    snapshotter
                        .prepare(&key, "", long.clone())
                        .expect("Prepare");
                }
            });
        }
    });
    let wanted: Vec<_> = (0..1000).map(|n| format!("key-{n:04}")).collect();
    assert_eq!(snapshotter.listed(&[]), wanted);
    assert_eq!(snapshotter.listed(&["labels.long"]), wanted);
    assert_eq!(snapshotter.listed(&["name~=^key-000"]), wanted[..10]);
}

/// Bytes as du(1) counts them, inodes each once; what is in the parents is theirs.
#[test]
fn usage_is_what_the_snapshot_itself_takes_of_the_disk() {
    let snapshotter = start();
    let root = snapshotter.prepared("a0", "");
    let usage = |key: &str| snapshotter.usage(key).expect("there");
    assert_eq!(usage("a0").inodes, 1, "its root directory");
    let empty = usage("a0").size;
    let big = 3 << 20;
    apply(
        root.path(),
        &[
            Dir("d", 0o755),
            File("d/big", vec![1; big], 0o644),
            Link("d/big", "d/same"),
            Symlink("d/big", "link"),
        ],
    );
    let sparse = fs::File::create(root.at("sparse")).expect("made");
    sparse.set_len(1 << 30).expect("a hole");
    rustix::fs::sync();
    let active = usage("a0");
    assert_eq!(active.inodes, 5, "root, directory, file, link, sparse file");
    let more = active.size - empty;
    assert!(
        (big as i64..big as i64 + (64 << 10)).contains(&more),
        "{more}"
    );
    drop((sparse, root));
    snapshotter.commit("c0", "a0", none()).expect("Commit");
    assert_eq!(usage("c0"), active);

    let root = snapshotter.prepared("a1", "c0");
    assert_eq!(usage("a1").inodes, 1, "nothing of its parent's");
    apply(root.path(), &[file("f", "small"), Remove("link")]);
    rustix::fs::sync();
    let upper = usage("a1");
    // The whiteout is an inode here: it takes one of the disk's.
    assert_eq!(upper.inodes, 3);
    assert!(upper.size < 64 << 10, "{upper:?}");
    drop(root);
    snapshotter.view("v", "c0", none()).expect("View");
    let view = usage("v");
    assert!(view.size <= 4096 && view.inodes <= 1, "{view:?}");
    snapshotter.commit("c1", "a1", none()).expect("Commit");
    assert_eq!((usage("c1"), usage("c0")), (upper, active));
}

#[test]
fn usage_of_a_committed_snapshot_outlasts_a_restart() {
    let mut snapshotter = start();
    let root = snapshotter.prepared("a", "");
    apply(root.path(), &[File("f", vec![7; 1 << 20], 0o600)]);
    rustix::fs::sync();
    drop(root);
    snapshotter.commit("c", "a", none()).expect("Commit");
    let usage = snapshotter.usage("c").expect("there");
    assert!(usage.size >= 1 << 20 && usage.inodes == 2, "{usage:?}");
    snapshotter.restart();
    assert_eq!(snapshotter.usage("c").expect("there"), usage);
}

#[test]
fn cleanup_returns_when_the_directories_of_removed_snapshots_are_gone() {
    let snapshotter = start();
    let mut of = BTreeMap::new();
    for n in 0..10 {
        let key = format!("k{n}");
        let root = snapshotter.prepared(&key, "");
        for m in 0..200 {
            fs::write(root.at(format!("{m}")), "x").expect("written");
        }
        drop(root);
        let mounts = snapshotter.mounts(&key).expect("there");
        of.insert(key, mounts[0].source.clone());
    }
    assert_eq!(snapshotter.directories().len(), 10);
    for (key, _) in of.iter().take(9) {
        snapshotter.remove(key).expect("Remove");
    }
    snapshotter.cleanup().expect("Cleanup");
    assert_eq!(snapshotter.directories().len(), 1);
    let left = &of["k9"];
    assert_eq!(fs::read_dir(left).expect("it is kept").count(), 200);
    snapshotter.cleanup().expect("again");
}

/// Asynchronous deletion is started by the removal itself: no client has to ask for it.
#[test]
fn what_a_removed_snapshot_held_is_deleted_without_cleanup_too() {
    let snapshotter = start();
    fs::write(snapshotter.prepared("k", "").at("f"), "x").expect("written");
    snapshotter.remove("k").expect("Remove");
    let deadline = std::time::Instant::now() + PATIENCE;
    while !snapshotter.directories().is_empty() {
        assert!(std::time::Instant::now() < deadline, "nothing deletes it");
        std::thread::sleep(Duration::from_millis(5));
    }
}
