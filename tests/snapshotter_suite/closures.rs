//! Nix layers of real closures: what the labels name is there, as the real nix has it, and nothing
//! of it is fetched before somebody reads it.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    process::Command,
};

use crate::{
    cache::{Package, directory, exec, file},
    corpus,
    nix::{
        Own, REF, closure, closure_labels, corpus_server, mountpoints, names_of, nix_layer, over,
        path_labels, status, status_paths, store, strs, tool, unmarked, unpack,
    },
    snapshot,
    snapshotter::{Labels, Setup, Snapshotter, lowers, names},
    truth,
};

fn all(names: &[String]) -> BTreeSet<String> {
    names.iter().cloned().collect()
}

#[test]
fn store_path_labels_show_exactly_these_paths_as_the_real_nix_unpacks_them() {
    let server = corpus_server();
    let snapshotter = over(&server);
    let closure = closure("redis-server");
    nix_layer(&snapshotter, "sha256:redis", "", strs(&closure));
    let root = snapshotter.prepared("container", "sha256:redis");
    assert_eq!(store(&root), all(&closure));
    for (name, wanted) in &*truth::trees(&corpus::store_path("redis-server")) {
        let found = root.at("nix/store").join(name);
        snapshot::assert_same(name, &snapshot::snapshot(&found), wanted);
        snapshot::assert_attributes(&found);
    }
}

#[test]
fn programs_of_a_closure_run_in_the_container() {
    let server = corpus_server();
    let snapshotter = over(&server);
    let run = |program: &str, args: &[&str]| {
        nix_layer(&snapshotter, program, "", strs(&closure(program)));
        let root = snapshotter.prepared(&format!("container of {program}"), program);
        let output = Command::new("/usr/sbin/chroot")
            .arg(root.path())
            .arg(corpus::store_path(program).join("bin").join(program))
            .args(args)
            .env_clear()
            .output()
            .expect("chroot(8) is there");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program}: {said}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert!(run("redis-server", &["--version"]).contains("v=7.0.15"));
    let script = "import json, sqlite3; print(json.dumps([sqlite3.sqlite_version_info[0], 6 * 7]))";
    assert_eq!(run("python3.11", &["-c", script]), "[3, 42]\n");
}

#[test]
fn prepare_and_mounting_fetch_no_content() {
    let server = corpus_server();
    let snapshotter = over(&server);
    let closure = closure("python3.11");
    nix_layer(&snapshotter, "layer", "", strs(&closure));
    let root = snapshotter.prepared("container", "layer");
    assert_eq!(store(&root), all(&closure));
    let main = corpus::store_path("python3.11");
    let listed = fs::read_dir(root.at(main.join("bin")))
        .expect("there")
        .count();
    assert!(listed > 0);
    let asked: Vec<_> = server.requests().into_iter().map(|r| r.path).collect();
    let nars: Vec<_> = asked
        .iter()
        .filter(|path| path.starts_with("/nar/"))
        .collect();
    assert!(nars.is_empty(), "{nars:?}");
    for name in &closure {
        for url in [
            format!("/{}.narinfo", &name[..32]),
            format!("/{}.ls", &name[..32]),
        ] {
            assert_eq!(server.count(&url), 1, "{url} of {name}");
        }
    }
    let summary = status(&root, "summary");
    assert_eq!(summary["fetchedSize"], 0, "{summary}");
    // And reading one file fetches of that path alone.
    fs::read(root.at(main.join("bin/python3.11"))).expect("readable");
    assert!(
        status(&root, "summary")["fetchedSize"]
            .as_u64()
            .expect("a number")
            > 0
    );
}

/// `containerd.io/snapshot.ref`: containerd looks for what it prepared by this label and the parent.
#[test]
fn the_ref_label_is_kept_and_found_by_filter_with_the_exact_parent() {
    let packages = [tool("one"), tool("two")];
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let names = names_of(&packages);
    nix_layer(&snapshotter, "sha256:lower", "", strs(&names[..1]));
    let mut labels = path_labels(strs(&names[1..]));
    labels.insert(REF.into(), "sha256:upper".into());
    let filter = r#"labels."containerd.io/snapshot.ref"==sha256:upper,parent==sha256:lower"#;
    snapshotter
        .prepare("extract-1", "sha256:lower", labels.clone())
        .expect("Prepare");
    assert_eq!(snapshotter.listed(&[filter]), ["extract-1"]);
    assert_eq!(snapshotter.stat("extract-1").expect("there").labels, labels);
    snapshotter
        .commit("sha256:upper", "extract-1", labels.clone())
        .expect("Commit");
    assert_eq!(snapshotter.listed(&[filter]), ["sha256:upper"]);
    let stat = snapshotter.stat("sha256:upper").expect("there");
    assert_eq!((&stat.labels, &*stat.parent), (&labels, "sha256:lower"));
    // The chain id with another parent is another snapshot.
    let other = r#"labels."containerd.io/snapshot.ref"==sha256:upper,parent=="""#;
    assert_eq!(snapshotter.listed(&[other]), Vec::<String>::new());
}

