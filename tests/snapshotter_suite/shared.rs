//! Many Nix layers at once, what they share, what they hold, and what of them outlasts a restart.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use tonic::Code;

use crate::{
    cache::{Package, directory, file, noise},
    corpus,
    nix::{
        Own, closure, closure_labels, corpus_server, names_of, nix_layer, over, path_labels,
        status, status_paths, store, strs, tool,
    },
    scripted::{Gate, Reply},
    snapshot,
    snapshotter::{Labels, PATIENCE, Snapshotter},
    truth,
};

/// A package of one file of this many bytes.
fn sized(name: &str, size: usize) -> Package {
    let seed = name.bytes().fold(1, |seed, b| seed * 31 + u64::from(b));
    Package::new(name, &directory([("data", file(noise(seed, size)))]))
}

/// Reads all of it in a container.
fn read(root: &crate::snapshotter::Root, package: &Package) {
    let at = root.at(format!("nix/store/{}/data", package.path));
    fs::read(&at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
}

/// Waits until the status says that the path is here as a whole.
fn complete(root: &crate::snapshotter::Root, package: &Package) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let document = status(root, &package.path.to_string());
        if document["state"] == "complete" {
            return;
        }
        assert!(Instant::now() < deadline, "{document}");
        thread::sleep(Duration::from_millis(10));
    }
}

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

#[test]
fn prepare_on_a_nix_layer_needs_no_cache() {
    let package = sized("one", 10_000);
    let own = Own::with([&package]);
    let snapshotter = own.snapshotter();
    nix_layer(&snapshotter, "layer", "", strs(&names_of([&package])));
    read(&snapshotter.prepared("first", "layer"), &package);
    own.server.vanish();
    own.server.clear();
    let root = snapshotter.prepared("container", "layer");
    read(&root, &package);
    assert_eq!(snapshotter.mounts("container").expect("Mounts").len(), 1);
    // And so does the same layer again, known as it is.
    nix_layer(&snapshotter, "twin", "", strs(&names_of([&package])));
    assert!(own.server.requests().is_empty());
}

#[test]
fn a_restart_without_the_network_serves_what_was_fetched() {
    let server = corpus_server();
    let mut snapshotter = over(&server);
    let names = closure("redis-server");
    nix_layer(&snapshotter, "layer", "", strs(&names));
    let trees = truth::trees(&corpus::store_path("redis-server"));
    let compare = |snapshotter: &Snapshotter, key: &str| {
        let mounts = snapshotter.mounts(key).expect("there");
        let root = snapshotter.mount(&mounts);
        for (name, wanted) in &*trees {
            let found = snapshot::snapshot(&root.at("nix/store").join(name));
            snapshot::assert_same(name, &found, wanted);
        }
        assert_eq!(status_paths(&root), names.iter().cloned().collect());
    };
    snapshotter
        .prepare("container", "layer", Labels::new())
        .expect("Prepare");
    compare(&snapshotter, "container");
    let views = snapshotter.views();
    server.vanish();
    server.clear();
    for kill in [false, true] {
        match kill {
            true => snapshotter.kill(),
            false => snapshotter.stop(),
        }
        let connections = server.connections();
        snapshotter.start_again();
        assert_eq!(snapshotter.views(), views);
        compare(&snapshotter, "container");
        let key = format!("new after {kill}");
        snapshotter
            .prepare(&key, "layer", Labels::new())
            .expect("Prepare");
        compare(&snapshotter, &key);
        assert_eq!(
            server.connections(),
            connections,
            "the start went to the network"
        );
    }
    assert!(server.requests().is_empty());
}

/// Starting is local: whatever there is, no cache is asked before the first call is answered.
#[test]
fn a_start_with_many_layers_needs_no_cache() {
    let packages: Vec<_> = (0..100).map(|n| tool(&format!("p{n}"))).collect();
    let own = Own::with(&packages);
    let mut snapshotter = own.snapshotter();
    let names = names_of(&packages);
    for n in 0..100 {
        let both = [names[n].as_str(), names[(n + 1) % 100].as_str()];
        nix_layer(&snapshotter, &format!("layer-{n}"), "", both);
    }
    snapshotter.stop();
    own.server.vanish();
    own.server.clear();
    snapshotter.start_again();
    assert_eq!(snapshotter.list(&[]).expect("a list").len(), 100);
    let root = snapshotter.prepared("container", "layer-42");
    assert_eq!(store(&root).len(), 2);
    assert!(own.server.requests().is_empty());
}

