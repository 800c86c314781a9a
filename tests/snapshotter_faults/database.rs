//! A database that can't be used is refused and stays as it is.

use std::{fs, path::Path, process::Output};

use redb::{Database, ReadableDatabase, TableDefinition};

use crate::world::World;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// A world that ran, with a snapshot.
async fn used() -> World {
    let mut world = World::start(&[]).await;
    let mut calls = world.calls().await;
    calls.prepare("a", "", [].into()).await.unwrap();
    world.stop().await;
    world.remove_mount();
    world
}

fn database(world: &World) -> std::path::PathBuf {
    world.root().join("snapshots.redb")
}

/// It is refused with this, and nothing is taken away.
fn refused(world: &World, parts: &[&str]) {
    let Output { status, stderr, .. } = world.bounded().output().unwrap();
    let error = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(1), "{error}");
    let name = database(world).display().to_string();
    for part in parts.iter().chain([&&*name]) {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(
        !crate::world::is_mounted(&world.mountpoint()),
        "it left a mount"
    );
    assert!(!world.directories().is_empty(), "it deleted snapshots");
}

fn set_schema(path: &Path, schema: Option<u64>) {
    let database = Database::open(path).unwrap();
    let txn = database.begin_write().unwrap();
    {
        let mut meta = txn.open_table(META).unwrap();
        match schema {
            Some(schema) => drop(meta.insert("schema", schema).unwrap()),
            None => drop(meta.remove("schema").unwrap()),
        }
    }
    txn.commit().unwrap();
}

fn schema(path: &Path) -> Option<u64> {
    let database = Database::open(path).unwrap();
    let txn = database.begin_read().unwrap();
    let meta = txn.open_table(META).unwrap();
    meta.get("schema").unwrap().map(|found| found.value())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_a_newer_narfs_is_refused() {
    let world = used().await;
    set_schema(&database(&world), Some(2));
    refused(
        &world,
        &["has version 2 and this narfs knows 1", "newer narfs"],
    );
    assert_eq!(schema(&database(&world)), Some(2), "it was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_a_version_that_never_was_is_refused() {
    let world = used().await;
    set_schema(&database(&world), None);
    refused(&world, &["has version 0", "restore it from a backup"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_one_is_refused_and_a_restored_one_serves() {
    let mut world = used().await;
    let file = database(&world);
    let good = fs::read(&file).unwrap();
    for bad in [
        &b""[..],
        b"not a database",
        &good[..good.len() / 2],
        &vec![0; good.len()],
    ] {
        fs::write(&file, bad).unwrap();
        refused(
            &world,
            &["is damaged", "restore it from a backup"].map(|part| match part {
                "restore it from a backup" => "Restore it from a backup",
                part => part,
            }),
        );
    }
    fs::remove_file(&file).unwrap();
    refused(
        &world,
        &["is missing", "holds 1", "restore it from a backup"],
    );
    fs::write(&file, &good).unwrap();
    world.run().await;
    assert_eq!(world.calls().await.stat("a").await.unwrap().name, "a");
}
