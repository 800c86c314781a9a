//! Every way of packing, read at random places: the right bytes for few requests.

use narfs::store::Verify;

use crate::{
    support::cache::{Cache, Package, Packing, directory, exec, file, key, link, noise},
    world::{Setup, World, admitted, all_right, fetched, read, serve, truth},
};

/// Two large files and some around them; noise, so that all blocks are of about the same size.
fn package() -> Package {
    Package::new(
        "random",
        &directory([
            ("a", file(noise(1, 1_300_000))),
            ("b", exec(noise(2, 100))),
            ("empty", file("")),
            ("link", link("a")),
            ("z", file(noise(3, 1_300_000))),
        ]),
    )
}

/// Most requests for the NAR's file that reading everything in any order may take.
fn bound(packing: Packing) -> usize {
    match packing {
        // A stream, and perhaps one more from a checkpoint.
        Packing::Zstd | Packing::Xz | Packing::Frames => 2,
        // A stream that hints at blocks, the table, and each block once.
        Packing::Seekable | Packing::Blocks => 3 + 2_600_000 / crate::support::cache::BLOCK + 2,
        // A cell of the grid each.
        Packing::None => 2_700_000 / (64 << 10) + 2,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_reads_are_right_and_their_requests_bounded() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package();
    let right = [("a", truth(&p, "a")), ("z", truth(&p, "z"))];
    for packing in Packing::ALL {
        cache.add(&p, packing);
        for verify in [Verify::Stream, Verify::BeforeRead] {
            println!("{packing:?}, {verify:?}");
            let server = serve(cache.path());
            let world = Setup::trusting(&key)
                .with(|s| s.verify = verify)
                .store(&[&server]);
            let places = noise(7, 60 * 8);
            for (n, place) in places.chunks(8).enumerate() {
                let (name, right) = &right[n % 2];
                let at = u64::from_le_bytes(place.try_into().unwrap()) % right.len() as u64;
                let size = [1, 100, 4096, 128 << 10][n % 4];
                let end = (at as usize + size as usize).min(right.len());
                let bytes = read(&world, &p, name, at, size).await.unwrap();
                assert!(
                    bytes == right[at as usize..end],
                    "{packing:?}: {name} at {at}"
                );
            }
            fetched(&world, &p).await.unwrap();
            all_right(&world, &p).await;
            let asked = server.count(&p.nar_url(packing));
            assert!(
                asked <= bound(packing),
                "{packing:?}, {verify:?}: {asked} requests"
            );
            let path = admitted(&world, &p).await;
            let status = world.path_status(&path);
            assert!(status.verified && status.fetched_size == status.size);

            // The next process has it all, and the caches are not asked.
            let World { store, state } = world;
            drop((store, path));
            server.clear();
            let again = Setup::trusting(&key)
                .with(|s| s.verify = verify)
                .open(state.path(), &[&server]);
            all_right(&again, &p).await;
            assert_eq!(server.requests().len(), 0, "asked after a restart");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_small_read_of_an_uncompressed_nar_does_not_bring_all_before_it() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package();
    cache.add(&p, Packing::None);
    let server = serve(cache.path());
    let world = Setup::trusting(&key).store(&[&server]);
    let right = truth(&p, "z");
    assert!(read(&world, &p, "z", 1_200_000, 100).await.unwrap() == right[1_200_000..1_200_100]);
    // The cell with the bytes, and the one with what stands in front of the file.
    assert!(server.count(&p.nar_url(Packing::None)) <= 2);
    let path = admitted(&world, &p).await;
    assert!(
        world.fetched_bytes(&path) <= 4 * (64 << 10),
        "{}",
        world.fetched_bytes(&path)
    );
}
