//! What the tools that people pack NARs with write, `narfs::codec` reads.
//!
//! Needs the tools themselves (Debian: xz-utils zstd bzip2 gzip brotli lz4); fails without them.

use std::{
    fs,
    io::{Cursor, Read},
    ops::Range,
    path::PathBuf,
    process::Command,
};

use narfs::{
    codec::{BlockTable, Checkpoint, CodecError, Probe, probe, stream},
    nix::Compression,
};
use tempfile::TempDir;

/// Directory with a file to pack and its content.
struct Bench {
    directory: TempDir,
    nar: Vec<u8>,
}

/// Something like a program: text that repeats and numbers that do not.
fn nar(size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(size + 64);
    let mut number = 0x9E37_79B9_7F4A_7C15_u64;
    while out.len() < size {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        let text = format!(
            "/nix/store/{:08x}-lib.so.{} ",
            number as u32 % 5000,
            number % 7
        );
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.truncate(size);
    out
}

impl Bench {
    fn new(size: usize) -> Self {
        let directory = TempDir::new().unwrap();
        let nar = nar(size);
        fs::write(directory.path().join("nar"), &nar).unwrap();
        Self { directory, nar }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("nar")
    }

    /// What `tool args… nar` prints.
    fn pack(&self, tool: &str, args: &[&str]) -> Vec<u8> {
        let output = Command::new(tool).args(args).arg(self.file()).output();
        let output = output.unwrap_or_else(|error| {
            let package = if tool == "xz" { "xz-utils" } else { tool };
            panic!("{tool} does not run ({error}): apt-get install {package}")
        });
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool} {args:?}: {complaint}");
        output.stdout
    }
}

fn unpack(format: Compression, packed: &[u8], at: Checkpoint, nar_size: usize) -> Vec<u8> {
    let source = Box::new(Cursor::new(packed[at.packed as usize..].to_vec()));
    let mut reader = stream(format, source, at, nar_size as u64).unwrap();
    let mut out = Vec::new();
    reader
        .read_to_end(&mut out)
        .unwrap_or_else(|error| panic!("{format}: {error}"));
    out
}

/// The file, the file twice, the file with one byte less and more, and cut in the middle.
fn check(format: Compression, packed: &[u8], nar: &[u8]) {
    assert!(
        unpack(format, packed, Checkpoint::START, nar.len()) == nar,
        "{format}: other bytes"
    );
    if format != Compression::Brotli {
        let twice = unpack(format, &packed.repeat(2), Checkpoint::START, 2 * nar.len());
        assert!(
            twice == nar.repeat(2),
            "{format}: other bytes when there are two"
        );
    }
    let fails = |packed: &[u8], size: usize| {
        let source = Box::new(Cursor::new(packed.to_vec()));
        let mut reader = stream(format, source, Checkpoint::START, size as u64).unwrap();
        let error = reader
            .read_to_end(&mut Vec::new())
            .expect_err("complete, it says");
        format!("{:?}", CodecError::of(&error))
    };
    assert!(fails(packed, nar.len() - 1).contains("Long"), "{format}");
    assert!(fails(packed, nar.len() + 1).contains("Short"), "{format}");
    assert!(
        fails(&packed[..packed.len() / 2], nar.len()).contains("Truncated"),
        "{format}"
    );
    assert!(
        fails(&packed[..packed.len() - 1], nar.len()).contains("Truncated"),
        "{format}"
    );
}

fn table(format: Compression, packed: &[u8]) -> Option<BlockTable> {
    let mut tail = 0;
    loop {
        match probe(format, packed.len() as u64, &packed[packed.len() - tail..]).unwrap() {
            Probe::Need { tail: more } => tail = more as usize,
            Probe::Table(table) => return Some(table),
            Probe::None => return None,
        }
    }
}

fn part<'a>(bytes: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    &bytes[range.start as usize..range.end as usize]
}

#[test]
fn xz() {
    let bench = Bench::new(1_000_000);
    for args in [
        &["-c"][..],
        &["-9ec"],
        &["-0c", "--check=none"],
        &["-c", "--check=sha256"],
    ] {
        let packed = bench.pack("xz", args);
        check(Compression::Xz, &packed, &bench.nar);
        assert!(table(Compression::Xz, &packed).is_none(), "one block");
    }
    let filtered = bench.pack("xz", &["-c", "--x86", "--lzma2=preset=3"]);
    check(Compression::Xz, &filtered, &bench.nar);
}

#[test]
fn xz_in_blocks() {
    let bench = Bench::new(1_000_000);
    for args in [
        &["-3c", "--block-size=65536"][..],
        &["-3c", "-T2", "--block-size=65536"],
        &["-3c", "-T2", "--block-size=100000", "--check=sha256"],
        &["-3c", "--block-list=1000,500000,1,0", "--check=crc32"],
    ] {
        let packed = bench.pack("xz", args);
        check(Compression::Xz, &packed, &bench.nar);
        let table = table(Compression::Xz, &packed).expect("several blocks");
        assert_eq!(table.nar_size(), 1_000_000, "{args:?}");
        for block in table.blocks() {
            let got = table.decode(block, part(&packed, &block.packed)).unwrap();
            assert!(got == part(&bench.nar, &block.nar), "{args:?} {block:?}");
        }
        let middle = table.covering(600_000..600_001);
        assert_eq!(middle.len(), 1, "{args:?}");
    }
}

