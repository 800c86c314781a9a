//! In which order caches are asked, and what that costs.

use std::{fs, time::SystemTime};

use narfs::nix::SigningKey;

use crate::{
    run::{Packages, Place, Served, at, serve},
    support::{
        cache::{Packing, key},
        scripted::Reply,
    },
};

const INFO: &str = "/nix-cache-info";

/// Two caches with everything, of which the second says this priority and the first 40.
fn caches<'k>(key: &'k SigningKey, packages: &Packages, second: &str) -> [Served<'k>; 2] {
    let [first, other] = [(), ()].map(|()| serve(packages.cache(key, Packing::Zstd)));
    fs::write(
        first.cache.path().join("nix-cache-info"),
        "StoreDir: /nix/store\nPriority: 40\n",
    )
    .unwrap();
    fs::write(other.cache.path().join("nix-cache-info"), second).unwrap();
    [first, other]
}

fn priorities(place: &Place) -> Vec<(String, u64)> {
    let status = place.run(&["status", "--json"]).with(0).json();
    let caches = status["summary"]["substituters"]
        .as_array()
        .unwrap()
        .clone();
    caches
        .iter()
        .map(|c| {
            (
                c["name"].as_str().unwrap().to_owned(),
                c["priority"].as_u64().unwrap(),
            )
        })
        .collect()
}

#[test]
fn lower_priorities_are_asked_first_and_caches_say_theirs_once() {
    let (key, packages) = (key(), Packages::new());
    let [first, second] = caches(&key, &packages, "StoreDir: /nix/store\nPriority: 30\n");
    let place = Place::over(&key, &[&first.base(), &second.base()]);
    place
        .run(&["prefetch", "-q", &at(&packages.lib, "")])
        .with(0);
    let asked = |of: &Served<'_>| {
        of.requests()
            .into_iter()
            .map(|r| r.path)
            .collect::<Vec<_>>()
    };
    assert_eq!(asked(&first), [INFO]);
    assert_eq!(
        (
            second.count(INFO),
            second.count(&packages.lib.narinfo_url())
        ),
        (1, 1)
    );
    assert_eq!(
        priorities(&place),
        [(second.base(), 30), (first.base(), 40)]
    );
    // Known for a week: neither a warm start nor another lookup asks again.
    first.clear();
    second.clear();
    place
        .run(&["prefetch", "-q", &at(&packages.lib, "")])
        .with(0);
    assert_eq!((asked(&first).len(), asked(&second).len()), (0, 0));
    place
        .run(&["prefetch", "-q", &at(&packages.data, "")])
        .with(0);
    assert_eq!((asked(&first).len(), second.count(INFO)), (0, 0));
    {
        let content =
            narfs::content::ContentStore::open(&place.state(), Default::default()).unwrap();
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let old = content
            .db()
            .cache_info(&second.base())
            .unwrap()
            .expect("kept")
            .1;
        content
            .db()
            .put_cache_info(&second.base(), old, now - 8 * 24 * 3600)
            .wait()
            .unwrap();
    }
    place
        .run(&["prefetch", "-q", &at(&packages.data, "")])
        .with(0);
    assert_eq!(second.count(INFO), 0, "nothing was looked up");
    place
        .run(&["prefetch", "-q", &at(&packages.app, "")])
        .with(0);
    assert_eq!(
        (first.count(INFO), second.count(INFO)),
        (0, 1),
        "the old one is asked again"
    );
}

#[test]
fn the_configuration_beats_what_caches_say() {
    let (key, packages) = (key(), Packages::new());
    let [first, second] = caches(&key, &packages, "StoreDir: /nix/store\nPriority: 30\n");
    let preferred = format!("{}?priority=10", first.base());
    let place = Place::over(&key, &[&second.base(), &preferred]);
    place
        .run(&["prefetch", "-q", &at(&packages.lib, "")])
        .with(0);
    assert_eq!(
        second.requests().len(),
        0,
        "with one cache left there is nothing to compare"
    );
    assert_eq!(
        (first.count(INFO), first.count(&packages.lib.narinfo_url())),
        (0, 1)
    );
    // One cache alone is never asked.
    let alone = Place::over(&key, &[&second.base()]);
    alone
        .run(&["prefetch", "-q", &at(&packages.lib, "")])
        .with(0);
    assert_eq!(second.count(INFO), 0);
}

#[test]
fn a_cache_that_says_nothing_comes_behind_one_that_does() {
    let (key, packages) = (key(), Packages::new());
    let [first, second] = caches(&key, &packages, "StoreDir: /nix/store\nPriority: 49\n");
    for silence in [
        Reply::status(500),
        Reply::status(404),
        Reply::html(),
        Reply::reset(),
    ] {
        first.clear();
        first.on(INFO, silence);
        let place = Place::over(&key, &[&first.base(), &second.base()]);
        place
            .run(&["prefetch", "-q", &at(&packages.lib, "")])
            .with(0);
        assert_eq!(first.count(&packages.lib.narinfo_url()), 0);
        assert!(first.count(INFO) > 0);
    }
    // Equal ones keep the order of the configuration.
    fs::write(second.cache.path().join("nix-cache-info"), "Priority: 50\n").unwrap();
    let place = Place::over(&key, &[&first.base(), &second.base()]);
    place
        .run(&["prefetch", "-q", &at(&packages.lib, "")])
        .with(0);
    assert_eq!(first.count(&packages.lib.narinfo_url()), 1);
}

#[test]
fn a_cache_of_another_store_is_not_used_and_said_to_be_so() {
    let (key, packages) = (key(), Packages::new());
    let [first, second] = caches(&key, &packages, "StoreDir: /gnu/store\nPriority: 1\n");
    let place = Place::over(&key, &[&first.base(), &second.base()]);
    let done = place
        .run(&["prefetch", "-q", &at(&packages.lib, "")])
        .with(0);
    assert!(
        done.err.contains("/gnu/store") && done.err.contains(&second.base()),
        "{}",
        done.err
    );
    assert_eq!(second.requests().len(), 1, "its nix-cache-info");
    let status = place.run(&["status", "--json"]).with(0).json();
    let error = status["summary"]["substituters"][0]["lastError"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        error.contains("/gnu/store") && error.contains("not used"),
        "{error}"
    );
    fs::write(
        first.cache.path().join("nix-cache-info"),
        "StoreDir: /gnu/store\n",
    )
    .unwrap();
    let lost = Place::over(&key, &[&first.base(), &second.base()]);
    let done = lost.run(&["ls", &at(&packages.lib, "")]).with(2);
    assert!(done.err.contains("/gnu/store"), "{}", done.err);
}
