//! A quota far below the working set: reads are slower, never wrong.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use narfs::content::{Amount, EvictGoal};

use crate::{
    support::cache::{Cache, Package, Packing, directory, file, key, noise},
    world::{Setup, read_all, serve, truth, until},
};

/// Bytes that may be kept; each of the packages has as many.
const QUOTA: u64 = 1 << 20;
const READERS: u64 = 4;
const ROUNDS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_right_while_everything_is_evicted() {
    for packing in [Packing::Zstd, Packing::None] {
        let key = key();
        let cache = Cache::new(&key);
        let big = |n: u64| {
            Package::new(
                &format!("big-{n}"),
                &directory([("f", file(noise(n, 1 << 20)))]),
            )
        };
        let packages: Vec<Package> = (0..READERS).map(big).collect();
        cache.add_all(&packages, packing);
        let server = serve(cache.path());
        let world = Setup::trusting(&key)
            .with(|s| s.limits.quota = Some(Amount::Bytes(QUOTA)))
            .store(&[&server]);
        world.keep_up();

        // Somebody who drops whatever nobody holds, again and again.
        let (store, done) = (world.store.clone(), Arc::new(AtomicBool::new(false)));
        let over = done.clone();
        let evictor = tokio::task::spawn_blocking(move || {
            let mut evicted = 0;
            while !over.load(SeqCst) {
                let plan = store.plan_gc(EvictGoal::AtMost(0), false).unwrap();
                evicted += store.carry_out_gc(&plan).unwrap().nars;
            }
            evicted
        });
        let readers: Vec<_> = packages
            .into_iter()
            .map(|package| {
                let store = world.store.clone();
                tokio::spawn(async move {
                    for _ in 0..ROUNDS {
                        let bytes = read_all(&store, &package, "f").await.unwrap();
                        assert!(bytes == truth(&package, "f"), "{packing:?}: wrong bytes");
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.await.unwrap();
        }
        done.store(true, SeqCst);
        assert!(
            evictor.await.unwrap() > 0,
            "nothing was evicted: the test tests nothing"
        );
        until(|| world.content().usage().unwrap() <= QUOTA).await;
    }
}
