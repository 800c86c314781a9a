//! The formats of `src/nix` and `src/tree` against the real Nix.
//!
//! Random trees are written to disk, packed by `nix-store --dump`, put into binary caches by
//! `nix copy`, read by narfs and compared file by file. Needs root, because Nix gives the files in
//! its store an owner, and the commands `nix`, `nix-store` and `nix-hash`; without them the tests
//! fail, since skipping them would look like passing.

mod hostile;
mod nix;
mod trees;

use std::{collections::BTreeMap, fs, path::Path};

use narfs::{
    nix::{
        CacheInfo, Compression, NarHash, NarHasher, NarInfo, SigningKey, StorePath, Trust,
        TrustedKeys,
    },
    tree::{ListingError, NarIndexer, Source, Tree, compile_listing, to_listing},
};
use nix::Sandbox;
use trees::{Rng, Spec};

/// Indexes a NAR in random pieces, hashing it on the way.
fn index(nar: &[u8], rng: &mut Rng) -> Tree {
    let (mut indexer, mut hasher) = (NarIndexer::new(), NarHasher::new());
    let mut rest = nar;
    while !rest.is_empty() {
        let (piece, next) = rest.split_at(rest.len().min(1 + rng.below(5000)));
        indexer.push(piece).expect("the real Nix wrote this NAR");
        hasher.update(piece);
        rest = next;
    }
    let image = indexer
        .finish(hasher.finish())
        .expect("the NAR is complete");
    Tree::from_image(image).expect("what the indexer makes is an image")
}

#[test]
fn nars_of_nix_store_dump_are_indexed_as_the_trees_on_disk() {
    let sandbox = Sandbox::new();
    for seed in 0..25 {
        let mut rng = Rng::new(seed);
        let root = sandbox.path().join(format!("tree-{seed}"));
        trees::random(
            &mut rng,
            &root,
            Spec {
                utf8: seed % 5 == 0,
            },
        );

        let nar = sandbox.run("nix-store", &["--dump".as_ref(), root.as_os_str()]);
        let tree = index(&nar, &mut rng);
        trees::assert_same(&tree, &nar, &root);

        let hash = sandbox.text("nix-hash", &["--type", "sha256", "--base32"], Some(&root));
        assert_eq!(tree.nar_hash().nix32(), hash, "seed {seed}");
        assert_eq!(
            (tree.nar_size(), tree.source()),
            (nar.len() as u64, Source::Nar)
        );

        let mut packed = Vec::new();
        narfs::nix::nar::dump(&root, &mut packed).unwrap();
        assert!(
            packed == nar,
            "seed {seed}: narfs and Nix pack the same bytes"
        );

        match compile_listing(
            to_listing(&tree).as_bytes(),
            tree.nar_hash(),
            tree.nar_size(),
        ) {
            Ok(image) => Tree::from_image(image).unwrap().same_as(&tree).unwrap(),
            Err(why) => assert!(
                matches!(why, ListingError::Lossy { .. }) && seed % 5 != 0,
                "{why}"
            ),
        }
    }
}

#[test]
fn single_files_symlinks_and_deep_trees_are_indexed() {
    let sandbox = Sandbox::new();
    let root = sandbox.path();
    fs::write(root.join("file"), "contents").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    std::os::unix::fs::symlink("/nowhere", root.join("link")).unwrap();
    fs::create_dir(root.join("dir")).unwrap();
    fs::create_dir_all(root.join(format!("deep/{}", "d/".repeat(1500)))).unwrap();
    for name in ["file", "empty", "link", "dir", "deep"] {
        let path = root.join(name);
        let nar = sandbox.run("nix-store", &["--dump".as_ref(), path.as_os_str()]);
        let tree = index(&nar, &mut Rng::new(1));
        trees::assert_same(&tree, &nar, &path);
    }
}

/// A store path that Nix put into a cache, and what the cache holds of it.
struct Copied {
    info: NarInfo,
    listing: Vec<u8>,
}

