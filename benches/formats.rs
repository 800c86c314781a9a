//! The pure parts: narinfo, listing to index, lookups, NAR to index, opening an index.
//!
//! `cargo bench --bench formats`. Throughputs count the bytes that go in: of the narinfo's or
//! listing's text, or of the NAR.

use std::{fmt::Write as _, hint::black_box};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use narfs::{
    nix::{NarHash, NarInfo, SigningKey, StorePath, TrustedKeys},
    tree::{EntryIndex, ListingError, NarIndexer, Tree, compile_listing},
};

const HASH: NarHash = NarHash::from_bytes([7; 32]);

/// A narinfo with as many references as a mean path of nixpkgs has.
fn narinfo() -> NarInfo {
    let digest = "0z9wcv93z7bc9zqh1f5wwplw6rq7k925";
    let references: Vec<String> = (0..10)
        .map(|n| format!("88y1nnsv6qjp9i138bqlpqsg259b0n96-library-{n}.0"))
        .collect();
    let text = format!(
        "StorePath: /nix/store/{digest}-hello-2.12\nURL: nar/{digest}.nar.zst\nCompression: zstd\n\
         NarHash: {HASH}\nNarSize: 226560\nReferences: {}\n",
        references.join(" ")
    );
    let path = StorePath::parse(&format!("{digest}-hello-2.12")).expect("a store path");
    NarInfo::parse(text.as_bytes(), &path.hash()).expect("a narinfo")
}

fn narinfos(c: &mut Criterion) {
    let key = SigningKey::generate("cache-1").expect("random bytes");
    let mut info = narinfo();
    key.sign(&mut info);
    let trusted = TrustedKeys::parse([key.public()]).expect("a key");
    let (text, hash) = (info.to_text(), info.store_path.hash());
    let mut group = c.benchmark_group("narinfo");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("parse", |b| {
        b.iter(|| NarInfo::parse(black_box(text.as_bytes()), &hash))
    });
    group.bench_function("verify", |b| b.iter(|| black_box(&info).trust(&trusted)));
    group.finish();
}

/// A listing of `dirs` directories with `files` files each, and the size of its NAR.
fn listing(dirs: u32, files: u32) -> (String, u64) {
    let mut text = String::from("{\"version\":1,\"root\":{\"type\":\"directory\",\"entries\":{");
    for dir in 0..dirs {
        let comma = if dir == 0 { "" } else { "," };
        let _ = write!(
            text,
            "{comma}\"dir-{dir}\":{{\"type\":\"directory\",\"entries\":{{"
        );
        for file in 0..files {
            let comma = if file == 0 { "" } else { "," };
            let _ = write!(
                text,
                "{comma}\"module-{file}.py\":{{\"type\":\"regular\",\"size\":{}}}",
                file % 5000
            );
        }
        text.push_str("}}");
    }
    text.push_str("}}}");
    match compile_listing(text.as_bytes(), HASH, 0) {
        Err(ListingError::Total { computed, .. }) => (text, computed),
        other => panic!("a NAR of 0 bytes: {other:?}"),
    }
}

fn trees(c: &mut Criterion) {
    let shapes = [
        ("100 x 1,000", listing(100, 1000)),
        ("1 x 100,000", listing(1, 100_000)),
    ];
    let mut group = c.benchmark_group("100,000 files");
    group.sample_size(20);
    for (shape, (text, size)) in &shapes {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(format!("listing to index, {shape}"), |b| {
            b.iter(|| compile_listing(black_box(text.as_bytes()), HASH, *size));
        });
        let image = compile_listing(text.as_bytes(), HASH, *size).expect("the size is right");
        group.throughput(Throughput::Bytes(image.len() as u64));
        group.bench_function(format!("open and check an index, {shape}"), |b| {
            b.iter_batched(|| image.clone(), Tree::from_image, BatchSize::LargeInput);
        });
    }
    group.finish();

    let (text, size) = &shapes[1].1;
    let image = compile_listing(text.as_bytes(), HASH, *size).expect("the size is right");
    let tree = Tree::from_image(image).expect("an image");
    let dir = tree
        .lookup(EntryIndex::ROOT, b"dir-0")
        .expect("the directory");
    let names: Vec<String> = (0..1000).map(|n| format!("module-{}.py", n * 97)).collect();
    let mut group = c.benchmark_group("lookup in 100,000 entries");
    group.throughput(Throughput::Elements(names.len() as u64));
    group.bench_function("present", |b| {
        b.iter(|| {
            names
                .iter()
                .filter_map(|n| tree.lookup(dir, n.as_bytes()))
                .count()
        });
    });
    group.bench_function("absent", |b| {
        b.iter(|| {
            names
                .iter()
                .filter_map(|n| tree.lookup(dir, &n.as_bytes()[1..]))
                .count()
        });
    });
    group.finish();
}

/// A NAR with one directory of `files` files of `size` bytes.
fn nar(files: u32, size: usize) -> Vec<u8> {
    let mut out = nix_archive::nar::Encoder::new(Vec::new()).expect("a vector takes everything");
    out.start_directory(None).expect("a directory");
    let contents = vec![1; size];
    for file in 0..files {
        out.regular(Some(format!("{file:06}").as_bytes()), false, &contents)
            .expect("sorted");
    }
    out.end_directory().expect("it is open");
    out.finish().expect("it is complete")
}

fn nars(c: &mut Criterion) {
    let mut group = c.benchmark_group("NAR to index");
    group.sample_size(20);
    for (name, nar) in [
        ("1,000 x 64 KiB", nar(1000, 64 << 10)),
        ("20,000 x 500 B", nar(20_000, 500)),
    ] {
        group.throughput(Throughput::Bytes(nar.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut indexer = NarIndexer::new();
                // As decoders hand it on.
                for piece in nar.chunks(128 << 10) {
                    indexer.push(piece).expect("a NAR");
                }
                indexer.finish(HASH).expect("complete")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, narinfos, trees, nars);
criterion_main!(benches);
