//! What is not there: remembered where all caches say so, never where one failed.

use narfs::{
    content::NarinfoTtl,
    store::{Found, Step},
};

use crate::{
    support::{
        cache::{Cache, Package, Packing, directory, file, key},
        scripted::{Reply, Server},
    },
    world::{Setup, admitted, all_right, answer, read_all, root, serve, until},
};

fn package(name: &str) -> Package {
    Package::new(
        name,
        &directory([("data", file(format!("the data of {name}")))]),
    )
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
    settled(&store, &p).await;
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
