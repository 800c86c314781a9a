//! Tests of the content store as a whole.

mod check;
mod db;
mod evict;
mod faults;
mod kill;
mod model;
mod nar;
mod pieces;
mod state_dir;

use std::{path::Path, sync::Arc, time::Duration};

use super::{ContentStore, NarFile, OpenOptions};
use crate::nix::{NarHash, NarHasher};

/// A state directory that goes away with the test.
pub(super) fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Waits for the lock: a process that a test beside this one starts has, between its fork and its exec, whatever locks
/// this process had at the fork.
pub(super) const PATIENT: OpenOptions = OpenOptions {
    wait: Duration::from_secs(60),
};

pub(super) fn open(dir: &Path) -> ContentStore {
    ContentStore::open(dir, PATIENT).unwrap()
}

/// Bytes that differ from place to place and from seed to seed, and are never zero: a hole is no pattern.
pub(super) fn pattern(seed: u64, range: std::ops::Range<u64>) -> Vec<u8> {
    range
        .map(|at| ((at ^ (at >> 8) ^ (at >> 16)).wrapping_add(seed * 31) % 255 + 1) as u8)
        .collect()
}

/// The hash of a pattern of `size` bytes.
pub(super) fn hash_of(seed: u64, size: u64) -> NarHash {
    let mut hasher = NarHasher::new();
    hasher.update(&pattern(seed, 0..size));
    hasher.finish()
}

/// A NAR file with the pattern's hash and nothing in it yet.
pub(super) fn nar(store: &ContentStore, seed: u64, size: u64) -> Arc<NarFile> {
    store.nar(&hash_of(seed, size), size).unwrap()
}

/// A complete and verified one.
pub(super) fn full(store: &ContentStore, seed: u64, size: u64) -> Arc<NarFile> {
    let nar = nar(store, seed, size);
    nar.write_at(&pattern(seed, 0..size), 0).unwrap();
    nar.mark_verified().unwrap();
    nar
}

pub(super) fn read(nar: &NarFile, range: std::ops::Range<u64>) -> Vec<u8> {
    let mut buf = vec![0; (range.end - range.start) as usize];
    nar.read_at(&mut buf, range.start).unwrap();
    buf
}
