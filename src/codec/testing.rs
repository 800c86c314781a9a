//! What the tests of this layer share: data, packers, and inconvenient sources.

use std::io::{self, Read, Write};

use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};

use super::{Checkpoint, CodecError, NarReader, stream};
use crate::nix::Compression;

/// Every format that packs.
pub(super) const PACKING: [Compression; 6] = [
    Compression::Xz,
    Compression::Zstd,
    Compression::Bzip2,
    Compression::Gzip,
    Compression::Brotli,
    Compression::Lz4,
];

/// Those of them that may have several units, one behind the other.
pub(super) const REPEATING: [Compression; 5] = [
    Compression::Xz,
    Compression::Zstd,
    Compression::Bzip2,
    Compression::Gzip,
    Compression::Lz4,
];

/// A small generator of numbers that only need to look random (xorshift64*).
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Data with runs, repeats and noise, so that every part of a format gets used.
pub(super) fn data(seed: u64, size: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let mut out: Vec<u8> = Vec::with_capacity(size);
    while out.len() < size {
        let length = 1 + numbers.below(400);
        match numbers.below(3) {
            0 => out.extend((0..length).map(|_| numbers.next() as u8)),
            1 => out.extend(std::iter::repeat_n(numbers.next() as u8, length)),
            _ => {
                let from = numbers.below(out.len());
                let to = out.len().min(from + length);
                out.extend_from_within(from..to);
            }
        }
    }
    out.truncate(size);
    out
}

/// One unit of `format` that holds `data`, with a check wherever the format has one.
pub(super) fn pack(format: Compression, data: &[u8]) -> Vec<u8> {
    match format {
        Compression::None => data.to_vec(),
        Compression::Xz => xz_blocks(data, usize::MAX, Check::Crc64),
        Compression::Zstd => zstd_frame(data, true),
        Compression::Bzip2 => {
            let mut packer = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            packer.write_all(data).unwrap();
            packer.finish().unwrap()
        }
        Compression::Gzip => {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(data).unwrap();
            packer.finish().unwrap()
        }
        Compression::Brotli => {
            let mut packer = brotli::CompressorWriter::new(Vec::new(), 4096, 4, 18);
            packer.write_all(data).unwrap();
            packer.into_inner()
        }
        Compression::Lz4 => {
            let info = lz4_flex::frame::FrameInfo::new()
                .content_checksum(true)
                .block_mode(lz4_flex::frame::BlockMode::Linked);
            let mut packer = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
            packer.write_all(data).unwrap();
            packer.finish().unwrap()
        }
    }
}

/// A zstd frame, with or without a check.
pub(super) fn zstd_frame(data: &[u8], check: bool) -> Vec<u8> {
    let mut packer = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    packer.include_checksum(check).unwrap();
    packer.write_all(data).unwrap();
    packer.finish().unwrap()
}

/// An xz stream with a block for every `block` bytes.
pub(super) fn xz_blocks(data: &[u8], block: usize, check: Check) -> Vec<u8> {
    let mut options = LzmaOptions::new_preset(1).unwrap();
    options.dict_size(1 << 16);
    let mut filters = Filters::new();
    filters.lzma2(&options);
    let mut stream = Stream::new_stream_encoder(&filters, check).unwrap();
    let mut out = Vec::new();
    let mut drive = |mut input: &[u8], action: Action| {
        loop {
            out.reserve(4096);
            let taken = stream.total_in();
            let status = stream.process_vec(input, &mut out, action).unwrap();
            input = &input[(stream.total_in() - taken) as usize..];
            if status == Status::StreamEnd {
                break;
            }
        }
    };
    for part in data.chunks(block) {
        drive(part, Action::FullFlush);
    }
    drive(&[], Action::Finish);
    out
}

/// A zstd or lz4 skippable frame.
pub(super) fn skippable(content: &[u8]) -> Vec<u8> {
    let mut frame = 0x184D_2A53_u32.to_le_bytes().to_vec();
    frame.extend((content.len() as u32).to_le_bytes());
    frame.extend(content);
    frame
}

/// A source that gives its bytes in pieces of random size, now and then interrupted.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    most: usize,
    numbers: Numbers,
}

impl Pieces {
    pub(super) fn new(bytes: Vec<u8>, most: usize, seed: u64) -> Self {
        Self {
            bytes,
            at: 0,
            most,
            numbers: Numbers::new(seed),
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.numbers.below(8) == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let n = (1 + self.numbers.below(self.most))
            .min(out.len())
            .min(self.bytes.len() - self.at);
        out[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Reads to the end; with the error, what came before it.
pub(super) fn drain(reader: &mut dyn NarReader, room: usize) -> (Vec<u8>, Result<(), CodecError>) {
    let mut out = Vec::new();
    let mut buffer = vec![0; room];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return (out, Ok(())),
            Ok(n) => out.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (out, Err(CodecError::from_read(error))),
        }
    }
}

/// Unpacks `packed` from its start.
pub(super) fn unpack(
    format: Compression,
    packed: &[u8],
    nar_size: u64,
) -> (Vec<u8>, Result<(), CodecError>) {
    let source = Box::new(io::Cursor::new(packed.to_vec()));
    let mut reader = stream(format, source, Checkpoint::START, nar_size).unwrap();
    drain(&mut *reader, 64 << 10)
}

/// Bytes that belong to no format.
pub(super) const GARBAGE: &[u8] = b"<html>no longer here</html>";

/// `packed` unpacks to `want`.
pub(super) fn whole(format: Compression, packed: &[u8], want: &[u8]) {
    let (got, end) = unpack(format, packed, want.len() as u64);
    end.unwrap_or_else(|error| panic!("{format}: {error}"));
    assert!(got == want, "{format}: other bytes");
}

/// What is wrong with `packed`.
pub(super) fn error(format: Compression, packed: &[u8], nar_size: usize) -> CodecError {
    let (got, end) = unpack(format, packed, nar_size as u64);
    assert!(got.len() <= nar_size, "{format}: more bytes than promised");
    end.expect_err(&format!("{format}: no error"))
}
