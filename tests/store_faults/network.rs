//! Caches that stall, break off, vanish and come back.

use std::time::Duration;

use narfs::store::{Lane, StoreError};

use crate::{
    support::{
        cache::{Cache, Package, Packing, directory, file, key, noise},
        scripted::{Gate, Reply},
    },
    world::{
        Setup, admitted, all_right, answer, fetched, read, read_all, root, serve, soon, truth,
        until,
    },
};

fn package(name: &str, seed: u64) -> Package {
    Package::new(
        name,
        &directory([
            ("data", file(noise(seed, 900_000))),
            ("end", file(noise(seed + 1, 300_000))),
        ]),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_nar_is_an_error_inside_the_bound_and_nobody_elses() {
    let key = key();
    let cache = Cache::new(&key);
    let (slow, other) = (package("stalled", 1), package("other", 5));
    for packing in [Packing::Zstd, Packing::None] {
        cache.add_all([&slow, &other], packing);
        let server = serve(cache.path());
        let gate = Gate::new();
        server.on(
            &slow.nar_url(packing),
            Reply::as_it_is().pausing_at(1000, &gate),
        );
        let mut setup = Setup::trusting(&key).with(|s| s.read_timeout = Duration::from_millis(600));
        setup.http.stall_timeout = Duration::from_millis(300);
        let world = setup.store(&[&server]);
        let path = admitted(&world, &slow).await;
        let waiting = tokio::spawn({
            let (store, p) = (world.store.clone(), slow.clone());
            async move { read(&store, &p, "data", 400_000, 1000).await }
        });
        gate.wait_for(1);
        all_right(&world, &other).await;
        fetched(&world, &other).await.unwrap();
        let error = soon(waiting).await.unwrap().unwrap_err();
        assert!(!error.is_absence(), "{error}");
        until(|| world.path_status(&path).error.is_some() || !path_is_fetching(&world, &path))
            .await;
        gate.open();
        server.forget(&slow.nar_url(packing));
        all_right(&world, &slow).await;
        fetched(&world, &slow).await.unwrap();
        assert_eq!(world.path_status(&path).error, None);
    }
}

fn path_is_fetching(store: &narfs::store::Store, path: &narfs::store::Path) -> bool {
    store.path_status(path).state == narfs_state_schema::PathState::Fetching
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_is_found_however_often_readers_come_and_go() {
    let key = key();
    let (bad, good) = (Cache::new(&key), Cache::new(&key));
    let p = package("stalled", 1);
    [&bad, &good]
        .iter()
        .for_each(|cache| cache.add(&p, Packing::Zstd));
    let (first, second) = (serve(bad.path()), serve(good.path()));
    let gate = Gate::new();
    first.on(
        &p.nar_url(Packing::Zstd),
        Reply::as_it_is().pausing_at(1000, &gate),
    );
    let mut setup = Setup::trusting(&key);
    setup.http.stall_timeout = Duration::from_millis(500);
    let world = setup.store(&[&first, &second]);
    let reader = |n: u64| {
        let (store, p) = (world.store.clone(), p.clone());
        tokio::spawn(async move { read(&store, &p, "data", 700_000 + n, 1000).await })
    };
    let lasting = reader(0);
    gate.wait_for(1);
    // One reader after the other looks in for a moment, all more often than the bound of a stall.
    let mut n = 0;
    soon(async {
        while !lasting.is_finished() {
            n += 1;
            let passing = reader(n);
            tokio::time::sleep(Duration::from_millis(20)).await;
            passing.abort();
        }
    })
    .await;
    assert!(
        lasting.await.unwrap().unwrap() == truth(&p, "data")[700_000..701_000],
        "from the other cache"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_whose_stream_stalls_does_not_stop_the_background() {
    let key = key();
    let cache = Cache::new(&key);
    let (slow, other) = (package("stalled", 1), package("other", 5));
    cache.add_all([&slow, &other], Packing::Zstd);
    let server = serve(cache.path());
    let gate = Gate::new();
    server.on(
        &slow.nar_url(Packing::Zstd),
        Reply::as_it_is().pausing_at(100_000, &gate),
    );
    let world = Setup::trusting(&key).store(&[&server]);
    let waiting = tokio::spawn({
        let (store, p) = (world.store.clone(), slow.clone());
        async move { read_all(&store, &p, "data").await }
    });
    gate.wait_for(1);
    let path = admitted(&world, &other).await;
    // Far below the time after which the stalled one is given up.
    let background = tokio::time::timeout(
        Duration::from_secs(10),
        world.prefetch(&path, Lane::Background),
    );
    background.await.expect("the link idles").unwrap();
    assert!(!waiting.is_finished());
    gate.open();
    assert!(soon(waiting).await.unwrap().unwrap() == truth(&slow, "data"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bursts_of_refusals_and_cut_connections_are_overcome() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package("troubled", 1);
    for packing in [Packing::Zstd, Packing::Xz, Packing::None] {
        cache.add(&p, packing);
        let server = serve(cache.path());
        let mut setup = Setup::trusting(&key);
        setup.tries = 4;
        setup.http.retry.tries = 4;
        for url in [p.narinfo_url(), p.listing_url(), p.nar_url(packing)] {
            let refused = [
                Reply::status(429),
                Reply::status(503),
                Reply::reset(),
                Reply::as_it_is(),
            ];
            server.script(&url, refused);
        }
        all_right(&setup.store(&[&server]), &p).await;
        // Cut in mid-body: the next request goes on where the first one ended.
        server.clear();
        server.script(
            &p.nar_url(packing),
            [Reply::as_it_is().cut_after(300_000), Reply::as_it_is()],
        );
        let world = setup.store(&[&server]);
        all_right(&world, &p).await;
        fetched(&world, &p).await.unwrap();
        let requests = server.requests_for(&p.nar_url(packing));
        if packing != Packing::None {
            assert_eq!(requests.len(), 2);
            assert_eq!(requests[0].header("range"), None);
            assert_eq!(requests[1].header("range"), Some("bytes=300000-"));
            assert!(requests[1].header("if-range").is_some(), "of the same file");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_that_always_breaks_off_is_given_up() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package("hopeless", 1);
    cache.add(&p, Packing::Zstd);
    let server = serve(cache.path());
    server.on(
        &p.nar_url(Packing::Zstd),
        Reply::as_it_is().ignoring_ranges().cut_after(300_000),
    );
    let world = Setup::trusting(&key).store(&[&server]);
    let error = fetched(&world, &p).await.unwrap_err();
    assert!(matches!(error.root(), StoreError::Fetch { .. }), "{error}");
    let asked = server.count(&p.nar_url(Packing::Zstd));
    assert!(asked <= 4, "{asked} requests");
    server.on(
        &p.nar_url(Packing::Zstd),
        Reply::redirect(p.nar_url(Packing::Zstd)),
    );
    let error = fetched(&world, &p).await.unwrap_err();
    assert!(
        error.to_string().contains("redirected in a circle"),
        "{error}"
    );
    server.forget(&p.nar_url(Packing::Zstd));
    all_right(&world, &p).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_network_what_is_here_stays_and_the_rest_comes_when_it_is_back() {
    let key = key();
    let cache = Cache::new(&key);
    let (here, half, unknown) = (
        package("here", 1),
        package("half", 3),
        package("unknown", 5),
    );
    for packing in [Packing::Zstd, Packing::None] {
        cache.add_all([&here, &half, &unknown], packing);
        let server = serve(cache.path());
        let world = Setup::trusting(&key).store(&[&server]);
        fetched(&world, &here).await.unwrap();
        let path = admitted(&world, &half).await;
        server.vanish();
        for round in 0..2 {
            println!("{packing:?}, round {round}");
            all_right(&world, &here).await;
            let error = read(&world, &half, "data", 0, 1000).await.unwrap_err();
            assert!(matches!(error.root(), StoreError::Fetch { .. }), "{error}");
            let error = answer(world.lookup(root(), unknown.path.to_string().as_bytes()))
                .await
                .unwrap_err();
            assert!(!error.is_absence(), "{error}");
        }
        assert!(world.path_status(&path).error.is_some());
        server.come_back();
        println!("{packing:?}, back");
        // The first read after it works, and the error is over.
        assert!(
            read(&world, &half, "data", 0, 1000).await.unwrap() == truth(&half, "data")[..1000]
        );
        until(|| world.path_status(&path).error.is_none()).await;
        all_right(&world, &half).await;
        all_right(&world, &unknown).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_vanishes_in_mid_file_is_replaced_or_waited_for() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package("interrupted", 1);
    for packing in [Packing::Zstd, Packing::None] {
        cache.add(&p, packing);
        for two in [true, false] {
            let (first, second) = (serve(cache.path()), serve(cache.path()));
            let gate = Gate::new();
            first.on(
                &p.nar_url(packing),
                Reply::as_it_is().pausing_at(10_000, &gate),
            );
            let both = [&first, &second];
            let world = Setup::trusting(&key).store(if two { &both } else { &both[..1] });
            let reader = tokio::spawn({
                let (store, p) = (world.store.clone(), p.clone());
                async move { read_all(&store, &p, "data").await }
            });
            gate.wait_for(1);
            first.vanish();
            let outcome = soon(reader).await.unwrap();
            if two {
                assert!(
                    outcome.unwrap() == truth(&p, "data"),
                    "the other cache has it"
                );
            } else {
                assert!(!outcome.unwrap_err().is_absence());
                first.come_back();
                first.forget(&p.nar_url(packing));
            }
            gate.open();
            all_right(&world, &p).await;
        }
    }
}
