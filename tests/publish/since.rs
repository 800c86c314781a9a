//! A new version of what is published already: what `--dry-run --since` says of it is what publishing it then
//! does, and what a reader of the version before fetches.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use crate::{
    lazy::of_nars,
    support::{
        cache::{Cache, Package, Packing, directory, exec, file, key, noise},
        scripted::Server,
    },
    world::{Place, narinfos, url},
};

/// Most that a reader of the version before may fetch beyond the packed chunks that it has not, as a part of
/// them: requests for chunks that lie close to each other bring what is between them.
const MOST_BEYOND: f64 = 1.1;

/// A version of a program with its library: of the library one of three files changes, of the program all but one.
fn version(number: u64, base: &Package) -> [Package; 2] {
    let library = Package::new(
        &format!("library-{number}"),
        &directory([
            ("data", file(noise(1, 2_000_000))),
            ("lib", exec(noise(100 + number, 300_000))),
            ("more", file(noise(2, 1_000_000))),
        ]),
    );
    let library = library.with_references(&[base]);
    let program = Package::new(
        &format!("program-{number}"),
        &directory([
            ("bin", exec(noise(200 + number, 400_000))),
            ("doc", file(noise(3, 600_000))),
            ("version", file(format!("{number}"))),
        ]),
    );
    let program = program.with_references(&[&library, base]);
    [library, program]
}

/// Every file below a directory, with its size.
fn files(directory: &Path) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().unwrap().is_dir() {
            let below = files(&entry.path()).into_iter();
            all.extend(below.map(|(n, size)| (format!("{name}/{n}"), size)));
        } else {
            all.insert(name, entry.metadata().unwrap().len());
        }
    }
    all
}

/// Fetches the whole closure of a path from the published cache.
fn fetch(place: &Place, server: &Server, state: &str, package: &Package) {
    let mut prefetch = place.command(&["--cache", &server.base(), "--trusted-key"]);
    prefetch.arg(place.key.public()).arg("--state-dir");
    prefetch.arg(place.path(state)).args(["prefetch", "-qc"]);
    let output = prefetch.arg(package.path.absolute()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

fn number(report: &Value, name: &str) -> u64 {
    report[name]
        .as_u64()
        .unwrap_or_else(|| panic!("{name} in {report}"))
}

#[test]
fn what_a_new_version_would_save_is_what_it_saves() {
    let (place, key) = (Place::new(), key());
    let source = Cache::new(&key);
    let base = Package::new("base", &directory([("base", file(noise(9, 500_000)))]));
    let [old_library, old] = version(1, &base);
    let [new_library, new] = version(2, &base);
    let all = [&base, &old_library, &old, &new_library, &new];
    source.add_all(all, Packing::Zstd);
    let (from, out) = (url(source.path()), place.path("out"));
    let (to, public) = (url(&out), key.public());
    let (old_path, new_path) = (old.path.absolute(), new.path.absolute());
    let publish = |more: &[&str]| {
        let arguments = [&["--trusted-key", &public], more].concat();
        place.published(&from, &to, &arguments)
    };
    publish(&[&old_path]);

    // What is said before changes nothing.
    let before = files(&out);
    let since = ["--since", &old_path, &new_path];
    let dry = publish(&[&["--dry-run"], &since[..]].concat());
    assert_eq!(files(&out), before);
    assert_eq!(dry["dryRun"], true);
    assert_eq!(number(&dry, "written"), 2);
    assert_eq!(number(&dry, "present"), 1, "{dry}");
    let (size, shared) = (number(&dry, "fileSize"), number(&dry, "sharedSize"));
    // 3.6 MB of 4.3 MB are as before, but for the chunks that they share with what changed.
    assert!(shared > size / 2 && shared < size, "{shared} of {size}");
    let alone = publish(&["--dry-run", &new_path]);
    assert_eq!(number(&alone, "fileSize"), size);
    assert!(number(&alone, "sharedSize") < shared / 10, "{alone}");

    // What is done then.
    let done = publish(&since);
    assert_eq!(done["dryRun"], false);
    for figure in [
        "written",
        "present",
        "narSize",
        "fileSize",
        "chunks",
        "sharedSize",
    ] {
        assert_eq!(done[figure], dry[figure], "{figure}");
    }
    let after = files(&out);
    let infos = narinfos(&out);
    let mut written: Vec<String> = Vec::new();
    let mut bytes = 0;
    for package in [&new_library, &new] {
        let (hash, nar) = (package.path.hash(), &infos[&package.path.hash()].url);
        bytes += after[nar];
        written.extend([
            format!("{hash}.narinfo"),
            format!("{hash}.ls"),
            nar.clone(),
            format!("{nar}.chunks"),
        ]);
    }
    assert_eq!(bytes, size, "what was said to be written was written");
    written.sort();
    let news = after.keys().filter(|name| !before.contains_key(*name));
    assert_eq!(news.cloned().collect::<Vec<_>>(), written);
    assert!(before.iter().all(|(name, size)| after[name] == *size));

    // What readers fetch: one who has the version before, and one who has nothing.
    let server = Server::start();
    server.directory(&out);
    fetch(&place, &server, "reader", &old);
    server.clear();
    fetch(&place, &server, "reader", &new);
    let (_, fetched) = of_nars(&server, &out);
    eprintln!("{fetched} bytes fetched of {size}, {shared} shared");
    // But for the table of frames at the end of each file, which the index tells as well.
    let tables = 12 * number(&done, "chunks") + 2 * 17;
    assert!(
        fetched + tables >= size - shared,
        "{fetched} of {size} - {shared}"
    );
    let most = (size - shared) as f64 * MOST_BEYOND;
    assert!(fetched as f64 <= most, "{fetched} of {size} - {shared}");
    server.clear();
    fetch(&place, &server, "stranger", &new);
    assert!(of_nars(&server, &out).1 + tables >= size);
}
