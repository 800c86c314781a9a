//! The corpus itself: what `tests/setup` makes is what the other tests take it for, and is served
//! as real caches serve it.

#[path = "support/corpus.rs"]
mod corpus;

use std::{
    io::{Read, Write},
    net::TcpStream,
};

/// One plain HTTP request by hand, so that no client's kindness hides what the server sent.
fn get(url: &str, range: Option<&str>) -> (String, Vec<u8>) {
    let rest = url.strip_prefix("http://").expect("plain HTTP");
    let (host, path) = rest.split_once('/').expect("a path");
    let mut stream = TcpStream::connect(host).expect("the server listens");
    let range = range.map_or_else(String::new, |r| format!("Range: bytes={r}\r\n"));
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\n{range}Connection: close\r\n\r\n"
    )
    .expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("headers end");
    let head = String::from_utf8(answer[..end].to_vec()).expect("headers are ASCII");
    (head, answer.split_off(end + 4))
}

fn digest(store_path: &std::path::Path) -> String {
    let name = store_path.file_name().expect("a name").to_string_lossy();
    name.split('-').next().expect("a digest").to_owned()
}

/// A field of the narinfo of `redis-server` in a cache.
fn field(cache: &str, key: &str) -> String {
    let root = digest(&corpus::store_path("redis-server"));
    let text = std::fs::read_to_string(corpus::cache(cache).join(format!("{root}.narinfo")))
        .expect("a narinfo");
    let mut lines = text.lines();
    lines
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
        .unwrap_or_else(|| panic!("{cache}: no {key}"))
        .to_owned()
}

#[test]
fn every_cache_has_its_packing_and_one_signer() {
    let key = corpus::public_key();
    let signer = key.split(':').next().expect("a name");
    for (cache, compression, magic) in [
        ("zstd", "zstd", &b"\x28\xb5\x2f\xfd"[..]),
        ("zstd-no-listing", "zstd", b"\x28\xb5\x2f\xfd"),
        ("zstd-ls-br", "zstd", b"\x28\xb5\x2f\xfd"),
        ("zstd-ls-zstd", "zstd", b"\x28\xb5\x2f\xfd"),
        ("zstd-frames", "zstd", b"\x28\xb5\x2f\xfd"),
        ("zstd-seekable", "zstd", b"\x28\xb5\x2f\xfd"),
        ("xz", "xz", b"\xfd7zXZ\0"),
        ("xz-blocks", "xz", b"\xfd7zXZ\0"),
        ("bzip2", "bzip2", b"BZh"),
        ("gzip", "gzip", b"\x1f\x8b"),
        ("lz4", "lz4", b"\x04\x22\x4d\x18"),
        ("none", "none", b"\x0d\0\0\0\0\0\0\0nix-archive-1"),
        ("br", "br", b""),
    ] {
        assert_eq!(field(cache, "Compression"), compression, "{cache}");
        assert!(field(cache, "Sig").starts_with(&format!("{signer}:")));
        assert_eq!(field(cache, "NarHash"), field("zstd", "NarHash"), "{cache}");
        let packed =
            std::fs::read(corpus::cache(cache).join(field(cache, "URL"))).expect("the NAR");
        assert!(packed.starts_with(magic), "{cache}");
        assert_eq!(
            packed.len().to_string(),
            field(cache, "FileSize"),
            "{cache}"
        );
    }
}

#[test]
fn the_seekable_cache_ends_in_a_seek_table() {
    let packed = std::fs::read(corpus::cache("zstd-seekable").join(field("zstd-seekable", "URL")))
        .expect("the NAR");
    let (body, footer) = packed.split_at(packed.len() - 9);
    assert_eq!(footer[5..], 0x8F92_EAB1_u32.to_le_bytes());
    let frames = u32::from_le_bytes(footer[..4].try_into().expect("four bytes")) as usize;
    let entries = &body[body.len() - frames * 8..];
    let sums = entries.chunks(8).fold((0, 0), |(packed, nar), e| {
        let number = |at: usize| u32::from_le_bytes(e[at..at + 4].try_into().expect("four bytes"));
        (packed + number(0) as usize, nar + number(4) as usize)
    });
    // The frames, the skippable frame's header, the table, the footer.
    assert_eq!(sums.0 + 8 + frames * 8 + 9, packed.len());
    assert_eq!(sums.1.to_string(), field("zstd-seekable", "NarSize"));
}

#[test]
fn nginx_serves_every_cache_and_counts() {
    let nginx = corpus::Nginx::start();
    let caches = corpus::caches();
    assert!(caches.len() >= 14, "{caches:?}");
    for cache in &caches {
        let (head, body) = get(&format!("{}/nix-cache-info", nginx.cache(cache)), None);
        assert!(head.starts_with("HTTP/1.1 200 "), "{cache}: {head}");
        assert!(body.starts_with(b"StoreDir: /nix/store\n"), "{cache}");
    }
    let (head, body) = get(
        &format!("{}/nix-cache-info", nginx.cache("xz")),
        Some("0-7"),
    );
    assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
    assert_eq!(body, b"StoreDir");

    let requests = nginx.requests();
    assert_eq!(requests.len(), caches.len() + 1);
    let last = requests.last().expect("some");
    assert_eq!(
        (
            last.path.as_str(),
            last.status,
            last.bytes,
            last.range.as_deref()
        ),
        ("/xz/nix-cache-info", 206, 8, Some("bytes=0-7"))
    );
}

#[test]
fn listings_come_with_and_without_their_encoding() {
    let nginx = corpus::Nginx::start();
    let root = digest(&corpus::store_path("redis-server"));
    let listing = |cache: &str| get(&format!("{}/{root}.ls", nginx.cache(cache)), None);

    let (head, body) = listing("zstd");
    assert!(!head.contains("Content-Encoding"), "{head}");
    assert!(body.starts_with(b"{\"version\":1,"));
    let (head, body) = listing("zstd-ls-br");
    assert!(head.contains("Content-Encoding: br"), "{head}");
    assert!(!body.starts_with(b"{"));
    let (head, body) = listing("zstd-ls-zstd");
    assert!(!head.contains("Content-Encoding"), "{head}");
    assert!(body.starts_with(b"\x28\xb5\x2f\xfd"));
    let (head, _) = listing("zstd-no-listing");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
}

#[test]
fn s3_refuses_who_does_not_sign() {
    let s3 = corpus::S3::start(&["lz4"]);
    let (head, _) = get(&format!("{}/lz4/nix-cache-info", s3.url), None);
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(s3.requests(), ["GET /lz4/nix-cache-info - -"]);
}

#[test]
fn closures_are_in_the_real_store() {
    for name in ["python3.11", "redis-server", "many-files"] {
        let root = corpus::store_path(name);
        let closure = corpus::closure(&root);
        assert!(closure.contains(&root));
        for path in closure {
            assert!(path.symlink_metadata().is_ok(), "{}", path.display());
            let narinfo = corpus::cache("zstd").join(format!("{}.narinfo", digest(&path)));
            assert!(narinfo.exists(), "{}", narinfo.display());
        }
    }
}
