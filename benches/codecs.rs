//! How fast packed NARs become hashed bytes: what bounds a fetch once the network does not.
//!
//! `cargo bench --bench codecs`. Throughput is counted in bytes of the NAR.

use std::{
    hint::black_box,
    io::{Cursor, Read, Write},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use narfs::{
    codec::{Checkpoint, Probe, probe, stream},
    nix::{Compression, NarHasher},
};

/// Bytes of the NAR that is packed: a few windows of the readers' buffers, quick to pack.
const NAR_SIZE: usize = 8 << 20;

/// Bytes read at a time, as a fetch lane does.
const ROOM: usize = 256 << 10;

/// Text that repeats between numbers that do not: packs to about a third, as programs do.
fn nar() -> Vec<u8> {
    let mut out = Vec::with_capacity(NAR_SIZE + 64);
    let mut number = 0x9E37_79B9_7F4A_7C15_u64;
    while out.len() < NAR_SIZE {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        let text = format!(
            "mov 0x{:x}(%rip),%rax; call {:x}; ",
            number % 999,
            number % 77
        );
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.truncate(NAR_SIZE);
    out
}

fn xz(nar: &[u8]) -> Vec<u8> {
    let mut packer = liblzma::write::XzEncoder::new(Vec::new(), 6);
    packer.write_all(nar).expect("writing to memory");
    packer.finish().expect("writing to memory")
}

fn unpack(format: Compression, packed: &[u8], buffer: &mut [u8], mut each: impl FnMut(&[u8])) {
    let source = Box::new(Cursor::new(packed.to_vec()));
    let mut reader = stream(format, source, Checkpoint::START, NAR_SIZE as u64).expect("a decoder");
    loop {
        match reader.read(buffer).expect("good data") {
            0 => break,
            n => each(&buffer[..n]),
        }
    }
}

fn codecs(criterion: &mut Criterion) {
    let nar = nar();
    let packed = [
        (Compression::None, "none", nar.clone()),
        (
            Compression::Zstd,
            "zstd-3",
            zstd::encode_all(&nar[..], 3).expect("packing"),
        ),
        (
            Compression::Zstd,
            "zstd-19",
            zstd::encode_all(&nar[..], 19).expect("packing"),
        ),
        (Compression::Xz, "xz-6", xz(&nar)),
    ];
    let mut buffer = vec![0; ROOM];

    let mut group = criterion.benchmark_group("codecs");
    group
        .sample_size(10)
        .throughput(Throughput::Bytes(NAR_SIZE as u64));
    group.bench_function("sha256", |bench| {
        bench.iter(|| {
            let mut hasher = NarHasher::new();
            nar.chunks(ROOM).for_each(|bytes| hasher.update(bytes));
            hasher.finish()
        });
    });
    for (format, name, packed) in &packed {
        group.bench_function(BenchmarkId::new("decode", name), |bench| {
            bench.iter(|| {
                unpack(*format, packed, &mut buffer, |bytes| {
                    black_box(bytes);
                })
            });
        });
        group.bench_function(BenchmarkId::new("decode+sha256", name), |bench| {
            bench.iter(|| {
                let mut hasher = NarHasher::new();
                unpack(*format, packed, &mut buffer, |bytes| hasher.update(bytes));
                hasher.finish()
            });
        });
    }

    let mut seekable = Vec::new();
    let policy = zeekstd::FrameSizePolicy::Uncompressed(1 << 20);
    let options = zeekstd::EncodeOptions::new().frame_size_policy(policy);
    let mut packer = options.into_encoder(&mut seekable).expect("an encoder");
    packer.write_all(&nar).expect("writing to memory");
    packer.finish().expect("writing to memory");
    let Ok(Probe::Table(table)) = probe(Compression::Zstd, seekable.len() as u64, &seekable) else {
        panic!("a seekable file has a table");
    };
    let block = &table.blocks()[3];
    let bytes = &seekable[block.packed.start as usize..block.packed.end as usize];
    group.throughput(Throughput::Bytes(1 << 20));
    group.bench_function("block/zstd-1MiB", |bench| {
        bench.iter(|| table.decode(block, bytes).expect("good data"));
    });
    group.finish();
}

criterion_group!(benches, codecs);
criterion_main!(benches);
