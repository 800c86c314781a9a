//! Random operations on one NAR file, against a bitmap that knows what should be there.

use proptest::prelude::*;

use super::*;
use crate::content::{ContentError, EvictGoal, Rank};

/// Some blocks, of whatever size the file system has, and a bit.
const SIZE: u64 = 70_001;

#[derive(Debug, Clone)]
enum Op {
    Write {
        at: u64,
        len: u64,
    },
    Read {
        at: u64,
        len: u64,
    },
    Verify,
    Discard,
    Flush,
    /// Nobody has the object, and it is loaded again.
    Forget,
    Restart,
    Evict {
        held: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let range = || (0..SIZE, 0..SIZE / 2);
    prop_oneof![
        8 => range().prop_map(|(at, len)| Op::Write { at, len }),
        8 => range().prop_map(|(at, len)| Op::Read { at, len }),
        2 => Just(Op::Write { at: 0, len: SIZE }),
        2 => Just(Op::Verify),
        1 => Just(Op::Discard),
        1 => Just(Op::Flush),
        2 => Just(Op::Forget),
        1 => Just(Op::Restart),
        1 => any::<bool>().prop_map(|held| Op::Evict { held }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn it_is_what_a_bitmap_says(ops in prop::collection::vec(op(), 1..40)) {
        let want = pattern(1, 0..SIZE);
        let dir = dir();
        let mut store = open(dir.path());
        let mut nar = super::nar(&store, 1, SIZE);
        let mut here = vec![false; SIZE as usize];
        let mut verified = false;
        for op in ops {
            match op {
                Op::Write { at, len } => {
                    let range = at as usize..((at + len).min(SIZE)) as usize;
                    nar.write_at(&want[range.clone()], at).unwrap();
                    here[range].fill(true);
                }
                Op::Read { at, len } => {
                    let range = at as usize..((at + len).min(SIZE)) as usize;
                    let mut buf = vec![0; range.len()];
                    let read = nar.read_at(&mut buf, at);
                    if here[range.clone()].iter().all(|b| *b) {
                        prop_assert!(read.is_ok());
                        prop_assert_eq!(&buf[..], &want[range]);
                    } else {
                        let not_valid = matches!(read, Err(ContentError::NotValid { .. }));
                        prop_assert!(not_valid);
                    }
                }
                Op::Verify => verified |= nar.complete() && nar.verify().unwrap(),
                Op::Discard => {
                    nar.discard().unwrap();
                    here.fill(false);
                    verified = false;
                }
                Op::Flush => store.flush().unwrap(),
                Op::Forget => {
                    drop(nar);
                    store.flush().unwrap();
                    nar = super::nar(&store, 1, SIZE);
                }
                Op::Restart => {
                    drop(nar);
                    drop(store);
                    store = open(dir.path());
                    nar = super::nar(&store, 1, SIZE);
                }
                Op::Evict { held } => {
                    let hold = held.then(|| nar.hold());
                    store.evict(EvictGoal::Unrooted, |_| Rank::Unrooted).unwrap();
                    drop(hold);
                    if !held && here.iter().any(|b| *b) {
                        here.fill(false);
                        verified = false;
                    }
                }
            }
            let count = here.iter().filter(|b| **b).count() as u64;
            prop_assert_eq!(nar.valid_bytes(), count);
            prop_assert_eq!(nar.complete(), count == SIZE);
            prop_assert_eq!(nar.verified(), verified);
            for gap in nar.missing(0..SIZE) {
                prop_assert!(here[gap.start as usize..gap.end as usize].iter().all(|b| !b));
            }
        }
        store.flush().unwrap();
        prop_assert_eq!(store.usage().unwrap(), store.usage_exact().unwrap());
    }
}
