//! `ls`, `cat`, `path-info`: straight from the caches.

use std::{fs, process::Stdio};

use rustix::process::Signal;

use crate::{
    run::{Packages, Place, Running, at, nars, serve},
    support::{
        cache::{Cache, Package, Packing, file, key, noise},
        scripted::{Gate, Reply},
    },
};

#[test]
fn ls_shows_a_directory_for_two_requests() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let done = place.run(&["ls", &at(&packages.app, "")]).with(0);
    assert_eq!(done.lines(), ["bin", "circle", "lib", "out", "up"]);
    let mut asked: Vec<_> = server.requests().into_iter().map(|r| r.path).collect();
    // They are asked for at the same time.
    asked.sort();
    assert_eq!(
        asked,
        [packages.app.listing_url(), packages.app.narinfo_url()]
    );
    place.assert_clean();
    assert!(!place.state().exists(), "the state directory was touched");
}

#[test]
fn ls_has_long_recursive_and_json_forms() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let long = place.run(&["ls", "-lR", &at(&packages.app, "")]).with(0);
    let want = format!(
        "dr-xr-xr-x  0 bin\n\
         -r-xr-xr-x 19 bin/app\n\
         lrwxrwxrwx  3 bin/same -> app\n\
         lrwxrwxrwx  6 circle -> circle\n\
         lrwxrwxrwx 41 lib -> ../{}\n\
         lrwxrwxrwx 11 out -> /etc/passwd\n\
         lrwxrwxrwx 14 up -> bin/../bin/app\n",
        packages.lib.path
    );
    assert_eq!(long.text(), want);
    let one = place
        .run(&["ls", "-l", &at(&packages.app, "bin/app")])
        .with(0);
    assert_eq!(one.text(), "-r-xr-xr-x 19 app\n");
    let flat = place
        .run(&["ls", "--json", &at(&packages.app, "")])
        .with(0)
        .json();
    assert_eq!(
        flat["entries"]["bin"],
        serde_json::json!({"type": "directory"})
    );
    let deep = place
        .run(&["ls", "--json", "-R", &at(&packages.app, "")])
        .with(0)
        .json();
    let app = serde_json::json!({"type": "regular", "size": 19, "executable": true});
    assert_eq!(deep["entries"]["bin"]["entries"]["app"], app);
    let listing: serde_json::Value = serde_json::from_str(&packages.app.listing()).unwrap();
    assert_eq!(deep, listing["root"], "as the cache's own listing has it");
}

#[test]
fn links_on_the_way_are_followed_and_circles_end() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let through = place
        .run(&["ls", &at(&packages.app, "lib/libx.so")])
        .with(0);
    assert_eq!(through.lines(), ["libx.so"]);
    assert_eq!(
        place
            .run(&["ls", &at(&packages.app, "circle")])
            .with(0)
            .lines(),
        ["circle"]
    );
    for (inside, why) in [
        ("circle/x", "symbolic links"),
        ("out/x", "leads out of the store"),
        ("bin/none", "has no none"),
        ("bin/app/x", "is no directory"),
    ] {
        let done = place.run(&["ls", &at(&packages.app, inside)]).with(3);
        assert!(done.err.contains(why), "{}", done.err);
    }
    assert_eq!(
        place.run(&["cat", &at(&packages.app, "up")]).with(0).text(),
        "#!/bin/sh\necho app\n"
    );
    place.run(&["cat", &at(&packages.app, "circle")]).with(3);
    place.run(&["cat", &at(&packages.app, "bin")]).with(3);
}

#[test]
fn cat_gives_the_right_bytes_from_every_packing() {
    let (key, packages) = (key(), Packages::new());
    let big = noise(1, 3 << 20);
    for packing in Packing::ALL {
        let server = serve(packages.cache(&key, packing));
        let place = Place::over(&key, &[&server.base()]);
        // Over a link into another store path, and an empty one behind it.
        let done = place
            .run(&[
                "cat",
                &at(&packages.app, "lib/data"),
                &at(&packages.data, "empty"),
            ])
            .with(0);
        assert!(done.out == big, "{packing:?}: {} bytes", done.out.len());
        place.assert_clean();
        assert!(!place.state().exists());
    }
}

#[test]
fn cat_of_a_file_in_an_unpacked_archive_is_a_range() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::None));
    let place = Place::over(&key, &[&server.base()]);
    place.run(&["cat", &at(&packages.lib, "libx.so")]).with(0);
    let ranges = nars(&server);
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    server.clear();
    place.run(&["cat", &at(&packages.data, "empty")]).with(0);
    assert_eq!(nars(&server), [], "an empty file needs no bytes");
}

#[test]
fn what_cannot_be_had_says_why_and_ends_with_its_status() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let absent = "/nix/store/00000000000000000000000000000000-absent";
    for verb in ["ls", "cat", "path-info"] {
        let done = place.run(&[verb, absent]).with(3);
        assert!(
            done.err.contains("absent is in none of the caches"),
            "{}",
            done.err
        );
        assert!(
            done.err.contains(&server.base()) && done.err.contains("hint: "),
            "{}",
            done.err
        );
        place.run(&[verb, "hello"]).with(2);
    }
    let mut stranger = Place::bare();
    stranger.flag("--cache", &server.base());
    for verb in ["ls", "cat", "path-info"] {
        let done = stranger.run(&[verb, &at(&packages.app, "")]).with(4);
        assert!(
            done.err.contains("no signature by a trusted key"),
            "{}",
            done.err
        );
        stranger.assert_clean();
    }
    server.vanish();
    for verb in ["ls", "cat", "path-info"] {
        let done = place.run(&[verb, &at(&packages.app, "")]).with(5);
        assert!(done.err.contains(&server.base()), "{}", done.err);
        place.assert_clean();
    }
}

