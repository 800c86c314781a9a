//! Random access: any block equals its slice, and no table can lie its way past the checks.

use std::io::Write;

use liblzma::stream::Check;
use proptest::prelude::*;

use super::{testing::*, *};

/// Asks for as many last bytes as it takes. Panics if that does not come to an end.
fn probe_all(format: Compression, packed: &[u8], mut n: usize) -> Result<Probe, CodecError> {
    let size = packed.len() as u64;
    for _ in 0..8 {
        match probe(format, size, &packed[packed.len() - n..])? {
            Probe::Need { tail } => {
                assert!(
                    tail > n as u64 && tail <= size,
                    "{n} were given, {tail} of {size} asked"
                );
                n = tail as usize;
            }
            other => return Ok(other),
        }
    }
    panic!("asks and asks");
}

fn table(format: Compression, packed: &[u8]) -> BlockTable {
    match probe_all(format, packed, 0) {
        Ok(Probe::Table(table)) => table,
        other => panic!("no table: {other:?}"),
    }
}

fn no_table(format: Compression, packed: &[u8]) {
    let probe = probe_all(format, packed, 0);
    assert!(matches!(probe, Ok(Probe::None)), "{probe:?}");
}

fn slice(bytes: &[u8], range: &std::ops::Range<u64>) -> Vec<u8> {
    bytes[range.start as usize..range.end as usize].to_vec()
}

/// Every block is its slice of `nar`, and together they are all of it.
fn check(table: &BlockTable, packed: &[u8], nar: &[u8]) {
    assert_eq!(table.nar_size(), nar.len() as u64);
    let mut end = 0;
    for block in table.blocks() {
        assert_eq!(block.nar.start, end);
        end = block.nar.end;
        let got = table.decode(block, &slice(packed, &block.packed)).unwrap();
        assert!(got == slice(nar, &block.nar), "{block:?}");
    }
    assert_eq!(end, nar.len() as u64);
}

/// A seekable file as zeekstd writes it: a seek table without checksums.
fn seekable(nar: &[u8], frame: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let policy = zeekstd::FrameSizePolicy::Uncompressed(frame);
    let options = zeekstd::EncodeOptions::new()
        .frame_size_policy(policy)
        .compression_level(1);
    let mut packer = options.into_encoder(&mut out).unwrap();
    packer.write_all(nar).unwrap();
    packer.finish().unwrap();
    out
}

/// A seekable file with checksums, made by hand: (what the table says, the frame) for each frame.
fn with_table(frames: &[(Vec<u8>, u32, u32)]) -> Vec<u8> {
    let mut out: Vec<u8> = frames
        .iter()
        .flat_map(|(packed, ..)| packed.clone())
        .collect();
    let mut entries = Vec::new();
    for (packed, size, checksum) in frames {
        for number in [packed.len() as u32, *size, *checksum] {
            entries.extend(number.to_le_bytes());
        }
    }
    out.extend(0x184D_2A5E_u32.to_le_bytes());
    out.extend((entries.len() as u32 + 9).to_le_bytes());
    out.extend(entries);
    out.extend((frames.len() as u32).to_le_bytes());
    out.push(0x80);
    out.extend(0x8F92_EAB1_u32.to_le_bytes());
    out
}

fn checksummed(parts: &[&[u8]]) -> Vec<u8> {
    let frame = |part: &&[u8]| {
        (
            zstd_frame(part, false),
            part.len() as u32,
            zstd_table::seek_checksum(part),
        )
    };
    with_table(&parts.iter().map(frame).collect::<Vec<_>>())
}

#[test]
fn xz_blocks_are_read_one_by_one() {
    let nar = data(1, 300_001);
    for kind in [Check::None, Check::Crc32, Check::Crc64, Check::Sha256] {
        for block in [1 << 16, 99_999, 300_000] {
            let packed = xz_blocks(&nar, block, kind);
            let table = table(Compression::Xz, &packed);
            assert_eq!(table.blocks().len(), nar.len().div_ceil(block));
            check(&table, &packed, &nar);
        }
    }
}

#[test]
fn zstd_frames_are_read_one_by_one() {
    let nar = data(2, 300_001);
    for frame in [1 << 14, 99_999, 300_000] {
        let packed = seekable(&nar, frame);
        let table = table(Compression::Zstd, &packed);
        assert_eq!(table.blocks().len(), nar.len().div_ceil(frame as usize));
        check(&table, &packed, &nar);
        // The same file from its start.
        let (got, end) = unpack(Compression::Zstd, &packed, nar.len() as u64);
        end.unwrap();
        assert!(got == nar);
    }
}

#[test]
fn the_checksum_is_the_one_of_the_specification() {
    // XXH64 of nothing with seed 0 is EF46DB3751D8E999.
    assert_eq!(zstd_table::seek_checksum(b""), 0x51D8_E999);
}

