//! Many Nix layers at once, and what they share.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    thread,
    time::{Duration, Instant},
};

use crate::{
    cache::{Package, file},
    nix::{
        Own, closure, closure_labels, corpus_server, names_of, nix_layer, over, path_labels, read,
        sized, store, strs, tool,
    },
    scripted::{Gate, Reply},
    snapshotter::{Labels, PATIENCE},
};

#[test]
fn fifty_prepares_at_once_that_share_paths_ask_for_each_narinfo_once() {
    let shared: Vec<_> = (0..30).map(|n| tool(&format!("shared-{n}"))).collect();
    let single: Vec<_> = (0..50).map(|n| tool(&format!("single-{n}"))).collect();
    let own = Own::with(shared.iter().chain(&single));
    let snapshotter = own.snapshotter();
    // Nobody gets an answer before all of them are waiting for theirs.
    let gate = Gate::new();
    own.server
        .on(&shared[0].narinfo_url(), Reply::as_it_is().behind(&gate));
    thread::scope(|scope| {
        let prepares: Vec<_> = single
            .iter()
            .enumerate()
            .map(|(n, package)| {
                let names = names_of(shared.iter().chain([package]));
                let snapshotter = &snapshotter;
                let labels = path_labels(strs(&names));
                scope.spawn(move || snapshotter.prepare(&format!("extract-{n}"), "", labels))
            })
            .collect();
        gate.wait_for(1);
        let deadline = Instant::now() + PATIENCE;
        while single
            .iter()
            .any(|package| own.server.count(&package.narinfo_url()) == 0)
        {
            assert!(Instant::now() < deadline, "not all of them came");
            thread::sleep(Duration::from_millis(5));
        }
        gate.open();
        for prepare in prepares {
            prepare.join().expect("no panic").expect("Prepare");
        }
    });
    for package in shared.iter().chain(&single) {
        assert_eq!(
            own.server.count(&package.narinfo_url()),
            1,
            "{}",
            package.path
        );
        assert_eq!(
            own.server.count(&package.listing_url()),
            1,
            "{}",
            package.path
        );
    }
    for (n, package) in single.iter().enumerate() {
        let (key, name) = (format!("extract-{n}"), format!("layer-{n}"));
        let labels = path_labels(strs(&names_of(shared.iter().chain([package]))));
        snapshotter.commit(&name, &key, labels).expect("Commit");
    }
    let root = snapshotter.prepared("container", "layer-17");
    let wanted: BTreeSet<_> = names_of(shared.iter().chain([&single[17]]))
        .into_iter()
        .collect();
    assert_eq!(store(&root), wanted);
    snapshotter.remove("container").expect("Remove");
    drop(root);
    snapshotter.assert_holds_only(50, 50);
}

#[test]
fn one_layer_under_many_names_asks_for_nothing_twice() {
    let server = corpus_server();
    let snapshotter = over(&server);
    let names = closure("redis-server");
    for n in 0..5 {
        nix_layer(&snapshotter, &format!("layer-{n}"), "", strs(&names));
    }
    for name in &names {
        assert_eq!(
            server.count(&format!("/{}.narinfo", &name[..32])),
            1,
            "{name}"
        );
    }
}

/// A cache that does not answer holds up those who need it, and nobody else.
#[test]
fn a_cache_that_hangs_holds_up_nobody_else() {
    let (slow, quick) = (tool("slow"), tool("quick"));
    let own = Own::with([&slow, &quick]);
    let snapshotter = own.snapshotter();
    nix_layer(&snapshotter, "known", "", strs(&names_of([&quick])));
    let gate = Gate::new();
    own.server
        .on(&slow.narinfo_url(), Reply::as_it_is().behind(&gate));
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..20)
            .map(|n| {
                let labels = path_labels(strs(&names_of([&slow])));
                let snapshotter = &snapshotter;
                scope.spawn(move || snapshotter.prepare(&format!("slow-{n}"), "", labels))
            })
            .collect();
        gate.wait_for(1);
        // Ordinary ones, layers whose paths are known, containers, and everything else.
        snapshotter
            .prepare("ordinary", "", Labels::new())
            .expect("Prepare");
        snapshotter
            .commit("layer", "ordinary", Labels::new())
            .expect("Commit");
        nix_layer(&snapshotter, "again", "layer", strs(&names_of([&quick])));
        let root = snapshotter.prepared("container", "again");
        assert!(
            root.read(format!("nix/store/{}/bin/tool", quick.path))
                .contains("quick")
        );
        drop(root);
        snapshotter.remove("container").expect("Remove");
        snapshotter.remove("again").expect("Remove");
        snapshotter.cleanup().expect("Cleanup");
        assert_eq!(snapshotter.listed(&[]), ["known", "layer"]);
        assert!(
            waiting.iter().all(|prepare| !prepare.is_finished()),
            "it did not hang"
        );
        gate.open();
        for prepare in waiting {
            prepare
                .join()
                .expect("no panic")
                .expect("the cache answered at last");
        }
    });
    assert_eq!(own.server.count(&slow.narinfo_url()), 1);
    assert_eq!(snapshotter.listed(&["name~=^slow-"]).len(), 20);
}

/// One page cache and one number for a file, in whatever view it stands.
#[test]
fn a_file_has_one_inode_in_all_views() {
    let packages = [sized("shared", 100_000), sized("other", 100)];
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let names = names_of(&packages);
    nix_layer(&snapshotter, "one", "", strs(&names[..1]));
    nix_layer(&snapshotter, "both", "", strs(&names));
    let views = snapshotter.views();
    assert_eq!(views.len(), 2);
    let inodes: BTreeSet<_> = views
        .iter()
        .map(|view| {
            let at = snapshotter.mountpoint().join("views").join(view);
            let meta = fs::metadata(at.join(format!("nix/store/{}/data", names[0])));
            let meta = meta.expect("both have it");
            (meta.dev(), meta.ino())
        })
        .collect();
    assert_eq!(inodes.len(), 1, "{inodes:?}");
    // Read in one container, there in the other without a further request.
    read(&snapshotter.prepared("a", "one"), &packages[0]);
    own.server.vanish();
    read(&snapshotter.prepared("b", "both"), &packages[0]);
}

/// Both schemes at once, as a node has images of both.
#[test]
fn layers_of_both_schemes_share_their_paths() {
    let packages = [sized("one", 1000), sized("two", 1000)];
    let info = Package::new("info", &file("")).with_references(&[&packages[0], &packages[1]]);
    let own = Own::with(packages.iter().chain([&info]));
    let snapshotter = own.snapshotter();
    let names = names_of(&packages);
    nix_layer(&snapshotter, "paths", "", strs(&names));
    let labels = closure_labels(&info.path.to_string());
    crate::nix::unpack(&snapshotter, "closure", "", labels, |_| ()).expect("a layer");
    for name in ["paths", "closure"] {
        let root = snapshotter.prepared(&format!("container of {name}"), name);
        assert_eq!(store(&root), names.iter().cloned().collect());
    }
    for package in packages.iter().chain([&info]) {
        assert_eq!(
            own.server.count(&package.narinfo_url()),
            1,
            "{}",
            package.path
        );
    }
    // It can be prepared once more without the network, as the other one can.
    own.server.vanish();
    let labels = closure_labels(&info.path.to_string());
    snapshotter
        .prepare("again", "", labels)
        .expect("everything is known");
}