/// A program that runs in a container, imports what it is told, and says so. Ended when dropped.
struct Python {
    process: Child,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Python {
    fn start(root: &Path) -> Self {
        let python = corpus::store_path("python3.11").join("bin/python3.11");
        let script = "import sys\nprint('ready', flush=True)\n\
                      for line in sys.stdin: print(__import__(line.strip()).__name__, flush=True)";
        let mut process = Command::new("/usr/sbin/chroot")
            .arg(root)
            .arg(python)
            .args(["-c", script])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("chroot(8) is there");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            lines
                .map_while(|line| sender.send(line).ok())
                .for_each(drop);
        });
        let input = process.stdin.take().expect("piped");
        let python = Self {
            process,
            input,
            lines,
        };
        python.says("ready");
        python
    }

    fn says(&self, wanted: &str) {
        let line = self.lines.recv_timeout(PATIENCE);
        assert_eq!(line.expect("it goes on"), wanted);
    }

    fn import(&mut self, module: &str) {
        writeln!(self.input, "{module}").expect("it runs");
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // Ended already or not: it is gone in the end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Stopping, killing and starting the snapshotter leaves containers running.
#[test]
fn a_container_goes_on_while_the_snapshotter_restarts() {
    let server = corpus_server();
    let mut snapshotter = over(&server);
    nix_layer(&snapshotter, "layer", "", strs(&closure("python3.11")));
    let root = snapshotter.prepared("container", "layer");
    let mut python = Python::start(root.path());
    let mut works = |modules: [&str; 2]| {
        for module in modules {
            python.import(module);
            python.says(module);
        }
    };
    works(["json", "decimal"]);
    snapshotter.restart();
    works(["sqlite3", "tarfile"]);
    snapshotter.kill();
    snapshotter.start_again();
    works(["argparse", "zoneinfo"]);
    // Another one begins in the same root.
    Python::start(root.path());
}

/// What a view shows is kept; what none shows any more can be collected.
#[test]
fn the_paths_of_a_layer_are_rooted_from_prepare_to_remove() {
    let packages = [sized("one", 200_000), sized("two", 100_000)];
    let own = Own::with(&packages);
    let mut snapshotter = own.snapshotter();
    let names = names_of(&packages);
    nix_layer(&snapshotter, "both", "", strs(&names));
    nix_layer(&snapshotter, "one", "", strs(&names[..1]));
    let root = snapshotter.prepared("container", "both");
    for package in &packages {
        read(&root, package);
        complete(&root, package);
    }
    let collectable = |snapshotter: &Snapshotter| snapshotter.collectable();
    let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(collectable(&snapshotter), set(&[]));
    drop(root);
    snapshotter.remove("container").expect("Remove");
    assert_eq!(collectable(&snapshotter), set(&[]));
    snapshotter.restart();
    assert_eq!(collectable(&snapshotter), set(&[]));
    assert_eq!(snapshotter.views().len(), 2);
    snapshotter.remove("both").expect("Remove");
    snapshotter.wait_for_views(1);
    assert_eq!(collectable(&snapshotter), set(&names[1..]));
    snapshotter.remove("one").expect("Remove");
    snapshotter.wait_for_views(0);
    assert_eq!(collectable(&snapshotter), set(&names));
    snapshotter.assert_holds_only(0, 0);
}

/// From Prepare on, not from Commit: a pull that takes its time keeps what it has.
#[test]
fn an_unfinished_layer_is_rooted_too() {
    let package = sized("one", 100_000);
    let own = Own::with([&package]);
    let snapshotter = own.snapshotter();
    nix_layer(&snapshotter, "layer", "", strs(&names_of([&package])));
    let root = snapshotter.prepared("container", "layer");
    read(&root, &package);
    complete(&root, &package);
    drop(root);
    let labels = path_labels(strs(&names_of([&package])));
    snapshotter.prepare("extract", "", labels).expect("Prepare");
    for key in ["container", "layer"] {
        snapshotter.remove(key).expect("Remove");
    }
    assert_eq!(snapshotter.collectable(), BTreeSet::new());
    snapshotter.remove("extract").expect("Remove");
    assert_eq!(snapshotter.collectable().len(), 1);
}

/// A layer shows, and so roots, what the layers below it show.
#[test]
fn a_parent_can_not_go_before_its_child_and_its_paths_stay() {
    let packages = [sized("lower", 50_000), sized("upper", 50_000)];
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let names = names_of(&packages);
    nix_layer(&snapshotter, "lower", "", strs(&names[..1]));
    nix_layer(&snapshotter, "upper", "lower", strs(&names[1..]));
    let error = snapshotter.remove("lower").expect_err("it has a child");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_eq!(
        snapshotter.views().len(),
        2,
        "a refused removal takes the view away"
    );
    let root = snapshotter.prepared("container", "upper");
    for package in &packages {
        read(&root, package);
    }
}

/// Real bytes: what is here of the layer's paths; each path counted in one layer only.
#[test]
fn usage_of_a_nix_layer_is_what_was_fetched_of_it() {
    let packages = [sized("one", 3 << 20), sized("two", 1 << 20)];
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let names = names_of(&packages);
    nix_layer(&snapshotter, "one", "", strs(&names[..1]));
    nix_layer(&snapshotter, "both", "", strs(&names));
    let usage = |key: &str| snapshotter.usage(key).expect("there").size;
    let (one, both) = (usage("one"), usage("both"));
    assert!(
        one < 64 << 10 && both < 64 << 10,
        "nothing was fetched: {one}, {both}"
    );
    let root = snapshotter.prepared("container", "both");
    for package in &packages {
        read(&root, package);
        complete(&root, package);
    }
    let near = |found: i64, wanted: i64| (wanted..wanted + (1 << 18)).contains(&found);
    assert!(near(usage("one"), 3 << 20), "{}", usage("one"));
    // The first of the two has `one` already.
    assert!(near(usage("both"), 1 << 20), "{}", usage("both"));
    assert!(usage("container") < 64 << 10, "{}", usage("container"));
    drop(root);
    snapshotter.remove("one").expect("Remove");
    assert!(near(usage("both"), 4 << 20), "{}", usage("both"));
    assert!(snapshotter.usage("both").expect("there").inodes > 0);
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
