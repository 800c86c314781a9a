//! A cache that is gone is met once and not by every reader: the others are asked in its place, it
//! is asked ever more rarely, and it is back when it answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use crate::{
    support::{
        cache::{Cache, Package, Packing, directory, file, key, noise},
        scripted::{Gate, Reply, Server},
    },
    world::{Setup, all_right, answer, fetched, read, read_all, root, serve, soon, truth, until},
};

fn package(name: &str, seed: u64) -> Package {
    let tree = directory([("data", file(noise(seed, 300_000)))]);
    Package::new(name, &tree)
}

fn nar_requests(server: &Server) -> usize {
    let requests = server.requests();
    requests.iter().filter(|r| r.path.contains("/nar/")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_readers_switch_once_in_the_middle_of_a_file() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package("wanted-by-fifty", 1);
    cache.add(&p, Packing::Zstd);
    let (first, second) = (serve(cache.path()), serve(cache.path()));
    let gate = Gate::new();
    let url = p.nar_url(Packing::Zstd);
    first.on(&url, Reply::as_it_is().pausing_at(100_000, &gate));
    let world = Setup::trusting(&key).store(&[&first, &second]);
    let readers: Vec<_> = (0..50)
        .map(|n| {
            let (store, p) = (world.store.clone(), p.clone());
            tokio::spawn(async move { read(&store, &p, "data", 200_000 + n * 1000, 1000).await })
        })
        .collect();
    gate.wait_for(1);
    first.vanish();
    for (n, reader) in readers.into_iter().enumerate() {
        let at = 200_000 + n * 1000;
        let bytes = soon(reader).await.unwrap().expect("the other cache has it");
        assert!(bytes == truth(&p, "data")[at..at + 1000]);
    }
    gate.open();
    fetched(&world, &p).await.unwrap();
    assert_eq!(second.count(&url), 1, "one switch for all of them");
    assert_eq!(first.count(&url), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_readers_of_fifty_paths_meet_a_dead_cache_a_few_times() {
    let key = key();
    let cache = Cache::new(&key);
    let packages: Vec<_> = (0..50)
        .map(|n| package(&format!("one-of-fifty-{n}"), n))
        .collect();
    cache.add_all(&packages, Packing::Zstd);
    let (first, second) = (serve(cache.path()), serve(cache.path()));
    // Before the outage, so that each path has the first one for its source.
    // Nobody is to be asked because another one is slow.
    let setup = Setup::trusting(&key).with(|s| s.hedge_after = Duration::from_secs(60));
    let world = setup.store(&[&first, &second]);
    for p in &packages {
        soon(world.store.admit(&p.path)).await.unwrap();
    }
    first.everything(Some(Reply::status(503)));
    first.clear();
    let readers: Vec<_> = packages
        .iter()
        .map(|p| {
            let (store, p) = (world.store.clone(), p.clone());
            tokio::spawn(async move {
                let bytes = read_all(&store, &p, "data").await.unwrap();
                assert!(bytes == truth(&p, "data"));
            })
        })
        .collect();
    for reader in readers {
        soon(reader).await.unwrap();
    }
    // Those that began before its state was known; each of the others would have cost two.
    let met = nar_requests(&first);
    println!("{met} requests of 50 readers met the dead cache");
    assert!(met <= 60, "{met}: readers met it more than once");
    // And from now on nobody: neither with NARs nor with narinfos.
    let late: Vec<_> = (0..20)
        .map(|n| package(&format!("late-{n}"), 100 + n))
        .collect();
    cache.add_all(&late, Packing::Zstd);
    first.clear();
    for p in &late {
        all_right(&world, p).await;
    }
    let asked = first.requests();
    let looked = asked.iter().filter(|r| r.path == "/nix-cache-info").count();
    assert_eq!(asked.len(), looked, "only whether it is back: {asked:?}");
    // It is back as soon as it answers.
    first.everything(None);
    for n in 0.. {
        let p = package(&format!("again-{n}"), 2000 + n);
        cache.add(&p, Packing::Zstd);
        all_right(&world, &p).await;
        if first.count(&p.narinfo_url()) > 0 {
            break;
        }
        assert!(n < 200, "the first one is never asked again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// However many ask, a cache that is gone sees a few requests a second, and the first read after it
/// is back works.
#[tokio::test(flavor = "multi_thread")]
async fn backing_off_bounds_the_rate_of_requests() {
    let key = key();
    let cache = Cache::new(&key);
    let server = serve(cache.path());
    let mut setup = Setup::trusting(&key);
    setup.http.retry.base = Duration::from_millis(20);
    setup.http.retry.too_many_requests = Duration::from_millis(20);
    let world = setup.store(&[&server]);
    let broken = [Reply::status(503), Reply::status(429), Reply::reset()];
    for (round, broken) in (0..).zip(broken) {
        let packages: Vec<_> = (0..40)
            .map(|n| package(&format!("asked-for-{round}-{n}"), round * 100 + n))
            .collect();
        cache.add_all(&packages, Packing::None);
        for p in &packages[..20] {
            soon(world.store.admit(&p.path)).await.unwrap();
        }
        server.everything(Some(broken));
        server.clear();
        let over = Arc::new(AtomicBool::new(false));
        let failures = Arc::new(AtomicUsize::new(0));
        let begun = Instant::now();
        // Half of them read, half look up, and each begins again at once.
        let askers: Vec<_> = packages
            .iter()
            .enumerate()
            .map(|(n, p)| {
                let (store, p) = (world.store.clone(), p.clone());
                let (over, failures) = (over.clone(), failures.clone());
                tokio::spawn(async move {
                    while !over.load(SeqCst) {
                        let failed = match n < 20 {
                            true => read(&store, &p, "data", 0, 1000).await.is_err(),
                            false => {
                                let name = p.path.to_string();
                                answer(store.lookup(root(), name.as_bytes())).await.is_err()
                            }
                        };
                        assert!(failed, "nothing answers");
                        failures.fetch_add(1, SeqCst);
                    }
                })
            })
            .collect();
        until(|| failures.load(SeqCst) >= 40 && begun.elapsed() > Duration::from_secs(3)).await;
        over.store(true, SeqCst);
        for asker in askers {
            soon(asker).await.unwrap();
        }
        let (asked, seconds) = (server.requests().len(), begun.elapsed().as_secs_f64());
        let failures = failures.load(SeqCst);
        println!("{failures} calls failed in {seconds:.1} s, {asked} requests");
        // Two and a half a second once it is at its slowest; doubling up to there costs seven,
        // and each of the askers may have had one under way.
        let most = 60.0 + seconds * 5.0;
        assert!((asked as f64) < most, "{asked} requests in {seconds} s");
        assert!(asked >= 3, "nobody looks whether it is back");
        server.everything(None);
        // The first one after it is back.
        let first = &packages[0];
        assert!(
            read(&world, first, "data", 0, 1000).await.unwrap() == truth(first, "data")[..1000]
        );
    }
}

/// What a cache asks for with `Retry-After` is kept by everybody, not only by the one it told.
#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_for_everybody() {
    let key = key();
    let cache = Cache::new(&key);
    let packages: Vec<_> = (0..30)
        .map(|n| package(&format!("told-to-wait-{n}"), n))
        .collect();
    cache.add_all(&packages, Packing::Zstd);
    let server = serve(cache.path());
    let world = Setup::trusting(&key).store(&[&server]);
    server.everything(Some(Reply::status(503).header("Retry-After", "1")));
    let begun = Instant::now();
    let told = answer(world.lookup(root(), packages[0].path.to_string().as_bytes()));
    // A try or two, a second apart.
    assert!(told.await.is_err());
    let asked = server.requests().len();
    assert!(asked <= 4, "{asked} requests");
    let others: Vec<_> = packages
        .iter()
        .map(|p| {
            let (store, p) = (world.store.clone(), p.clone());
            tokio::spawn(async move { read(&store, &p, "data", 0, 1000).await.map(drop) })
        })
        .collect();
    for other in others {
        assert!(!soon(other).await.unwrap().unwrap_err().is_absence());
    }
    let (asked, seconds) = (server.requests().len(), begun.elapsed().as_secs_f64());
    println!("{asked} requests in {seconds:.1} s for 31 who asked");
    assert!((asked as f64) < 6.0 + 3.0 * seconds, "{asked} requests");
    server.everything(None);
    for p in &packages {
        all_right(&world, p).await;
    }
}
