//! Which cache has a path: slow, wrong, unsigned, broken.

use std::time::Duration;

use narfs::{content::NarinfoTtl, nix::TrustedKeys, store::StoreError};

use crate::{
    support::{
        cache::{Cache, Package, Packing, directory, file, key},
        scripted::{Gate, Reply},
    },
    world::{Setup, all_right, answer, flushed, root, serve, soon, until},
};

fn package(name: &str) -> Package {
    Package::new(
        name,
        &directory([("data", file(format!("the data of {name}")))]),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narinfo_that_never_comes_delays_no_other_path() {
    let key = key();
    let cache = Cache::new(&key);
    let (slow, quick) = (package("slow"), package("quick"));
    cache.add_all([&slow, &quick], Packing::Zstd);
    let server = serve(cache.path());
    let gate = Gate::new();
    server.on(&slow.narinfo_url(), Reply::as_it_is().behind(&gate));
    let store = Setup::trusting(&key).store(&[&server]);
    let waiting = tokio::spawn({
        let (store, path) = (store.store.clone(), slow.path.clone());
        async move { store.admit(&path).await.map(drop) }
    });
    gate.wait_for(1);
    all_right(&store, &quick).await;
    assert!(!waiting.is_finished());
    gate.open();
    soon(waiting).await.unwrap().unwrap();
    all_right(&store, &slow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn background_admissions_that_hang_do_not_hold_up_a_lookup() {
    let key = key();
    let cache = Cache::new(&key);
    let many: Vec<_> = (0..60)
        .map(|n| package(&format!("reference-{n}")))
        .collect();
    let root = package("root").with_references(&many.iter().collect::<Vec<_>>());
    let other = package("other");
    cache.add_all(many.iter().chain([&root, &other]), Packing::Zstd);
    let server = serve(cache.path());
    let gate = Gate::new();
    for p in &many {
        server.on(&p.narinfo_url(), Reply::as_it_is().behind(&gate));
        server.on(&p.listing_url(), Reply::as_it_is().behind(&gate));
    }
    let store = Setup::trusting(&key).store(&[&server]);
    // The first touch of the root asks for its references.
    answer(store.lookup(crate::world::root(), root.path.to_string().as_bytes()))
        .await
        .unwrap();
    gate.wait_for(15);
    all_right(&store, &other).await;
    // Also one of those that the background is about to ask for: a lookup goes before it.
    let last = many
        .iter()
        .find(|p| server.count(&p.narinfo_url()) == 0)
        .expect("not all at once");
    server.forget(&last.narinfo_url());
    server.forget(&last.listing_url());
    all_right(&store, last).await;
    gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wait_of_a_lookup_is_bounded_and_no_absence() {
    let key = key();
    let cache = Cache::new(&key);
    let slow = package("slow");
    cache.add(&slow, Packing::Zstd);
    let server = serve(cache.path());
    let gate = Gate::new();
    server.on(&slow.narinfo_url(), Reply::as_it_is().behind(&gate));
    let setup = Setup::trusting(&key).with(|s| s.lookup_timeout = Duration::from_millis(200));
    let store = setup.store(&[&server]);
    let error = answer(store.lookup(root(), slow.path.to_string().as_bytes()))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::TimedOut { .. }), "{error}");
    assert!(!error.is_absence());
    gate.open();
    until(|| store.known(&slow.path).is_some() || server.count(&slow.narinfo_url()) > 1).await;
    all_right(&store, &slow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_to_be_trusted_counts_for_that_text_and_those_keys() {
    let (key, stranger) = (key(), key());
    let cache = Cache::new(&key);
    let [kept, changed] = ["kept", "changed"].map(package);
    cache.add_all([&kept, &changed], Packing::Zstd);
    let server = serve(cache.path());
    let setup = Setup::trusting(&key);
    let world = setup.store(&[&server]);
    for p in [&kept, &changed] {
        all_right(&world.store, p).await;
        // Nobody waits for it to be written.
        let facts = || world.store.content().db().facts(&p.path.hash()).unwrap();
        until(|| facts().trusted.is_some()).await;
    }
    let found = |p: &Package| {
        let db = world.store.content().db();
        let name = world.store.substituters()[0].name().to_owned();
        let ttl = NarinfoTtl {
            positive: u64::MAX,
            negative: u64::MAX,
        };
        let kept = db.narinfo(&name, &p.path.hash(), 0, ttl).unwrap().unwrap();
        let text = kept.text.expect("the cache has it");
        let trusted = db.facts(&p.path.hash()).unwrap().trusted;
        assert_eq!(trusted, Some(setup.settings.keys.judgement(&text)));
        (name, text)
    };
    found(&kept);
    let (name, text) = found(&changed);
    // Another narinfo in the place of the one that was found to be trusted.
    let text = String::from_utf8(text).unwrap();
    let (size, forged) = (
        format!("NarSize: {}\n", changed.nar.len()),
        "NarSize: 4096\n",
    );
    let forged = text.replace(&size, forged);
    assert_ne!(forged, text);
    cache.write(&changed.narinfo_url(), forged.as_bytes());
    let answer = vec![(changed.path.hash(), Some(forged.into_bytes()))];
    let db = world.store.content().db();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    db.put_narinfos(&name, answer, now.unwrap().as_secs())
        .await
        .unwrap();
    flushed(&world.store).await;
    drop(world.store);

    let store = setup.open(world.state.path(), &[&server]);
    all_right(&store, &kept).await;
    assert!(
        soon(store.admit(&changed.path)).await.is_err(),
        "the forged one is not believed"
    );
    drop(store);
    let mut strange = setup.clone();
    strange.settings.keys = TrustedKeys::parse([stranger.public().as_str()]).unwrap();
    let store = strange.open(world.state.path(), &[&server]);
    for p in [&kept, &changed] {
        assert!(
            soon(store.admit(&p.path)).await.is_err(),
            "under other keys"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_trusted_signature_refused_until_the_key_is_trusted() {
    let (key, stranger) = (key(), key());
    let cache = Cache::new(&stranger);
    let signed = package("signed-by-a-stranger");
    cache.add(&signed, Packing::Zstd);
    let unsigned = package("unsigned");
    cache.add(&unsigned, Packing::Zstd);
    cache.write(
        &unsigned.narinfo_url(),
        unsigned.narinfo(Packing::Zstd).to_text().as_bytes(),
    );
    let server = serve(cache.path());
    let setup = Setup::trusting(&key);
    let world = setup.store(&[&server]);
    for p in [&signed, &unsigned] {
        let error = soon(world.store.admit(&p.path))
            .await
            .map(drop)
            .unwrap_err();
        assert!(
            matches!(error.root(), StoreError::Untrusted { .. }),
            "{error}"
        );
        assert!(!error.is_absence());
        assert_eq!(
            server.count(&p.nar_url(Packing::Zstd)),
            0,
            "not even fetched"
        );
    }
    drop(world.store);
    let mut trusting = setup.clone();
    trusting.settings.keys = TrustedKeys::parse([stranger.public().as_str()]).unwrap();
    let store = trusting.open(world.state.path(), &[&server]);
    all_right(&store, &signed).await;
    let error = soon(store.admit(&unsigned.path))
        .await
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(error.root(), StoreError::Untrusted { .. }),
        "{error}"
    );
    drop(store);
    let store = Setup {
        trusted: true,
        ..setup
    }
    .open(world.state.path(), &[&server]);
    all_right(&store, &unsigned).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_narinfo_is_not_believed_and_the_next_cache_is_asked() {
    let key = key();
    let (bad, good) = (Cache::new(&key), Cache::new(&key));
    let p = package("forged");
    good.add(&p, Packing::Zstd);
    bad.add(&p, Packing::Zstd);
    let mut forged = p.narinfo(Packing::Zstd);
    key.sign(&mut forged);
    forged.nar_hash = package("something-else").hash();
    bad.write(&p.narinfo_url(), forged.to_text().as_bytes());
    let (first, second) = (serve(bad.path()), serve(good.path()));
    let store = Setup::trusting(&key).store(&[&first, &second]);
    all_right(&store, &p).await;
    assert_eq!(second.count(&p.narinfo_url()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn html_another_path_and_garbage_are_errors_and_pass() {
    let key = key();
    let cache = Cache::new(&key);
    let (p, other) = (package("asked-for"), package("another"));
    cache.add_all([&p, &other], Packing::Zstd);
    let server = serve(cache.path());
    let of_other = std::fs::read(cache.path().join(&other.narinfo_url()[1..])).unwrap();
    let store = Setup::trusting(&key).store(&[&server]);
    for reply in [
        Reply::html(),
        Reply::file(of_other),
        Reply::file(vec![0xff; 1000]),
        Reply::file(""),
        Reply::file("StorePath: /nix/store/x\n"),
        Reply::file(vec![b'a'; 2 << 20]),
        Reply::status(503),
        Reply::status(401),
        Reply::reset(),
        Reply::redirect(p.narinfo_url()),
        Reply::as_it_is().cut_after(20),
    ] {
        server.on(&p.narinfo_url(), reply);
        let error = answer(store.lookup(root(), p.path.to_string().as_bytes()))
            .await
            .unwrap_err();
        assert!(!error.is_absence(), "{error}");
    }
    server.forget(&p.narinfo_url());
    all_right(&store, &p).await;
}
