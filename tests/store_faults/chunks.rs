//! Caches with chunk indexes, as `narfs publish` writes them: what is fetched, and what lies come to.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use narfs::{
    chunks::{self, Chunk, ChunkIndex},
    nix::{Compression, NarInfo, SigningKey},
    publish::{Size, cut, pack},
    store::{Store, Verify},
    tree,
};

use crate::{
    support::{
        cache::{Cache, Item, Package, directory, exec, file, key, noise},
        scripted::Server,
    },
    world::{
        Setup, World, admitted, all_right, fetched, flushed, never_wrong, read, read_all, serve,
        truth, until,
    },
};

const BOTH: [Verify; 2] = [Verify::Stream, Verify::BeforeRead];
/// Bytes of a chunk in these tests.
const CHUNK: u64 = 64 << 10;

/// Files of all sizes; noise, so that packed and unpacked sizes are about the same.
fn package() -> Package {
    let small = |n: u64| (format!("{n:03}").into_bytes(), file(noise(n, 3000)));
    Package::new(
        "chunked",
        &directory([
            ("a", file(noise(1001, 1_300_000))),
            ("many", Item::Directory((0..100).map(small).collect())),
            ("run", exec(noise(1002, 400_000))),
            ("z", file(noise(1003, 200_000))),
        ]),
    )
}

/// A package as it is published: its index and narinfo, both of which a test may change.
struct Published {
    info: NarInfo,
    index: ChunkIndex,
    packed: Vec<u8>,
}

impl Published {
    fn of(package: &Package) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (nar, out) = (dir.path().join("nar"), dir.path().join("out"));
        fs::write(&nar, &package.nar).unwrap();
        let tree = std::sync::Arc::new(package.tree());
        let ends = cut(&tree, Size::new(CHUNK).unwrap());
        let made = pack(&fs::File::open(&nar).unwrap(), &ends, 1, &out, |_| {}).unwrap();
        let index = ChunkIndex {
            nar_hash: package.hash(),
            nar_size: package.nar.len() as u64,
            file_hash: made.file_hash,
            file_size: made.file_size,
            structure: tree::structure(&tree),
            chunks: made.chunks,
        };
        let info = NarInfo {
            url: format!("nar/{}.nar.zst", made.file_hash.nix32()),
            compression: Compression::Zstd,
            file_hash: Some(index.file_hash),
            file_size: Some(index.file_size),
            ..package.narinfo(crate::support::cache::Packing::Zstd)
        };
        let packed = fs::read(out).unwrap();
        Self {
            info,
            index,
            packed,
        }
    }

    fn nar_url(&self) -> String {
        format!("/{}", self.info.url)
    }

    fn index_url(&self) -> String {
        format!("/{}", chunks::file_name(&self.info.url))
    }

    /// Puts it into a cache; `index` may be anything.
    fn put_with(
        &self,
        cache: &Cache<'_>,
        package: &Package,
        key: &SigningKey,
        index: Option<&[u8]>,
    ) {
        let mut info = self.info.clone();
        chunks::announce(key, &mut info);
        cache.write_narinfo(info);
        cache.write_listing(package, &package.listing());
        cache.write(&self.nar_url(), &self.packed);
        match index {
            Some(bytes) => cache.write(&self.index_url(), bytes),
            None => drop(fs::remove_file(cache.path().join(&self.index_url()[1..]))),
        }
    }

    fn put(&self, cache: &Cache<'_>, package: &Package, key: &SigningKey) {
        self.put_with(cache, package, key, Some(&self.index.to_bytes(key)));
    }
}

/// Bytes that a store took of NARs and indexes.
fn bytes(store: &Store) -> u64 {
    store.counters().fetched.get()
}

fn over(server: &Server, key: &SigningKey, verify: Verify) -> World {
    Setup::trusting(key)
        .with(|s| s.verify = verify)
        .store(&[server])
}

