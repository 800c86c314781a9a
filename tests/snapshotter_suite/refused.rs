//! Nix layers that can't be had: refused when they are prepared, with the store path, the cache and
//! the reason; nothing is left behind, and what was missing can be brought.

use std::time::{Duration, Instant};

use tonic::{Code, Status};

use crate::{
    cache::{self, Package, Packing, file},
    nix::{
        Own, closure_labels, mountpoints, names_of, nix_layer, path_labels, store, strs, tool,
        unmarked, unpack,
    },
    scripted::{Gate, Reply},
    snapshotter::{Labels, PATIENCE, Setup, Snapshotter, labels},
};

/// The error of a layer that must not be.
fn refused(snapshotter: &Snapshotter, labels: Labels, code: Code, words: &[&str]) -> Status {
    let before = snapshotter.list(&[]).expect("a list");
    let error = snapshotter
        .prepare("extract", "", labels)
        .expect_err("it was prepared");
    assert_eq!(error.code(), code, "{error}");
    for word in words {
        assert!(
            error.message().contains(word),
            "{word:?} is not in: {error}"
        );
    }
    assert_eq!(
        snapshotter.stat("extract").expect_err("left behind").code(),
        Code::NotFound
    );
    assert_eq!(snapshotter.list(&[]).expect("a list"), before);
    error
}

fn of(package: &Package) -> Labels {
    path_labels(strs(&names_of([package])))
}

#[test]
fn a_path_in_no_cache_is_refused_with_its_name_and_the_cache() {
    let (known, missing) = (tool("known"), tool("missing"));
    let own = Own::with([&known]);
    let snapshotter = own.snapshotter();
    nix_layer(&snapshotter, "layer", "", strs(&names_of([&known])));
    let both = path_labels(strs(&names_of([&known, &missing])));
    let words = [&*missing.path.to_string(), &own.server.base(), "1 of 2"];
    let error = refused(&snapshotter, both, Code::NotFound, &words);
    assert!(
        !error.message().contains(&known.path.to_string()),
        "{error}"
    );
    // Nothing is left, and what was there before is as it was.
    snapshotter.assert_holds_only(1, 1);
    assert_eq!(store(&snapshotter.prepared("container", "layer")).len(), 1);
}

/// A push that was late: whoever tries again finds what is there now.
#[test]
fn a_path_that_is_pushed_after_the_failure_is_found_by_the_retry() {
    let package = tool("late");
    let own = Own::new();
    let snapshotter = own.snapshotter();
    refused(&snapshotter, of(&package), Code::NotFound, &[]);
    own.add([&package]);
    nix_layer(&snapshotter, "layer", "", strs(&names_of([&package])));
    assert_eq!(store(&snapshotter.prepared("container", "layer")).len(), 1);
}

#[test]
fn an_unsigned_path_is_refused_with_what_to_do() {
    let package = tool("unsigned");
    let own = Own::with([&package]);
    let unsigned = package.narinfo(Packing::Zstd).to_text();
    own.server.on(&package.narinfo_url(), Reply::file(unsigned));
    let snapshotter = own.snapshotter();
    let words = [
        &*package.path.to_string(),
        &own.server.base(),
        "signature",
        "--trusted-key",
    ];
    refused(&snapshotter, of(&package), Code::FailedPrecondition, &words);
    snapshotter.assert_holds_only(0, 0);
    // Signed at last: it is not remembered as refused.
    own.server.forget(&package.narinfo_url());
    nix_layer(&snapshotter, "layer", "", strs(&names_of([&package])));
}

#[test]
fn a_path_signed_by_another_key_is_refused() {
    let package = tool("foreign");
    let own = Own::with([&package]);
    let other = cache::key();
    let setup = Setup::new(&own.server.base(), &other.public());
    let snapshotter = Snapshotter::start(setup);
    let words = [&*package.path.to_string(), "signature"];
    refused(&snapshotter, of(&package), Code::FailedPrecondition, &words);
    snapshotter.assert_holds_only(0, 0);
}

