//! Every fault at every request of a workload, one at a time: whatever breaks and wherever, a reader
//! gets the right bytes or an error, and once it is over everything is as if it had not been.

use std::time::Duration;

use narfs::store::{Lane, Verify};

use crate::{
    support::{
        cache::{Cache, Package, Packing, directory, file, key, noise},
        scripted::{Reply, Server, When},
    },
    world::{
        Setup, World, admitted, all_right, fetched, never_wrong, read, read_all, serve, soon, truth,
    },
};

fn package() -> Package {
    Package::new(
        "met-by-every-fault",
        &directory([
            ("data", file(noise(1, 700_000))),
            ("end", file(noise(2, 300_000))),
        ]),
    )
}

/// A fault, and whether the bytes that it lets through may be wrong ones: then only who reads after
/// verification is promised that he never sees them.
fn faults() -> Vec<(&'static str, Reply, bool)> {
    let as_it_is = Reply::as_it_is;
    let busy = |status| Reply::status(status).header("Retry-After", "0");
    vec![
        ("no answer", Reply::hang(), false),
        ("torn before the answer", Reply::reset(), false),
        ("500", Reply::status(500), false),
        ("503, come back at once", busy(503), false),
        ("429, come back at once", busy(429), false),
        ("a log-in page", Reply::html(), false),
        ("leads elsewhere", Reply::redirect("/nix-cache-info?"), true),
        ("ends before the body", as_it_is().cut_after(0), false),
        ("ends in the body", as_it_is().cut_after(100), false),
        ("torn in the body", as_it_is().reset_after(150_000), false),
        ("more announced", as_it_is().claiming_length(5 << 20), false),
        (
            "other bytes than asked for",
            as_it_is().shifted_range(8),
            false,
        ),
        ("no ranges", as_it_is().ignoring_ranges(), false),
        (
            "a byte at a time",
            as_it_is().trickle(1, Duration::from_millis(20)),
            false,
        ),
        ("a bit flipped early", as_it_is().corrupt_at(60), true),
        ("a bit flipped late", as_it_is().corrupt_at(500_000), true),
        ("nothing in it", Reply::file(""), true),
    ]
}

fn setup(key: &narfs::nix::SigningKey, verify: Verify) -> Setup {
    let mut setup = Setup::trusting(key).with(|s| {
        s.verify = verify;
        s.hedge_after = Duration::from_millis(20);
    });
    setup.http.stall_timeout = Duration::from_millis(150);
    setup.http.connect_timeout = Duration::from_millis(150);
    setup
}

/// Requests that meet a fault, each in a run of its own; those behind them are like them: parts of
/// the same NAR.
const MOST: usize = 6;

/// What is done each time, in order; how many of its steps ended with an error.
async fn workload(world: &World, p: &Package) -> usize {
    let middle = read(world, p, "data", 400_000, 5000).await;
    let end = read_all(world, p, "end").await;
    let right = truth(p, "data");
    let errors = [
        never_wrong(middle, &right[400_000..405_000]),
        never_wrong(end, &truth(p, "end")),
        match soon(world.store.admit(&p.path)).await {
            Ok(path) => soon(world.store.prefetch(&path, Lane::Demand)).await.err(),
            Err(error) => {
                assert!(!error.is_absence(), "an error became absence: {error}");
                Some(error)
            }
        },
    ];
    errors.iter().flatten().count()
}

/// Requests of the workload when nothing breaks.
async fn undisturbed(key: &narfs::nix::SigningKey, server: &Server, p: &Package) -> usize {
    let world = setup(key, Verify::Stream).store(&[server]);
    assert_eq!(workload(&world, p).await, 0);
    let requests = server.requests().len();
    server.clear();
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_cache_it_is_an_error_and_over_when_it_is_over() {
    let key = key();
    let p = package();
    let mut seen = 0;
    for packing in [Packing::None, Packing::Zstd, Packing::Blocks] {
        let cache = Cache::new(&key);
        cache.add(&p, packing);
        let server = serve(cache.path());
        let requests = undisturbed(&key, &server, &p).await;
        for (what, reply, wrong) in faults() {
            // One that sent wrong bytes is not asked again for ten minutes: see the next test.
            for number in 1..=if wrong { 0 } else { requests.min(MOST) } {
                println!("{packing:?}, {what}, request {number} of {requests}");
                let world = setup(&key, Verify::Stream).store(&[&server]);
                server.fault(When::Request(number), reply.clone());
                seen += workload(&world, &p).await;
                server.heal();
                all_right(&world, &p).await;
                fetched(&world, &p).await.unwrap();
                let path = admitted(&world, &p).await;
                let status = world.path_status(&path);
                assert!(status.verified && status.error.is_none(), "{status:?}");
            }
        }
        println!("{} faults were met", server.faults());
        assert!(server.faults() >= 13 * 3, "the test tests nothing");
    }
    println!("{seen} errors were seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_caches_nobody_notices() {
    let key = key();
    let p = package();
    for packing in [Packing::None, Packing::Zstd, Packing::Blocks] {
        let (bad, good) = (Cache::new(&key), Cache::new(&key));
        bad.add(&p, packing);
        good.add(&p, Packing::Zstd);
        let (first, second) = (serve(bad.path()), serve(good.path()));
        let requests = undisturbed(&key, &first, &p).await;
        for (what, reply, _) in faults() {
            for number in 1..=requests.min(MOST) {
                println!("{packing:?}, {what}, request {number} of {requests}");
                let world = setup(&key, Verify::BeforeRead).store(&[&first, &second]);
                first.fault(When::Request(number), reply.clone());
                assert_eq!(
                    workload(&world, &p).await,
                    0,
                    "{what}: the other cache has it"
                );
                first.heal();
                all_right(&world, &p).await;
                let path = admitted(&world, &p).await;
                assert!(world.path_status(&path).verified);
            }
        }
        println!("{} faults were met", first.faults());
        assert!(first.faults() >= 17 * 3, "the test tests nothing");
    }
}

/// Faults by the second: an outage that begins and ends while a hundred reads are under way.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_in_the_middle_is_over_when_it_is_over() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package();
    cache.add(&p, Packing::None);
    let server = serve(cache.path());
    let world = setup(&key, Verify::Stream).store(&[&server]);
    let right = truth(&p, "data");
    server.fault(When::Seconds(0.0..0.4), Reply::status(503));
    server.fault(When::Seconds(0.4..0.8), Reply::reset());
    let (mut errors, mut reads) = (0, 0);
    while errors == 0 || server.faults() < 4 || reads < 20 {
        reads += 1;
        let offset = reads * 7000 % 600_000;
        let outcome = read(&world, &p, "data", offset as u64, 3000).await;
        errors += usize::from(never_wrong(outcome, &right[offset..offset + 3000]).is_some());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.heal();
    all_right(&world, &p).await;
    println!("{reads} reads, {errors} errors, {} faults", server.faults());
}