#[tokio::test(flavor = "multi_thread")]
async fn one_small_file_costs_its_chunk_and_the_index() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package();
    let published = Published::of(&p);
    published.put(&cache, &p, &key);
    for verify in BOTH {
        let server = serve(cache.path());
        let world = over(&server, &key, verify);
        let right = truth(&p, "z");
        let got = read(&world, &p, "z", 100_000, 10).await.unwrap();
        assert!(got == right[100_000..100_010]);
        // The index, and one range: of the NAR neither its beginning nor its end.
        assert_eq!(server.count(&published.index_url()), 1, "{verify:?}");
        let asked = server.requests_for(&published.nar_url());
        assert_eq!(asked.len(), 1, "{verify:?}: {asked:?}");
        let index = published.index.to_bytes(&key).len() as u64;
        assert!(bytes(&world) <= index + 2 * CHUNK, "{}", bytes(&world));
        let path = admitted(&world, &p).await;
        assert!(!world.path_status(&path).verified);
        // And all of it, in the end, with its hash.
        all_right(&world, &p).await;
        fetched(&world, &p).await.unwrap();
        assert!(world.path_status(&path).verified);
        assert!(bytes(&world) <= index + published.packed.len() as u64);
        assert_eq!(server.count(&published.index_url()), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn before_read_goes_on_without_the_network_after_a_restart() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package();
    Published::of(&p).put(&cache, &p, &key);
    let server = serve(cache.path());
    let setup = Setup::trusting(&key).with(|s| s.verify = Verify::BeforeRead);
    let state = tempfile::tempdir().unwrap();
    let store = setup.open(state.path(), &[&server]);
    assert!(read_all(&store, &p, "z").await.unwrap() == truth(&p, "z"));
    flushed(&store).await;
    drop(store);
    server.vanish();
    let again = setup.open(state.path(), &[&server]);
    assert!(read_all(&again, &p, "z").await.unwrap() == truth(&p, "z"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_chunk_is_an_error_or_the_next_caches_and_never_served() {
    let key = key();
    let (bad, good) = (Cache::new(&key), Cache::new(&key));
    let p = package();
    let mut published = Published::of(&p);
    published.put(&good, &p, &key);
    // Somewhere in every chunk.
    for chunk in &published.index.chunks {
        let at = (chunk.packed.start + chunk.packed.end) / 2;
        published.packed[at as usize] ^= 0x10;
    }
    published.put(&bad, &p, &key);
    for verify in BOTH {
        let server = serve(bad.path());
        let world = over(&server, &key, verify);
        let outcome = read_all(&world, &p, "run").await;
        assert!(
            never_wrong(outcome, &truth(&p, "run")).is_some(),
            "{verify:?}"
        );
        let (first, second) = (serve(bad.path()), serve(good.path()));
        let setup = Setup::trusting(&key).with(|s| s.verify = verify);
        let world = setup.store(&[&first, &second]);
        all_right(&world, &p).await;
    }
}

/// Chunks whose digests are those of other bytes: what a key that went mad would sign.
fn lying(index: &ChunkIndex) -> ChunkIndex {
    let mut index = index.clone();
    let packed = index.chunks[1].packed.end - index.chunks[1].packed.start;
    let shifted = |chunk: &Chunk| Chunk {
        packed: chunk.packed.start.saturating_sub(3)..chunk.packed.end - 3,
        ..chunk.clone()
    };
    index.chunks = index.chunks.iter().map(shifted).collect();
    assert!(packed > 3);
    index
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_cannot_be_used_leaves_an_ordinary_cache() {
    let key = key();
    let p = package();
    let published = Published::of(&p);
    let right = published.index.to_bytes(&key);
    let other = SigningKey::generate("test-1").unwrap();
    let another_nar = ChunkIndex {
        nar_hash: published.index.file_hash,
        ..published.index.clone()
    };
    let another_file = ChunkIndex {
        file_size: published.index.file_size + 1,
        ..published.index.clone()
    };
    let cases: [(&str, Option<Vec<u8>>); 7] = [
        ("absent", None),
        ("empty", Some(vec![])),
        ("cut off", Some(right[..right.len() / 2].to_vec())),
        ("no index", Some(b"<html>not found</html>".to_vec())),
        ("another key", Some(published.index.to_bytes(&other))),
        ("another NAR", Some(another_nar.to_bytes(&key))),
        ("another file", Some(another_file.to_bytes(&key))),
    ];
    for (what, index) in cases {
        for verify in BOTH {
            let cache = Cache::new(&key);
            published.put_with(&cache, &p, &key, index.as_deref());
            let server = serve(cache.path());
            let world = over(&server, &key, verify);
            println!("{what}, {verify:?}");
            assert!(
                read_all(&world, &p, "z").await.unwrap() == truth(&p, "z"),
                "{what}"
            );
            all_right(&world, &p).await;
        }
    }
    // Who does not trust the key that announces it does not ask.
    let cache = Cache::new(&key);
    published.put_with(&cache, &p, &other, Some(&published.index.to_bytes(&other)));
    let server = serve(cache.path());
    let world = over(&server, &key, Verify::Stream);
    assert!(read_all(&world, &p, "z").await.unwrap() == truth(&p, "z"));
    assert_eq!(server.count(&published.index_url()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_lie_give_no_wrong_byte() {
    let key = key();
    let p = package();
    let published = Published::of(&p);
    let cache = Cache::new(&key);
    let index = lying(&published.index).to_bytes(&key);
    published.put_with(&cache, &p, &key, Some(&index));
    for verify in BOTH {
        let server = serve(cache.path());
        let world = over(&server, &key, verify);
        for name in ["a", "run", "z", "many/050"] {
            never_wrong(read_all(&world, &p, name).await, &truth(&p, name));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_the_index_does_not_know_is_not_read_through() {
    let key = key();
    let p = package();
    let published = Published::of(&p);
    let cache = Cache::new(&key);
    published.put(&cache, &p, &key);
    // Two files of one size, the one under the other's name.
    let swapped = p
        .listing()
        .replace("\"010\"", "\"tmp\"")
        .replace("\"011\"", "\"010\"");
    let lie = swapped
        .replace("\"tmp\"", "\"011\"")
        .replacen("\"z\"", "\"y\"", 1);
    cache.write_listing(&p, &lie);
    for verify in BOTH {
        let server = serve(cache.path());
        let world = over(&server, &key, verify);
        assert!(read_all(&world, &p, "y").await.is_err(), "there is no y");
        let mut outcome = read_all(&world, &p, "z").await;
        for _ in 0..200 {
            if outcome.is_ok() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            outcome = read_all(&world, &p, "z").await;
        }
        assert!(outcome.unwrap() == truth(&p, "z"), "{verify:?}");
        all_right(&world, &p).await;
    }
}

/// Two versions: of 40 files one changed, one came and one went.
fn versions() -> (Package, Package) {
    let tree = |version: u64| {
        let files = (0..40).filter(|n| *n != 30 + version);
        let one = |n: u64| {
            let seed = if n == 7 { 500 + version } else { n };
            (format!("{n:02}").into_bytes(), file(noise(seed, 60_000)))
        };
        let lib = Item::Directory(files.map(one).collect());
        directory([("bin", exec(noise(900, 500_000))), ("lib", lib)])
    };
    (
        Package::new("app-1", &tree(1)),
        Package::new("app-2", &tree(2)),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_costs_what_changed() {
    let key = key();
    let (old, new) = versions();
    let cache = Cache::new(&key);
    let (a, b) = (Published::of(&old), Published::of(&new));
    a.put(&cache, &old, &key);
    b.put(&cache, &new, &key);
    for verify in BOTH {
        let server = serve(cache.path());
        let setup = Setup::trusting(&key).with(|s| s.verify = verify);
        let state = tempfile::tempdir().unwrap();
        let store = setup.open(state.path(), &[&server]);
        all_right(&store, &old).await;
        fetched(&store, &old).await.unwrap();
        flushed(&store).await;
        // What is here is known after a restart, too.
        drop(store);
        let store = setup.open(state.path(), &[&server]);
        all_right(&store, &new).await;
        fetched(&store, &new).await.unwrap();
        let path = admitted(&store, &new).await;
        assert!(store.path_status(&path).verified);
        let index = b.index.to_bytes(&key).len() as u64;
        // The changed file, the new one, and what shares a chunk with them or with the one that went.
        let fetched = bytes(&store) - index;
        assert!(
            fetched <= 6 * 2 * CHUNK,
            "{verify:?}: {fetched} of {}",
            b.packed.len()
        );
        let copied = store.counters().copied.get();
        assert!(copied + fetched + 3 * CHUNK >= b.index.nar_size);
        let scrape = narfs::metrics::text(narfs::metrics::Scrape::of(&[&store])).unwrap();
        let told = format!("\nnarfs_copied_bytes_total {copied}\n");
        assert!(scrape.contains(&told), "{told} is not in {scrape}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn that_a_cache_has_no_profile_is_believed_for_its_time_and_after_a_restart() {
    let key = key();
    let cache = Cache::new(&key);
    let library = package();
    let run = directory([("run", exec(noise(7, 300_000)))]);
    let program = Package::new("program", &run).with_references(&[&library]);
    for package in [&library, &program] {
        Published::of(package).put(&cache, package, &key);
    }
    let server = serve(cache.path());
    let profile = format!("/{}", narfs::profile::file_name(&program.path.hash()));
    let state = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3600);
    // What is believed for no time at all is asked for each time.
    let starts = [(hour, 1), (hour, 1), (Duration::ZERO, 2), (hour, 2)];
    for (number, (ttl, asked)) in starts.into_iter().enumerate() {
        let setup = Setup::trusting(&key).with(|s| s.negative_ttl = ttl);
        let store = setup.open(state.path(), &[&server]);
        let path = admitted(&store, &program).await;
        // A cold start: nothing of the program is read, so the next one is cold as well.
        store.touch(&path);
        until(|| store.known(&library.path).is_some() && server.count(&profile) >= asked).await;
        let name = store.substituters()[0].name().to_owned();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let db = store.content().db();
        let kept = || db.has_no_profile(&program.path.hash(), &name, now.as_secs() + 1, 3600);
        until(|| kept().unwrap()).await;
        // Longer than it takes to ask.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(server.count(&profile), asked, "start {number}");
    }
    // Who was told that there is one now.
    let store = Setup::trusting(&key).open(state.path(), &[&server]);
    store.forget_absence([&program.path]).await.unwrap();
    let path = admitted(&store, &program).await;
    store.touch(&path);
    until(|| server.count(&profile) == 3).await;
}