#[test]
fn labels_that_make_no_sense_are_refused_with_their_names() {
    let package = tool("one");
    let own = Own::with([&package]);
    let snapshotter = own.snapshotter();
    let (path, closure) = (
        "containerd.io/snapshot/nix-store-path.0",
        "containerd.io/snapshot/nix-closure",
    );
    let inside = format!("{}/bin/tool", package.path.absolute());
    let dots = format!("{}/../../../etc", package.path.absolute());
    let bare = package.path.to_string();
    for value in [
        "/etc/passwd",
        "/nix/store/nothing",
        "/nix/store",
        "nonsense",
        "/nix/store/../../etc",
        "/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-name",
        &*inside,
        &*dots,
        &*bare,
    ] {
        for key in [path, closure] {
            let good = of(&package);
            let given = labels([(key, value), ("containerd.io/snapshot/nix-layer", "true")]);
            let both = good.into_iter().chain(given).collect();
            refused(&snapshotter, both, Code::InvalidArgument, &[key, value]);
        }
    }
    // Marked as a Nix layer, and nothing said of what is in it.
    let mark = labels([("containerd.io/snapshot/nix-layer", "true")]);
    refused(&snapshotter, mark, Code::InvalidArgument, &["nix-layer"]);
    snapshotter.assert_holds_only(0, 0);
    let asked: Vec<_> = own.server.requests().into_iter().map(|r| r.path).collect();
    assert!(
        asked.iter().all(|path| !path.ends_with(".narinfo")),
        "{asked:?}"
    );
}

#[test]
fn a_narinfo_that_cannot_be_read_is_refused_with_the_cache() {
    let package = tool("garbled");
    let own = Own::with([&package]);
    let snapshotter = own.snapshotter();
    let words = [&*package.path.to_string(), &own.server.base()];
    for text in ["", "StorePath: nonsense\n", "\0\0\0", "log in first"] {
        own.server.on(&package.narinfo_url(), Reply::file(text));
        refused(&snapshotter, of(&package), Code::FailedPrecondition, &words);
    }
    // Somebody else's page in between: that may be over soon.
    own.server.on(&package.narinfo_url(), Reply::html());
    refused(&snapshotter, of(&package), Code::Unavailable, &words);
    snapshotter.assert_holds_only(0, 0);
    own.server.forget(&package.narinfo_url());
    nix_layer(&snapshotter, "layer", "", strs(&names_of([&package])));
}

#[test]
fn a_dead_cache_is_unavailable_and_not_absence_and_a_retry_works() {
    let package = tool("one");
    let own = Own::with([&package]);
    let setup = own.setup().flag("--tries=2").flag("--lookup-timeout=5s");
    let snapshotter = Snapshotter::start(setup.flag("--connect-timeout=2s"));
    let words = [&*package.path.to_string(), &own.server.base()];
    own.server.vanish();
    let begun = Instant::now();
    refused(&snapshotter, of(&package), Code::Unavailable, &words);
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    own.server.come_back();
    for status in [500, 503, 429, 401] {
        own.server.on(&package.narinfo_url(), Reply::status(status));
        let said = status.to_string();
        refused(
            &snapshotter,
            of(&package),
            Code::Unavailable,
            &[words[0], words[1], &said],
        );
    }
    snapshotter.assert_holds_only(0, 0);
    own.server.forget(&package.narinfo_url());
    nix_layer(&snapshotter, "layer", "", strs(&names_of([&package])));
    assert_eq!(store(&snapshotter.prepared("container", "layer")).len(), 1);
}

/// stargz's "broken layer", as far as it can be seen before anything is read.
#[test]
fn one_bad_path_among_many_is_named_and_all_are_counted() {
    let packages: Vec<_> = (0..40).map(|n| tool(&format!("p{n}"))).collect();
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let all = || path_labels(strs(&names_of(&packages)));
    let bad = &packages[17];
    own.server.on(&bad.narinfo_url(), Reply::status(404));
    let words = ["1 of 40", &*bad.path.to_string()];
    refused(&snapshotter, all(), Code::NotFound, &words);
    // Of many the message stays readable: containerd puts it on one line.
    let own = Own::new();
    let snapshotter = own.snapshotter();
    let error = refused(&snapshotter, all(), Code::NotFound, &["40 of 40", "more"]);
    assert!(error.message().len() < 2000, "{}", error.message().len());
    snapshotter.assert_holds_only(0, 0);
}

