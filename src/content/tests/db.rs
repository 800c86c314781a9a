//! The database: slots for good, answers for a time, a damaged file put aside.

use std::{fs, path::Path};

use super::*;
use crate::{
    content::{ContentError, KeptView, MAX_VIEW, NarinfoTtl, PathError, PathFacts, db::MAX_SLOT},
    nix::{StorePath, StorePathHash},
};

const TTL: NarinfoTtl = NarinfoTtl {
    positive: 1000,
    negative: 100,
};

fn path(n: u8, name: &str) -> StorePath {
    StorePath::parse(&format!("{}-{name}", StorePathHash::from_bytes([n; 20]))).unwrap()
}

fn digest(n: u8) -> StorePathHash {
    StorePathHash::from_bytes([n; 20])
}

#[test]
fn slots_are_given_once_and_for_good() {
    let dir = dir();
    let (a, b, c) = (path(1, "a"), path(2, "b"), path(3, "c"));
    {
        let store = open(dir.path());
        let db = store.db();
        assert_eq!(db.slots().unwrap(), vec![]);
        assert_eq!(
            db.allocate_slots(&[a.clone(), b.clone(), a.clone()])
                .wait()
                .unwrap(),
            [1, 2, 1]
        );
        assert_eq!(
            db.allocate_slots(&[c.clone(), a.clone()]).wait().unwrap(),
            [3, 1]
        );
        assert_eq!(db.reallocate_slot(&a).wait().unwrap(), 4);
        assert_eq!(
            db.allocate_slots(std::slice::from_ref(&a)).wait().unwrap(),
            [4]
        );
    }
    let store = open(dir.path());
    let all = vec![(1, a.clone()), (2, b.clone()), (3, c), (4, a.clone())];
    assert_eq!(store.db().slots().unwrap(), all);
    assert_eq!(store.db().slot(&a.hash()).unwrap(), Some((4, a.clone())));
    assert_eq!(store.db().slot(&digest(9)).unwrap(), None);
    // Another name is another path: it must not get the first one's inodes.
    assert_eq!(
        store
            .db()
            .allocate_slots(&[path(2, "other"), b])
            .wait()
            .unwrap(),
        [5, 6]
    );
}

#[test]
fn the_last_slot_is_the_last() {
    let dir = dir();
    let store = open(dir.path());
    let db = store.db();
    db.allocate_slots(&[path(1, "a")]).wait().unwrap();
    db.set_next_slot(u64::from(MAX_SLOT)).wait().unwrap();
    let wanted = [path(2, "b"), path(3, "c")];
    assert!(matches!(
        db.allocate_slots(&wanted).wait(),
        Err(ContentError::NoSlots { .. })
    ));
    assert_eq!(
        db.allocate_slots(&[path(1, "a"), path(2, "b")])
            .wait()
            .unwrap(),
        [1, MAX_SLOT]
    );
    assert!(matches!(
        db.reallocate_slot(&path(1, "a")).wait(),
        Err(ContentError::NoSlots { .. })
    ));
    assert_eq!(
        db.allocate_slots(&[path(2, "b")]).wait().unwrap(),
        [MAX_SLOT]
    );
}

#[test]
fn narinfos_count_for_a_time() {
    let dir = dir();
    let store = open(dir.path());
    let db = store.db();
    let answers = vec![
        (digest(1), Some(b"StorePath: x".to_vec())),
        (digest(2), None),
    ];
    db.put_narinfos("https://one", answers, 5000)
        .wait()
        .unwrap();
    let fresh = |n, now| {
        db.narinfo("https://one", &digest(n), now, TTL)
            .unwrap()
            .map(|a| a.fresh)
    };
    assert_eq!(
        (fresh(1, 5000), fresh(1, 5999), fresh(1, 6000)),
        (Some(true), Some(true), Some(false))
    );
    assert_eq!((fresh(2, 5099), fresh(2, 5100)), (Some(true), Some(false)));
    assert_eq!(fresh(3, 5000), None);
    assert_eq!(
        db.narinfo("https://two", &digest(1), 5000, TTL).unwrap(),
        None
    );
    let found = db
        .narinfo("https://one", &digest(1), 5000, TTL)
        .unwrap()
        .unwrap();
    assert_eq!(found.text.as_deref(), Some(b"StorePath: x".as_slice()));
    let three = [digest(2), digest(3), digest(1)];
    let batch = db.narinfo_batch("https://one", &three, 5000, TTL).unwrap();
    let texts: Vec<_> = batch
        .iter()
        .map(|a| a.as_ref().map(|a| a.text.is_some()))
        .collect();
    assert_eq!(texts, [Some(false), None, Some(true)]);
}