/// containerd tries again when a pull was interrupted: with the same key, or with another one.
#[test]
fn prepare_of_the_same_layer_again_works() {
    let packages = [tool("one")];
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let names = names_of(&packages);
    let labels = || path_labels(strs(&names));
    let first = snapshotter
        .prepare("extract-1", "", labels())
        .expect("Prepare");
    let again = snapshotter
        .prepare("extract-1", "", labels())
        .expect_err("the key exists");
    assert_eq!(again.code(), tonic::Code::AlreadyExists, "{again}");
    assert_eq!(snapshotter.mounts("extract-1").expect("there"), first);
    snapshotter
        .prepare("extract-2", "", labels())
        .expect("with another key");
    snapshotter.remove("extract-1").expect("given up");
    snapshotter
        .prepare("extract-1", "", labels())
        .expect("the key is free again");
    snapshotter
        .commit("layer", "extract-2", labels())
        .expect("Commit");
    let late = snapshotter
        .commit("layer", "extract-1", labels())
        .expect_err("it is committed");
    assert_eq!(late.code(), tonic::Code::AlreadyExists, "{late}");
    snapshotter.remove("extract-1").expect("given up");
    assert_eq!(
        store(&snapshotter.prepared("container", "layer")),
        all(&names)
    );
    snapshotter.assert_holds_only(2, 1);
}

