//! NAR files: what is written is read, what is not is refused, and it is there after a restart.

use std::{
    fs,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::*;
use crate::content::{Checkpoint, ContentError, MAX_OPEN_FILES, shared::Kind};

const SIZE: u64 = 100_000;

#[test]
fn what_is_written_is_read_and_nothing_else() {
    let dir = dir();
    let store = open(dir.path());
    let nar = nar(&store, 1, SIZE);
    assert!(
        !store.shared.path(&nar.hash(), Kind::Nar).exists(),
        "no file before the first byte"
    );
    nar.write_at(&pattern(1, 10..5000), 10).unwrap();
    nar.write_at(&pattern(1, 60_000..SIZE), 60_000).unwrap();
    assert_eq!(read(&nar, 10..5000), pattern(1, 10..5000));
    assert_eq!(read(&nar, 99_999..SIZE), pattern(1, 99_999..SIZE));
    assert_eq!(nar.valid_bytes(), 4990 + 40_000);
    assert_eq!(nar.missing(0..SIZE), vec![0..10, 5000..60_000]);
    assert!(
        nar.is_valid(10..5000)
            && !nar.is_valid(9..11)
            && !nar.is_valid(4999..5001)
            && !nar.is_valid(0..SIZE + 1)
    );
    let mut buf = [0; 100];
    assert!(matches!(
        nar.read_at(&mut buf, 0),
        Err(ContentError::NotValid { .. })
    ));
    assert!(matches!(
        nar.read_at(&mut buf, SIZE - 50),
        Err(ContentError::OutOfRange { .. })
    ));
    assert!(matches!(
        nar.read_at(&mut buf, u64::MAX - 50),
        Err(ContentError::OutOfRange { .. })
    ));
    assert!(matches!(
        nar.write_at(&buf, SIZE - 50),
        Err(ContentError::OutOfRange { .. })
    ));
    assert!(matches!(
        nar.hash_now(),
        Err(ContentError::Incomplete { .. })
    ));
    assert!(matches!(
        nar.mark_verified(),
        Err(ContentError::Incomplete { .. })
    ));
    assert!(nar.file().is_err());
}

#[test]
fn a_valid_byte_never_changes() {
    let dir = dir();
    let store = open(dir.path());
    let nar = nar(&store, 1, SIZE);
    nar.write_at(&pattern(1, 1000..2000), 1000).unwrap();
    nar.write_at(&[0xee; 3000], 0).unwrap();
    assert_eq!(read(&nar, 1000..2000), pattern(1, 1000..2000));
    assert_eq!(read(&nar, 0..1000), [0xee; 1000]);
    assert_eq!(read(&nar, 2000..3000), [0xee; 1000]);
}

#[test]
fn all_of_it_is_there_after_a_restart() {
    let dir = dir();
    let checkpoint = Checkpoint {
        packed: 77,
        nar: 4000,
    };
    {
        let store = open(dir.path());
        let part = nar(&store, 1, SIZE);
        part.write_at(&pattern(1, 10..5000), 10).unwrap();
        part.set_checkpoint_source(9);
        part.add_checkpoint(checkpoint);
        full(&store, 2, SIZE);
    }
    let store = open(dir.path());
    let part = nar(&store, 1, SIZE);
    assert_eq!(part.missing(0..SIZE), vec![0..10, 5000..SIZE]);
    assert_eq!(read(&part, 10..5000), pattern(1, 10..5000));
    assert_eq!(
        (part.checkpoint_source(), part.checkpoints()),
        (9, vec![checkpoint])
    );
    assert!(!part.verified());
    let full = nar(&store, 2, SIZE);
    assert!(full.verified() && full.complete());
    assert_eq!(full.hash_now().unwrap(), full.hash());
    // It goes on growing in the same file.
    part.write_at(&pattern(1, 0..SIZE), 0).unwrap();
    assert!(part.verify().unwrap() && part.verified());
    part.set_checkpoint_source(10);
    assert_eq!(
        part.checkpoints(),
        vec![],
        "another file's offsets mean nothing"
    );
}

#[test]
fn one_object_for_a_hash_and_none_for_nobody() {
    let dir = dir();
    let store = open(dir.path());
    let hash = hash_of(1, SIZE);
    let (a, b) = (
        store.nar(&hash, SIZE).unwrap(),
        store.nar(&hash, SIZE).unwrap(),
    );
    assert!(Arc::ptr_eq(&a, &b));
    assert!(matches!(
        store.nar(&hash, 5),
        Err(ContentError::SizeMismatch {
            known: SIZE,
            asked: 5,
            ..
        })
    ));
    drop((a, b));
    assert!(store.alive(&hash).is_none());
    assert!(store.shared.living(&hash).is_empty());
}

#[test]
fn a_verified_nars_size_is_the_right_one() {
    let dir = dir();
    let store = open(dir.path());
    full(&store, 1, SIZE);
    store.flush().unwrap();
    let hash = hash_of(1, SIZE);
    assert!(store.alive(&hash).is_none());
    assert!(matches!(
        store.nar(&hash, SIZE + 1),
        Err(ContentError::SizeMismatch { known: SIZE, .. })
    ));
    assert!(store.nar(&hash, SIZE).unwrap().verified());
}

#[test]
fn nobody_reads_what_was_discarded() {
    let dir = dir();
    let store = open(dir.path());
    let nar = full(&store, 1, SIZE);
    let file = nar.file().unwrap();
    let before = nar.generation();
    nar.discard().unwrap();
    assert_ne!(nar.generation(), before);
    assert!(!nar.verified() && nar.valid_bytes() == 0);
    assert!(!store.shared.path(&nar.hash(), Kind::Nar).exists());
    assert!(matches!(
        nar.read_at(&mut [0; 1], 0),
        Err(ContentError::NotValid { .. })
    ));
    // The rest of the stream that was wrong does not get in; the next one's bytes lie in a new file.
    assert!(matches!(
        nar.write_at_generation(before, &[1; 10], 0),
        Err(ContentError::Discarded { .. })
    ));
    nar.write_at_generation(nar.generation(), &[7; 10], 0)
        .unwrap();
    assert_eq!(read(&nar, 0..10), [7; 10]);
    let mut old = [0; 10];
    file.read_exact_at(&mut old, 0).unwrap();
    assert_eq!(
        old[..],
        pattern(1, 0..10),
        "who has the old file keeps it whole"
    );
    drop(nar);
    drop(store);
    assert_eq!(
        super::nar(&open(dir.path()), 1, SIZE).missing(0..SIZE),
        vec![10..SIZE]
    );
}

#[test]
fn a_byte_is_there_before_it_is_valid() {
    const CHUNK: u64 = 64 << 10;
    const CHUNKS: u64 = 256;
    let dir = dir();
    let store = open(dir.path());
    let nar = store.nar(&hash_of(1, 1), CHUNKS * CHUNK).unwrap();
    let awaited = AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for chunk in 0..CHUNKS {
                let last = (chunk + 1) * CHUNK - 1;
                awaited.store(chunk, Ordering::Release);
                while !nar.is_valid(last..last + 1) {
                    std::hint::spin_loop();
                }
                assert_eq!(read(&nar, last..last + 1), [7], "a hole was called valid");
            }
        });
        for chunk in 0..CHUNKS {
            // Else all would be written before anybody looks.
            while awaited.load(Ordering::Acquire) != chunk && !reader.is_finished() {
                std::thread::yield_now();
            }
            nar.write_at(&[7; CHUNK as usize], chunk * CHUNK).unwrap();
        }
    });
}