#[test]
fn checksums_of_the_seek_table_are_checked() {
    let (a, b) = (data(1, 5000), data(2, 6000));
    let packed = checksummed(&[&a, b"", &b]);
    check(
        &table(Compression::Zstd, &packed),
        &packed,
        &[&a[..], &b].concat(),
    );

    let wrong = with_table(&[
        (
            zstd_frame(&a, false),
            5000,
            zstd_table::seek_checksum(&a) ^ 1,
        ),
        (zstd_frame(&b, false), 6000, zstd_table::seek_checksum(&b)),
    ]);
    let table = table(Compression::Zstd, &wrong);
    let decode = |n: usize| {
        let block = &table.blocks()[n];
        table.decode(block, &slice(&wrong, &block.packed))
    };
    assert!(matches!(decode(0), Err(CodecError::Damaged { .. })));
    assert!(decode(1).unwrap() == b);
}

#[test]
fn tables_that_lie_about_sizes_are_found_out_when_decoding() {
    let (a, b) = (data(1, 5000), data(2, 6000));
    for (claimed, long) in [(4999, true), (5001, false), (200 << 20, false)] {
        let packed = with_table(&[
            (zstd_frame(&a, false), claimed, 0),
            (zstd_frame(&b, false), 6000, 0),
        ]);
        let table = table(Compression::Zstd, &packed);
        let block = &table.blocks()[0];
        match table.decode(block, &slice(&packed, &block.packed)) {
            Err(CodecError::Long { .. }) => assert!(long),
            Err(CodecError::Short { .. }) => assert!(!long),
            other => panic!("{claimed}: {:?}", other.map(|bytes| bytes.len())),
        }
    }
}

#[test]
fn covering_finds_the_blocks_of_a_range() {
    let nar = data(1, 1000);
    let table = table(Compression::Xz, &xz_blocks(&nar, 100, Check::Crc32));
    let numbers = |range| {
        let found = table.covering(range);
        (found.first().map(|block| block.nar.start), found.len())
    };
    assert_eq!(numbers(0..1), (Some(0), 1));
    assert_eq!(numbers(99..100), (Some(0), 1));
    assert_eq!(numbers(99..101), (Some(0), 2));
    assert_eq!(numbers(100..200), (Some(100), 1));
    assert_eq!(numbers(950..5000), (Some(900), 1));
    assert_eq!(numbers(0..1000), (Some(0), 10));
    assert_eq!(numbers(1000..1001), (None, 0));
    assert_eq!(numbers(50..50), (None, 0));
}

#[test]
fn no_table_where_none_is_of_use() {
    let nar = data(1, 50_000);
    no_table(Compression::Xz, &pack(Compression::Xz, &nar));
    no_table(Compression::Xz, &pack(Compression::Xz, b""));
    no_table(Compression::Xz, b"short");
    // Two streams: the index at the end is that of the second one only.
    let stream = xz_blocks(&nar, 10_000, Check::Crc64);
    no_table(Compression::Xz, &stream.repeat(2));
    no_table(Compression::Xz, &[&stream[..], &[0; 4], &stream].concat());
    no_table(Compression::Zstd, &pack(Compression::Zstd, &nar).repeat(3));
    no_table(Compression::Zstd, &seekable(&nar, 1 << 20));
    no_table(Compression::Zstd, &checksummed(&[b"", &nar, b""]));
    no_table(Compression::Zstd, b"short");
    for format in [Compression::None, Compression::Gzip, Compression::Brotli] {
        no_table(format, &pack(format, &nar));
    }
}

#[test]
fn blocks_too_large_to_hold_are_streamed() {
    let (a, b) = (data(1, 5000), data(2, 6000));
    let with = |size| {
        with_table(&[
            (zstd_frame(&a, false), size, 0),
            (zstd_frame(&b, false), 9, 0),
        ])
    };
    table(Compression::Zstd, &with(256 << 20));
    no_table(Compression::Zstd, &with((256 << 20) + 1));
}

#[test]
fn padding_behind_the_stream_is_seen_through() {
    let nar = data(1, 50_000);
    let stream = xz_blocks(&nar, 10_000, Check::Crc64);
    for zeros in [4, 20, 40_000, 64 << 10] {
        let packed = [stream.clone(), vec![0; zeros]].concat();
        check(&table(Compression::Xz, &packed), &packed, &nar);
    }
    for zeros in [1, 6, (64 << 10) + 4] {
        let packed = [stream.clone(), vec![0; zeros]].concat();
        assert!(matches!(
            probe_all(Compression::Xz, &packed, 0),
            Err(CodecError::Table { .. })
        ));
    }
    assert!(matches!(
        probe_all(Compression::Xz, &[0; 100], 0),
        Err(CodecError::Table { .. })
    ));
}

