//! `gc` and the quota: disk space back.

use std::os::unix::fs::MetadataExt;

use crate::{
    run::{Ended, Packages, Place, at, nars, serve, until},
    support::{
        cache::{Cache, Package, Packing, directory, file, key, noise},
        scripted::Reply,
    },
};

/// Bytes on disk of the archives that are kept.
fn kept(place: &Place) -> u64 {
    place
        .content(".nar")
        .iter()
        .map(|path| path.metadata().unwrap().blocks() * 512)
        .sum()
}

fn state_of(place: &Place, package: &Package) -> String {
    let columns = place.run(&["status", &at(package, "")]).with(0).text();
    columns.split('\t').next().unwrap().to_owned()
}

fn dropped(done: &Ended) -> Vec<String> {
    let document = done.json();
    let nars = document["dropped"].as_array().unwrap().clone();
    nars.iter()
        .map(|nar| nar["storePaths"][0].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn gc_says_what_it_would_do_and_then_does_it() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    place
        .run(&["prefetch", "-qc", &at(&packages.app, "")])
        .with(0);
    let before = kept(&place);
    let would = place.run(&["gc", "-n", "--to", "0"]).with(0);
    assert_eq!(
        (would.lines().len(), kept(&place)),
        (3, before),
        "{}",
        would.text()
    );
    let some = place.run(&["gc", "--to", "1M", "--json"]).with(0);
    assert!(
        some.json()["kept"].as_u64().unwrap() <= 1 << 20,
        "{}",
        some.text()
    );
    assert!(dropped(&some).contains(&packages.data.path.absolute()));
    assert_eq!(
        state_of(&place, &packages.data),
        "known",
        "a dropped path is still there"
    );
    // Nothing holds the rest: without a goal all of it goes.
    place.run(&["gc"]).with(0);
    assert_eq!(place.content(".nar").len(), 0);
    // It comes back when it is wanted.
    place
        .run(&["prefetch", "-q", &at(&packages.lib, "")])
        .with(0);
    assert_eq!(state_of(&place, &packages.lib), "complete");
}

#[test]
fn roots_are_collected_last_with_their_closures() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    place
        .run(&["prefetch", "-qc", &at(&packages.app, "")])
        .with(0);
    {
        let content =
            narfs::content::ContentStore::open(&place.state(), Default::default()).unwrap();
        content
            .db()
            .put_root("mine", std::slice::from_ref(&packages.lib.path))
            .wait()
            .unwrap();
    }
    let unrooted = place.run(&["gc", "--json"]).with(0);
    assert_eq!(
        dropped(&unrooted),
        [packages.app.path.absolute()],
        "lib refers to data"
    );
    let all = place.run(&["gc", "--to", "0", "--json"]).with(0);
    assert_eq!(dropped(&all).len(), 2, "{}", all.text());
}

#[test]
fn what_is_pinned_stays_until_it_is_unpinned() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    place
        .run(&["prefetch", "-qc", &at(&packages.app, "")])
        .with(0);
    let lib = at(&packages.lib, "");
    place.run(&["pin", &lib]).with(0);
    let listed = place.run(&["pin", "--json"]).with(0).json();
    let [pin] = &listed.as_array().unwrap()[..] else {
        panic!("{listed}")
    };
    assert_eq!(pin["storePath"], packages.lib.path.absolute());
    assert_eq!(pin["closure"], 2, "lib refers to data");
    assert!(pin["kept"].as_u64().unwrap() > 1 << 20, "{listed}");
    let columns = place.run(&["pin"]).with(0).text();
    assert!(columns.ends_with(&format!("\t2\t{}\n", packages.lib.path.absolute())));
    // Nothing that makes room takes it, whoever asks for how much.
    for flags in [&["--to=0"][..], &["--quota=0%"], &["--keep-free=100%"]] {
        let would = place
            .run(&[&["gc", "-n", "--json"], flags].concat())
            .with(0);
        assert_eq!(dropped(&would), [packages.app.path.absolute()], "{flags:?}");
    }
    place.run(&["gc", "--to=0"]).with(0);
    assert_eq!(state_of(&place, &packages.lib), "complete");
    assert_eq!(state_of(&place, &packages.data), "complete");
    let too_much = place.run(&["gc", "--to=1K"]).with(1);
    assert!(too_much.err.contains("pinned"), "{}", too_much.err);
    place.run(&["unpin", &lib]).with(0);
    assert_eq!(
        place.run(&["pin", "--json"]).with(0).json(),
        serde_json::json!([])
    );
    let gone = place.run(&["unpin", &lib]).with(3);
    assert!(gone.err.contains("not pinned"), "{}", gone.err);
    let all = place.run(&["gc", "--to=0", "--json"]).with(0);
    assert_eq!(dropped(&all).len(), 2, "{}", all.text());
}

#[test]
fn partial_content_goes_on_demand() {
    let (key, packages) = (key(), Packages::new());
    let server = serve(packages.cache(&key, Packing::Zstd));
    let place = Place::over(&key, &[&server.base()]);
    place
        .run(&["prefetch", "-q", &at(&packages.lib, "")])
        .with(0);
    server.on(
        &packages.data.nar_url(Packing::Zstd),
        Reply::as_it_is().cut_after(2 << 20),
    );
    place
        .run(&["prefetch", "-q", &at(&packages.data, "")])
        .with(5);
    assert_eq!(state_of(&place, &packages.data), "partial");
    let nothing = place.run(&["gc", "--to", "1G", "--json"]).with(0);
    assert_eq!(dropped(&nothing).len(), 0);
    let partial = place
        .run(&["gc", "--to", "1G", "--partial", "--json"])
        .with(0);
    assert_eq!(dropped(&partial), [packages.data.path.absolute()]);
    assert_eq!(state_of(&place, &packages.lib), "complete");
}

#[test]
fn the_quota_is_kept_and_is_what_gc_goes_by() {
    let key = key();
    let packages: Vec<Package> = (0..4)
        .map(|n| {
            Package::new(
                &format!("big-{n}"),
                &directory([("f", file(noise(n, 1 << 20)))]),
            )
        })
        .collect();
    let cache = Cache::new(&key);
    cache.add_all(&packages, Packing::Zstd);
    let server = serve(cache);
    let mut place = Place::over(&key, &[&server.base()]);
    place.flag("--quota", "2500K");
    {
        let _daemon = place.daemon();
        for package in &packages {
            place.run(&["prefetch", "-q", &at(package, "")]).with(0);
            until(|| kept(&place) <= 2500 << 10);
        }
        assert_eq!(
            state_of(&place, &packages[3]),
            "complete",
            "what was just fetched stays"
        );
        assert_eq!(
            state_of(&place, &packages[0]),
            "known",
            "what was not used for longest goes"
        );
    }
    // More at once than the quota holds cannot all be here at the end.
    let all: Vec<String> = packages.iter().map(|p| at(p, "")).collect();
    let args: Vec<&str> = ["prefetch", "-q"]
        .into_iter()
        .chain(all.iter().map(String::as_str))
        .collect();
    let too_much = place.run(&args).with(1);
    assert!(too_much.err.contains("--quota"), "{}", too_much.err);
    place.flags.pop();
    place.flags.push("1200K".into());
    let gone = place.run(&["gc", "--json"]).with(0);
    assert!(
        gone.json()["kept"].as_u64().unwrap() <= 1200 << 10,
        "{}",
        gone.text()
    );
    assert!(!nars(&server).is_empty());
}
