//! Streams: every format, and every way in which good data can be cut up.

use std::io::{self, Cursor, Read};

use proptest::prelude::*;

use super::{testing::*, *};

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
fn what_cannot_be_resumed_names_no_place_for_it() {
    let nar = data(1, 10_000);
    let packed = pack(Compression::Brotli, &nar);
    // One that is shorter than promised ends like any other.
    for size in [10_000, 20_000] {
        let source = Box::new(Cursor::new(packed.clone()));
        let mut reader = stream(Compression::Brotli, source, Checkpoint::START, size).unwrap();
        let (got, end) = drain(&mut *reader, 777);
        assert!(got == nar && end.is_ok() == (size == 10_000));
        assert_eq!(reader.checkpoint(), Some(Checkpoint::START));
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
}
