//! NARs that are not what their narinfo promised.

use narfs::store::{Event, StoreError, Verify};

use crate::{
    support::{
        cache::{Cache, Package, Packing, directory, exec, file, key, link, nar, noise},
        scripted::{Gate, Reply},
    },
    world::{
        Setup, admitted, all_right, fetched, never_wrong, read, read_all, serve, truth, until,
    },
};

/// Big enough for several blocks, with two files that lie far apart.
fn package() -> Package {
    Package::new("two-files", &tree(1, 2))
}

fn tree(first: u64, second: u64) -> crate::support::cache::Item {
    directory([
        ("bin", directory([("tool", exec("#!/bin/sh\n"))])),
        ("first", file(noise(first, 700_001))),
        ("link", link("first")),
        ("second", file(noise(second, 700_003))),
    ])
}

/// What a cache may send for the NAR, and whether the NAR inside has the right beginning.
fn damaged(p: &Package, packing: Packing) -> Vec<(&'static str, Reply)> {
    let packed = packing.pack(&p.nar);
    let with = |bytes: Vec<u8>| Reply::file(bytes);
    let mut longer = p.nar.clone();
    longer.extend([0; 64]);
    let mut flipped = p.nar.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut corrupt = packed.clone();
    let middle = corrupt.len() / 2;
    corrupt[middle..middle + 16].fill(0x55);
    let mut trailing = packed.clone();
    trailing.extend(b"<html>no longer here</html>");
    vec![
        ("another NAR", with(packing.pack(&nar(&tree(1, 3))))),
        ("a small NAR", with(packing.pack(&nar(&file("hello"))))),
        (
            "a file cut off",
            with(packed[..packed.len() * 3 / 4].to_vec()),
        ),
        (
            "a connection cut off",
            Reply::as_it_is().cut_after(packed.len() as u64 * 3 / 4),
        ),
        (
            "a file that never ends right",
            Reply::as_it_is().claiming_length(packed.len() as u64 + 1),
        ),
        ("flipped bytes", with(corrupt)),
        ("a flipped last byte", with(packing.pack(&flipped))),
        (
            "a NAR cut off",
            with(packing.pack(&p.nar[..p.nar.len() - 8])),
        ),
        ("a NAR that goes on", with(packing.pack(&longer))),
        ("garbage behind the file", with(trailing)),
        ("nothing", with(Vec::new())),
        ("garbage", with(noise(9, 5000))),
        ("HTML", Reply::html()),
        ("no file", Reply::status(404)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn before_read_no_damage_ever_shows() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package();
    let right = truth(&p, "first");
    for packing in Packing::ALL {
        cache.add(&p, packing);
        let server = serve(cache.path());
        let setup = Setup::trusting(&key).with(|s| s.verify = Verify::BeforeRead);
        for (what, reply) in damaged(&p, packing) {
            println!("{packing:?}, {what}");
            server.on(&p.nar_url(packing), reply);
            let store = setup.store(&[&server]);
            let path = admitted(&store, &p).await;
            let outcome = read(&store, &p, "first", 100_000, 1000).await;
            let outcome = never_wrong(outcome, &right[100_000..101_000]);
            let Some(error) = outcome else {
                // What stands behind the NAR in an uncompressed file is never asked for, and where
                // a connection ended, the next one goes on.
                let harmless = packing == Packing::None || what == "a connection cut off";
                assert!(harmless, "{packing:?}: read in spite of {what}");
                assert!(store.path_status(&path).verified);
                continue;
            };
            let status = store.path_status(&path);
            assert!(!status.verified);
            let said = status.error.unwrap_or_default();
            assert!(
                error.to_string().contains(&said) && !said.is_empty(),
                "{error}: status says {said:?}"
            );
        }
        server.forget(&p.nar_url(packing));
        all_right(&setup.store(&[&server]), &p).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_cache_takes_over_from_a_damaged_one() {
    let key = key();
    let p = package();
    for packing in Packing::ALL {
        let (bad, good) = (Cache::new(&key), Cache::new(&key));
        bad.add(&p, packing);
        // The other cache packs as it likes.
        good.add(
            &p,
            if packing == Packing::Xz {
                Packing::None
            } else {
                Packing::Xz
            },
        );
        let (first, second) = (serve(bad.path()), serve(good.path()));
        for verify in [Verify::BeforeRead, Verify::Stream] {
            let setup = Setup::trusting(&key).with(|s| s.verify = verify);
            for (what, reply) in damaged(&p, packing) {
                println!("{packing:?}, {verify:?}, {what}");
                first.on(&p.nar_url(packing), reply);
                let store = setup.store(&[&first, &second]);
                if verify == Verify::BeforeRead {
                    all_right(&store, &p).await;
                } else {
                    let outcome = fetched(&store, &p).await;
                    assert!(
                        outcome.is_ok() || packing == Packing::None,
                        "{}",
                        outcome.unwrap_err()
                    );
                    // Once the damage is known, it is over.
                    fetched(&store, &p).await.unwrap();
                    all_right(&store, &p).await;
                }
                let path = admitted(&store, &p).await;
                let status = store.path_status(&path);
                assert!(status.verified && status.error.is_none(), "{status:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_second_half_shows_at_the_end_and_drops_everything() {
    let key = key();
    let p = package();
    let lie = nar(&tree(1, 3));
    assert_eq!(lie.len(), p.nar.len());
    for packing in [Packing::Zstd, Packing::Xz, Packing::Frames] {
        let (bad, good) = (Cache::new(&key), Cache::new(&key));
        bad.add(&p, packing);
        good.add(&p, Packing::Zstd);
        let (first, second) = (serve(bad.path()), serve(good.path()));
        let packed = packing.pack(&lie);
        let gate = Gate::new();
        let half = packed.len() as u64 * 2 / 3;
        first.on(
            &p.nar_url(packing),
            Reply::file(packed).pausing_at(half, &gate),
        );
        second.on(&p.narinfo_url(), Reply::status(500));
        let store = Setup::trusting(&key).store(&[&first, &second]);
        let mut events = store.events();
        // The first half is right and is served while it comes.
        assert!(read_all(&store, &p, "first").await.unwrap() == truth(&p, "first"));
        gate.open();
        until(|| store.counters().quarantined.get() == 1).await;
        let path = admitted(&store, &p).await;
        assert_eq!(
            events.recv().await.unwrap(),
            Event::ContentDropped(p.hash())
        );
        until(|| store.path_status(&path).state == narfs_state_schema::PathState::Quarantined)
            .await;
        let status = store.path_status(&path);
        assert_eq!((status.fetched_size, status.verified), (0, false));
        let why = status.error.expect("the status says why");
        assert!(why.contains("hash") && why.contains(&first.base()), "{why}");
        let last = status.last_error.unwrap();
        assert_eq!(last.substituter.as_deref(), Some(&*first.base()));
        // The other cache is in trouble: an error, and not the damaged bytes.
        let error = read(&store, &p, "second", 0, 1000).await.unwrap_err();
        assert!(!error.is_absence(), "{error}");
        let asked = first.count(&p.nar_url(packing));
        second.forget(&p.narinfo_url());
        all_right(&store, &p).await;
        assert_eq!(
            first.count(&p.nar_url(packing)),
            asked,
            "the damaged one was asked again"
        );
        until(|| store.path_status(&path).error.is_none()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zip_bomb_costs_no_more_than_its_narinfo_says() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package();
    cache.add(&p, Packing::Zstd);
    let server = serve(cache.path());
    let mut bomb = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    std::io::Write::write_all(&mut bomb, &p.nar).unwrap();
    for _ in 0..256 {
        std::io::Write::write_all(&mut bomb, &[0; 1 << 20]).unwrap();
    }
    server.on(
        &p.nar_url(Packing::Zstd),
        Reply::file(bomb.finish().unwrap()),
    );
    let store = Setup::trusting(&key).store(&[&server]);
    let error = fetched(&store, &p).await.unwrap_err();
    assert!(
        matches!(error.root(), StoreError::Damaged { .. }),
        "{error}"
    );
    assert!(
        store.content().usage_exact().unwrap() < 1 << 20,
        "nothing of it stays"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_that_lies_is_refused() {
    let key = key();
    let p = package();
    for difference in [-8_i64, -1, 1, 8, 1 << 40] {
        for packing in [Packing::None, Packing::Zstd, Packing::Xz] {
            for listed in [true, false] {
                let cache = Cache::new(&key);
                cache.add_unlisted(&p, packing);
                if listed {
                    cache.write_listing(&p, &p.listing());
                }
                let mut narinfo = p.narinfo(packing);
                narinfo.nar_size = narinfo.nar_size.checked_add_signed(difference).unwrap();
                cache.write_narinfo(narinfo);
                let server = serve(cache.path());
                let store = Setup::trusting(&key).store(&[&server]);
                let error = fetched(&store, &p).await.unwrap_err();
                assert!(!error.is_absence(), "{difference}: {error}");
                assert!(
                    store.content().usage_exact().unwrap() < 1 << 20,
                    "nothing of it stays"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_without_ranges_or_with_wrong_ones_is_streamed() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package();
    for packing in [Packing::None, Packing::Seekable, Packing::Blocks] {
        cache.add(&p, packing);
        for (what, reply) in [
            ("no ranges", Reply::as_it_is().ignoring_ranges()),
            ("later bytes", Reply::as_it_is().shifted_range(8)),
            ("earlier bytes", Reply::as_it_is().shifted_range(-8)),
            ("no lengths", Reply::as_it_is().chunked()),
            (
                "no ranges and no lengths",
                Reply::as_it_is().ignoring_ranges().without_length(),
            ),
        ] {
            for verify in [Verify::Stream, Verify::BeforeRead] {
                println!("{packing:?}, {verify:?}, {what}");
                let server = serve(cache.path());
                server.on(&p.nar_url(packing), reply.clone());
                let store = Setup::trusting(&key)
                    .with(|s| s.verify = verify)
                    .store(&[&server]);
                let right = truth(&p, "second");
                let part = read(&store, &p, "second", 300_000, 5000).await.unwrap();
                assert!(part == right[300_000..305_000]);
                all_right(&store, &p).await;
                fetched(&store, &p).await.unwrap();
                let asked = server.count(&p.nar_url(packing));
                assert!(asked <= 12, "{asked} requests");
            }
        }
    }
}