#[test]
fn xz_files_behind_one_another() {
    let (a, b) = (Bench::new(300_000), Bench::new(200_001));
    let (first, second) = (
        a.pack("xz", &["-1c"]),
        b.pack("xz", &["-1c", "--block-size=65536"]),
    );
    let both = [&a.nar[..], &b.nar].concat();
    check(
        Compression::Xz,
        &[&first[..], &[0; 8], &second].concat(),
        &both,
    );
    // The index at the end knows of the second file only.
    let packed = [first, second].concat();
    check(Compression::Xz, &packed, &both);
    assert!(table(Compression::Xz, &packed).is_none());
}

#[test]
fn zstd() {
    let bench = Bench::new(3_000_000);
    for args in [
        &["-qc"][..],
        &["-qc", "-19", "--ultra"],
        &["-qc", "-T0", "-3"],
        &["-qc", "--no-check", "--fast=3"],
        &["-qc", "--long=27"],
        &["-qc", "--no-content-size"],
    ] {
        let packed = bench.pack("zstd", args);
        check(Compression::Zstd, &packed, &bench.nar);
        assert!(table(Compression::Zstd, &packed).is_none(), "one frame");
    }
}

#[test]
fn zstd_files_behind_one_another() {
    let (a, b) = (Bench::new(300_000), Bench::new(200_001));
    let (first, second) = (a.pack("zstd", &["-qc"]), b.pack("zstd", &["-qc"]));
    let (packed, both) = (
        [&first[..], &second].concat(),
        [&a.nar[..], &b.nar].concat(),
    );
    check(Compression::Zstd, &packed, &both);
    let second = Checkpoint {
        packed: first.len() as u64,
        nar: 300_000,
    };
    assert!(unpack(Compression::Zstd, &packed, second, both.len()) == b.nar);
}

#[test]
fn zstd_reads_what_zeekstd_writes() {
    let bench = Bench::new(1_000_000);
    let mut packed = Vec::new();
    let policy = zeekstd::FrameSizePolicy::Uncompressed(1 << 16);
    let options = zeekstd::EncodeOptions::new()
        .frame_size_policy(policy)
        .checksum_flag(true);
    let mut packer = options.into_encoder(&mut packed).unwrap();
    std::io::Write::write_all(&mut packer, &bench.nar).unwrap();
    packer.finish().unwrap();
    assert!(unpack(Compression::Zstd, &packed, Checkpoint::START, 1_000_000) == bench.nar);
    let table = table(Compression::Zstd, &packed).expect("a seek table");
    assert_eq!(table.blocks().len(), 16);
    for block in table.blocks() {
        let got = table.decode(block, part(&packed, &block.packed)).unwrap();
        assert!(got == part(&bench.nar, &block.nar));
    }
    // And zstd itself reads the file that it was tested with.
    let file = bench.directory.path().join("seekable.zst");
    fs::write(&file, &packed).unwrap();
    let output = Command::new("zstd")
        .args(["-dqc"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.stdout == bench.nar);
}

#[test]
fn bzip2() {
    let bench = Bench::new(1_500_000);
    for args in [["-c", "-1"], ["-c", "-9"]] {
        check(Compression::Bzip2, &bench.pack("bzip2", &args), &bench.nar);
    }
}

#[test]
fn gzip() {
    let bench = Bench::new(1_000_000);
    for args in [["-c", "-1"], ["-c", "-9"], ["-nc", "-6"]] {
        check(Compression::Gzip, &bench.pack("gzip", &args), &bench.nar);
    }
}

#[test]
fn brotli() {
    let bench = Bench::new(1_000_000);
    for args in [["-c", "-q", "5"], ["-c", "-q", "1"], ["-cw", "24", "-9"]] {
        check(
            Compression::Brotli,
            &bench.pack("brotli", &args),
            &bench.nar,
        );
    }
    // The extension that would allow a window of 1 GiB.
    let packed = bench.pack("brotli", &["-c", "--large_window=28", "-q", "5"]);
    let source = Box::new(Cursor::new(packed));
    let mut reader = stream(Compression::Brotli, source, Checkpoint::START, 1_000_000).unwrap();
    let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(
        matches!(CodecError::of(&error), Some(CodecError::Damaged { .. })),
        "{error}"
    );
}

#[test]
fn lz4() {
    let bench = Bench::new(1_000_000);
    for args in [
        &["-qc"][..],
        &["-qc", "-9"],
        &["-qc", "-B4", "-BD"],
        &["-qc", "-B7", "-BX"],
        &["-qc", "--no-frame-crc", "--content-size"],
    ] {
        check(Compression::Lz4, &bench.pack("lz4", args), &bench.nar);
    }
}
