//! Streams of wrong, cut off and hostile data.

use std::io::{self, Cursor, Read};

use proptest::prelude::*;

use super::{testing::*, *};

#[test]
fn too_many_and_too_few_bytes_are_told_apart() {
    let data = data(1, 200_000);
    for format in Compression::ALL {
        let packed = pack(format, &data);
        for less in [0, 1, 100_000, 199_999] {
            let error = error(format, &packed, less);
            assert!(
                matches!(error, CodecError::Long { .. }),
                "{format}: {error}"
            );
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        for more in [200_001, usize::MAX] {
            let error = error(format, &packed, more);
            assert!(
                matches!(error, CodecError::Short { got: 200_000, .. }),
                "{format}: {error}"
            );
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}

#[test]
fn foreign_bytes_behind_the_data_are_refused() {
    let data = data(1, 50_000);
    for format in PACKING {
        let unit = pack(format, &data);
        let packed = [&unit[..], GARBAGE].concat();
        match error(format, &packed, data.len()) {
            CodecError::Trailing { at, .. } => assert_eq!(at, unit.len() as u64, "{format}"),
            other => panic!("{format}: {other}"),
        }
    }
}

#[test]
fn nothing_and_garbage_are_no_packed_data() {
    for format in PACKING {
        assert!(
            matches!(error(format, b"", 10), CodecError::Truncated { .. }),
            "{format}"
        );
        assert!(
            matches!(error(format, GARBAGE, 10), CodecError::Damaged { .. }),
            "{format}"
        );
    }
}

#[test]
fn data_that_breaks_off_is_never_taken_for_complete() {
    let data = data(5, 20_000);
    for format in PACKING {
        let packed = pack(format, &data);
        let step = (1..packed.len()).step_by(100);
        for length in step.chain(packed.len().saturating_sub(40)..packed.len()) {
            let (got, end) = unpack(format, &packed[..length], data.len() as u64);
            assert!(
                data.starts_with(&got),
                "{format} cut at {length}: other bytes"
            );
            match end {
                Err(CodecError::Truncated { at, .. }) => assert!(at <= length as u64),
                other => panic!("{format} cut at {length}: {other:?}"),
            }
        }
    }
}

#[test]
fn flipped_bits_never_yield_other_bytes_under_a_check() {
    let data = data(6, 12_000);
    for format in PACKING {
        let packed = pack(format, &data);
        let mut numbers = Numbers::new(7);
        for _ in 0..3000 {
            let bit = numbers.below(packed.len() * 8);
            let mut bad = packed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let (got, end) = unpack(format, &bad, data.len() as u64);
            assert!(got.len() <= data.len());
            // Brotli has no check, so this is all that can be said of it.
            if format != Compression::Brotli && end.is_ok() {
                assert!(got == data, "{format}: bit {bit} flipped, other bytes");
            }
        }
    }
}

#[test]
fn without_a_check_damage_still_stays_inside_the_bounds() {
    let data = data(6, 12_000);
    let packed = zstd_frame(&data, false);
    let mut numbers = Numbers::new(9);
    for _ in 0..3000 {
        let mut bad = packed.clone();
        let bit = numbers.below(packed.len() * 8);
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(unpack(Compression::Zstd, &bad, data.len() as u64).0.len() <= data.len());
    }
}

/// Counts how much was asked of it.
struct Counting(
    Cursor<Vec<u8>>,
    std::sync::Arc<std::sync::atomic::AtomicU64>,
);

impl Read for Counting {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(out)?;
        self.1
            .fetch_add(n as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(n)
    }
}

#[test]
fn bombs_stop_at_the_promised_size() {
    let zeros = vec![0; 64 << 20];
    for format in PACKING {
        let packed = pack(format, &zeros);
        let taken = std::sync::Arc::default();
        // Eight units of it, none but the first to be looked at.
        let bomb = if format == Compression::Brotli {
            packed
        } else {
            packed.repeat(8)
        };
        let source = Counting(Cursor::new(bomb), std::sync::Arc::clone(&taken));
        let mut reader = stream(format, Box::new(source), Checkpoint::START, 1000).unwrap();
        let (got, end) = drain(&mut *reader, 1 << 20);
        assert_eq!(got.len(), 1000, "{format}");
        assert!(
            matches!(end, Err(CodecError::Long { .. })),
            "{format}: {end:?}"
        );
        let taken = taken.load(std::sync::atomic::Ordering::Relaxed);
        assert!(taken < 300_000, "{format}: took {taken} packed bytes");
    }
}

#[test]
fn windows_beyond_the_limit_are_refused() {
    // Frame header: no single segment, no content size; then the window descriptor, whose upper
    // five bits are the logarithm less ten.
    let frame = |log: u8| {
        let raw_last_block = [0x09, 0, 0, b'x'];
        [
            &0xFD2F_B528_u32.to_le_bytes()[..],
            &[0x00, (log - 10) << 3],
            &raw_last_block,
        ]
        .concat()
    };
    whole(Compression::Zstd, &frame(27), b"x");
    let error = error(Compression::Zstd, &frame(28), 1);
    assert!(
        matches!(
            error,
            CodecError::Memory {
                limit: 0x800_0000,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("128 MiB"), "{error}");
}

#[test]
fn xz_dictionaries_beyond_the_limit_are_refused() {
    let packed = |dictionary| {
        let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
        options.dict_size(dictionary);
        let mut filters = liblzma::stream::Filters::new();
        filters.lzma2(&options);
        let check = liblzma::stream::Check::Crc32;
        let stream = liblzma::stream::Stream::new_stream_encoder(&filters, check).unwrap();
        let mut out = Vec::new();
        liblzma::read::XzEncoder::new_stream(&b"x"[..], stream)
            .read_to_end(&mut out)
            .unwrap();
        out
    };
    whole(Compression::Xz, &packed(64 << 20), b"x");
    let error = error(Compression::Xz, &packed(128 << 20), 1);
    assert!(matches!(error, CodecError::Memory { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn noise_is_an_error_and_nothing_worse(
        noise in prop::collection::vec(any::<u8>(), 0..400),
        keep in 0_usize..40,
    ) {
        for format in PACKING {
            // Behind the start of a real file noise gets further.
            let mut packed = pack(format, &data(1, 3000));
            packed.truncate(keep);
            packed.extend(&noise);
            let (got, _) = unpack(format, &packed, 100_000);
            prop_assert!(got.len() <= 100_000);
        }
    }
}