#[test]
fn bytes_that_are_not_what_was_signed_are_refused() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    server.on(
        &packages.data.nar_url(Packing::Zstd),
        Reply::file(noise(9, 100_000)),
    );
    let place = Place::over(&key, &[&server.base()]);
    let done = place.run(&["cat", &at(&packages.data, "big")]).with(4);
    assert!(
        done.out.is_empty() && done.err.contains("damaged"),
        "{}",
        done.err
    );
    place.assert_clean();
}

#[test]
fn an_interrupted_cat_leaves_nothing_behind() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    for signal in [Signal::INT, Signal::TERM] {
        let gate = Gate::new();
        server.on(
            &packages.data.nar_url(Packing::Zstd),
            Reply::as_it_is().behind(&gate),
        );
        let running = Running(
            place
                .command(&["cat", &at(&packages.data, "big")])
                .spawn()
                .unwrap(),
        );
        gate.wait_for(1);
        assert_eq!(
            fs::read_dir(place.tmp()).unwrap().count(),
            1,
            "it works in a directory of its own"
        );
        running.signal(signal);
        let done = running.ended().with(130);
        assert!(done.err.contains("interrupted"), "{}", done.err);
        place.assert_clean();
    }
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let mut child = place
        .command(&["cat", &at(&packages.data, "big")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    Running(child).ended().with(0);
    place.assert_clean();
}

#[test]
fn path_info_fetches_narinfos_alone() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let closure = place
        .run(&["path-info", "--closure", "--json", &at(&packages.app, "")])
        .with(0)
        .json();
    let paths: Vec<_> = closure
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["path"].as_str().unwrap().to_owned())
        .collect();
    let want = [&packages.app, &packages.data, &packages.lib].map(|p| p.path.absolute());
    assert_eq!(paths, want, "breadth first, each once");
    let asked: Vec<_> = server.requests().into_iter().map(|r| r.path).collect();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked.iter().all(|path| path.ends_with(".narinfo")));
    let app = &closure[0];
    let narinfo = packages.app.narinfo(Packing::Zstd);
    assert_eq!(app["narHash"], narinfo.nar_hash.to_string());
    assert_eq!(app["narSize"], packages.app.nar.len());
    assert_eq!(app["fileSize"], serde_json::json!(narinfo.file_size));
    assert_eq!(app["compression"], "zstd");
    assert_eq!(app["url"], narinfo.url);
    assert_eq!(app["substituter"], server.base());
    let key_name = key.public().split(':').next().unwrap().to_owned();
    assert_eq!(app["trust"], key_name.as_str());
    assert!(
        app["signatures"][0]
            .as_str()
            .unwrap()
            .starts_with(&format!("{key_name}:"))
    );
    assert_eq!(app["references"].as_array().unwrap().len(), 2);
    let columns = place.run(&["path-info", &at(&packages.data, "")]).with(0);
    let fields: Vec<String> = columns
        .text()
        .trim_end()
        .split('\t')
        .map(String::from)
        .collect();
    assert_eq!(
        fields[..2],
        [
            packages.data.path.absolute(),
            packages.data.nar.len().to_string()
        ]
    );
    assert_eq!(fields[3..], ["zstd".to_owned(), key_name, server.base()]);
    place.assert_clean();
    assert!(!place.state().exists());
}

#[test]
fn path_info_prints_what_it_has() {
    let (key, packages) = (key(), Packages::new());
    let cache = Cache::new(&key);
    cache.add_all([&packages.app, &packages.lib], Packing::Zstd);
    let server = serve(cache);
    let place = Place::over(&key, &[&server.base()]);
    let done = place
        .run(&["path-info", "-c", &at(&packages.app, "")])
        .with(3);
    assert_eq!(done.lines().len(), 2);
    assert!(
        done.err.contains(&packages.data.path.to_string()),
        "{}",
        done.err
    );
    let mut stranger = Place::bare();
    stranger.flag("--cache", &server.base());
    let done = stranger.run(&["path-info", &at(&packages.app, "")]).with(4);
    assert!(done.text().contains("\tuntrusted\t"), "{}", done.text());
    let done = stranger
        .run(&[
            "--require-signatures=false",
            "path-info",
            &at(&packages.app, ""),
        ])
        .with(0);
    assert!(done.text().contains("\ttrusted-cache\t"), "{}", done.text());
}

#[test]
fn names_are_printed_as_they_are_where_no_terminal_is() {
    let key = key();
    let cache = Cache::new(&key);
    let package = Package::new(
        "odd",
        &crate::support::cache::directory([("\u{1b}c", file("y")), ("a\nb", file("x"))]),
    );
    cache.add(&package, Packing::Zstd);
    let server = serve(cache);
    let place = Place::over(&key, &[&server.base()]);
    assert_eq!(
        place.run(&["ls", &at(&package, "")]).with(0).text(),
        "\u{1b}c\na\nb\n"
    );
}
