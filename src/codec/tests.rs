//! Streams: every format, every way in which data can be cut up, wrong or hostile.

use std::io::{self, Cursor, Read};

use proptest::prelude::*;

use super::{testing::*, *};

/// Bytes that belong to no format.
const GARBAGE: &[u8] = b"<html>no longer here</html>";

fn whole(format: Compression, packed: &[u8], want: &[u8]) {
    let (got, end) = unpack(format, packed, want.len() as u64);
    end.unwrap_or_else(|error| panic!("{format}: {error}"));
    assert!(got == want, "{format}: other bytes");
}

fn error(format: Compression, packed: &[u8], nar_size: usize) -> CodecError {
    let (got, end) = unpack(format, packed, nar_size as u64);
    assert!(got.len() <= nar_size, "{format}: more bytes than promised");
    end.expect_err(&format!("{format}: no error"))
}

#[test]
fn every_format_unpacks_what_its_packer_made() {
    for format in Compression::ALL {
        for size in [0, 1, 13, 4096, 300_000] {
            let data = data(1, size);
            whole(format, &pack(format, &data), &data);
        }
    }
}

#[test]
fn units_follow_one_another() {
    let (a, b) = (data(1, 70_000), data(2, 30_001));
    let both = [&a[..], &b].concat();
    for format in REPEATING {
        let empty = pack(format, b"");
        whole(
            format,
            &[pack(format, &a), empty.clone(), pack(format, &b), empty].concat(),
            &both,
        );
    }
}

#[test]
fn skippable_frames_are_skipped_wherever_they_are() {
    let (a, b) = (data(1, 7000), data(2, 3001));
    let both = [&a[..], &b].concat();
    for format in [Compression::Zstd, Compression::Lz4] {
        let large = skippable(&vec![7; 300_000]);
        let none = skippable(b"");
        let (first, second) = (pack(format, &a), pack(format, &b));
        whole(
            format,
            &[&large[..], &first, &none, &none, &second, &large].concat(),
            &both,
        );
        let cut = [&first[..], &large[..299_999]].concat();
        assert!(
            matches!(error(format, &cut, a.len()), CodecError::Truncated { .. }),
            "{format}"
        );
    }
}

#[test]
fn lz4_frames_may_differ_in_their_block_size() {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    let data = data(3, 5 << 20);
    let mut packed = Vec::new();
    for (size, part) in [BlockSize::Max4MB, BlockSize::Max64KB, BlockSize::Max1MB]
        .into_iter()
        .zip(data.chunks(2 << 20))
    {
        let info = FrameInfo::new()
            .block_size(size)
            .block_mode(BlockMode::Linked);
        let mut packer = FrameEncoder::with_frame_info(info, &mut packed);
        io::Write::write_all(&mut packer, part).unwrap();
        packer.finish().unwrap();
    }
    whole(Compression::Lz4, &packed, &data);
}

#[test]
fn lz4_legacy_frames_are_refused_by_name() {
    let packed = [
        &0x184C_2102_u32.to_le_bytes()[..],
        &[3, 0, 0, 0, 0x20, 1, 2],
    ]
    .concat();
    assert!(
        error(Compression::Lz4, &packed, 2)
            .to_string()
            .contains("legacy")
    );
}

#[test]
fn xz_padding_comes_in_words() {
    let a = data(1, 5000);
    let both = [&a[..], &a].concat();
    let unit = pack(Compression::Xz, &a);
    for zeros in [0, 4, 200_000] {
        let padding = vec![0; zeros];
        whole(
            Compression::Xz,
            &[&unit[..], &padding, &unit, &padding].concat(),
            &both,
        );
    }
    for zeros in [1, 3, 6] {
        let padding = vec![0; zeros];
        let packed = [&unit[..], &padding, &unit].concat();
        assert!(matches!(
            error(Compression::Xz, &packed, both.len()),
            CodecError::Damaged { .. }
        ));
    }
    // A file does not begin with padding.
    let packed = [&[0; 4][..], &unit].concat();
    assert!(matches!(
        error(Compression::Xz, &packed, a.len()),
        CodecError::Damaged { .. }
    ));
    // Only xz has padding.
    for format in [
        Compression::Zstd,
        Compression::Gzip,
        Compression::Bzip2,
        Compression::Lz4,
    ] {
        let packed = [pack(format, &a), vec![0; 4]].concat();
        error(format, &packed, a.len());
    }
}

