//! The database with a file of its own.

use std::fs;

use redb::{Database, TableDefinition};

use super::*;
use crate::snapshotter::record::{Kind, Labels, Moment, Usage};

fn record(metadata: &Metadata, parent: Option<&str>) -> Record {
    let now = Moment::now();
    Record {
        id: metadata.new_id(),
        kind: Kind::Committed,
        parent: parent.map(str::to_owned),
        labels: Labels::new(),
        created: now,
        updated: now,
        usage: Usage::default(),
        nix: None,
    }
}

async fn put(metadata: &Metadata, key: &str, parent: Option<&str>) {
    let (key, record) = (key.to_owned(), record(metadata, parent));
    let put = metadata.change(move |draft| {
        draft.put(&key, record);
        Ok(())
    });
    put.await.unwrap();
}

async fn take(metadata: &Metadata, key: &str) {
    let key = key.to_owned();
    let taken = metadata.change(move |draft| Ok(draft.take(&key)));
    taken.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_was_answered_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshots.redb");
    let metadata = Metadata::open(&path, 0).unwrap();
    put(&metadata, "default/1/a", None).await;
    put(&metadata, "default/2/b", Some("default/1/a")).await;
    put(&metadata, "c", None).await;
    take(&metadata, "c").await;
    let last = metadata.new_id();
    let before = metadata.state();
    drop(metadata);
    let metadata = Metadata::open(&path, 2).unwrap();
    let after = metadata.state();
    let shown = |state: &State| format!("{:?}", state.iter().collect::<Vec<_>>());
    assert_eq!(shown(&after), shown(&before));
    assert!(after.has_children("default/1/a") && !after.has_children("default/2/b"));
    // The number of what was removed stays its own; one that no record had may be given again.
    assert_eq!(metadata.new_id(), last);
    metadata.skip_past(Some(SnapshotId(77)));
    assert_eq!(metadata.new_id(), SnapshotId(78));
}

#[tokio::test]
async fn a_change_that_fails_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let metadata = Metadata::open(&dir.path().join("s.redb"), 0).unwrap();
    put(&metadata, "a", None).await;
    let before = metadata.state();
    let failed: Result<(), _> = metadata
        .change(|draft| draft.state().expect("nothing").map(|_| ()))
        .await;
    assert!(matches!(failed, Err(SnapshotError::NotFound { .. })));
    assert!(Arc::ptr_eq(&before, &metadata.state()));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let metadata = Arc::new(Metadata::open(&dir.path().join("s.redb"), 0).unwrap());
    let both = (0..200).map(|n| {
        let metadata = metadata.clone();
        tokio::spawn(async move {
            let record = record(&metadata, None);
            // Two of each.
            let key = format!("k{}", n / 2);
            let change = metadata.change(move |draft| match draft.state().get(&key) {
                Some(_) => Err(SnapshotError::Exists { key }),
                None => {
                    draft.put(&key, record);
                    Ok(())
                }
            });
            change.await.is_ok()
        })
    });
    let both: Vec<_> = both.collect();
    let mut won = 0;
    for one in both {
        won += usize::from(one.await.unwrap());
    }
    assert_eq!((won, metadata.state().iter().count()), (100, 100));
}

#[tokio::test]
async fn ancestors_come_in_order_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let metadata = Metadata::open(&dir.path().join("s.redb"), 0).unwrap();
    put(&metadata, "a", None).await;
    put(&metadata, "b", Some("a")).await;
    put(&metadata, "c", Some("b")).await;
    put(&metadata, "lost", Some("nobody")).await;
    put(&metadata, "ring", Some("ring")).await;
    let state = metadata.state();
    let names = |key: &str| {
        let found = state.ancestors(state.get(key).unwrap());
        found.map(|all| {
            all.iter()
                .map(|(key, _)| key.to_string())
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(names("c").unwrap(), ["b", "a"]);
    for damaged in ["lost", "ring"] {
        assert!(
            matches!(names(damaged), Err(SnapshotError::Damaged { .. })),
            "{damaged}"
        );
    }
}

#[tokio::test]
async fn records_that_make_no_sense_are_damage() {
    const SNAPSHOTS: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshots");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshots.redb");
    drop(Metadata::open(&path, 0).unwrap());
    let database = Database::open(&path).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(SNAPSHOTS)
        .unwrap()
        .insert("k", &b"{}"[..])
        .unwrap();
    txn.commit().unwrap();
    drop(database);
    let error = Metadata::open(&path, 0).err().unwrap();
    assert!(matches!(error, MetadataError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("the record of k"), "{error}");
}

#[test]
fn one_that_is_half_made_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshots.redb");
    fs::write(dir.path().join("snapshots.redb.new"), "half").unwrap();
    drop(Metadata::open(&path, 0).unwrap());
    assert!(!dir.path().join("snapshots.redb.new").exists());
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshots.redb");
    let metadata = Metadata::open(&path, 0).unwrap();
    put(&metadata, "a", None).await;
    drop(metadata);
    let good = fs::read(&path).unwrap();
    let half = good[..good.len() / 2].to_vec();
    let zeros = vec![0; good.len()];
    for bad in [vec![], b"not a database".to_vec(), half, zeros] {
        fs::write(&path, &bad).unwrap();
        let error = Metadata::open(&path, 1)
            .err()
            .unwrap_or_else(|| panic!("{} bytes", bad.len()));
        assert!(matches!(error, MetadataError::Damaged { .. }), "{error}");
        assert!(
            fs::read(&path).unwrap() == bad,
            "{} bytes were changed",
            bad.len()
        );
    }
    fs::write(&path, &good).unwrap();
    assert!(Metadata::open(&path, 1).unwrap().state().get("a").is_some());
}
