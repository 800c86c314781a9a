//! What Nix layers hold and for how long: restarts, with containers running and without; roots;
//! the disk that they take.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
};

use tonic::Code;

use crate::{
    corpus,
    nix::{
        Own, closure, complete, corpus_server, names_of, nix_layer, over, path_labels, read, sized,
        status, status_paths, store, strs, tool,
    },
    snapshot,
    snapshotter::{Labels, PATIENCE, Snapshotter},
    truth,
};

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
    // What it asks for while nobody is there it gets later.
    for kill in [false, true] {
        match kill {
            true => snapshotter.kill(),
            false => snapshotter.stop(),
        }
        let module = ["unittest.mock", "xmlrpc"][usize::from(kill)];
        python.import(module);
        snapshotter.start_again();
        python.says(module.split('.').next().expect("one"));
    }
    // Another one begins in the same root, and in one that is new.
    Python::start(root.path());
    Python::start(snapshotter.prepared("another", "layer").path());
}

/// What is here can be read, what is not fails with the reason in the status, and both work again
/// when the cache is back, with nothing restarted.
#[test]
fn a_cache_that_dies_under_a_container_fails_what_is_not_here_until_it_is_back() {
    let (here, away) = (sized("here", 100_000), sized("away", 100_000));
    let own = Own::with([&here, &away]);
    let flags = ["--tries=1", "--connect-timeout=2s", "--read-timeout=5s"];
    let setup = flags.into_iter().fold(own.setup(), |s, flag| s.flag(flag));
    let snapshotter = Snapshotter::start(setup);
    nix_layer(&snapshotter, "layer", "", strs(&names_of([&here, &away])));
    let root = snapshotter.prepared("container", "layer");
    read(&root, &here);
    complete(&root, &here);
    own.server.vanish();
    read(&root, &here);
    let file = root.at(format!("nix/store/{}/data", away.path));
    let error = fs::read(&file).expect_err("the cache is dead");
    let eio = rustix::io::Errno::IO.raw_os_error();
    assert_eq!(error.raw_os_error(), Some(eio), "{error}");
    assert_eq!(
        fs::metadata(&file)
            .expect("what is known stays known")
            .len(),
        100_000
    );
    let document = status(&root, &away.path.to_string());
    let said = document["error"].as_str().unwrap_or_default();
    let last = document["lastError"]["message"]
        .as_str()
        .unwrap_or_default();
    assert!(
        said.contains(&own.server.base()) || last.contains(&own.server.base()),
        "{document}"
    );
    own.server.come_back();
    read(&root, &away);
    complete(&root, &away);
    let document = status(&root, &away.path.to_string());
    assert_eq!(document.get("error"), None, "{document}");
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
