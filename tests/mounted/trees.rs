//! Mounted trees equal what the real nix unpacks: in every packing, cold, half fetched, warm, and
//! without the cache.

use std::path::Path;

use crate::{
    corpus::{self, Nginx},
    mounted::{Mounted, Setup},
    snapshot::{Entry, Shuffle, assert_attributes, assert_same, entry, files, snapshot},
    truth::{self, Trees},
};

/// Compares every tree, every byte.
fn compare(what: &str, mounted: &Mounted, trees: &Trees) {
    for (name, wanted) in trees {
        let found = snapshot(&mounted.at(name));
        assert_same(&format!("{what}: {name}"), &found, wanted);
    }
}

/// Every third file, in no order.
fn read_some(mounted: &Mounted, trees: &Trees) {
    let mut some: Vec<_> = trees
        .iter()
        .flat_map(|(name, tree)| {
            let files = files(tree).into_iter();
            files.map(move |file| (name, file, tree))
        })
        .collect();
    Shuffle(1).shuffle(&mut some);
    some.truncate(some.len() / 3);
    for (name, file, tree) in some {
        let at = join(&mounted.at(name), &file);
        assert_eq!(Some(&entry(&at)), tree.get(&file), "{}", at.display());
    }
}

fn join(root: &Path, inner: &Path) -> std::path::PathBuf {
    if inner.as_os_str().is_empty() {
        root.to_owned()
    } else {
        root.join(inner)
    }
}

fn variant(cache: &str, root: &str, flag: Option<&str>) {
    let root = corpus::store_path(root);
    let trees = truth::trees(&root);
    assert!(trees.values().any(|tree| {
        let links = tree.values().filter(|e| matches!(e, Entry::Link(_)));
        links.count() > 0
    }));
    let nginx = Nginx::start();
    let setup = || {
        let setup = Setup::new(nginx.cache(cache), corpus::public_key());
        flag.into_iter().fold(setup, Setup::set)
    };

    let mounted = Mounted::start(setup());
    compare("cold", &mounted, &trees);
    for name in trees.keys() {
        assert_attributes(&mounted.at(name));
    }
    drop(mounted);

    let mounted = Mounted::start(setup());
    read_some(&mounted, &trees);
    compare("half fetched", &mounted, &trees);
    mounted.wait_until_idle();
    compare("warm", &mounted, &trees);

    // A new daemon and a new mount: nothing is in the kernel's caches any more.
    mounted.stop();
    let before = nginx.requests().len();
    mounted.start_again();
    compare("warm, after a restart", &mounted, &trees);
    mounted.stop();
    let after: Vec<_> = nginx.requests().split_off(before);
    assert!(after.is_empty(), "a warm restart asked: {after:?}");

    drop(nginx);
    mounted.start_again();
    compare("without the cache", &mounted, &trees);
}

macro_rules! variants {
    ($($test:ident: $cache:literal of $root:literal $(with $flag:literal)?;)*) => {
        $(#[test] fn $test() { variant($cache, $root, [$($flag)?].first().copied()); })*
    };
}

variants! {
    zstd_in_one_frame: "zstd" of "python3.11";
    xz: "xz" of "redis-server";
    xz_of_nix_with_parallel_compression: "xz-multi" of "python3.11";
    xz_in_blocks: "xz-blocks" of "redis-server";
    packed_with_nothing: "none" of "redis-server";
    bzip2: "bzip2" of "redis-server";
    brotli: "br" of "redis-server";
    gzip: "gzip" of "redis-server";
    lz4: "lz4" of "redis-server";
    zstd_in_frames: "zstd-frames" of "redis-server";
    zstd_with_a_seek_table: "zstd-seekable" of "redis-server";
    listings_in_brotli: "zstd-ls-br" of "redis-server";
    listings_in_zstd: "zstd-ls-zstd" of "redis-server";
    no_listings: "zstd-no-listing" of "redis-server";
    verified_before_it_is_read: "xz-blocks" of "redis-server" with "--verify=before-read";
    verified_before_it_is_read_packed_with_nothing: "none" of "redis-server" with "--verify=before-read";
}