#[test]
fn decoding_resumes_at_every_checkpoint() {
    let parts: Vec<Vec<u8>> = (0..6)
        .map(|n| data(n, 1000 + 40_000 * n as usize))
        .collect();
    let nar = parts.concat();
    for format in REPEATING {
        let mut packed = Vec::new();
        for part in &parts {
            packed.extend(pack(format, part));
        }
        let source = Box::new(Cursor::new(packed.clone()));
        let size = nar.len() as u64;
        let mut reader = stream(format, source, Checkpoint::START, size).unwrap();
        let mut seen = vec![reader.checkpoint().unwrap()];
        let (mut given, mut buffer) = (0, [0; 5000]);
        loop {
            let n = reader.read(&mut buffer).unwrap() as u64;
            given += n;
            let at = reader.checkpoint().unwrap();
            assert!(at.nar <= given, "{format}: a checkpoint before its bytes");
            if seen.last() != Some(&at) {
                seen.push(at);
            }
            if n == 0 {
                break;
            }
        }
        assert_eq!(seen.len(), parts.len() + 1, "{format}");
        assert_eq!(
            seen.last(),
            Some(&Checkpoint {
                packed: packed.len() as u64,
                nar: size
            })
        );
        for at in seen {
            let rest = Box::new(Cursor::new(packed[at.packed as usize..].to_vec()));
            let mut reader = stream(format, rest, at, size).unwrap();
            assert_eq!(reader.checkpoint(), Some(at));
            let (got, end) = drain(&mut *reader, 1 << 16);
            end.unwrap();
            assert!(got == nar[at.nar as usize..], "{format} from {at:?}");
            assert_eq!(
                reader.checkpoint(),
                Some(Checkpoint {
                    packed: packed.len() as u64,
                    nar: size
                })
            );
        }
    }
}

#[test]
fn plain_bytes_start_anywhere() {
    let nar = data(1, 10_000);
    for at in [0_u64, 1, 9_999, 10_000] {
        let source = Box::new(Cursor::new(nar[at as usize..].to_vec()));
        let at = Checkpoint {
            packed: at,
            nar: at,
        };
        let mut reader = stream(Compression::None, source, at, 10_000).unwrap();
        let (got, end) = drain(&mut *reader, 777);
        end.unwrap();
        assert!(got == nar[at.nar as usize..]);
        assert_eq!(
            reader.checkpoint(),
            Some(Checkpoint {
                packed: 10_000,
                nar: 10_000
            })
        );
    }
}

#[test]
fn impossible_checkpoints_are_refused() {
    for (format, packed, nar) in [
        (Compression::None, 5, 6),
        (Compression::None, 101, 101),
        (Compression::Zstd, 0, 5),
        (Compression::Zstd, 50, 101),
        (Compression::Brotli, 5, 5),
    ] {
        let result = stream(
            format,
            Box::new(io::empty()),
            Checkpoint { packed, nar },
            100,
        );
        assert!(
            matches!(result, Err(CodecError::Checkpoint { .. })),
            "{format} {packed} {nar}"
        );
    }
}

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
        // Thousand units of it, none but the first to be looked at.
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

#[test]
fn xz_checks_of_every_kind_are_known() {
    use liblzma::stream::Check;
    let data = data(1, 3000);
    for check in [Check::None, Check::Crc32, Check::Crc64, Check::Sha256] {
        whole(Compression::Xz, &xz_blocks(&data, 1000, check), &data);
    }
}

/// Gives its bytes, then fails.
struct Failing(Cursor<Vec<u8>>);

impl Read for Failing {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.0.read(out)? {
            0 => Err(io::Error::other("the cable was pulled")),
            n => Ok(n),
        }
    }
}

#[test]
fn a_source_that_fails_is_quoted_and_the_reader_stays_failed() {
    let data = data(1, 100_000);
    for format in Compression::ALL {
        let mut packed = pack(format, &data);
        packed.truncate(packed.len() / 2);
        let source = Box::new(Failing(Cursor::new(packed)));
        let mut reader = stream(format, source, Checkpoint::START, 100_000).unwrap();
        let (got, end) = drain(&mut *reader, 1 << 16);
        assert!(data.starts_with(&got), "{format}");
        match end {
            Err(CodecError::Io(error)) => assert_eq!(error.to_string(), "the cable was pulled"),
            other => panic!("{format}: {other:?}"),
        }
        let again = reader.read(&mut [0; 8]).unwrap_err();
        assert!(
            matches!(CodecError::of(&again), Some(CodecError::Failed { .. })),
            "{format}"
        );
    }
}

