//! The kept bytes, on a real disk: writers, readers, eviction, damage and what makes bytes durable,
//! all at once. A reader never gets a wrong byte, what is held is not evicted, and after it all the
//! directory opens with nothing wrong in it.

use std::sync::Arc;

use narfs_interleavings::{
    content::{ContentError, ContentStore, EvictGoal, NarFile, OpenOptions, Rank},
    nix::{NarHash, NarHasher},
};
use shuttle::thread;
use tempfile::TempDir;

use crate::in_many_orders;

/// Bytes of the NAR; a few blocks of the file system, so that parts of it can be holes.
const SIZE: u64 = 5 * 4096 + 100;
/// Bytes of a piece that is written or read.
const PIECE: u64 = 4096;

/// The byte at an offset, if nothing is wrong.
fn right(offset: u64) -> u8 {
    (offset / 7 + offset * 31) as u8
}

fn rightly(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(right).collect()
}

fn hash() -> NarHash {
    let mut hasher = NarHasher::new();
    hasher.update(&rightly(0..SIZE));
    hasher.finish()
}

/// In memory where there is such a place: what is tried here is the order, not the disk.
fn directory() -> TempDir {
    let memory = std::path::Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

fn open(directory: &TempDir) -> ContentStore {
    ContentStore::open(&directory.path().join("state"), OpenOptions::default()).unwrap()
}

fn pieces() -> impl DoubleEndedIterator<Item = std::ops::Range<u64>> {
    (0..SIZE.div_ceil(PIECE) as u32).map(|n| {
        let start = u64::from(n) * PIECE;
        start..(start + PIECE).min(SIZE)
    })
}

fn write(nar: &NarFile, range: std::ops::Range<u64>) {
    nar.write_at(&rightly(range.clone()), range.start).unwrap();
}

/// Reads what is there; whether it was. Anything but the right bytes is a failure.
fn look(nar: &NarFile, range: std::ops::Range<u64>) -> bool {
    let mut buffer = vec![0xEE; (range.end - range.start) as usize];
    match nar.read_at(&mut buffer, range.start) {
        Ok(()) => {
            assert!(buffer == rightly(range), "wrong bytes were given out");
            true
        }
        Err(ContentError::NotValid { .. } | ContentError::Discarded { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

fn everything_goes(store: &ContentStore) {
    store
        .evict(EvictGoal::AtMost(0), |_| Rank::Unrooted)
        .unwrap();
}

/// What is there after a restart is right.
fn right_after_a_restart(directory: &TempDir) {
    let store = open(directory);
    let nar = store.nar(&hash(), SIZE).unwrap();
    let here: Vec<_> = pieces()
        .filter(|piece| nar.is_valid(piece.clone()))
        .collect();
    for piece in here {
        assert!(look(&nar, piece), "what is valid can be read");
    }
}

#[test]
fn readers_among_writers_and_eviction_get_right_bytes() {
    in_many_orders(600, || {
        let directory = directory();
        let store = Arc::new(open(&directory));
        let nar = store.nar(&hash(), SIZE).unwrap();
        let there = nar.clone();
        let forwards = thread::spawn(move || pieces().for_each(|piece| write(&there, piece)));
        let there = nar.clone();
        let backwards = thread::spawn(move || {
            // Overlaps what the other one writes.
            for piece in pieces().rev() {
                write(&there, piece.start.saturating_sub(1000)..piece.end);
            }
        });
        let there = nar.clone();
        let reader = thread::spawn(move || {
            for piece in pieces().chain(pieces().rev()) {
                look(&there, piece);
            }
        });
        let keeper = store.clone();
        let evictor = thread::spawn(move || {
            everything_goes(&keeper);
            keeper.flush().unwrap();
            everything_goes(&keeper);
        });
        for thread in [forwards, backwards, reader, evictor] {
            thread.join().unwrap();
        }
        // Both writers are through: what is missing was evicted, and is written again.
        pieces().for_each(|piece| write(&nar, piece));
        assert!(nar.complete() && look(&nar, 0..SIZE));
        drop(nar);
        drop(store);
        right_after_a_restart(&directory);
    });
}

#[test]
fn what_is_held_is_not_evicted() {
    in_many_orders(600, || {
        let directory = directory();
        let store = Arc::new(open(&directory));
        let nar = store.nar(&hash(), SIZE).unwrap();
        pieces().for_each(|piece| write(&nar, piece));
        let there = nar.clone();
        let reader = thread::spawn(move || {
            let hold = there.hold();
            // As a reader does: if it is there now it stays until he has it.
            let piece = pieces().nth(2).unwrap();
            if there.is_valid(piece.clone()) {
                assert!(look(&there, piece), "evicted under a reader who held it");
            }
            drop(hold);
        });
        let keeper = store.clone();
        let evictor = thread::spawn(move || everything_goes(&keeper));
        reader.join().unwrap();
        evictor.join().unwrap();
        everything_goes(&store);
        assert_eq!(nar.valid_bytes(), 0, "nobody holds it any more");
    });
}

/// A stream that turns out to be wrong is discarded while its last pieces are under way, and the
/// next source's begin to come.
#[test]
fn the_rest_of_a_damaged_stream_does_not_get_in() {
    in_many_orders(150, || {
        let directory = directory();
        let store = Arc::new(open(&directory));
        let nar = store.nar(&hash(), SIZE).unwrap();
        let generation = nar.generation();
        let there = nar.clone();
        let wrong = thread::spawn(move || {
            for piece in pieces() {
                let bytes = vec![0xBA; (piece.end - piece.start) as usize];
                match there.write_at_generation(generation, &bytes, piece.start) {
                    Ok(()) => {}
                    Err(ContentError::Discarded { .. }) => return,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let keeper = store.clone();
        let flusher = thread::spawn(move || keeper.flush().unwrap());
        let there = nar.clone();
        let next = thread::spawn(move || {
            there.discard().unwrap();
            let generation = there.generation();
            for piece in pieces().rev().take(3) {
                let bytes = rightly(piece.clone());
                there
                    .write_at_generation(generation, &bytes, piece.start)
                    .unwrap();
            }
        });
        let there = nar.clone();
        let reader = thread::spawn(move || {
            // From the discard on, a reader sees nothing of what was wrong.
            while there.generation() == generation {
                thread::yield_now();
            }
            for piece in pieces() {
                look(&there, piece);
            }
        });
        for thread in [wrong, flusher, next, reader] {
            thread.join().unwrap();
        }
        for piece in pieces() {
            look(&nar, piece);
        }
        drop(nar);
        drop(store);
        right_after_a_restart(&directory);
    });
}

/// The one object of a NAR is made, dropped and made again by several at once.
#[test]
fn a_nar_is_one_object_however_many_ask_for_it() {
    in_many_orders(150, || {
        let directory = directory();
        let store = Arc::new(open(&directory));
        let users: Vec<_> = (0..3)
            .map(|n| {
                let store = store.clone();
                thread::spawn(move || {
                    let nar = store.nar(&hash(), SIZE).unwrap();
                    let piece = pieces().nth(n).unwrap();
                    write(&nar, piece.clone());
                    let same = store.nar(&hash(), SIZE).unwrap();
                    assert!(Arc::ptr_eq(&nar, &same));
                    look(&same, piece);
                })
            })
            .collect();
        everything_goes(&store);
        for user in users {
            user.join().unwrap();
        }
        drop(store);
        right_after_a_restart(&directory);
    });
}
