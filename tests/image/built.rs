//! What is written, and what it costs the caches.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::json;

use crate::{
    archive::{Entry, Image},
    corpus,
    run::{Packages, Place, at, nars, serve},
    support::{
        cache::{Cache, Package, Packing, directory, exec, file, key, link, noise},
        scripted::{Gate, Reply},
    },
};

/// Builds into a file beside the place, and gives the image.
fn build(place: &Place, arguments: &[&str]) -> Image {
    let file = place.tmp().with_file_name("image.tar");
    let shown = file.to_str().unwrap();
    place
        .run(&[&["image", "build", "-o", shown], arguments].concat())
        .with(0);
    place.assert_clean();
    Image::read(&file)
}

#[test]
fn an_image_is_what_the_specification_says() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let program = at(&packages.app, "bin/app");
    let image = build(
        &place,
        &[
            "--name",
            "example.org/app:1.0",
            "--closure",
            &at(&packages.app, ""),
            "--entrypoint",
            &program,
            "--entrypoint",
            "--flag",
            "--cmd",
            "-x",
            "--cmd",
            "",
            "--env",
            "A=b=c",
            "--env",
            "EMPTY=",
            "--workdir",
            "/srv",
            "--user",
            "1000:100",
            "--label",
            "k=v",
            "--platform",
            "linux/arm64/v8",
        ],
    );
    let mut all: Vec<_> = packages.all().map(|p| p.path.clone()).into();
    all.sort();
    let mut top: BTreeMap<_, _> = ["nix", "nix/store"]
        .map(|d| (d.to_owned(), (Entry::Directory, 0o755)))
        .into();
    let mut annotations = BTreeMap::from([("nix-layer".to_owned(), "true".to_owned())]);
    for (number, path) in all.iter().enumerate() {
        top.insert(path.absolute()[1..].to_owned(), (Entry::Directory, 0o755));
        annotations.insert(format!("nix-store-path.{number}"), path.absolute());
    }
    assert_eq!(image.top(), top);
    assert_eq!(image.annotations(), annotations);
    let named = image.named.annotations().clone().unwrap();
    assert_eq!(named["io.containerd.image.name"], "example.org/app:1.0");
    assert_eq!(named["org.opencontainers.image.ref.name"], "1.0");
    let mut config = image.config.clone();
    config["rootfs"].take();
    let want = json!({
        "architecture": "arm64", "variant": "v8", "os": "linux", "rootfs": null,
        "config": {
            "Entrypoint": [program, "--flag"], "Cmd": ["-x", ""], "Env": ["A=b=c", "EMPTY="],
            "WorkingDir": "/srv", "User": "1000:100", "Labels": {"k": "v"},
        },
    });
    assert_eq!(config, want);
    let docker: serde_json::Value = serde_json::from_slice(&image.files["manifest.json"]).unwrap();
    assert_eq!(docker[0]["RepoTags"], json!(["example.org/app:1.0"]));
    assert!(!place.state().exists(), "the state directory was touched");
}

#[test]
fn mountpoints_are_of_the_kind_of_their_paths() {
    let key = key();
    let cache = Cache::new(&key);
    let folder = Package::new("dir", &directory([("x", exec("#!/bin/sh\n"))]));
    let script = Package::new("script.sh", &exec("#!/bin/sh\n"));
    let plain = Package::new("plain.txt", &file(""));
    let to_dir = Package::new("to-dir", &link(&folder.path.absolute()));
    let to_file = Package::new("to-file", &link(&at(&folder, "x")));
    let to_nowhere = Package::new("to-nowhere", &link("/etc/passwd"));
    let all = [&folder, &script, &plain, &to_dir, &to_file, &to_nowhere];
    let root = Package::new("root", &directory([])).with_references(&all);
    cache.add_all(all.into_iter().chain([&root]), Packing::Zstd);
    let server = serve(cache);
    let place = Place::over(&key, &[&server.base()]);
    let image = build(&place, &["--name", "x", "--closure", &at(&root, "")]);
    let top = image.top();
    let kind = |package: &Package| top[&package.path.absolute()[1..]].clone();
    for package in [&root, &folder, &to_dir] {
        assert_eq!(kind(package), (Entry::Directory, 0o755), "{}", package.path);
    }
    for package in [&script, &plain, &to_file, &to_nowhere] {
        assert_eq!(kind(package), (Entry::File, 0o555), "{}", package.path);
    }
    assert_eq!(nars(&server), []);
}