#[test]
fn asking_starts_anywhere_and_asks_for_no_more_than_needed() {
    let nar = data(1, 400_000);
    // Indexes of more than FIRST_TAIL bytes.
    let files = [
        (Compression::Xz, xz_blocks(&nar, 64, Check::None)),
        (Compression::Zstd, seekable(&nar, 128)),
    ];
    for (format, packed) in files {
        for start in [0, 1, 8, 9, 11, 12, 100, 16 << 10, packed.len()] {
            let found = probe_all(format, &packed, start);
            assert!(
                matches!(found, Ok(Probe::Table(_))),
                "{format} from {start}: {found:?}"
            );
        }
        let size = packed.len() as u64;
        match probe(format, size, &[]) {
            Ok(Probe::Need { tail }) => assert_eq!(tail, FIRST_TAIL.min(size)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_bytes_of_another_block_are_refused() {
    let nar = data(1, 300_000);
    for (format, packed) in [
        (Compression::Xz, xz_blocks(&nar, 100_000, Check::Crc64)),
        (Compression::Zstd, seekable(&nar, 100_000)),
    ] {
        let table = table(format, &packed);
        let [first, second, _] = table.blocks() else {
            panic!("three blocks")
        };
        let bytes = slice(&packed, &first.packed);
        let short = table.decode(first, &bytes[1..]);
        assert!(
            matches!(short, Err(CodecError::BlockBytes { index: 0, .. })),
            "{short:?}"
        );
        let strange = Block {
            packed: first.packed.clone(),
            nar: 5..second.nar.end,
        };
        let strange = table.decode(&strange, &bytes);
        assert!(
            matches!(strange, Err(CodecError::BlockBytes { .. })),
            "{strange:?}"
        );
        let other = slice(
            &packed,
            &(second.packed.start..second.packed.start + bytes.len() as u64),
        );
        assert!(table.decode(first, &other).is_err());
    }
}

#[test]
fn any_flipped_bit_in_a_checked_block_is_found() {
    let nar = data(1, 6000);
    for packed in [
        xz_blocks(&nar, 2000, Check::Crc32),
        xz_blocks(&nar, 2000, Check::Sha256),
        checksummed(&[&nar[..3000], &nar[3000..]]),
    ] {
        let format = if packed[0] == 0xFD {
            Compression::Xz
        } else {
            Compression::Zstd
        };
        let table = table(format, &packed);
        let block = &table.blocks()[1];
        let bytes = slice(&packed, &block.packed);
        let want = slice(&nar, &block.nar);
        for bit in (0..bytes.len() * 8).step_by(5) {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(got) = table.decode(block, &bad) {
                assert!(got == want, "{format}: bit {bit} flipped, other bytes");
            }
        }
    }
}

#[test]
fn any_flipped_bit_in_an_xz_index_is_found() {
    let packed = xz_blocks(&data(1, 6000), 2000, Check::Crc32);
    let good = table(Compression::Xz, &packed);
    let start = good.blocks().last().unwrap().packed.end as usize;
    for bit in start * 8..packed.len() * 8 {
        let mut bad = packed.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let found = probe_all(Compression::Xz, &bad, 0);
        assert!(
            matches!(found, Err(CodecError::Table { .. })),
            "bit {bit}: {found:?}"
        );
    }
}

#[test]
fn any_flipped_bit_in_a_seek_table_leaves_it_consistent_or_refused() {
    let packed = checksummed(&[&data(1, 3000), &data(2, 3000)]);
    let start = packed.len() - 9 - 24 - 8;
    for bit in start * 8..packed.len() * 8 {
        let mut bad = packed.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(Probe::Table(table)) = probe_all(Compression::Zstd, &bad, 0) {
            for block in table.blocks() {
                let _ = table.decode(block, &slice(&bad, &block.packed));
            }
        }
    }
}

/// An index and footer around `body`, all CRCs right, behind `before` bytes.
fn forged(before: usize, body: &[u8]) -> Vec<u8> {
    let mut index = body.to_vec();
    index.resize(index.len().next_multiple_of(4), 0);
    index.extend(crc32fast::hash(&index).to_le_bytes());
    let mut fields = ((index.len() / 4 - 1) as u32).to_le_bytes().to_vec();
    fields.extend([0, 1]);
    [
        &vec![1; before][..],
        &index,
        &crc32fast::hash(&fields).to_le_bytes(),
        &fields,
        b"YZ",
    ]
    .concat()
}

#[test]
fn forged_xz_indexes_are_refused() {
    let vli_max = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F];
    let two_huge = [&[0, 2][..], &vli_max, &[1], &vli_max, &[1]].concat();
    let huge_size = [&[0, 2, 8][..], &vli_max, &[8], &vli_max].concat();
    let huge_count = [&[0][..], &vli_max, &[8, 1]].concat();
    let ten_bytes = [&[0, 2, 8][..], &[0xFF; 10], &[1]].concat();
    for (what, body) in [
        ("no index", &[1, 2, 8, 5, 8, 5][..]),
        ("fewer records than counted", &[0, 4, 8, 5, 8, 5]),
        ("more records than counted", &[0, 2, 8, 5, 8, 5, 8, 5, 8, 5]),
        ("a block of four bytes", &[0, 2, 4, 5, 8, 5]),
        ("a number longer than it needs", &[0, 2, 0x88, 0, 5, 8, 5]),
        ("blocks larger than the file", &[0, 2, 127, 5, 127, 5]),
        ("blocks larger than any file", &two_huge),
        ("contents larger than any file", &huge_size),
        ("a count without end", &huge_count),
        ("a number without end", &ten_bytes),
    ] {
        let found = probe_all(Compression::Xz, &forged(12 + 16, body), 0);
        assert!(
            matches!(found, Err(CodecError::Table { .. })),
            "{what}: {found:?}"
        );
    }
    // The same with nothing wrong: two blocks of eight packed bytes.
    let good = probe_all(Compression::Xz, &forged(12 + 16, &[0, 2, 8, 5, 7, 5]), 0);
    assert!(matches!(good, Ok(Probe::Table(_))), "{good:?}");
}

#[test]
fn an_index_beyond_the_limit_is_refused_before_it_is_fetched() {
    let mut packed = forged(1000, &[0, 2, 8, 5, 8, 5]);
    let at = packed.len() - 12;
    packed[at + 4..at + 8].copy_from_slice(&(16_u32 << 20).to_le_bytes());
    let crc = crc32fast::hash(&packed[at + 4..at + 10]);
    packed[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    match probe(Compression::Xz, 1 << 40, &packed) {
        Err(CodecError::Table { what, .. }) => assert!(what.contains("limit"), "{what}"),
        other => panic!("{other:?}"),
    }
    let mut packed = checksummed(&[b"a", b"b"]);
    let at = packed.len() - 9;
    packed[at..at + 4].copy_from_slice(&(3_u32 << 20).to_le_bytes());
    match probe(Compression::Zstd, 1 << 40, &packed) {
        Err(CodecError::Table { what, .. }) => assert!(what.contains("limit"), "{what}"),
        other => panic!("{other:?}"),
    }
    let long = probe(Compression::Zstd, 3, b"four");
    assert!(matches!(long, Err(CodecError::Table { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_range_is_in_the_blocks_that_cover_it(
        seed in any::<u64>(),
        size in 2_usize..200_000,
        block in 1_usize..50_000,
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        zstd in any::<bool>(),
    ) {
        let nar = data(seed, size);
        let block = block.max(size / 200).min(size - 1);
        let (format, packed) = if zstd {
            (Compression::Zstd, seekable(&nar, block as u32))
        } else {
            (Compression::Xz, xz_blocks(&nar, block, Check::Crc64))
        };
        let table = table(format, &packed);
        let (a, b) = (from.index(size), to.index(size));
        let range = a.min(b) as u64..a.max(b) as u64 + 1;
        let found = table.covering(range.clone());
        let mut got = Vec::new();
        for block in found {
            got.extend(table.decode(block, &slice(&packed, &block.packed)).unwrap());
        }
        let start = (range.start - found[0].nar.start) as usize;
        let length = (range.end - range.start) as usize;
        prop_assert!(got[start..start + length] == slice(&nar, &range));
        prop_assert!(found[0].nar.end > range.start);
        prop_assert!(found[found.len() - 1].nar.start < range.end);
    }

    #[test]
    fn noise_makes_no_table_of_anything_outside_the_file(
        noise in prop::collection::vec(any::<u8>(), 0..300),
        file_size in prop_oneof![0_u64..400, any::<u64>()],
    ) {
        for format in [Compression::Xz, Compression::Zstd] {
            let mut tail = noise.clone();
            if format == Compression::Zstd && tail.len() > 8 {
                let at = tail.len() - 9;
                tail[at + 1..at + 4].fill(0);
                tail[at + 4] &= 0x80;
                tail[at + 5..].copy_from_slice(&0x8F92_EAB1_u32.to_le_bytes());
            }
            match probe(format, file_size, &tail) {
                Ok(Probe::Need { tail: need }) => {
                    prop_assert!(need > tail.len() as u64 && need <= file_size);
                }
                Ok(Probe::Table(table)) => {
                    for block in table.blocks() {
                        prop_assert!(block.packed.end <= file_size);
                    }
                }
                Ok(Probe::None) | Err(_) => {}
            }
        }
    }
}