/// What is unpacked has to find a plain directory, and nothing of the view in it.
#[test]
fn a_layer_is_unpacked_without_its_view() {
    let packages = [tool("one")];
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let mut labels = path_labels(strs(&names_of(&packages)));
    labels.insert(REF.into(), "layer".into());
    let mounts = snapshotter.prepare("extract", "", labels).expect("Prepare");
    assert_eq!(mounts[0].r#type, "bind");
    let root = snapshotter.mount(&mounts);
    assert_eq!(names(root.path()), BTreeSet::new());
}

/// nix-snapshotter's newer scheme: the references of one path, which itself is never read.
#[test]
fn the_closure_label_shows_the_references_of_the_closure_info() {
    let server = corpus_server();
    let closure = closure("redis-server");
    let references: Vec<_> = closure
        .iter()
        .map(|name| Package {
            path: narfs::nix::StorePath::parse(name).expect("a name"),
            nar: Vec::new(),
            references: Vec::new(),
        })
        .collect();
    let info = Package::new(
        "closure-info",
        &directory([("store-paths", file("unread"))]),
    );
    let info = info.with_references(&references.iter().collect::<Vec<_>>());
    let own = Own::new();
    own.add_narinfo(&info);
    let setup = own.setup().cache(&server.base(), &corpus::public_key());
    let snapshotter = Snapshotter::start(setup);
    let labels = closure_labels(&info.path.to_string());
    unpack(
        &snapshotter,
        "layer",
        "",
        labels,
        mountpoints(strs(&closure)),
    )
    .expect("a closure");
    let root = snapshotter.prepared("container", "layer");
    assert_eq!(store(&root), all(&closure));
    assert_eq!(status_paths(&root), all(&closure));
    let asked: Vec<_> = own.server.requests().into_iter().map(|r| r.path).collect();
    assert!(asked.contains(&info.narinfo_url()), "{asked:?}");
    assert!(
        !asked.iter().any(|path| path.starts_with("/nar/")),
        "{asked:?}"
    );
}

/// `ctr run --snapshotter-label containerd.io/snapshot/nix-closure=…`: the labels of a container's
/// own snapshot, which is no layer and never committed.
#[test]
fn a_container_with_labels_of_its_own_sees_their_paths() {
    let base = tool("base");
    let (one, two) = (tool("one"), tool("two"));
    let info = Package::new("info", &file("")).with_references(&[&one, &two]);
    let own = Own::with([&base, &one, &two, &info]);
    let snapshotter = own.snapshotter();
    nix_layer(&snapshotter, "layer", "", strs(&names_of([&base])));
    let by_closure = unmarked(closure_labels(&info.path.to_string()));
    let by_path = unmarked(path_labels(strs(&names_of([&one, &two]))));
    for (n, labels) in [by_closure, by_path].into_iter().enumerate() {
        for (parent, wanted) in [("", vec![&one, &two]), ("layer", vec![&base, &one, &two])] {
            let key = format!("container {n} on {parent:?}");
            let mounts = snapshotter
                .prepare(&key, parent, labels.clone())
                .expect("Prepare");
            let root = snapshotter.mount(&mounts);
            let wanted = all(&names_of(wanted));
            assert_eq!(store(&root), wanted, "{key}");
            assert_eq!(status_paths(&root), wanted, "{key}");
            fs::write(root.at("writable"), "").expect("writable");
            drop(root);
            assert_eq!(snapshotter.mounts(&key).expect("there"), mounts);
            snapshotter.remove(&key).expect("Remove");
        }
    }
    snapshotter.assert_holds_only(1, 1);
}

#[test]
fn the_status_directory_is_hidden_and_lists_exactly_the_closure() {
    let server = corpus_server();
    let snapshotter = over(&server);
    let closure = closure("redis-server");
    nix_layer(&snapshotter, "layer", "", strs(&closure));
    // Another container's paths are none of its business.
    let others = crate::nix::closure("python3.11");
    nix_layer(&snapshotter, "other", "", strs(&others));
    let root = snapshotter.prepared("container", "layer");
    assert_eq!(names(root.path()), BTreeSet::from(["nix".to_owned()]));
    let ls = Command::new("ls")
        .arg("-A")
        .arg(root.path())
        .output()
        .expect("ls");
    assert_eq!(String::from_utf8_lossy(&ls.stdout), "nix\n");
    assert!(root.at(".nix-snapshotter").is_dir());
    assert_eq!(status_paths(&root), all(&closure));
    for name in &closure {
        let document = status(&root, name);
        assert_eq!(document["storePath"], format!("/nix/store/{name}"));
        assert_eq!(document["state"], "known", "{document}");
        assert_eq!(document["substituter"], server.base());
    }
    let summary = status(&root, "summary");
    assert_eq!(summary["paths"]["total"], closure.len());
    // It tells what happens.
    let main = corpus::store_path("redis-server");
    let name = main.file_name().expect("a name").to_str().expect("ASCII");
    fs::read(root.at(main.join("bin/redis-server"))).expect("readable");
    let document = status(&root, name);
    assert!(
        document["fetchedSize"].as_u64().expect("a number") > 0,
        "{document}"
    );
    let absent = others
        .iter()
        .find(|name| !closure.contains(name))
        .expect("one");
    let absent = root.at(format!(".nix-snapshotter/{absent}.json"));
    assert_eq!(
        fs::read(absent).expect_err("another's").kind(),
        ErrorKind::NotFound
    );
    let absent = others
        .iter()
        .find(|name| !closure.contains(name))
        .expect("one");
    assert!(!root.at(format!("nix/store/{absent}")).exists());
}

/// nix-snapshotter's layers have an empty directory or an empty file for each path, and links.
#[test]
fn what_the_layer_unpacks_neither_hides_the_paths_nor_is_hidden() {
    let script = Package::new("script", &exec("#!/bin/sh\necho script\n"));
    let packages = [tool("program"), script];
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let names = names_of(&packages);
    let fill = |root: &crate::snapshotter::Root| {
        fs::create_dir_all(root.at("nix/store").join(&names[0])).expect("made");
        fs::write(root.at("nix/store").join(&names[1]), "").expect("made");
        fs::create_dir(root.at("bin")).expect("made");
        symlink(
            format!("/nix/store/{}/bin/tool", names[0]),
            root.at("bin/tool"),
        )
        .expect("made");
    };
    unpack(&snapshotter, "layer", "", path_labels(strs(&names)), fill).expect("a layer");
    let root = snapshotter.prepared("container", "layer");
    assert_eq!(
        root.read(format!("nix/store/{}", names[1])),
        "#!/bin/sh\necho script\n"
    );
    let program = root.at(format!("nix/store/{}", names[0]));
    assert_eq!(
        fs::metadata(&program).expect("there").mode() & 0o7777,
        0o555
    );
    assert_eq!(
        fs::read_to_string(program.join("bin/tool"))
            .expect("there")
            .len(),
        23
    );
    let link = fs::read_link(root.at("bin/tool")).expect("a link");
    assert_eq!(
        link,
        Path::new(&format!("/nix/store/{}/bin/tool", names[0]))
    );
}

/// Clients of containerd 1.6 pass no labels on: the layer's mountpoints say what it is.
#[test]
fn a_layer_without_labels_is_known_by_its_mountpoints() {
    let packages = [tool("one"), tool("two")];
    let own = Own::with(&packages);
    let names = names_of(&packages);
    for (flag, wanted) in [(None, "one\n"), (Some("--no-detect-nix-layers"), "")] {
        let setup = own.setup();
        let snapshotter = Snapshotter::start(match flag {
            Some(flag) => setup.flag(flag),
            None => setup,
        });
        let root = snapshotter.prepared("extract", "");
        mountpoints(strs(&names))(&root);
        drop(root);
        snapshotter
            .commit("layer", "extract", Labels::new())
            .expect("Commit");
        let root = snapshotter.prepared("container", "layer");
        assert_eq!(store(&root), all(&names));
        let tool = root.at(format!("nix/store/{}/bin/tool", names[0]));
        let said = Command::new(tool)
            .output()
            .map(|o| o.stdout)
            .unwrap_or_default();
        assert_eq!(String::from_utf8_lossy(&said), wanted, "{flag:?}");
        assert_eq!(root.at(".nix-snapshotter").exists(), flag.is_none());
    }
}

/// One that brings content of its own in its store is an ordinary one, whatever its names are.
#[test]
fn an_ordinary_layer_with_store_paths_is_taken_as_it_is() {
    let own = Own::new();
    let snapshotter = own.snapshotter();
    let name = tool("unknown").path.to_string();
    let root = snapshotter.prepared("extract", "");
    fs::create_dir_all(root.at(format!("nix/store/{name}/bin"))).expect("made");
    fs::write(root.at(format!("nix/store/{name}/bin/tool")), "mine").expect("written");
    drop(root);
    snapshotter
        .commit("layer", "extract", Labels::new())
        .expect("Commit");
    let root = snapshotter.prepared("container", "layer");
    assert_eq!(root.read(format!("nix/store/{name}/bin/tool")), "mine");
    assert!(!root.at(".nix-snapshotter").exists());
    assert!(
        own.server
            .requests()
            .iter()
            .all(|r| !r.path.ends_with(".narinfo"))
    );
}

/// A container's writes are its own, and the paths stay as they are for everybody else.
#[test]
fn a_container_writes_over_store_paths_for_itself_alone() {
    let packages = [tool("one"), tool("two")];
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let names = names_of(&packages);
    nix_layer(&snapshotter, "layer", "", strs(&names));
    let mine = snapshotter.prepared("mine", "layer");
    let other = snapshotter.prepared("other", "layer");
    let tool = format!("nix/store/{}/bin/tool", names[0]);
    let two = format!("nix/store/{}", names[1]);
    fs::write(mine.at(&tool), "changed").expect("root may");
    fs::remove_dir_all(mine.at(&two)).expect("root may");
    fs::create_dir(mine.at("nix/store/new")).expect("root may");
    assert_eq!(mine.read(&tool), "changed");
    assert!(!mine.at(&two).exists());
    assert!(other.read(&tool).contains("echo one"));
    assert_eq!(store(&other), all(&names));
    let view = snapshotter.mountpoint().join("views");
    let view = view.join(snapshotter.views().first().expect("one"));
    let error = fs::write(view.join(&tool), "x").expect_err("the view itself");
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
}

/// containerd's differ and `ctr snapshots view` look at layers so.
#[test]
fn a_view_of_a_nix_layer_shows_its_paths_and_can_not_be_written_to() {
    let packages = [tool("one")];
    let own = Own::with(&packages);
    let snapshotter = own.snapshotter();
    let names = names_of(&packages);
    nix_layer(&snapshotter, "layer", "", strs(&names));
    let root = snapshotter.viewed("view", "layer");
    assert_eq!(store(&root), all(&names));
    assert_eq!(status_paths(&root), all(&names));
    assert!(
        root.read(format!("nix/store/{}/bin/tool", names[0]))
            .contains("echo one")
    );
    let error = fs::write(root.at("x"), "").expect_err("a view");
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
}

/// However many store paths there are, a container is one mount of two lowers.
#[test]
fn five_thousand_store_paths_need_no_further_mounts() {
    let packages: Vec<_> = (0..5000)
        .map(|n| Package::new(&format!("path-{n}"), &file(format!("{n}"))))
        .collect();
    let own = Own::with(&packages);
    let snapshotter = Snapshotter::start(own.setup().flag("--connections=50"));
    let names = names_of(&packages);
    unpack(&snapshotter, "layer", "", path_labels(strs(&names)), |_| ()).expect("a layer");
    let mounts = snapshotter
        .prepare("container", "layer", Labels::new())
        .expect("Prepare");
    assert_eq!(mounts.len(), 1);
    assert_eq!(lowers(&mounts[0]).len(), 2);
    let root = snapshotter.mount(&mounts);
    assert_eq!(store(&root), all(&names));
    assert_eq!(root.read(format!("nix/store/{}", names[4711])), "4711");
    assert_eq!(status_paths(&root).len(), 5000);
    assert_eq!(status(&root, "summary")["paths"]["total"], 5000);
}

/// A setup without any cache is for ordinary images; it says so where a Nix layer comes.
#[test]
fn without_a_cache_a_nix_layer_is_refused() {
    let snapshotter = Snapshotter::start(Setup::without_caches());
    let name = tool("one").path.to_string();
    let error = snapshotter
        .prepare("a", "", path_labels([&*name]))
        .expect_err("no cache");
    assert!(error.message().contains(&name), "{error}");
    assert_ne!(error.code(), tonic::Code::Internal, "{error}");
    snapshotter.assert_holds_only(0, 0);
}