#[test]
fn an_image_costs_narinfos_and_listings() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let app = at(&packages.app, "");
    build(&place, &["--name", "x", "--closure", &app]);
    let mut asked: Vec<_> = server.requests().into_iter().map(|r| r.path).collect();
    asked.sort();
    let mut want: Vec<_> = packages
        .all()
        .iter()
        .flat_map(|p| [p.narinfo_url(), p.listing_url()])
        .collect();
    want.sort();
    assert_eq!(asked, want, "each once");
    // A program and links at the root are looked at in the same listings.
    server.clear();
    let program = at(&packages.app, "bin/app");
    build(
        &place,
        &[
            "--name",
            "x",
            "--copy-to-root",
            &app,
            "--entrypoint",
            &program,
        ],
    );
    let asked: Vec<_> = server.requests().into_iter().map(|r| r.path).collect();
    let small = |path: &String| path.ends_with(".narinfo") || path.ends_with(".ls");
    assert!(asked.iter().all(small), "{asked:?}");
    assert!(asked.len() <= want.len() + 2, "{asked:?}");
}

#[test]
fn where_there_is_no_listing_the_beginning_of_a_nar_will_do() {
    let key = key();
    let big =
        |name: &str, seed| Package::new(name, &directory([("big", file(noise(seed, 3 << 20)))]));
    for packing in Packing::ALL {
        let cache = Cache::new(&key);
        let (one, two) = (big("one", 1), Package::new("two", &file(noise(2, 3 << 20))));
        let root = Package::new("root", &link(&one.path.absolute())).with_references(&[&one, &two]);
        cache.add_unlisted(&one, packing);
        cache.add_unlisted(&two, packing);
        cache.add(&root, packing);
        let server = serve(cache);
        // Nobody opens it.
        let gate = Gate::new();
        for package in [&one, &two] {
            let reply = Reply::as_it_is().pausing_at(1 << 20, &gate);
            server.on(&package.nar_url(packing), reply);
        }
        let place = Place::over(&key, &[&server.base()]);
        // The link leads into a path that is not followed by its listing.
        cache_listing(&server.cache, &one);
        let image = build(&place, &["--name", "x", "--closure", &at(&root, "")]);
        let top = image.top();
        assert_eq!(
            top[&one.path.absolute()[1..]].0,
            Entry::Directory,
            "{packing:?}"
        );
        assert_eq!(top[&two.path.absolute()[1..]].0, Entry::File, "{packing:?}");
        assert_eq!(
            top[&root.path.absolute()[1..]].0,
            Entry::Directory,
            "{packing:?}"
        );
        let asked: Vec<_> = nars(&server).into_iter().map(|r| r.path).collect();
        assert_eq!(asked, [two.nar_url(packing)]);
    }
}

/// Now it has one.
fn cache_listing(cache: &Cache<'_>, package: &Package) {
    cache.write_listing(package, &package.listing());
}

#[test]
fn the_bytes_are_always_the_same() {
    let root = corpus::store_path("python3.11");
    let root = root.to_str().unwrap();
    let program = format!("{root}/bin/python3.11");
    let cache = |name| format!("file://{}", corpus::cache(name).display());
    let mut made = Vec::new();
    for name in ["zstd", "none", "xz"] {
        let mut place = Place::bare();
        place.flag("--trusted-key", &corpus::public_key());
        place.flag("--cache", &cache(name));
        let arguments = [
            "image",
            "build",
            "--name",
            "python:3.11",
            "--closure",
            root,
            "--entrypoint",
            &program,
        ];
        let file = place.tmp().with_file_name("here.tar");
        place
            .run(&[&arguments[..], &["-o", file.to_str().unwrap()]].concat())
            .with(0);
        made.push(fs::read(&file).unwrap());
        let piped = place
            .run(&[&arguments[..], &["--output", "-"]].concat())
            .with(0);
        assert!(piped.err.is_empty(), "{}", piped.err);
        made.push(piped.out);
    }
    assert!(made.windows(2).all(|pair| pair[0] == pair[1]));
    let image = Image::of(&made[0]);
    let closure = corpus::closure(Path::new(root));
    let mut want: Vec<String> = closure
        .iter()
        .map(|p| p.to_str().unwrap()[1..].to_owned())
        .collect();
    want.extend(["nix", "nix/store"].map(String::from));
    want.sort();
    assert_eq!(image.top().into_keys().collect::<Vec<_>>(), want);
    assert_eq!(image.annotations().len(), closure.len() + 1);
    assert!(
        made[0].len() < 64 << 10,
        "{} bytes for {} paths",
        made[0].len(),
        closure.len()
    );
}