fn copied(cache: &Path, path: &str) -> Copied {
    let (store_path, _) = StorePath::parse_with_rest(path).unwrap();
    let file =
        |suffix: &str| fs::read(cache.join(format!("{}{suffix}", store_path.hash()))).unwrap();
    let info = NarInfo::parse(&file(".narinfo"), &store_path.hash()).unwrap();
    assert_eq!(info.store_path, store_path);
    let text = String::from_utf8(file(".narinfo")).unwrap();
    let lines = |text: &str| {
        text.lines()
            .map(str::to_owned)
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(
        lines(&info.to_text()),
        lines(&text),
        "narfs writes what it read"
    );
    Copied {
        info,
        listing: file(".ls"),
    }
}

#[test]
fn caches_of_nix_copy_are_read() {
    let sandbox = Sandbox::new();
    let (key, public) = sandbox.key("cache-1");
    let trusted = TrustedKeys::parse([&public]).unwrap();
    for seed in 100..108 {
        let mut rng = Rng::new(seed);
        let root = sandbox.path().join("tree");
        trees::random(
            &mut rng,
            &root,
            Spec {
                utf8: seed % 4 == 0,
            },
        );
        let path = sandbox.add(&root);
        let cache = sandbox.path().join(format!("cache-{seed}"));
        sandbox.copy_to(&cache, "none", &key, &[&path]);

        let Copied { info, listing } = copied(&cache, &path);
        assert_eq!(info.compression, Compression::None);
        assert_eq!(
            info.trust(&trusted),
            Trust::Signed {
                key: "cache-1".into()
            }
        );
        assert_eq!(info.trust(&TrustedKeys::default()), Trust::ContentAddressed);

        let nar = fs::read(cache.join(&info.url)).unwrap();
        let from_nar = index(&nar, &mut rng);
        assert_eq!(
            (info.nar_hash, info.nar_size),
            (from_nar.nar_hash(), nar.len() as u64)
        );
        // Nix 2.8 writes the offset of every file: each of them is checked here.
        assert!(String::from_utf8_lossy(&listing).contains("narOffset"));
        let image = compile_listing(&listing, info.nar_hash, info.nar_size).unwrap();
        let from_listing = Tree::from_image(image).unwrap();
        from_listing.same_as(&from_nar).unwrap();
        trees::assert_same(&from_listing, &nar, &root);

        assert!(matches!(
            compile_listing(&listing, info.nar_hash, info.nar_size + 8),
            Err(ListingError::Total { .. })
        ));
        fs::remove_dir_all(root).unwrap();
    }
}

#[test]
fn every_compression_is_named_as_nix_names_it() {
    let sandbox = Sandbox::new();
    let (key, _) = sandbox.key("cache-1");
    let root = sandbox.path().join("tree");
    trees::random(&mut Rng::new(7), &root, Spec { utf8: true });
    let path = sandbox.add(&root);
    for compression in Compression::ALL {
        let cache = sandbox.path().join(format!("cache-{compression}"));
        sandbox.copy_to(&cache, compression.as_str(), &key, &[&path]);
        let Copied { info, .. } = copied(&cache, &path);
        assert_eq!(info.compression, compression);
        let packed = fs::read(cache.join(&info.url)).unwrap();
        let mut hasher = NarHasher::new();
        hasher.update(&packed);
        assert_eq!(info.file_size, Some(packed.len() as u64));
        assert_eq!(info.file_hash, Some(hasher.finish()));
    }
    let info = CacheInfo::parse(&fs::read(sandbox.path().join("cache-xz/nix-cache-info")).unwrap());
    assert_eq!(info.unwrap().store_dir, "/nix/store");
}

#[test]
fn a_directory_of_20_000_files_is_read() {
    let sandbox = Sandbox::new();
    let (key, _) = sandbox.key("cache-1");
    let root = sandbox.path().join("tree");
    fs::create_dir(&root).unwrap();
    for n in 0..20_000 {
        fs::write(root.join(format!("file {n} \u{e9}")), n.to_string()).unwrap();
    }
    let path = sandbox.add(&root);
    let cache = sandbox.path().join("cache");
    sandbox.copy_to(&cache, "none", &key, &[&path]);
    let Copied { info, listing } = copied(&cache, &path);
    let image = compile_listing(&listing, info.nar_hash, info.nar_size).unwrap();
    let nar = fs::read(cache.join(&info.url)).unwrap();
    trees::assert_same(&Tree::from_image(image).unwrap(), &nar, &root);
}

/// Which content addresses need a signature, with paths that the real Nix made.
#[test]
fn content_addresses_of_nix_are_judged() {
    let sandbox = Sandbox::new();
    let (key, public) = sandbox.key("cache-1");
    let file = sandbox.path().join("hello.txt");
    fs::write(&file, "hello").unwrap();
    let recursive = sandbox.add(&file);
    let flat = sandbox.store("nix-store", &["--add-fixed", "sha256"], &file);
    let sha1 = sandbox.store("nix-store", &["--add-fixed", "--recursive", "sha1"], &file);
    let cache = sandbox.path().join("cache");
    sandbox.copy_to(&cache, "xz", &key, &[&recursive, &flat, &sha1]);
    let trusted = TrustedKeys::parse([public]).unwrap();
    let expected = BTreeMap::from([
        (recursive, Trust::ContentAddressed),
        // These prove the file's hash, or one by a broken algorithm: not the NAR's.
        (flat, Trust::Untrusted),
        (sha1, Trust::Untrusted),
    ]);
    for (path, trust) in expected {
        let Copied { info, .. } = copied(&cache, &path);
        assert!(info.ca.is_some());
        assert_eq!(info.trust(&TrustedKeys::default()), trust, "{path}");
        assert!(matches!(info.trust(&trusted), Trust::Signed { .. }));
    }
}

/// What narfs signs, Nix believes; what narfs refuses, Nix refuses.
#[test]
fn nix_agrees_about_signatures() {
    let sandbox = Sandbox::new();
    let (key, public) = sandbox.key("nix-1");
    let tree = sandbox.path().join("tree");
    trees::random(&mut Rng::new(3), &tree, Spec { utf8: true });
    let other = sandbox.add(&tree);
    let path = sandbox.register("z0000000000000000000000000000000-signed", &tree, &other);
    let cache = sandbox.path().join("cache");
    sandbox.copy_to(&cache, "none", &key, &[&other, &path]);

    let Copied { mut info, .. } = copied(&cache, &path);
    assert_eq!((info.references.len(), info.ca.as_deref()), (2, None));
    let nix_s = TrustedKeys::parse([&public]).unwrap();
    assert_eq!(
        info.trust(&nix_s),
        Trust::Signed {
            key: "nix-1".into()
        }
    );
    assert!(sandbox.accepts(&cache, &path, &public), "the copy is good");

    // The key that Nix made, read by narfs, makes the signature that Nix made.
    let nix_key = SigningKey::parse(&fs::read_to_string(&key).unwrap()).unwrap();
    assert_eq!(nix_key.public(), public);
    let signature = info.signatures[0].to_string();
    nix_key.sign(&mut info);
    assert_eq!(info.signatures.len(), 1);
    assert_eq!(info.signatures[0].to_string(), signature);

    let ours = SigningKey::generate("narfs-1").unwrap();
    info.signatures.clear();
    ours.sign(&mut info);
    let narinfo = cache.join(format!("{}.narinfo", info.store_path.hash()));
    fs::write(&narinfo, info.to_text()).unwrap();
    assert!(
        sandbox.accepts(&cache, &path, &ours.public()),
        "Nix believes narfs's signature"
    );
    assert!(
        !sandbox.accepts(&cache, &path, &public),
        "and only with narfs's key"
    );

    let changes: [fn(&mut NarInfo); 3] = [
        |i| i.nar_hash = NarHash::from_bytes([1; 32]),
        |i| i.nar_size += 8,
        |i| drop(i.references.pop()),
    ];
    let ours_trusted = TrustedKeys::parse([ours.public()]).unwrap();
    for change in changes {
        let mut forged = info.clone();
        change(&mut forged);
        assert_eq!(forged.trust(&ours_trusted), Trust::Untrusted);
        fs::write(&narinfo, forged.to_text()).unwrap();
        assert!(!sandbox.accepts(&cache, &path, &ours.public()));
    }
}
