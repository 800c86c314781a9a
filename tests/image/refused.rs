//! What is refused, and with which status.

use crate::{
    run::{Packages, Place, at, serve},
    support::{
        cache::{Cache, Package, Packing, directory, file, key},
        scripted::Reply,
    },
};

fn build<'a>(file: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["image", "build", "--name", "x", "-o", file], more].concat()
}

#[test]
fn what_cannot_be_had_says_why_and_writes_nothing() {
    let (key, packages) = (key(), Packages::new());
    let cache = Cache::new(&key);
    cache.add_all([&packages.app, &packages.lib], Packing::Zstd);
    let server = serve(cache);
    let place = Place::over(&key, &[&server.base()]);
    let (app, lib) = (at(&packages.app, ""), at(&packages.lib, ""));
    let file = place.tmp().with_file_name("image.tar");
    std::fs::write(&file, "as it was").unwrap();
    let file = file.to_str().unwrap();
    // A path deep in the closure that no cache has.
    let said = place.run(&build(file, &["--closure", &app])).with(3).err;
    assert!(
        said.contains(&packages.data.path.to_string()) && said.contains(&server.base()),
        "{said}"
    );
    let absent = "/nix/store/00000000000000000000000000000000-absent";
    place.run(&build(file, &["--closure", absent])).with(3);
    place.run(&build(file, &["--copy-to-root", absent])).with(3);
    place.run(&build(file, &["--closure-info", absent])).with(3);
    // One that is not signed.
    server.cache.add(&packages.data, Packing::Zstd);
    let mut stranger = Place::bare();
    stranger.flag("--cache", &server.base());
    let said = stranger.run(&build(file, &["--closure", &lib])).with(4).err;
    assert!(
        said.contains("no signature by a trusted key") && said.contains("1 other path"),
        "{said}"
    );
    // A cache that fails in the middle: never the same as absent.
    for broken in [packages.data.narinfo_url(), packages.data.listing_url()] {
        let own = Place::over(&key, &[&server.base()]);
        server.on(&broken, Reply::status(500));
        let said = own.run(&build(file, &["--closure", &app])).with(5).err;
        assert!(said.contains(&server.base()), "{said}");
        server.forget(&broken);
    }
    server.vanish();
    place.run(&build(file, &["--closure", &app])).with(5);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "as it was");
    place.assert_clean();
}

#[test]
fn the_beginning_of_something_else_is_damaged() {
    let key = key();
    let cache = Cache::new(&key);
    let broken = Package::of_nar("broken", b"this is no archive at all".repeat(10));
    cache.add_unlisted(&broken, Packing::Zstd);
    let short = Package::of_nar("short", b"nix".to_vec());
    cache.add_unlisted(&short, Packing::None);
    let server = serve(cache);
    let place = Place::over(&key, &[&server.base()]);
    let file = place.tmp().with_file_name("image.tar");
    let file = file.to_str().unwrap();
    for package in [&broken, &short] {
        let said = place
            .run(&build(file, &["--closure", &at(package, "")]))
            .with(4)
            .err;
        assert!(
            said.contains("damaged NAR") && said.contains(&server.base()),
            "{said}"
        );
    }
    place.assert_clean();
}

#[test]
fn a_user_whom_nobody_knows_is_warned_of() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let file = place.tmp().with_file_name("image.tar");
    let file = file.to_str().unwrap();
    let app = at(&packages.app, "");
    for (user, warned) in [
        ("redis", true),
        ("0:users", true),
        ("1000", false),
        ("0:0", false),
    ] {
        let said = place
            .run(&build(file, &["--closure", &app, "--user", user]))
            .with(0)
            .err;
        assert_eq!(said.contains("/etc/passwd"), warned, "{user}: {said}");
    }
}

#[test]
fn a_command_line_that_makes_no_sense_asks_nobody() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    let app = at(&packages.app, "");
    let file = place.tmp().with_file_name("image.tar");
    let file = file.to_str().unwrap();
    let with_app = |more: &[&'static str]| {
        let app: &str = &app;
        let mut all = vec!["--closure".to_owned(), app.to_owned()];
        all.extend(more.iter().map(|word| (*word).to_owned()));
        all
    };
    for (more, why) in [
        (vec![], "--closure"),
        (with_app(&["--name", "Bad"]), "capital letters"),
        (with_app(&["--env", "x"]), "NAME=VALUE"),
        (with_app(&["--env", "=x"]), "NAME=VALUE"),
        (with_app(&["--label", "x"]), "NAME=VALUE"),
        (with_app(&["--workdir", "srv"]), "absolute"),
        (with_app(&["--user", "a:b:c"]), "USER:GROUP"),
        (with_app(&["--platform", "windows/amd64"]), "linux/ARCH"),
        (with_app(&["--scheme", "closure"]), "closureInfo"),
        (with_app(&["--scheme", "both"]), "closureInfo"),
        (with_app(&["--scheme", "other"]), "store-paths"),
        (vec!["--closure".into(), "hello".into()], "store path"),
        (
            vec![
                "--scheme".into(),
                "store-paths".into(),
                "--closure-info".into(),
                app.clone(),
            ],
            "no place for",
        ),
    ] {
        let mut arguments = vec!["image", "build", "-o", file];
        if !more.iter().any(|word| word == "--name") {
            arguments.extend(["--name", "x"]);
        }
        arguments.extend(more.iter().map(String::as_str));
        let said = place.run(&arguments).with(2).err;
        assert!(said.contains(why), "{more:?}: {said}");
    }
    assert_eq!(server.requests(), []);
}

#[test]
fn a_closure_info_that_is_none_or_another_ones_is_refused() {
    let (key, packages) = (key(), Packages::new());
    let cache = packages.cache(&key, Packing::Zstd);
    let list = packages.data.path.absolute() + "\n";
    let info = Package::new("closure-info", &directory([("store-paths", file(list))]))
        .with_references(&[&packages.data]);
    cache.add(&info, Packing::Zstd);
    let server = serve(cache);
    let place = Place::over(&key, &[&server.base()]);
    let file = place.tmp().with_file_name("image.tar");
    let file = file.to_str().unwrap();
    let (app, info) = (at(&packages.app, ""), at(&info, ""));
    let said = place
        .run(&build(file, &["--closure-info", &app]))
        .with(2)
        .err;
    assert!(
        said.contains("no closure-info") && said.contains("closureInfo"),
        "{said}"
    );
    let said = place
        .run(&build(file, &["--closure-info", &info, "--closure", &app]))
        .with(2)
        .err;
    assert!(
        said.contains(&format!("{app} is not among the paths of {info}")),
        "{said}"
    );
}