#[test]
fn a_closure_info_that_is_missing_or_lists_what_is_missing_is_refused() {
    let (here, gone) = (tool("here"), tool("gone"));
    let info = Package::new("info", &file("")).with_references(&[&here, &gone]);
    let own = Own::with([&here]);
    let snapshotter = own.snapshotter();
    let labels = || closure_labels(&info.path.to_string());
    refused(
        &snapshotter,
        labels(),
        Code::NotFound,
        &[&info.path.to_string(), &own.server.base()],
    );
    let other = Own::with([&here, &info]);
    let snapshotter = other.snapshotter();
    refused(
        &snapshotter,
        labels(),
        Code::NotFound,
        &[&gone.path.to_string(), &other.server.base()],
    );
    snapshotter.assert_holds_only(0, 0);
    // What the references refer to is of the closure too.
    let deep = Package::new("deep", &file("")).with_references(&[&gone]);
    let top = Package::new("top", &file("")).with_references(&[&deep]);
    let third = Own::with([&deep, &top]);
    let snapshotter = third.snapshotter();
    let labels = closure_labels(&top.path.to_string());
    refused(
        &snapshotter,
        labels,
        Code::NotFound,
        &[&gone.path.to_string()],
    );
}

#[test]
fn a_container_of_its_own_labels_is_refused_in_the_same_way() {
    let package = tool("missing");
    let own = Own::new();
    let snapshotter = own.snapshotter();
    let words = [&*package.path.to_string(), &own.server.base()];
    refused(&snapshotter, unmarked(of(&package)), Code::NotFound, &words);
    snapshotter.assert_holds_only(0, 0);
}

/// Clients that pass no labels on hear of it when the layer is committed; what they unpacked stays,
/// and they can try again.
#[test]
fn a_layer_known_by_its_mountpoints_is_refused_at_commit_and_stays_active() {
    let package = tool("missing");
    let own = Own::new();
    let snapshotter = own.snapshotter();
    let root = snapshotter.prepared("extract", "");
    mountpoints(strs(&names_of([&package])))(&root);
    drop(root);
    let commit = || snapshotter.commit("layer", "extract", Labels::new());
    let error = commit().expect_err("it is in no cache");
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(
        error.message().contains(&package.path.to_string()),
        "{error}"
    );
    assert!(error.message().contains(&own.server.base()), "{error}");
    assert_eq!(snapshotter.listed(&[]), ["extract"]);
    snapshotter.assert_holds_only(1, 0);
    own.add([&package]);
    commit().expect("it is there now");
    assert_eq!(snapshotter.listed(&[]), ["layer"]);
}

/// The labels of the commit count where those of the preparation said nothing.
#[test]
fn labels_given_with_the_commit_alone_make_a_nix_layer_or_fail() {
    let (one, missing) = (tool("one"), tool("missing"));
    let own = Own::with([&one]);
    let snapshotter = own.snapshotter();
    snapshotter
        .prepare("extract", "", Labels::new())
        .expect("Prepare");
    let error = snapshotter
        .commit("layer", "extract", of(&missing))
        .expect_err("missing");
    assert_eq!(error.code(), Code::NotFound, "{error}");
    snapshotter
        .commit("layer", "extract", of(&one))
        .expect("Commit");
    assert_eq!(store(&snapshotter.prepared("container", "layer")).len(), 1);
}

/// A refusal takes nothing from the layer below, or from a container on it.
#[test]
fn a_refused_layer_leaves_its_parent_alone() {
    let (base, missing) = (tool("base"), tool("missing"));
    let own = Own::with([&base]);
    let snapshotter = own.snapshotter();
    nix_layer(&snapshotter, "base", "", strs(&names_of([&base])));
    let root = snapshotter.prepared("container", "base");
    let error = unpack(&snapshotter, "top", "base", of(&missing), |_| ()).expect_err("missing");
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert_eq!(store(&root).len(), 1);
    drop(root);
    snapshotter.remove("container").expect("Remove");
    snapshotter.assert_holds_only(1, 1);
    snapshotter.remove("base").expect("nothing stands on it");
    snapshotter.assert_holds_only(0, 0);
}

/// kubelet gives up after two minutes and comes back: what it left undone is not in its way.
#[test]
fn a_client_that_goes_away_leaves_nothing_behind_and_can_come_back() {
    let package = tool("slow");
    let own = Own::with([&package]);
    let snapshotter = own.snapshotter();
    let gate = Gate::new();
    own.server
        .on(&package.narinfo_url(), Reply::as_it_is().behind(&gate));
    for _ in 0..3 {
        snapshotter.prepare_impatiently("extract", of(&package), Duration::from_millis(300));
        assert_eq!(snapshotter.listed(&[]), Vec::<String>::new());
    }
    gate.open();
    nix_layer(&snapshotter, "layer", "", strs(&names_of([&package])));
    snapshotter
        .prepare("extract", "", of(&package))
        .expect("the key is free");
    snapshotter.assert_holds_only(2, 2);
    assert_eq!(own.server.count(&package.narinfo_url()), 1);
}
