//! Pieces that go by themselves, blocks that the disk changes: never a wrong byte, and the accounts stay right.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    sync::OnceLock,
};

use proptest::prelude::*;

use super::*;
use crate::content::{
    ContentError, EvictGoal, PIECE, Parts, Rank, SUM_BLOCK, shared::Kind, tests::evict::du,
};

/// Three pieces and some blocks and a bit.
const SIZE: u64 = 3 * PIECE + 70_001;

fn bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| pattern(1, 0..SIZE))
}

fn whole(store: &ContentStore) -> Arc<NarFile> {
    let nar = nar(store, 1, SIZE);
    nar.write_at(bytes(), 0).unwrap();
    nar.mark_verified().unwrap();
    store.flush().unwrap();
    nar
}

fn part(range: std::ops::Range<u64>) -> &'static [u8] {
    &bytes()[range.start as usize..range.end as usize]
}

/// Turns a bit of what is on the disk, as if the disk had.
fn flip(store: &ContentStore, at: u64) {
    let path = store.shared.path(&hash_of_bytes(), Kind::Nar);
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
}

fn hash_of_bytes() -> NarHash {
    static HASH: OnceLock<NarHash> = OnceLock::new();
    *HASH.get_or_init(|| hash_of(1, SIZE))
}

fn allocated(store: &ContentStore) -> u64 {
    let path = store.shared.path(&hash_of_bytes(), Kind::Nar);
    fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

#[test]
fn a_flipped_bit_costs_its_block_and_no_reader_sees_it() {
    let dir = dir();
    let store = open(dir.path());
    let nar = whole(&store);
    let at = PIECE + 12_345;
    flip(&store, at);
    let block = at / SUM_BLOCK * SUM_BLOCK..(at / SUM_BLOCK + 1) * SUM_BLOCK;
    // Found by a read that needs another byte of the block as well.
    let mut buf = [0; 8];
    let error = nar.read_at(&mut buf, block.end - 4).unwrap_err();
    let ContentError::Damaged { range, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((range, store.damaged_bytes()), (block.clone(), SUM_BLOCK));
    assert_eq!(nar.missing(0..SIZE), std::slice::from_ref(&block));
    assert!(!nar.verified() && nar.was_verified());
    assert_eq!(read(&nar, 0..block.start), part(0..block.start));
    assert_eq!(read(&nar, block.end..SIZE), part(block.end..SIZE));
    // After a restart it is the same, and what comes again makes it whole.
    drop(nar);
    drop(store);
    let store = open(dir.path());
    let nar = super::nar(&store, 1, SIZE);
    assert_eq!(nar.missing(0..SIZE), std::slice::from_ref(&block));
    assert!(nar.was_verified());
    nar.write_at(part(block.clone()), block.start).unwrap();
    assert!(nar.verify().unwrap());
    assert_eq!(read(&nar, 0..SIZE), bytes());
}

#[test]
fn a_file_that_was_cut_off_is_dropped_as_a_whole() {
    let dir = dir();
    let store = open(dir.path());
    let nar = whole(&store);
    let path = store.shared.path(&nar.hash(), Kind::Nar);
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(PIECE).unwrap();
    assert_eq!(read(&nar, 0..1000), part(0..1000));
    let error = nar.read_at(&mut [0; 10], 2 * PIECE).unwrap_err();
    assert!(matches!(error, ContentError::Discarded { .. }), "{error}");
    assert_eq!(nar.valid_bytes(), 0);
    nar.write_at(bytes(), 0).unwrap();
    assert_eq!(read(&nar, 2 * PIECE..SIZE), part(2 * PIECE..SIZE));
}

#[test]
fn what_was_not_read_lately_goes_alone() {
    let dir = dir();
    let store = open(dir.path());
    let nar = whole(&store);
    let later = u64::from(u32::MAX) - 10;
    nar.touch_range(&(PIECE + 5..PIECE + 6), later);
    let rank = |_: &NarHash| Rank::Unrooted;
    let before = allocated(&store);
    let hold = nar.hold();
    let plan = store.plan_eviction(EvictGoal::Free(1), rank).unwrap();
    assert!(plan.victims.is_empty(), "never what is held");
    drop(hold);
    let plan = store.plan_eviction(EvictGoal::Free(1), rank).unwrap();
    let [victim] = &plan.victims[..] else {
        panic!("{plan:?}")
    };
    assert_eq!(victim.ranges, [0..PIECE, 2 * PIECE..SIZE]);
    let evicted = store.carry_out(&plan).unwrap();
    assert_eq!((evicted.nars, evicted.parts), (0, 1));
    assert_eq!(evicted.bytes, before - allocated(&store));
    assert!(allocated(&store) <= PIECE + 8192, "{}", allocated(&store));
    assert_eq!(nar.missing(0..SIZE), [0..PIECE, 2 * PIECE..SIZE]);
    assert_eq!(read(&nar, PIECE..2 * PIECE), part(PIECE..2 * PIECE));
    assert_eq!(store.usage().unwrap(), du(dir.path()));
    // More than the cold part: all of it goes.
    nar.write_at(bytes(), 0).unwrap();
    store.flush().unwrap();
    let plan = store.plan_eviction(EvictGoal::AtMost(0), rank).unwrap();
    assert_eq!((plan.victims.len(), plan.victims[0].ranges.len()), (1, 0));
    // Where a part is of no use, it is never alone.
    let plan = store
        .plan_eviction_of(EvictGoal::Free(1), Parts::Never, rank)
        .unwrap();
    assert!(plan.victims[0].ranges.is_empty());
    store.carry_out(&plan).unwrap();
    assert_eq!(nar.valid_bytes(), 0);
    assert_eq!(store.usage().unwrap(), du(dir.path()));
}

#[test]
fn the_last_piece_takes_the_file_along() {
    let dir = dir();
    let store = open(dir.path());
    let nar = nar(&store, 1, SIZE);
    nar.write_at(part(0..1000), 0).unwrap();
    store.flush().unwrap();
    nar.drop_pieces(std::slice::from_ref(&(0..PIECE)), |_| true)
        .unwrap();
    assert_eq!(allocated(&store), 0);
    assert!(!store.shared.path(&nar.hash(), Kind::Map).exists());
    assert_eq!(store.usage().unwrap(), du(dir.path()));
}

#[derive(Debug, Clone)]
enum Op {
    Write { at: u64, len: u64 },
    Read { at: u64, len: u64 },
    Drop { pieces: u8, held: bool },
    Flip { at: u64 },
    Check,
    Flush,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let range = || (0..SIZE, prop_oneof![1..40_000u64, 1..SIZE]);
    prop_oneof![
        6 => range().prop_map(|(at, len)| Op::Write { at, len }),
        6 => range().prop_map(|(at, len)| Op::Read { at, len }),
        3 => (1..16u8, prop::bool::weighted(0.2)).prop_map(|(pieces, held)| Op::Drop { pieces, held }),
        3 => (0..SIZE).prop_map(|at| Op::Flip { at }),
        1 => Just(Op::Check),
        2 => Just(Op::Flush),
        1 => Just(Op::Restart),
    ]
}

/// The bytes that go with one byte when it turns out wrong: its cell.
fn cell(here: &[bool], at: usize) -> std::ops::Range<usize> {
    let block = at / SUM_BLOCK as usize * SUM_BLOCK as usize;
    let end = (block + SUM_BLOCK as usize).min(here.len());
    let start = (block..=at).rev().take_while(|i| here[*i]).last();
    let last = (at..end).take_while(|i| here[*i]).last();
    start.unwrap_or(at)..last.map_or(at, |last| last + 1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_reader_gets_the_right_bytes_or_none(ops in prop::collection::vec(op(), 1..25)) {
        let dir = dir();
        let mut store = open(dir.path());
        let mut nar = super::nar(&store, 1, SIZE);
        let mut here = vec![false; SIZE as usize];
        let mut wrong = std::collections::BTreeSet::<usize>::new();
        for op in ops {
            match op {
                Op::Write { at, len } => {
                    let range = at..(at + len).min(SIZE);
                    nar.write_at(part(range.clone()), at).unwrap();
                    here[range.start as usize..range.end as usize].fill(true);
                }
                Op::Read { at, len } => {
                    let range = at as usize..(at + len).min(SIZE) as usize;
                    let mut buf = vec![0; range.len()];
                    let read = nar.read_at(&mut buf, at);
                    if !here[range.clone()].iter().all(|b| *b) {
                        let not_valid = matches!(read, Err(ContentError::NotValid { .. }));
                        prop_assert!(not_valid);
                        continue;
                    }
                    let cells = cell(&here, range.start).start..cell(&here, range.end - 1).end;
                    let hit: Vec<usize> = wrong.range(cells).copied().collect();
                    match read {
                        Ok(()) => {
                            prop_assert!(hit.is_empty());
                            prop_assert_eq!(&buf[..], part(range.start as u64..range.end as u64));
                        }
                        Err(ContentError::Damaged { .. }) => {
                            prop_assert!(!hit.is_empty());
                            for at in hit {
                                let gone = cell(&here, at);
                        here[gone].fill(false);
                                wrong.remove(&at);
                            }
                        }
                        Err(e) => panic!("{e}"),
                    }
                }
                Op::Drop { pieces, held } => {
                    let hold = held.then(|| nar.hold());
                    let ranges: Vec<_> = (0..4u64)
                        .filter(|n| (pieces >> n) & 1 == 1)
                        .map(|n| n * PIECE..((n + 1) * PIECE).min(SIZE))
                        .collect();
                    let dropped = nar.drop_pieces(&ranges, |nar| !nar.held()).unwrap();
                    prop_assert_eq!(dropped.is_none(), held);
                    if !held {
                        for range in ranges {
                            here[range.start as usize..range.end as usize].fill(false);
                        }
                        wrong.retain(|at| here[*at]);
                    }
                    drop(hold);
                }
                Op::Flip { at } => {
                    let at = at as usize;
                    if here[at] && !wrong.contains(&at) {
                        flip(&store, at as u64);
                        wrong.insert(at);
                    }
                }
                Op::Check => {
                    let report = store.check(|_| {}).unwrap();
                    prop_assert_eq!(report.damage.is_empty(), wrong.is_empty());
                    for damage in &report.damage {
                        store.repair(damage).unwrap();
                    }
                    for at in std::mem::take(&mut wrong) {
                        let gone = cell(&here, at);
                        here[gone].fill(false);
                    }
                }
                Op::Flush => store.flush().unwrap(),
                Op::Restart => {
                    drop(nar);
                    drop(store);
                    store = open(dir.path());
                    nar = super::nar(&store, 1, SIZE);
                }
            }
            let count = here.iter().filter(|b| **b).count() as u64;
            prop_assert_eq!(nar.valid_bytes(), count);
            for gap in nar.missing(0..SIZE) {
                prop_assert!(here[gap.start as usize..gap.end as usize].iter().all(|b| !b));
            }
        }
        store.flush().unwrap();
        prop_assert_eq!(store.usage().unwrap(), du(dir.path()));
    }
}
