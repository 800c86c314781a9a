//! Store paths that no package has, but that may come: huge ones, single files and links, names
//! that are not UTF-8, nothing at all.

use std::{
    fs::{self, File},
    io::Read,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use narfs::nix::{Compression, NarHash};

use crate::{
    generated::Generated,
    mounted::{Mounted, Setup, run, shell, wait_until},
    snapshot::{Entry, assert_attributes, assert_same, entry, name, snapshot},
    synthetic::{Cache, Listed, Node, restore, text},
};

const PACKINGS: [Compression; 2] = [Compression::None, Compression::Zstd];

fn mount(cache: &Cache) -> Mounted {
    Mounted::start(Setup::new(cache.url(), cache.key()))
}

fn file(bytes: &str) -> Node {
    Node::File(bytes.as_bytes().to_vec())
}

/// Every kind of thing in one tree.
fn zoo() -> Node {
    let deep = (0..60).fold(file("deep"), |inner, _| {
        Node::Directory(vec![inner.named("d")])
    });
    Node::Directory(vec![
        file("").named("0-empty"),
        Node::Executable(Vec::new()).named("1-empty-executable"),
        Node::Directory(Vec::new()).named("2-empty-directory"),
        Node::Link(b"/etc/passwd".to_vec()).named("3-outside"),
        Node::Link(b"../../../../tmp".to_vec()).named("4-outside"),
        Node::Link(b"nowhere".to_vec()).named("5-dangling"),
        Node::Link(b"/nix/store/../store".to_vec()).named("6-odd"),
        Node::Link(vec![b'x'; 4095]).named("7-long-target"),
        file("Case").named("A"),
        file(" ").named("B b\tb"),
        file("backslash").named("C\\\"'"),
        file("newline").named("D\nd"),
        file("dots").named("E..."),
        file("long").named("F".repeat(255)),
        file("case").named("a"),
        deep.named("deep"),
        file("hack").named("hack~nix~case~hack~1"),
        Node::Executable(b"#!/bin/sh\necho it runs\n".to_vec()).named("run"),
        file("umlaut").named("ä"),
        file("emoji").named("🦀"),
    ])
}

#[test]
fn every_kind_of_entry() {
    let wanted = tempfile::tempdir().expect("a temporary directory");
    let at = wanted.path().join("zoo");
    restore(&zoo(), &at);
    let wanted = snapshot(&at);
    for packing in PACKINGS {
        for listed in [Listed::Yes, Listed::No] {
            let cache = Cache::new();
            let path = cache.add("zoo", &zoo(), packing, listed);
            let mounted = mount(&cache);
            let what = format!("{packing:?}, listed: {listed:?}");
            assert_same(&what, &snapshot(&mounted.at(&path)), &wanted);
            assert_attributes(&mounted.at(&path));
            let script = mounted.at(&path).join("run");
            assert_eq!(run(std::process::Command::new(script)), "it runs\n");
            mounted.wait_until_idle();
            mounted.stop();
            mounted.start_again();
            assert_same(&what, &snapshot(&mounted.at(&path)), &wanted);
        }
    }
}

#[test]
fn names_and_targets_that_are_not_utf_8() {
    let node = || {
        Node::Directory(vec![
            file("1").named(b"caf\xe9"),
            Node::Link(b"caf\xe9".to_vec()).named(b"link\xff"),
            Node::Directory(vec![file("2").named(b"\x80\x81")]).named(b"\xfe"),
        ])
    };
    let wanted = tempfile::tempdir().expect("a temporary directory");
    let at = wanted.path().join("latin");
    restore(&node(), &at);
    let wanted = snapshot(&at);
    assert!(wanted.contains_key(Path::new(name(b"caf\xe9"))));
    // With a listing the names are lost in it: it has to be found unusable.
    for listed in [Listed::No, Listed::Yes] {
        for packing in PACKINGS {
            let cache = Cache::new();
            let path = cache.add("latin", &node(), packing, listed);
            let mounted = mount(&cache);
            let found = snapshot(&mounted.at(&path));
            assert_same(&format!("{packing:?}, listed: {listed:?}"), &found, &wanted);
        }
    }
}

#[test]
fn store_paths_that_are_no_directories() {
    let cache = Cache::new();
    for packing in PACKINGS {
        for listed in [Listed::Yes, Listed::No] {
            let path = |kind: &str| format!("{kind}-{packing:?}-{listed:?}");
            cache.add(&path("file"), &file("contents"), packing, listed);
            cache.add(&path("empty"), &file(""), packing, listed);
            let program = Node::Executable(b"#!/bin/sh\necho it runs\n".to_vec());
            cache.add(&path("program"), &program, packing, listed);
            cache.add(
                &path("link"),
                &Node::Link(b"/etc/hostname".to_vec()),
                packing,
                listed,
            );
            cache.add(&path("none"), &Node::Directory(Vec::new()), packing, listed);
        }
    }
    let mounted = mount(&cache);
    let look = || {
        for packing in PACKINGS {
            for listed in [Listed::Yes, Listed::No] {
                let at = |kind: &str| {
                    let path = Cache::path(&format!("{kind}-{packing:?}-{listed:?}"));
                    mounted.at(path.to_string())
                };
                assert_eq!(fs::read(at("file")).expect("readable"), b"contents");
                assert_eq!(fs::read(at("empty")).expect("readable"), b"");
                assert_eq!(run(std::process::Command::new(at("program"))), "it runs\n");
                assert_eq!(
                    fs::read_link(at("link")).expect("a link"),
                    PathBuf::from("/etc/hostname")
                );
                assert_eq!(fs::read_dir(at("none")).expect("a directory").count(), 0);
                for kind in ["file", "empty", "program", "link", "none"] {
                    assert_attributes(&at(kind));
                }
                assert!(fs::symlink_metadata(at("file").join("below")).is_err());
            }
        }
    };
    look();
    let listed = |mounted: &Mounted| {
        let mut found: Vec<_> = fs::read_dir(mounted.path())
            .expect("listed")
            .map(|entry| entry.expect("readable"))
            .map(|entry| {
                (
                    entry.file_name(),
                    entry.file_type().expect("a type").is_symlink(),
                )
            })
            .collect();
        found.sort();
        found
    };
    let first = listed(&mounted);
    assert_eq!(first.len(), 20);
    assert_eq!(first.iter().filter(|(_, link)| *link).count(), 4);
    mounted.wait_until_idle();
    mounted.stop();
    mounted.start_again();
    assert_eq!(
        listed(&mounted),
        first,
        "other names or kinds after a restart"
    );
    look();
}

#[test]
fn a_directory_of_a_hundred_thousand() {
    const FILES: usize = 100_000;
    let entries = (0..FILES).map(|n| file(&n.to_string()).named(format!("file-{n:06}")));
    let node = Node::Directory(entries.collect());
    let cache = Cache::new();
    let path = cache.add("many", &node, Compression::Zstd, Listed::Yes);
    let mounted = mount(&cache);
    let at = mounted.at(&path);
    for _ in 0..2 {
        let mut names: Vec<_> = fs::read_dir(&at)
            .expect("listed")
            .map(|entry| {
                entry
                    .expect("readable")
                    .file_name()
                    .into_string()
                    .expect("ASCII")
            })
            .collect();
        assert_eq!(names.len(), FILES);
        names.sort();
        assert!((0..FILES).all(|n| names[n] == format!("file-{n:06}")));
    }
    let found = run(shell("ls -l \"$1\" | wc -l", &[&at]));
    assert_eq!(found.trim(), (FILES + 1).to_string());
    for n in (0..FILES).step_by(9973) {
        let text = fs::read_to_string(at.join(format!("file-{n:06}"))).expect("readable");
        assert_eq!(text, n.to_string());
        assert!(fs::symlink_metadata(at.join(format!("file-{n:06}x"))).is_err());
    }
}

/// Size of the large file, in bytes: past what 32 bits count, and no multiple of anything.
const LARGE: u64 = (4 << 30) + (600 << 20) + 12345;

/// The bytes of the large file: each eight tell their own place.
fn large_bytes(range: Range<u64>) -> Vec<u8> {
    let first = range.start / 8;
    let words = first..range.end.div_ceil(8);
    let bytes: Vec<u8> = words
        .flat_map(|n| (n ^ 0x5bd1_e995).to_le_bytes())
        .collect();
    let skip = (range.start - first * 8) as usize;
    bytes[skip..skip + (range.end - range.start) as usize].to_vec()
}

#[test]
fn a_file_of_more_than_four_gibibytes() {
    // ( directory: a, the large one, z ): the last one's place depends on the large one's size.
    let nar = Node::Directory(vec![
        file("first").named("a"),
        file("LARGE!!!").named("large"),
        file("last").named("z"),
    ])
    .nar();
    let cut = nar
        .windows(8)
        .position(|w| w == b"LARGE!!!")
        .expect("it is in there");
    let (mut head, tail) = (nar[..cut - 8].to_vec(), nar[cut + 8..].to_vec());
    head.extend(LARGE.to_le_bytes());
    let padded = LARGE.next_multiple_of(8);
    let size = head.len() as u64 + padded + tail.len() as u64;
    let bytes = {
        let head = head.clone();
        move |range: Range<u64>| -> Vec<u8> {
            let start = head.len() as u64;
            let part = |from: u64, to: u64| range.start.clamp(from, to)..range.end.clamp(from, to);
            let (a, b, c) = (
                part(0, start),
                part(start, start + padded),
                part(start + padded, size),
            );
            let mut out = head[a.start as usize..a.end as usize].to_vec();
            let (from, to) = (b.start - start, b.end - start);
            out.extend(large_bytes(from..to.min(LARGE).max(from)));
            out.resize(out.len() + (to.saturating_sub(from.max(LARGE))) as usize, 0);
            let at = |n: u64| (n - start - padded) as usize;
            out.extend(&tail[at(c.start)..at(c.end)]);
            out
        }
    };
    let whole = bytes(0..64);
    assert_eq!(
        whole[..13 + 8],
        nar[..13 + 8],
        "the generator begins as a NAR does"
    );
    let cache = Cache::new();
    let path = Cache::path("large");
    let listing = format!(
        r#"{{"version":1,"root":{{"type":"directory","entries":{{"a":{{"type":"regular","size":5}},"large":{{"type":"regular","size":{LARGE}}},"z":{{"type":"regular","size":4}}}}}}}}"#
    );
    // Never fetched to its end, so nobody will miss the right hash.
    let hash = NarHash::from_bytes([7; 32]);
    cache.announce(
        &path,
        "nar/large.nar",
        Compression::None,
        hash,
        size,
        Some(&listing),
    );
    let server = Generated::start(
        cache.directory.path().to_owned(),
        "/nar/large.nar",
        size,
        bytes,
    );
    let mounted = Mounted::start(Setup::new(server.url(), cache.key()));
    let at = mounted.at(path.absolute());

    let found = fs::symlink_metadata(at.join("large")).expect("it is there");
    assert_eq!((found.len(), found.blocks()), (LARGE, LARGE.div_ceil(512)));
    assert_eq!(
        fs::read(at.join("z")).expect("behind the large one"),
        b"last"
    );
    let file = File::open(at.join("large")).expect("open");
    for offset in [
        LARGE - 5000,
        (4 << 30) - 4096,
        4 << 30,
        (4 << 30) + 123_457,
        1 << 31,
        0,
    ] {
        let mut bytes = vec![0; 5000];
        file.read_exact_at(&mut bytes, offset)
            .unwrap_or_else(|e| panic!("at {offset}: {e}"));
        assert!(bytes == large_bytes(offset..offset + 5000), "at {offset}");
    }
    let mut end = Vec::new();
    let mut file = file;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(LARGE - 3)).expect("seek");
    file.read_to_end(&mut end).expect("up to its end");
    assert_eq!(end, large_bytes(LARGE - 3..LARGE));
    assert_eq!(fs::read(at.join("a")).expect("before it"), b"first");

    let ranges = server.ranges();
    assert!(
        ranges.iter().all(Option::is_some),
        "the whole was asked for: {ranges:?}"
    );
    let fetched = mounted.status(Path::new(&path.absolute()))["fetchedSize"].as_u64();
    assert!(
        fetched.is_some_and(|n| n < 256 << 20),
        "{fetched:?} bytes for 35 KB"
    );
    let mut word = Vec::new();
    text(&mut word, b"x");
    assert_eq!(word.len(), 16);
}

#[test]
fn a_path_becomes_known_while_the_root_is_listed() {
    let cache = Cache::new();
    let mounted = mount(&cache);
    let names = || fs::read_dir(mounted.path()).expect("listed").count();
    assert_eq!(names(), 0);
    for n in 0..50 {
        let node = file(&n.to_string());
        let path = cache.add(&format!("path-{n}"), &node, Compression::None, Listed::Yes);
        let found = entry(&mounted.at(&path));
        assert!(
            matches!(
                found,
                Entry::File {
                    executable: false,
                    ..
                }
            ),
            "{found:?}"
        );
    }
    wait_until("all are listed", || names() == 50);
}
