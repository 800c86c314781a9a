//! `kill -9` at any moment: the store opens, and every byte it calls valid is right.
//!
//! The test runs its own binary again as the child that is killed.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use super::*;
use crate::{
    content::{ContentError, PIECE},
    nix::{StorePath, StorePathHash},
};

const DIR: &str = "NARFS_TEST_KILL_DIR";
const ROUND: &str = "NARFS_TEST_KILL_ROUND";
const SIGKILL: i32 = 9;
const ROUNDS: u64 = 50;
const NARS: u64 = 6;

/// One of them has pieces that go by themselves.
fn size(seed: u64) -> u64 {
    if seed == NARS {
        2 * PIECE + 60_000
    } else {
        60_000
    }
}

/// What stands in them; the large one's is made once, so that the children get on.
fn bytes(seed: u64, range: std::ops::Range<u64>) -> std::borrow::Cow<'static, [u8]> {
    static LARGE: OnceLock<Vec<u8>> = OnceLock::new();
    if seed != NARS {
        return pattern(seed, range).into();
    }
    let large = LARGE.get_or_init(|| pattern(NARS, 0..size(NARS)));
    large[range.start as usize..range.end as usize].into()
}

/// A small generator of reproducible numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn path(n: u64) -> StorePath {
    let mut digest = [0; 20];
    digest[..8].copy_from_slice(&n.to_le_bytes());
    StorePath::parse(&format!("{}-p{n}", StorePathHash::from_bytes(digest))).unwrap()
}

/// What the child does until it is killed: everything, at once. In a run of all tests it has nothing to do.
#[test]
fn child() {
    let (Ok(dir), Ok(round)) = (env::var(DIR), env::var(ROUND)) else {
        return;
    };
    let store = open(Path::new(&dir));
    let round: u64 = round.parse().unwrap();
    // A thread that fails must not leave the others running as if nothing were.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
    // The hashes are kept too.
    let nars: Vec<_> = (1..=NARS).map(|seed| hash_of(seed, size(seed))).collect();
    let _ = bytes(NARS, 0..0);
    println!("\nready");
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (store, nars) = (&store, &nars);
            scope.spawn(move || {
                let mut random = Random(round * 17 + thread);
                loop {
                    act(store, nars, &mut random);
                }
            });
        }
        scope.spawn(|| {
            for n in 0.. {
                let slots = store.db().allocate_slots(&[path(n)]).wait().unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "slot {n} {}", slots[0]).unwrap();
                out.flush().unwrap();
            }
        });
    });
}

fn act(store: &ContentStore, nars: &[NarHash], random: &mut Random) {
    let seed = random.below(NARS) + 1;
    let size = size(seed);
    let nar = store.nar(&nars[seed as usize - 1], size).unwrap();
    // Often from the very first byte: else nothing would ever be complete.
    let at = random.below(size + size / 6).saturating_sub(size / 6);
    let end = (at + random.below(size / 2)).min(size);
    match random.below(400) {
        0 => nar.discard().unwrap(),
        // Of the large one a part, of the others all.
        350..400 if random.below(if seed == NARS { 1 } else { 40 }) == 0 => {
            let piece = random.below(size.div_ceil(PIECE)) * PIECE;
            let range = piece..(piece + PIECE).min(size);
            nar.drop_pieces(std::slice::from_ref(&range), |nar| !nar.held())
                .unwrap();
        }
        1..40 => store.flush().unwrap(),
        40..50 => drop(
            store
                .save_tree(&nar.hash(), &pattern(seed, 0..5000))
                .unwrap(),
        ),
        50..130 => match nar.verify() {
            Ok(true) => {}
            Ok(false) => panic!("a complete NAR has another hash"),
            Err(
                ContentError::Incomplete { .. }
                | ContentError::Discarded { .. }
                | ContentError::NotValid { .. },
            ) => {}
            Err(e) => panic!("{e}"),
        },
        _ => nar.write_at(&bytes(seed, at..end), at).unwrap(),
    }
}

#[test]
fn killed_anywhere_nothing_is_wrong() {
    let dir = dir();
    let mut random = Random(4711);
    let mut kept = 0;
    let mut verified = 0;
    let mut slots = std::collections::HashMap::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "content::tests::kill::child",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DIR, dir.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap() == "ready"),
            "the child opens what the last one left"
        );
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(
            status.signal(),
            Some(SIGKILL),
            "it ended by itself: {status}"
        );
        for line in lines.map_while(Result::ok) {
            if let ["slot", n, slot] = line.split(' ').collect::<Vec<_>>()[..]
                && let (Ok(n), Ok(slot)) = (n.parse::<u64>(), slot.parse::<u32>())
            {
                assert_eq!(
                    *slots.entry(n).or_insert(slot),
                    slot,
                    "a path keeps its slot"
                );
            }
        }
        let store = open(dir.path());
        for seed in 1..=NARS {
            let size = size(seed);
            let nar = nar(&store, seed, size);
            let mut at = 0;
            let mut gaps = nar.missing(0..size);
            gaps.push(size..size);
            for gap in gaps {
                assert_eq!(
                    read(&nar, at..gap.start),
                    *bytes(seed, at..gap.start),
                    "round {round}, NAR {seed}"
                );
                at = gap.end;
            }
            kept += nar.valid_bytes();
            verified += u64::from(nar.verified());
            if nar.verified() {
                assert_eq!(nar.hash_now().unwrap(), nar.hash());
            }
            if let Ok(tree) = std::fs::read(store.tree_path(&nar.hash())) {
                assert_eq!(tree, pattern(seed, 0..5000), "a tree is whole or absent");
            }
        }
        let known: std::collections::HashMap<_, _> = store
            .db()
            .slots()
            .unwrap()
            .into_iter()
            .map(|(slot, path)| (path, slot))
            .collect();
        for (n, slot) in &slots {
            assert_eq!(
                known.get(&path(*n)),
                Some(slot),
                "round {round}: what was answered was durable"
            );
        }
    }
    assert!(
        kept > 0 && verified > 0 && !slots.is_empty(),
        "the children got nowhere: {kept} {verified}"
    );
}