#[test]
fn answers_from_the_future_count_no_longer_than_their_time() {
    let dir = dir();
    let store = open(dir.path());
    let db = store.db();
    for fetched_at in [u64::MAX, 1_000_000] {
        db.put_narinfos("s", vec![(digest(1), None)], fetched_at)
            .wait()
            .unwrap();
        let at = |now| db.narinfo("s", &digest(1), now, TTL).unwrap().unwrap();
        let first = at(500);
        assert_eq!((first.fresh, first.fetched_at), (true, 500));
        // A write behind the one that sets the time: when it is done, that one is.
        db.put_root("r", &[]).wait().unwrap();
        assert!(at(599).fresh);
        assert!(
            !at(600).fresh,
            "counted from when it was first seen to be from the future"
        );
    }
    db.put_narinfos("s", vec![(digest(1), None)], 0)
        .wait()
        .unwrap();
    assert!(
        !db.narinfo("s", &digest(1), u64::MAX, TTL)
            .unwrap()
            .unwrap()
            .fresh
    );
}

#[test]
fn negatives_are_forgotten_on_demand_and_when_they_are_old() {
    let dir = dir();
    let store = open(dir.path());
    let db = store.db();
    let text = Some(b"x".to_vec());
    for n in [0, 7, 255] {
        db.put_narinfos("a", vec![(digest(n), None)], 10)
            .wait()
            .unwrap();
        db.put_narinfos("b", vec![(digest(n), text.clone())], 10)
            .wait()
            .unwrap();
        db.put_narinfos("c", vec![(digest(n), None)], 90)
            .wait()
            .unwrap();
    }
    let who = |n| -> Vec<String> {
        let all = db.narinfos(&digest(n), 100, TTL).unwrap();
        all.into_iter().map(|a| a.substituter).collect()
    };
    assert_eq!(who(7), ["a", "b", "c"]);
    db.forget_negative(&digest(255)).wait().unwrap();
    db.forget_negative(&digest(0)).wait().unwrap();
    assert_eq!(
        (who(0), who(7), who(255)),
        (
            vec!["b".into()],
            vec!["a".into(), "b".into(), "c".into()],
            vec!["b".into()]
        )
    );
    assert_eq!(db.prune_negative(110, TTL).unwrap(), 1, "of path 7, by a");
    assert_eq!(who(7), ["b", "c"]);
    assert_eq!(db.prune_negative(110, TTL).unwrap(), 0);
    db.forget_narinfo("b", &digest(7)).wait().unwrap();
    assert_eq!(who(7), ["c"]);
}

#[test]
fn roots_and_facts_survive() {
    let dir = dir();
    let facts = PathFacts {
        first_seen: Some(5),
        last_fetched: Some(7),
        fetched_from: Some("https://one".into()),
        last_error: Some(PathError {
            text: "gone".into(),
            at: 6,
        }),
        trusted: Some("digest".into()),
    };
    {
        let store = open(dir.path());
        let db = store.db();
        db.put_root("view", &[path(1, "a"), path(2, "b")])
            .wait()
            .unwrap();
        db.put_root("empty", &[]).wait().unwrap();
        db.put_facts(vec![(digest(1), facts.clone())])
            .wait()
            .unwrap();
        db.update_facts(&digest(1), |f| f.last_error = None)
            .wait()
            .unwrap();
        db.update_facts(&digest(2), |f| f.first_seen = Some(9))
            .wait()
            .unwrap();
    }
    let store = open(dir.path());
    let db = store.db();
    let want = vec![
        ("empty".into(), vec![]),
        ("view".into(), vec![path(1, "a"), path(2, "b")]),
    ];
    assert_eq!(db.roots().unwrap(), want);
    assert_eq!(
        db.facts(&digest(1)).unwrap(),
        PathFacts {
            last_error: None,
            ..facts
        }
    );
    assert_eq!(db.all_facts().unwrap().len(), 2);
    assert_eq!(db.facts(&digest(3)).unwrap(), PathFacts::default());
    assert!(db.remove_root("view").wait().unwrap());
    assert!(!db.remove_root("view").wait().unwrap());
}

