//! Checking what is kept: every kind of damage is found, nothing else is.

use std::{fs, os::unix::fs::FileExt};

use super::*;
use crate::content::{SUM_BLOCK, shared::Kind};

const SIZE: u64 = 1_000_000;

#[test]
fn damage_is_found_named_and_repaired() {
    let dir = dir();
    let store = open(dir.path());
    for seed in 1..=4 {
        full(&store, seed, SIZE);
    }
    nar(&store, 5, SIZE)
        .write_at(&pattern(5, 0..10), 0)
        .unwrap();
    store.flush().unwrap();
    // A bit of 2, the map of 3, all of 4.
    let file = |seed, kind| store.shared.path(&hash_of(seed, SIZE), kind);
    let two = fs::OpenOptions::new()
        .write(true)
        .open(file(2, Kind::Nar))
        .unwrap();
    two.write_all_at(&[0], SIZE - 1).unwrap();
    fs::write(file(3, Kind::Map), "no map").unwrap();
    fs::remove_file(file(4, Kind::Nar)).unwrap();

    let mut last = None;
    let report = store.check(|progress| last = Some(progress)).unwrap();
    let progress = last.unwrap();
    assert_eq!(
        (progress.hashed, progress.total),
        (2 * SIZE + 10, 2 * SIZE + 10)
    );
    assert_eq!((report.sound, report.unverified), (1, 1));
    let mut found: Vec<_> = report
        .damage
        .iter()
        .map(|d| (d.hash, d.kind.slug()))
        .collect();
    let mut want = vec![
        (hash_of(2, SIZE), "wrong-blocks"),
        (hash_of(3, SIZE), "bad-map"),
        (hash_of(4, SIZE), "bad-map"),
    ];
    found.sort();
    want.sort();
    assert_eq!(found, want);
    assert_eq!(
        store.check(|_| {}).unwrap(),
        report,
        "a check changes nothing"
    );

    for damage in &report.damage {
        store.repair(damage).unwrap();
    }
    let after = store.check(|_| {}).unwrap();
    assert_eq!(
        (after.sound, after.unverified, after.damage),
        (1, 2, vec![])
    );
    let kept: Vec<_> = store
        .list()
        .unwrap()
        .into_iter()
        .filter(|k| k.valid > 0)
        .collect();
    assert_eq!(kept.len(), 3);
    let one = kept.iter().find(|k| k.hash == hash_of(1, SIZE)).unwrap();
    assert!(
        one.verified && one.valid == SIZE && one.nar_size == Some(SIZE) && one.allocated >= SIZE
    );
}

#[test]
fn a_nar_that_somebody_has_is_repaired_under_their_eyes() {
    let dir = dir();
    let store = open(dir.path());
    let nar = full(&store, 1, SIZE);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(store.shared.path(&nar.hash(), Kind::Nar))
        .unwrap();
    file.write_all_at(&[0; 7], 500).unwrap();
    let report = store.check(|_| {}).unwrap();
    let [damage] = report.damage.as_slice() else {
        panic!("{report:?}")
    };
    store.repair(damage).unwrap();
    // Only the block that changed.
    assert!(!nar.is_valid(0..1) && nar.is_valid(SUM_BLOCK..SIZE) && !nar.verified());
    assert_eq!(store.check(|_| {}).unwrap().damage, vec![]);
}
