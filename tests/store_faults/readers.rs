//! Many readers at once, and readers that leave.

use crate::{
    support::{
        cache::{Cache, Package, Packing, directory, file, key, noise},
        scripted::{Gate, Reply},
    },
    world::{Setup, all_right, answer, fetched, read, read_all, root, serve, soon, truth, until},
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
async fn two_hundred_readers_of_a_cold_file_are_one_request() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package("popular", 1);
    for packing in [Packing::Zstd, Packing::Xz] {
        cache.add(&p, packing);
        let server = serve(cache.path());
        let gate = Gate::new();
        server.on(&p.nar_url(packing), Reply::as_it_is().behind(&gate));
        let world = Setup::trusting(&key).store(&[&server]);
        let readers: Vec<_> = (0..200)
            .map(|n| {
                let (store, p) = (world.store.clone(), p.clone());
                tokio::spawn(async move { read(&store, &p, "data", n * 4000, 4096).await.unwrap() })
            })
            .collect();
        gate.wait_for(1);
        gate.open();
        let right = truth(&p, "data");
        for (n, reader) in readers.into_iter().enumerate() {
            assert!(soon(reader).await.unwrap() == right[n * 4000..n * 4000 + 4096]);
        }
        fetched(&world, &p).await.unwrap();
        for url in [p.narinfo_url(), p.listing_url(), p.nar_url(packing)] {
            assert_eq!(server.count(&url), 1, "{url}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_paths_with_one_nar_are_one_request() {
    let key = key();
    let cache = Cache::new(&key);
    let (one, two) = (package("one-name", 1), package("another-name", 1));
    assert_eq!(one.hash(), two.hash());
    cache.add_all([&one, &two], Packing::Zstd);
    let server = serve(cache.path());
    let gate = Gate::new();
    server.on(&one.nar_url(Packing::Zstd), Reply::as_it_is().behind(&gate));
    let world = Setup::trusting(&key).store(&[&server]);
    let readers = [&one, &two].map(|p| {
        let (store, p) = (world.store.clone(), (*p).clone());
        tokio::spawn(async move { read_all(&store, &p, "data").await.unwrap() })
    });
    gate.wait_for(1);
    until(|| world.known(&one.path).is_some() && world.known(&two.path).is_some()).await;
    gate.open();
    for reader in readers {
        assert!(soon(reader).await.unwrap() == truth(&one, "data"));
    }
    fetched(&world, &two).await.unwrap();
    assert_eq!(server.count(&one.nar_url(Packing::Zstd)), 1);
    let statuses = [&one, &two].map(|p| world.path_status(&world.known(&p.path).unwrap()));
    assert!(
        statuses
            .iter()
            .all(|s| s.verified && s.fetched_size == s.size)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_leaves_the_fetch_to_the_others() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package("left", 1);
    for packing in [Packing::Zstd, Packing::None] {
        cache.add(&p, packing);
        let server = serve(cache.path());
        let gate = Gate::new();
        server.on(&p.nar_url(packing), Reply::as_it_is().behind(&gate));
        let world = Setup::trusting(&key).store(&[&server]);
        let reader = || {
            let (store, p) = (world.store.clone(), p.clone());
            tokio::spawn(async move { read(&store, &p, "data", 0, 1000).await })
        };
        let first = reader();
        gate.wait_for(1);
        let (second, third) = (reader(), reader());
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        second.abort();
        gate.open();
        assert!(soon(third).await.unwrap().unwrap() == truth(&p, "data")[..1000]);
        all_right(&world, &p).await;
        assert!(packing == Packing::None || server.count(&p.nar_url(packing)) == 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_who_asked_first_for_a_path_may_leave() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package("asked-for", 1);
    cache.add(&p, Packing::Zstd);
    let server = serve(cache.path());
    let gate = Gate::new();
    server.on(&p.narinfo_url(), Reply::as_it_is().behind(&gate));
    let world = Setup::trusting(&key).store(&[&server]);
    let lookup = || {
        let (store, p) = (world.store.clone(), p.clone());
        tokio::spawn(
            async move { answer(store.lookup(root(), p.path.to_string().as_bytes())).await },
        )
    };
    let first = lookup();
    gate.wait_for(1);
    let second = lookup();
    first.abort();
    gate.open();
    soon(second).await.unwrap().unwrap();
    assert_eq!(server.count(&p.narinfo_url()), 1);
}