#[test]
fn a_real_cache_is_asked_for_nothing_but_narinfos_and_listings() {
    let nginx = corpus::Nginx::start();
    for name in ["python3.11", "redis-server"] {
        let root = corpus::store_path(name);
        let before = nginx.requests().len();
        let mut place = Place::bare();
        place.flag("--trusted-key", &corpus::public_key());
        place.flag("--cache", &nginx.cache("zstd"));
        build(
            &place,
            &["--name", name, "--closure", root.to_str().unwrap()],
        );
        let paths = corpus::closure(&root).len();
        // nginx writes its log when the answer is gone. One cache alone is not asked for its
        // priority.
        let asked = || nginx.requests().split_off(before);
        crate::run::until(|| asked().len() >= 2 * paths);
        let asked: Vec<_> = asked().into_iter().map(|r| r.path).collect();
        let ending = |end: &str| asked.iter().filter(|path| path.ends_with(end)).count();
        assert_eq!(
            (ending(".narinfo"), ending(".ls")),
            (paths, paths),
            "{asked:?}"
        );
        assert_eq!(asked.len(), 2 * paths, "{asked:?}");
    }
}

#[test]
fn a_closure_info_names_all_paths_at_once() {
    let (key, packages) = (key(), Packages::new());
    let cache = packages.cache(&key, Packing::Zstd);
    let list = packages.all().map(|p| p.path.absolute() + "\n").concat();
    let info = Package::new("closure-info", &directory([("store-paths", file(list))]))
        .with_references(&packages.all());
    cache.add(&info, Packing::Zstd);
    let server = serve(cache);
    let place = Place::over(&key, &[&server.base()]);
    let (app, info) = (at(&packages.app, ""), at(&info, ""));
    let by_paths = build(&place, &["--name", "x", "--closure", &app]);
    let closure = build(
        &place,
        &["--name", "x", "--closure", &app, "--closure-info", &info],
    );
    assert_eq!(
        closure.top(),
        by_paths.top(),
        "the info itself is not in the image"
    );
    let want = [("nix-closure", info.as_str()), ("nix-layer", "true")];
    let want: BTreeMap<_, _> = want.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    assert_eq!(closure.annotations(), want);
    let alone = build(
        &place,
        &[
            "--name",
            "x",
            "--scheme",
            "closure",
            "--closure-info",
            &info,
        ],
    );
    assert_eq!(alone.annotations(), want);
    let both = build(
        &place,
        &["--name", "x", "--scheme", "both", "--closure-info", &info],
    );
    let mut want = by_paths.annotations();
    want.insert("nix-closure".into(), info);
    assert_eq!(both.annotations(), want);
    assert_eq!(nars(&server), []);
}

#[test]
fn what_was_made_is_said() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let file = place.tmp().with_file_name("image.tar");
    let shown = file.to_str().unwrap();
    let arguments = [
        "image",
        "build",
        "--name",
        "app",
        "-o",
        shown,
        "--closure",
        &at(&packages.app, ""),
    ];
    let said = place
        .run(&[&arguments[..], &["--json"]].concat())
        .with(0)
        .json();
    let image = Image::read(&file);
    let nars: usize = packages.all().iter().map(|p| p.nar.len()).sum();
    let want = json!({
        "name": "docker.io/library/app:latest",
        "digest": image.named.digest().to_string(),
        "config": image.manifest.config().digest().to_string(),
        "platform": said["platform"],
        "file": shown,
        "size": fs::metadata(&file).unwrap().len(),
        "storePaths": 3,
        "narSize": nars,
    });
    assert_eq!(said, want);
    let platform = image.named.platform().as_ref().unwrap();
    assert_eq!(
        said["platform"],
        format!("linux/{}", platform.architecture())
    );
    let columns = place.run(&arguments).with(0).text();
    let want = format!(
        "docker.io/library/app:latest\t{}\t{}\t3\n",
        image.named.digest(),
        said["size"]
    );
    assert_eq!(columns, want);
}