#[test]
fn the_codec_error_is_inside_the_io_error() {
    let source = Box::new(Cursor::new(GARBAGE));
    let mut reader = stream(Compression::Xz, source, Checkpoint::START, 5).unwrap();
    let error = reader.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(
        matches!(
            CodecError::of(&error),
            Some(CodecError::Damaged { at: 0, .. })
        ),
        "{error}"
    );
    assert!(CodecError::of(&io::Error::other("another")).is_none());
}

/// Gives its bytes at once; nobody may ask for more.
struct Dry(Cursor<Vec<u8>>);

impl Read for Dry {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.0.read(out)? {
            0 => panic!("waits for bytes although it holds some to give"),
            n => Ok(n),
        }
    }
}

#[test]
fn what_the_decoder_holds_is_given_before_the_source_is_waited_for() {
    // All of it is in the decoder after one read of the source, and comes out in small pieces.
    // (flate2 asks its source before it looks what it holds, which is at most 32 KiB.)
    let zeros = vec![0; 100_000];
    for format in [
        Compression::Xz,
        Compression::Zstd,
        Compression::Brotli,
        Compression::Lz4,
    ] {
        let source = Box::new(Dry(Cursor::new(pack(format, &zeros))));
        let mut reader = stream(format, source, Checkpoint::START, 100_000).unwrap();
        for _ in 0..99 {
            let mut out = [1; 1000];
            reader.read_exact(&mut out).unwrap();
            assert_eq!(out, [0; 1000], "{format}");
        }
    }
}

#[test]
fn reading_into_nothing_does_nothing() {
    for format in Compression::ALL {
        let source = Box::new(Cursor::new(GARBAGE));
        let mut reader = stream(format, source, Checkpoint::START, 5).unwrap();
        assert_eq!(reader.read(&mut []).unwrap(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_cutting_up_gives_the_same_bytes(
        seed in any::<u64>(),
        sizes in prop::collection::vec(0_usize..60_000, 1..5),
        most in prop_oneof![Just(1), 1_usize..50, 1_usize..200_000],
        room in prop_oneof![1_usize..20, 1_usize..300_000],
    ) {
        for format in Compression::ALL {
            let sizes = if format == Compression::Brotli { &sizes[..1] } else { &sizes[..] };
            let parts: Vec<_> = sizes.iter().enumerate().map(|(n, &s)| data(seed ^ n as u64, s)).collect();
            let nar = parts.concat();
            let packed: Vec<u8> = parts.iter().flat_map(|part| pack(format, part)).collect();
            let source = Box::new(Pieces::new(packed, most, seed));
            let mut reader = stream(format, source, Checkpoint::START, nar.len() as u64).unwrap();
            let (got, end) = drain(&mut *reader, room);
            prop_assert!(end.is_ok(), "{}: {:?}", format, end);
            prop_assert!(got == nar, "{}: other bytes", format);
        }
    }

    #[test]
    fn no_checkpoint_goes_unseen(
        seed in any::<u64>(),
        sizes in prop::collection::vec(1_usize..300, 1..40),
        most in 1_usize..600,
    ) {
        for format in REPEATING {
            let (mut packed, mut nar) = (Vec::new(), Vec::new());
            let mut want = vec![Checkpoint::START];
            for &size in &sizes {
                let part = data(seed ^ size as u64, size);
                packed.extend(pack(format, &part));
                nar.extend(part);
                want.push(Checkpoint { packed: packed.len() as u64, nar: nar.len() as u64 });
            }
            let source = Box::new(Pieces::new(packed, most, seed));
            let mut reader = stream(format, source, Checkpoint::START, nar.len() as u64).unwrap();
            let (mut seen, mut buffer) = (vec![Checkpoint::START], [0; 4096]);
            loop {
                let n = reader.read(&mut buffer).unwrap();
                let at = reader.checkpoint().unwrap();
                if seen.last() != Some(&at) {
                    seen.push(at);
                }
                if n == 0 {
                    break;
                }
            }
            prop_assert_eq!(&seen, &want, "{}", format);
        }
    }

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