#[test]
fn readers_writers_and_discards_at_once() {
    // Every eight bytes of a life are its number. A reader sees one life at a time, and none that was over before it
    // began to read.
    const LEN: u64 = 64 << 10;
    let dir = dir();
    let store = open(dir.path());
    let nar = nar(&store, 1, LEN);
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let readers = [(); 2].map(|()| {
            scope.spawn(|| {
                let mut buf = vec![0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    for at in (0..LEN).step_by(4096) {
                        let before = nar.generation();
                        match nar.read_at(&mut buf, at) {
                            Ok(()) => {
                                let lives = buf
                                    .chunks(8)
                                    .map(|w| u64::from_le_bytes(w.try_into().unwrap()));
                                let first = lives.clone().next().unwrap();
                                assert!(lives.clone().all(|l| l == first), "two lives in one read");
                                assert!(
                                    (before..=nar.generation()).contains(&first),
                                    "a life that was over"
                                );
                                reads.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(ContentError::NotValid { .. } | ContentError::Discarded { .. }) => {
                            }
                            Err(e) => panic!("{e}"),
                        }
                        // As if there were more files than may be open.
                        store.shared.files.forget(before);
                    }
                }
            })
        });
        let writer = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let generation = nar.generation();
                let bytes = generation.to_le_bytes().repeat(128);
                for at in (0..LEN).step_by(bytes.len()) {
                    match nar.write_at_generation(generation, &bytes, at) {
                        Ok(()) | Err(ContentError::Discarded { .. }) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            }
        });
        // However fast the others are: so many lives, and so many reads that saw something.
        let mut lives = 0;
        while (lives < 200 || reads.load(Ordering::Relaxed) < 2000)
            && !writer.is_finished()
            && !readers.iter().any(|r| r.is_finished())
        {
            nar.discard().unwrap();
            if lives % 8 == 0 {
                store.flush().unwrap();
            }
            lives += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn descriptors_are_bounded() {
    let dir = dir();
    let store = open(dir.path());
    // Of different sizes, and so with different hashes.
    let nars: Vec<_> = (1..MAX_OPEN_FILES as u64 + 50)
        .map(|size| full(&store, 1, size))
        .collect();
    for nar in &nars {
        assert_eq!(read(nar, 0..nar.size()), pattern(1, 0..nar.size()));
    }
    assert_eq!(store.shared.files.len(), MAX_OPEN_FILES);
    store.flush().unwrap();
    drop(nars);
    assert_eq!(
        store.shared.files.len(),
        0,
        "nobody has them, nothing keeps them open"
    );
}

/// How a map and a NAR file are spoilt, in words and in deed.
type Spoil = (&'static str, fn(&Path, &Path));

#[test]
fn a_map_that_cannot_be_right_is_not_believed() {
    let spoil: [Spoil; 7] = [
        ("a flipped bit", |map, _| {
            let mut bytes = fs::read(map).unwrap();
            bytes[80] ^= 4;
            fs::write(map, bytes).unwrap();
        }),
        ("a cut map", |map, _| {
            fs::write(map, &fs::read(map).unwrap()[..50]).unwrap()
        }),
        ("an empty map", |map, _| fs::write(map, []).unwrap()),
        ("no NAR", |_, nar| fs::remove_file(nar).unwrap()),
        ("a short NAR", |_, nar| {
            fs::OpenOptions::new()
                .write(true)
                .open(nar)
                .unwrap()
                .set_len(SIZE - 1)
                .unwrap()
        }),
        ("another file's holes", |_, nar| {
            fs::remove_file(nar).unwrap();
            fs::File::create(nar).unwrap().set_len(SIZE).unwrap();
        }),
        ("another NAR's map", |map, _| {
            let other = map
                .parent()
                .unwrap()
                .join(format!("{}.map", hash_of(2, SIZE).nix32()));
            fs::copy(other, map).unwrap();
        }),
    ];
    for (what, spoil) in spoil {
        let dir = dir();
        {
            let store = open(dir.path());
            full(&store, 1, SIZE);
            full(&store, 2, SIZE);
        }
        let store = open(dir.path());
        let hash = hash_of(1, SIZE);
        spoil(
            &store.shared.path(&hash, Kind::Map),
            &store.shared.path(&hash, Kind::Nar),
        );
        let nar = store.nar(&hash, SIZE).unwrap();
        assert_eq!((nar.valid_bytes(), nar.verified()), (0, false), "{what}");
        nar.write_at(&pattern(1, 0..SIZE), 0).unwrap();
        assert!(nar.verify().unwrap(), "{what}");
        assert!(
            super::nar(&store, 2, SIZE).verified(),
            "{what}: the others are not touched"
        );
    }
}

#[test]
fn an_empty_nar_is_complete() {
    let dir = dir();
    let store = open(dir.path());
    let nar = nar(&store, 1, 0);
    assert!(nar.complete() && nar.is_valid(0..0) && nar.missing(0..0).is_empty());
    nar.write_at(&[], 0).unwrap();
    assert!(nar.verify().unwrap());
    store.flush().unwrap();
}

#[test]
fn trees_are_kept_beside() {
    let dir = dir();
    let store = open(dir.path());
    let hash = hash_of(1, SIZE);
    assert!(!store.tree_path(&hash).exists());
    let path = store.save_tree(&hash, b"image").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"image");
    assert_eq!(path, store.tree_path(&hash));
    store.save_tree(&hash, b"another").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"another");
    store.drop_tree(&hash).unwrap();
    store.drop_tree(&hash).unwrap();
    assert!(!path.exists());
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}
