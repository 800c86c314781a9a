//! An upstream that is nearly dead: it sends, but not so that anybody could wait for it.

use std::time::Duration;

use narfs::store::StoreError;

use crate::{
    support::{
        cache::{Cache, Package, Packing, directory, file, key, noise},
        scripted::Reply,
    },
    world::{Setup, all_right, fetched, read, serve, soon, truth},
};

/// One byte now and then: fifty times as many as one a second, for bounds that are as much shorter.
fn nearly_nothing() -> Reply {
    Reply::as_it_is().trickle(1, Duration::from_millis(20))
}

fn package(name: &str, seed: u64) -> Package {
    let tree = directory([("data", file(noise(seed, 400_000)))]);
    Package::new(name, &tree)
}

fn setup(key: &narfs::nix::SigningKey) -> Setup {
    let mut setup = Setup::trusting(key);
    setup.http.stall_timeout = Duration::from_millis(600);
    setup
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_a_second_is_an_error_inside_the_bound_and_nobody_elses() {
    let key = key();
    for packing in [Packing::None, Packing::Zstd, Packing::Xz] {
        let cache = Cache::new(&key);
        let (slow, other) = (package("slow", 1), package("other", 2));
        cache.add_all([&slow, &other], packing);
        for url in [
            slow.narinfo_url(),
            slow.listing_url(),
            slow.nar_url(packing),
        ] {
            println!("{packing:?}, {url}");
            let server = serve(cache.path());
            server.on(&url, nearly_nothing());
            let world = setup(&key).store(&[&server]);
            let waiting = tokio::spawn({
                let (store, slow) = (world.store.clone(), slow.clone());
                async move { read(&store, &slow, "data", 300_000, 1000).await }
            });
            // Meanwhile: others read and complete as if it were not there.
            all_right(&world, &other).await;
            fetched(&world, &other).await.unwrap();
            // `soon` is the bound of a hang; a byte at a time the NAR would take hours.
            let error = soon(waiting).await.unwrap().unwrap_err();
            assert!(matches!(error.root(), StoreError::Fetch { .. }), "{error}");
            assert!(error.to_string().contains("stalled"), "{error}");
            server.forget(&url);
            all_right(&world, &slow).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cache_is_taken_instead() {
    let key = key();
    let cache = Cache::new(&key);
    let slow = package("slow", 1);
    for packing in [Packing::None, Packing::Zstd] {
        cache.add(&slow, packing);
        let (first, second) = (serve(cache.path()), serve(cache.path()));
        first.on(&slow.nar_url(packing), nearly_nothing());
        let world = setup(&key).store(&[&first, &second]);
        let bytes = read(&world, &slow, "data", 300_000, 1000).await.unwrap();
        assert!(bytes == truth(&slow, "data")[300_000..301_000]);
        all_right(&world, &slow).await;
    }
}
