//! Eviction: in which order, what never, and that the figures are those of the file system.

use std::process::Command;

use super::*;
use crate::content::{EvictGoal, Rank};

const SIZE: u64 = 100_000;

/// Five verified NARs, of seeds 1 to 5, used at the times given; nobody has them.
fn filled(dir: &Path, uses: [u64; 5]) -> ContentStore {
    let store = open(dir);
    for (seed, at) in (1..).zip(uses) {
        let nar = full(&store, seed, SIZE);
        nar.touch(at);
        store.save_tree(&nar.hash(), b"tree").unwrap();
    }
    store.flush().unwrap();
    store
}

fn here(store: &ContentStore) -> Vec<u64> {
    (1..=5)
        .filter(|seed| nar(store, *seed, SIZE).complete())
        .collect()
}

pub(super) fn du(dir: &Path) -> u64 {
    let out = Command::new("du")
        .arg("-s")
        .arg("-B1")
        .arg(dir.join("content"))
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn unrooted_goes_first_and_the_least_recently_used_of_each() {
    let dir = dir();
    let store = filled(dir.path(), [50, 20, 40, 10, 30]);
    let hashes: Vec<_> = (1..=5).map(|seed| hash_of(seed, SIZE)).collect();
    // 4 is the least recently used, but rooted; 2 is kept whatever happens.
    let rank = |hash: &NarHash| match hashes.iter().position(|h| h == hash) {
        Some(3) => Rank::Rooted,
        Some(1) => Rank::Keep,
        _ => Rank::Unrooted,
    };
    let plan = store.plan_eviction(EvictGoal::Free(1), rank).unwrap();
    assert_eq!(
        plan.victims.iter().map(|v| v.hash).collect::<Vec<_>>(),
        [hashes[4]]
    );
    assert_eq!((plan.victims[0].last_use, plan.enough), (30, true));
    assert_eq!(here(&store), [1, 2, 3, 4, 5], "a plan changes nothing");
    let before = store.usage_exact().unwrap();
    let evicted = store.carry_out(&plan).unwrap();
    assert_eq!((evicted.nars, evicted.bytes), (1, plan.freed));
    assert_eq!(before - store.usage_exact().unwrap(), plan.freed);
    assert_eq!(here(&store), [1, 2, 3, 4]);
    assert!(!store.tree_path(&hashes[4]).exists());

    let all = store.plan_eviction(EvictGoal::AtMost(0), rank).unwrap();
    assert_eq!(
        all.victims.iter().map(|v| v.hash).collect::<Vec<_>>(),
        [hashes[2], hashes[0], hashes[3]]
    );
    assert!(!all.enough, "what is kept takes room as well");
    let unrooted = store.evict(EvictGoal::Unrooted, rank).unwrap();
    assert_eq!(unrooted.nars, 2);
    assert_eq!(here(&store), [2, 4]);
    store.evict(EvictGoal::AtMost(0), rank).unwrap();
    assert_eq!(here(&store), [2]);
    assert!(
        store.tree_path(&hashes[3]).exists(),
        "a rooted path can still be listed"
    );
}

#[test]
fn what_is_held_stays_also_behind_the_plans_back() {
    let dir = dir();
    let store = filled(dir.path(), [1, 2, 3, 4, 5]);
    let unrooted = |_: &NarHash| Rank::Unrooted;
    let (one, two) = (nar(&store, 1, SIZE), nar(&store, 2, SIZE));
    let hold = one.hold();
    let plan = store.plan_eviction(EvictGoal::AtMost(0), unrooted).unwrap();
    assert_eq!(plan.victims.len(), 4);
    let late = two.hold();
    let evicted = store.carry_out(&plan).unwrap();
    assert_eq!((evicted.nars, evicted.spared), (3, 1));
    assert_eq!(here(&store), [1, 2]);
    drop((hold, late));
    assert!(!one.held());
    store.evict(EvictGoal::AtMost(0), unrooted).unwrap();
    assert!(here(&store).is_empty());
    // Who has the object sees that the bytes are gone, and can fetch them again.
    assert!(!one.complete());
    one.write_at(&pattern(1, 0..SIZE), 0).unwrap();
    assert!(one.verify().unwrap());
}

#[test]
fn uses_survive_and_are_noted_once_a_minute() {
    let dir = dir();
    let hash = hash_of(1, SIZE);
    {
        let store = filled(dir.path(), [1000, 0, 0, 0, 0]);
        let nar = nar(&store, 1, SIZE);
        assert_eq!(store.db().uses().unwrap().get(&hash), Some(&1000));
        nar.touch(1_000_000);
        nar.touch(1_000_059);
        assert_eq!(
            store.shared.persister.pending_uses().get(&hash),
            Some(&1_000_000)
        );
        nar.touch(1_000_060);
        assert_eq!(
            store.shared.persister.pending_uses().get(&hash),
            Some(&1_000_060)
        );
        // The clock was set back: that is when it is used now.
        nar.touch(500);
    }
    let store = open(dir.path());
    assert_eq!(store.db().uses().unwrap().get(&hash), Some(&500));
    let of_one = |h: &NarHash| {
        if *h == hash {
            Rank::Unrooted
        } else {
            Rank::Keep
        }
    };
    store.evict(EvictGoal::Unrooted, of_one).unwrap();
    assert_eq!(
        store.db().uses().unwrap().get(&hash),
        None,
        "gone with its bytes"
    );
}

#[test]
fn what_was_used_last_is_known_after_a_restart() {
    let dir = dir();
    drop(filled(dir.path(), [50, 20, 40, 10, 30]));
    let store = open(dir.path());
    let plan = store
        .plan_eviction(EvictGoal::AtMost(0), |_| Rank::Unrooted)
        .unwrap();
    let uses: Vec<_> = plan.victims.iter().map(|v| v.last_use).collect();
    assert_eq!(uses, [10, 20, 30, 40, 50]);
}

#[test]
fn usage_is_what_du_says() {
    let dir = dir();
    let store = filled(dir.path(), [1; 5]);
    assert_eq!(store.usage_exact().unwrap(), du(dir.path()));
    let sparse = store.nar(&hash_of(9, SIZE), 1 << 30).unwrap();
    sparse.write_at(&pattern(9, 0..1 << 20), 512 << 20).unwrap();
    store.flush().unwrap();
    let counted = store.usage().unwrap();
    assert_eq!(counted, du(dir.path()), "kept up to date without counting");
    assert!(counted < 8 << 20, "a hole takes no room");
    sparse.discard().unwrap();
    store.drop_tree(&hash_of(1, SIZE)).unwrap();
    assert_eq!(store.usage().unwrap(), du(dir.path()));
    assert_eq!(store.usage_exact().unwrap(), du(dir.path()));
}

#[test]
fn a_nar_without_a_map_goes_too() {
    let dir = dir();
    let store = open(dir.path());
    let orphan = store
        .shared
        .path(&hash_of(1, SIZE), crate::content::shared::Kind::Nar);
    std::fs::write(&orphan, pattern(1, 0..5000)).unwrap();
    assert_eq!(
        store
            .evict(EvictGoal::Unrooted, |_| Rank::Unrooted)
            .unwrap()
            .nars,
        1
    );
    assert!(!orphan.exists());
}