#[test]
fn writes_are_awaited_too_and_happen_without_a_waiter() {
    let dir = dir();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    {
        let store = open(dir.path());
        let slots = runtime.block_on(async { store.db().allocate_slots(&[path(1, "a")]).await });
        assert_eq!(slots.unwrap(), [1]);
        for n in 0..200 {
            drop(store.db().put_narinfos("s", vec![(digest(n), None)], 1));
        }
    }
    let store = open(dir.path());
    assert!((0..200).all(|n| {
        store
            .db()
            .narinfo("s", &digest(n), 1, TTL)
            .unwrap()
            .is_some()
    }));
}

/// How a file is spoilt, in words and in deed.
type Spoil = (&'static str, fn(&Path));

/// Spoils the database of a state directory with one slot, and opens it again.
fn reopened_after(spoil: impl Fn(&Path)) -> (tempfile::TempDir, ContentStore) {
    let dir = dir();
    {
        let store = open(dir.path());
        store.db().allocate_slots(&[path(1, "a")]).wait().unwrap();
        full(&store, 1, 5000);
    }
    spoil(&dir.path().join("narfs.redb"));
    let store = open(dir.path());
    (dir, store)
}

#[test]
fn a_damaged_database_is_put_aside_and_the_bytes_stay() {
    let spoils: [Spoil; 4] = [
        ("garbage", |p| {
            fs::write(p, b"this is no database at all, but a text").unwrap()
        }),
        ("zeros", |p| {
            fs::write(p, vec![0; fs::metadata(p).unwrap().len() as usize]).unwrap()
        }),
        ("half of it", |p| {
            let len = fs::metadata(p).unwrap().len();
            fs::OpenOptions::new()
                .write(true)
                .open(p)
                .unwrap()
                .set_len(len / 2)
                .unwrap();
        }),
        ("all but its head", |p| {
            let mut bytes = fs::read(p).unwrap();
            bytes[4096..].fill(0xa5);
            fs::write(p, bytes).unwrap();
        }),
    ];
    for (what, spoil) in spoils {
        let (dir, store) = reopened_after(spoil);
        assert!(dir.path().join("narfs.redb.damaged-1").exists(), "{what}");
        assert_eq!(store.db().slots().unwrap(), vec![], "{what}");
        // Not a number that the lost database may have given to another path.
        assert_eq!(
            store.db().allocate_slots(&[path(2, "b")]).wait().unwrap(),
            [(1 << 20) + 1],
            "{what}"
        );
        assert!(nar(&store, 1, 5000).verified(), "{what}");
    }
}

#[test]
fn an_empty_file_is_a_new_database() {
    // What a kill right after the file was made leaves.
    let (dir, store) = reopened_after(|p| fs::write(p, b"").unwrap());
    assert!(!dir.path().join("narfs.redb.damaged-1").exists());
    assert_eq!(store.db().slots().unwrap(), vec![]);
}

#[test]
fn a_newer_database_is_refused_and_left_alone() {
    let dir = dir();
    open(dir.path());
    let file = dir.path().join("narfs.redb");
    {
        let database = redb::Database::open(&file).unwrap();
        let txn = database.begin_write().unwrap();
        txn.open_table(redb::TableDefinition::<&str, u64>::new("meta"))
            .unwrap()
            .insert("schema", 99)
            .unwrap();
        txn.commit().unwrap();
    }
    let error = ContentStore::open(dir.path(), PATIENT).err().unwrap();
    assert!(
        matches!(
            error,
            ContentError::Newer {
                found: 99,
                known: 2,
                ..
            }
        ),
        "{error}"
    );
    assert!(!dir.path().join("narfs.redb.damaged-1").exists());
}

#[test]
fn views_keep_their_number_as_long_as_their_contents() {
    let dir = dir();
    let kept = |name: &str, id, own: &[u32], shown: &[u32]| KeptView {
        name: name.into(),
        id,
        own: own.into(),
        shown: shown.into(),
    };
    {
        let store = open(dir.path());
        let db = store.db();
        assert_eq!(db.views().unwrap(), []);
        assert_eq!(db.put_view("b", &[3, 70_000], &[1, 3]).wait().unwrap(), 1);
        assert_eq!(db.put_view("a", &[], &[]).wait().unwrap(), 2);
        assert_eq!(db.put_view("b", &[3, 70_000], &[1, 3]).wait().unwrap(), 1);
        assert_eq!(db.put_view("b", &[3], &[3]).wait().unwrap(), 3);
        assert_eq!(db.remove_view("a").wait().unwrap(), Some(2));
        assert_eq!(db.remove_view("a").wait().unwrap(), None);
        assert_eq!(db.put_view("c", &[5], &[5]).wait().unwrap(), 4);
    }
    let store = open(dir.path());
    let all = [kept("b", 3, &[3], &[3]), kept("c", 4, &[5], &[5])];
    assert_eq!(store.db().views().unwrap(), all);
}

#[test]
fn numbers_of_views_go_round_and_end() {
    let dir = dir();
    let store = open(dir.path());
    let db = store.db();
    assert_eq!(db.put_view("first", &[1], &[1]).wait().unwrap(), 1);
    db.set_next_view(MAX_VIEW.into()).wait().unwrap();
    assert_eq!(db.put_view("last", &[1], &[1]).wait().unwrap(), MAX_VIEW);
    // Round, and past the one that is taken.
    assert_eq!(db.put_view("second", &[1], &[1]).wait().unwrap(), 2);
    let rest: Vec<_> = (3..MAX_VIEW)
        .map(|n| db.put_view(&format!("v{n}"), &[1], &[1]))
        .collect();
    for put in rest {
        put.wait().unwrap();
    }
    let full = db.put_view("too-many", &[1], &[1]).wait();
    assert!(matches!(
        full,
        Err(ContentError::NoViews { limit: MAX_VIEW })
    ));
    assert_eq!(db.remove_view("v77").wait().unwrap(), Some(77));
    assert_eq!(db.put_view("again", &[1], &[1]).wait().unwrap(), 77);
}

#[test]
fn a_database_from_before_the_views_is_brought_up_to_date() {
    let dir = dir();
    let a = path(1, "a");
    {
        let store = open(dir.path());
        store
            .db()
            .allocate_slots(std::slice::from_ref(&a))
            .wait()
            .unwrap();
        store
            .db()
            .put_root("r", std::slice::from_ref(&a))
            .wait()
            .unwrap();
    }
    {
        let database = redb::Database::open(dir.path().join("narfs.redb")).unwrap();
        let txn = database.begin_write().unwrap();
        {
            let mut meta = txn
                .open_table(redb::TableDefinition::<&str, u64>::new("meta"))
                .unwrap();
            meta.insert("schema", 1).unwrap();
            meta.remove("next_view").unwrap();
        }
        txn.delete_table(redb::TableDefinition::<&str, (u16, &[u8], &[u8])>::new(
            "views",
        ))
        .unwrap();
        txn.commit().unwrap();
    }
    let store = open(dir.path());
    assert!(!dir.path().join("narfs.redb.damaged-1").exists());
    assert_eq!(store.db().slots().unwrap(), [(1, a.clone())]);
    assert_eq!(store.db().roots().unwrap(), [("r".into(), vec![a])]);
    assert_eq!(store.db().put_view("v", &[1], &[1]).wait().unwrap(), 1);
}
