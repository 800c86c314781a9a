//! A full disk and a read-only one, on file systems of their own. Mounting takes root.

use std::{
    ffi::CString,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use super::*;
use crate::content::{ContentError, EvictGoal, Parts, Rank};
use crate::nix::StorePathHash;

/// A small tmpfs that is unmounted with the test.
struct Small {
    at: PathBuf,
    _dir: tempfile::TempDir,
}

impl Small {
    fn new(size: &str) -> Self {
        let dir = dir();
        let options = CString::new(format!("size={size},mode=0700")).unwrap();
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap_or_else(|e| {
            panic!("this test mounts a tmpfs of its own, and that was refused ({e}): run the tests as root")
        });
        Self {
            at: dir.path().into(),
            _dir: dir,
        }
    }

    fn remount(&self, flags: MountFlags) {
        mount_remount(&self.at, flags, c"").unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}

const CHUNK: u64 = 64 << 10;
const SIZE: u64 = 64 << 20;

/// Writes the pattern from `at` on until the disk is full; where it ended.
fn fill(nar: &NarFile, seed: u64, mut at: u64) -> u64 {
    loop {
        match nar.write_at(&pattern(seed, at..at + CHUNK), at) {
            Ok(()) => at += CHUNK,
            Err(ContentError::NoSpace { path }) => {
                assert!(path.to_string_lossy().contains(&nar.hash().nix32()));
                return at;
            }
            Err(e) => panic!("{e}"),
        }
        assert!(at < SIZE, "the disk is not as small as it should be");
    }
}

#[test]
fn a_full_disk_is_said_and_nothing_wrong_is_kept() {
    let small = Small::new("8m");
    let store = open(&small.at);
    let one = full(&store, 1, 100_000);
    store.flush().unwrap();
    let big = nar(&store, 2, SIZE);
    let end = fill(&big, 2, 0);
    assert!(end > 0);
    assert_eq!(
        big.valid_bytes(),
        end,
        "what did not fit in whole is not valid"
    );
    assert_eq!(read(&big, 0..end), pattern(2, 0..end));
    let error = big
        .write_at(&pattern(2, end..end + CHUNK), end)
        .unwrap_err();
    assert!(error.to_string().contains("narfs gc"), "{error}");
    // Where there is no room for the map either, that is said, and what was durable stays.
    let flushed = store.flush();
    assert!(
        matches!(flushed, Ok(()) | Err(ContentError::NoSpace { .. })),
        "{flushed:?}"
    );
    assert_eq!(read(&one, 0..100_000), pattern(1, 0..100_000));
    assert!(matches!(
        store.save_tree(&one.hash(), &[1; 1 << 20]),
        Err(ContentError::NoSpace { .. })
    ));
    assert_eq!(store.usage_exact().unwrap(), store.usage().unwrap());
    // With room again, it goes on.
    let keep_one = |hash: &NarHash| {
        if *hash == one.hash() {
            Rank::Keep
        } else {
            Rank::Unrooted
        }
    };
    let plan = store.plan_eviction_of(EvictGoal::Free(1), Parts::Never, keep_one);
    let evicted = store.carry_out(&plan.unwrap()).unwrap();
    assert_eq!((evicted.nars, evicted.bytes > CHUNK), (1, true));
    big.write_at(&pattern(2, 0..CHUNK), 0).unwrap();
    store.flush().unwrap();
    store.save_tree(&one.hash(), &[1; 1 << 20]).unwrap();
    drop((one, big));
    drop(store);
    let store = open(&small.at);
    assert!(nar(&store, 1, 100_000).verified());
    assert_eq!(nar(&store, 2, SIZE).missing(0..SIZE), vec![CHUNK..SIZE]);
}

#[test]
fn the_database_outlives_a_full_disk() {
    let small = Small::new("8m");
    let store = open(&small.at);
    let answer = |n: u64| {
        let mut digest = [0; 20];
        digest[..8].copy_from_slice(&n.to_be_bytes());
        vec![(StorePathHash::from_bytes(digest), Some(vec![b'x'; 60_000]))]
    };
    let mut n = 0;
    let error = loop {
        match store.db().put_narinfos("s", answer(n), 1).wait() {
            Ok(()) => n += 1,
            Err(e) => break e,
        }
        assert!(n < 1000, "the disk is not as small as it should be");
    };
    assert!(matches!(error, ContentError::NoSpace { .. }), "{error}");
    let ttl = crate::content::NarinfoTtl {
        positive: 10,
        negative: 10,
    };
    let known = |n: u64| {
        store
            .db()
            .narinfo("s", &answer(n)[0].0, 1, ttl)
            .unwrap()
            .is_some()
    };
    // Opened anew behind the scenes: what was durable is there, what failed is not.
    let _ = store.db().slots();
    assert!((0..n).all(known) && !known(n));
    small.remount_larger();
    store.db().put_narinfos("s", answer(n), 1).wait().unwrap();
    assert!(known(n));
}

impl Small {
    fn remount_larger(&self) {
        mount_remount(&self.at, MountFlags::empty(), c"size=64m").unwrap();
    }
}

#[test]
fn a_read_only_disk_is_said_and_still_read() {
    let small = Small::new("8m");
    let store = open(&small.at);
    let nar = full(&store, 1, 100_000);
    let part = super::nar(&store, 2, 100_000);
    part.write_at(&pattern(2, 0..1000), 0).unwrap();
    store.flush().unwrap();
    // A file system does not become read-only while somebody has a file of it open for writing, unless its disk
    // fails; so this store is closed first.
    drop((nar, part));
    drop(store);
    small.remount(MountFlags::RDONLY);
    let error = ContentStore::open(&small.at, PATIENT).err().unwrap();
    assert!(matches!(error, ContentError::ReadOnly { .. }), "{error}");
    assert!(error.to_string().contains("remount it writable"), "{error}");
    let missing = small.at.join("new");
    let error = ContentStore::open(&missing, PATIENT).err().unwrap();
    assert!(matches!(error, ContentError::ReadOnly { .. }), "{error}");
    small.remount(MountFlags::empty());
    assert!(super::nar(&open(&small.at), 1, 100_000).verified());
}

#[test]
fn a_disk_that_becomes_read_only_is_still_read() {
    let small = Small::new("8m");
    let store = open(&small.at);
    let nar = full(&store, 1, 100_000);
    store.flush().unwrap();
    // The same directory once more, read-only, over itself: whatever is opened by name from now on is read-only.
    let _cover = Cover::over(&small.at);
    let other = super::nar(&store, 2, 100_000);
    let error = other.write_at(&pattern(2, 0..10), 0).unwrap_err();
    assert!(matches!(error, ContentError::ReadOnly { .. }), "{error}");
    assert_eq!(other.valid_bytes(), 0);
    assert!(matches!(
        store.save_tree(&nar.hash(), b"tree"),
        Err(ContentError::ReadOnly { .. })
    ));
    store.shared.files.forget(nar.generation());
    assert_eq!(read(&nar, 0..100_000), pattern(1, 0..100_000));
    // Quarantine still takes the bytes from the readers at once, and says that the disk keeps them.
    assert!(matches!(nar.discard(), Err(ContentError::ReadOnly { .. })));
    assert!(!nar.is_valid(0..1));
}

/// A read-only bind mount of a directory over itself.
struct Cover(PathBuf);

impl Cover {
    fn over(at: &Path) -> Self {
        mount_bind(at, at).unwrap();
        mount_remount(at, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
        Self(at.into())
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_write_that_the_disk_fails_marks_nothing() {
    // A name that cannot be made a file: what stands for every error that is neither of the two above.
    let dir = dir();
    let store = open(dir.path());
    let nar = nar(&store, 1, 1000);
    let path: &Path = &store
        .shared
        .path(&nar.hash(), crate::content::shared::Kind::Nar);
    std::fs::create_dir(path).unwrap();
    let error = nar.write_at(&pattern(1, 0..1000), 0).unwrap_err();
    assert!(
        matches!(&error, ContentError::Io { path: said, .. } if said == path),
        "{error}"
    );
    assert_eq!(nar.valid_bytes(), 0);
    std::fs::remove_dir(path).unwrap();
    nar.write_at(&pattern(1, 0..1000), 0).unwrap();
    assert!(nar.verify().unwrap());
}
