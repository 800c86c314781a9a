//! `--copy-to-root`, and whether what is to be run is there.

use crate::{
    archive::{Base, Entry, Image, tar_of},
    containerd::architecture,
    run::{Packages, Place, Served, at, serve},
    support::cache::{Package, Packing, directory, exec, file, key, link},
};

/// A cache with `app` of [`Packages`], and a package to copy.
struct World<'k> {
    packages: Packages,
    env: Package,
    server: Served<'k>,
    place: Place,
}

impl<'k> World<'k> {
    fn new(key: &'k narfs::nix::SigningKey) -> Self {
        let packages = Packages::new();
        let cache = packages.cache(key, Packing::Zstd);
        let env = Package::new(
            "env",
            &directory([
                (
                    "bin",
                    directory([
                        ("app", link(&at(&packages.app, "bin/app"))),
                        ("tool", exec("#!/bin/sh\n")),
                    ]),
                ),
                ("etc", directory([("passwd", file("root:x:0:0::/:\n"))])),
                ("lib", link(&at(&packages.lib, ""))),
                ("tmp", directory([])),
            ]),
        )
        .with_references(&[&packages.app, &packages.lib]);
        cache.add(&env, Packing::Zstd);
        let server = serve(cache);
        let place = Place::over(key, &[&server.base()]);
        Self {
            packages,
            env,
            server,
            place,
        }
    }

    fn arguments<'a>(&self, more: &[&'a str], file: &'a str, env: &'a str) -> Vec<&'a str> {
        let always = [
            "image",
            "build",
            "--name",
            "x",
            "-o",
            file,
            "--copy-to-root",
            env,
        ];
        [&always[..], more].concat()
    }

    fn build(&self, more: &[&str]) -> Image {
        let file = self.place.tmp().with_file_name("image.tar");
        let (shown, env) = (file.to_str().unwrap(), at(&self.env, ""));
        self.place.run(&self.arguments(more, shown, &env)).with(0);
        Image::read(&file)
    }

    fn refused(&self, more: &[&str], code: i32) -> String {
        let file = self.place.tmp().with_file_name("image.tar");
        let (shown, env) = (file.to_str().unwrap(), at(&self.env, ""));
        let ended = self
            .place
            .run(&self.arguments(more, shown, &env))
            .with(code);
        assert!(!file.exists());
        ended.err
    }

    fn base(&self, lines: &[&str]) -> String {
        let base = Base::new().image(
            architecture(),
            serde_json::json!({}),
            &[tar_of(lines)],
            false,
        );
        let file = self.place.tmp().with_file_name("base.tar");
        std::fs::write(&file, base.bytes()).unwrap();
        file.to_str().unwrap().to_owned()
    }
}

#[test]
fn files_are_linked_at_the_root() {
    let key = key();
    let world = World::new(&key);
    let image = world.build(&["--entrypoint", "/bin/tool"]);
    let top = image.top();
    let there = |path: &str| top.get(path).map(|(entry, _)| entry.clone());
    let to = |inside: &str| Some(Entry::Link(at(&world.env, inside)));
    assert_eq!(there("bin"), Some(Entry::Directory));
    assert_eq!(there("bin/app"), to("bin/app"));
    assert_eq!(there("bin/tool"), to("bin/tool"));
    assert_eq!(there("etc/passwd"), to("etc/passwd"));
    assert_eq!(there("lib"), to("lib"), "a link is linked itself");
    assert_eq!(there("tmp"), Some(Entry::Directory));
    // It is brought, with what it refers to.
    for package in world.packages.all().into_iter().chain([&world.env]) {
        assert_eq!(there(&package.path.absolute()[1..]), Some(Entry::Directory));
    }
    assert_eq!(crate::run::nars(&world.server), []);
}

#[test]
fn what_the_base_has_stays_and_its_links_are_followed() {
    let key = key();
    let world = World::new(&key);
    let base = world.base(&[
        "usr/",
        "usr/bin/",
        "usr/bin/sh",
        "bin -> usr/bin",
        "etc/",
        "etc/passwd",
        "tmp/",
    ]);
    let image = world.build(&["--from", &base, "--entrypoint", "/bin/app"]);
    let top = image.top();
    assert!(
        !top.contains_key("bin") && !top.contains_key("etc") && !top.contains_key("tmp"),
        "{top:?}"
    );
    assert_eq!(top["usr/bin/app"].0, Entry::Link(at(&world.env, "bin/app")));
    assert_eq!(
        top["etc/passwd"].0,
        Entry::Link(at(&world.env, "etc/passwd"))
    );
    let base = world.base(&["lib/", "lib/libc.so"]);
    std::fs::remove_file(world.place.tmp().with_file_name("image.tar")).unwrap();
    let said = world.refused(&["--from", &base], 2);
    assert!(
        said.contains("/lib") && said.contains("hide everything"),
        "{said}"
    );
    let said = world.refused(&["--copy-to-root", &at(&world.packages.app, "")], 2);
    let other = at(&world.env, "bin/app");
    assert!(
        said.contains("at /bin/app: ") && said.contains(&other),
        "{said}"
    );
}

#[test]
fn a_program_that_will_not_be_there_is_refused() {
    let key = key();
    let world = World::new(&key);
    let (app, data) = (&world.packages.app, &world.packages.data);
    let stranger = "/nix/store/00000000000000000000000000000000-absent/bin/x";
    for (word, code, why) in [
        (at(app, "bin/none"), 3, "has no none"),
        (at(app, "bin"), 2, "is a directory"),
        (at(data, "empty"), 2, "not executable"),
        (stranger.to_owned(), 2, "--closure"),
        ("/nix/store/x".to_owned(), 2, "store path"),
        ("/bin/none".to_owned(), 2, "no /bin/none"),
        ("/lib/libx.so".to_owned(), 2, "not executable"),
        ("/etc/passwd".to_owned(), 2, "not executable"),
    ] {
        let said = world.refused(&["--entrypoint", &word], code);
        assert!(said.contains(why), "{word}: {said}");
        let said = world.refused(&["--cmd", &word], code);
        assert!(said.contains(why), "{word}: {said}");
    }
    for words in [
        &["--entrypoint", "tool"][..],
        &["--entrypoint", "./tool"],
        &[],
    ] {
        world.build(words);
        std::fs::remove_file(world.place.tmp().with_file_name("image.tar")).unwrap();
    }
    // Nothing at all could be found.
    let (lib, file) = (at(&world.packages.lib, ""), world.place.tmp().join("x"));
    let bare = [
        "image",
        "build",
        "--name",
        "x",
        "-o",
        file.to_str().unwrap(),
        "--closure",
        &lib,
    ];
    let bare = |more: &[&str], code| world.place.run(&[&bare[..], more].concat()).with(code).err;
    assert!(bare(&["--entrypoint", "tool"], 2).contains("no tool"));
    assert!(bare(&["--entrypoint", "/bin/tool"], 2).contains("no /bin/tool"));
    // Its own closure does not have what another one has.
    let said = bare(&["--entrypoint", &at(app, "bin/app")], 2);
    assert!(
        said.contains(&format!("--closure {}", at(app, ""))),
        "{said}"
    );
    bare(&["--entrypoint", "tool", "--env", "PATH=/x"], 0);
}
