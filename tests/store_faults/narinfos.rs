//! Which cache has a path: slow, wrong, unsigned, absent, broken.

use std::time::Duration;

use narfs::{
    content::NarinfoTtl,
    nix::TrustedKeys,
    store::{Found, Step, StoreError},
};

use crate::{
    support::{
        cache::{Cache, Package, Packing, directory, file, key},
        scripted::{Gate, Reply, Server},
    },
    world::{Setup, admitted, all_right, answer, read_all, root, serve, soon, until},
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

#[tokio::test(flavor = "multi_thread")]
async fn absence_is_remembered_and_an_error_is_not() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package("not-yet-there");
    let server = serve(cache.path());
    let store = Setup::trusting(&key).store(&[&server]);
    let name = p.path.to_string();
    for status in [500, 500, 404] {
        server.on(&p.narinfo_url(), Reply::status(status));
        let found = answer(store.lookup(root(), name.as_bytes())).await;
        match status {
            404 => assert_eq!(found.unwrap(), Found::NotNow),
            _ => assert!(!found.unwrap_err().is_absence()),
        }
    }
    settled(&store, &p).await;
    server.clear();
    assert_eq!(
        answer(store.lookup(root(), name.as_bytes())).await.unwrap(),
        Found::NotNow
    );
    assert_eq!(
        server.requests().len(),
        0,
        "asked again for what is known to be absent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_cache_without_it_and_one_in_trouble_is_no_absence() {
    let key = key();
    let (empty, full) = (Cache::new(&key), Cache::new(&key));
    let p = package("in-the-second");
    full.add(&p, Packing::Zstd);
    let (first, second) = (serve(empty.path()), serve(full.path()));
    second.on(&p.narinfo_url(), Reply::status(500));
    let store = Setup::trusting(&key).store(&[&first, &second]);
    let error = answer(store.lookup(root(), p.path.to_string().as_bytes()))
        .await
        .unwrap_err();
    assert!(!error.is_absence(), "{error}");
    second.forget(&p.narinfo_url());
    all_right(&store, &p).await;
    assert_eq!(first.count(&p.narinfo_url()), 1, "its absence is known");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_under_another_name_is_absent_and_costs_one_request() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package("the-name");
    cache.add(&p, Packing::Zstd);
    let server = serve(cache.path());
    let store = Setup::trusting(&key).store(&[&server]);
    let wrong = format!("{}-another-name", p.path.hash());
    assert_eq!(
        answer(store.lookup(root(), wrong.as_bytes()))
            .await
            .unwrap(),
        Found::NotNow
    );
    settled(&store, &p).await;
    server.clear();
    assert_eq!(
        answer(store.lookup(root(), wrong.as_bytes()))
            .await
            .unwrap(),
        Found::NotNow
    );
    assert_eq!(server.requests().len(), 0);
    all_right(&store, &p).await;
    assert_eq!(
        answer(store.lookup(root(), wrong.as_bytes()))
            .await
            .unwrap(),
        Found::NotNow
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_no_store_paths_cost_no_request() {
    let key = key();
    let server = Server::start();
    let store = Setup::trusting(&key).store(&[&server]);
    let digest = "2j8qw9i2q1p6cmli6976v4wi0sw9r4p5";
    let odd = [
        String::new(),
        ".".into(),
        "..".into(),
        "etc".into(),
        digest.into(),
        format!("{digest}-"),
        format!("{}e-x", &digest[..31]),
        format!("{digest}-a/b"),
        format!("{digest}-a\0b"),
        format!("{digest}-{}", "x".repeat(300)),
        ".nix-snapshotter.json".into(),
    ];
    let numbered = (0..100_000).map(|n| format!("lib{n}.so.{}", n % 7));
    for name in odd.into_iter().chain(numbered) {
        match store.lookup(root(), name.as_bytes()) {
            Step::Ready(Ok(found)) => assert_eq!(found, Found::Never, "{name:?}"),
            _ => panic!("{name:?} has to be waited for"),
        }
    }
    assert_eq!(server.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_neither_loses_nor_freezes_what_is_known() {
    let key = key();
    let cache = Cache::new(&key);
    let (there, gone) = (package("there"), package("gone"));
    cache.add(&there, Packing::Zstd);
    let server = serve(cache.path());
    let store = Setup::trusting(&key).store(&[&server]);
    let db = store.content().db();
    let name = store.substituters()[0].name().to_owned();
    let text = std::fs::read(cache.path().join(&there.narinfo_url()[1..])).unwrap();
    let year = 365 * 24 * 3600;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    // Answers of a year ahead: the clock was wrong then.
    let answers = vec![
        (there.path.hash(), Some(text.clone())),
        (gone.path.hash(), None),
    ];
    db.put_narinfos(&name, answers, now + year).await.unwrap();
    admitted(&store, &there).await;
    assert_eq!(
        server.count(&there.narinfo_url()),
        0,
        "a narinfo from the future is one of now"
    );
    let found = answer(store.lookup(root(), gone.path.to_string().as_bytes())).await;
    assert_eq!(found.unwrap(), Found::NotNow);
    assert_eq!(server.count(&gone.narinfo_url()), 0);
    let ttl = NarinfoTtl {
        positive: 30 * 24 * 3600,
        negative: 3600,
    };
    // Not the future's: counted from now on, the absence ends when an absence of now does.
    until(|| {
        !db.narinfo(&name, &gone.path.hash(), now + 7200, ttl)
            .unwrap()
            .unwrap()
            .fresh
    })
    .await;
    // Answers of a year ago: absence is asked for again, a narinfo still describes its NAR.
    db.put_narinfos(&name, vec![(gone.path.hash(), None)], now - year)
        .await
        .unwrap();
    cache.add(&gone, Packing::Zstd);
    all_right(&store, &gone).await;
    assert_eq!(
        read_all(&store, &there, "data").await.unwrap(),
        b"the data of there"
    );
}

/// What was answered is in the database: narinfos are kept behind the answer.
async fn settled(store: &narfs::store::Store, p: &Package) {
    let ttl = NarinfoTtl {
        positive: 1 << 30,
        negative: 1 << 30,
    };
    let db = store.content().db();
    until(|| {
        !db.narinfos(&p.path.hash(), 1 << 40, ttl)
            .unwrap()
            .is_empty()
    })
    .await;
}
