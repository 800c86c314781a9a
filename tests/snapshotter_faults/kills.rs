//! `kill -9` at random, in the middle of everything: what was answered lasts, and the rest is as if
//! it had never been asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use tonic::Status;

use crate::{
    support::cache::{Package, noise},
    world::{Calls, World, nix_labels, program},
};

/// How often it is killed.
const ROUNDS: u64 = 100;
/// Clients at work at the time.
const CLIENTS: u64 = 4;

/// What a client knows for certain of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    There,
    Gone,
    /// The answer never came.
    Unknown,
}

type Book = Arc<Mutex<BTreeMap<String, Known>>>;

/// Notes what is known of `key` after this answer; whether to go on.
fn note<T>(book: &Book, key: &str, after: Known, answer: &Result<T, Status>) -> bool {
    let known = if answer.is_ok() {
        after
    } else {
        Known::Unknown
    };
    book.lock().unwrap().insert(key.into(), known);
    answer.is_ok()
}

/// Layers, containers on them, and their ends, until the connection breaks.
async fn work(mut calls: Calls, book: Book, name: String, packages: Vec<Package>) {
    for n in 0.. {
        let key = |what: &str| format!("{name}-{n}-{what}");
        let (extract, layer, container) = (key("extract"), key("layer"), key("container"));
        let labels = match n % 2 {
            0 => nix_labels(&packages),
            _ => [].into(),
        };
        book.lock().unwrap().insert(extract.clone(), Known::Unknown);
        let prepared = calls.prepare(&extract, "", labels).await;
        if !note(&book, &extract, Known::There, &prepared) {
            return;
        }
        for key in [&extract, &layer] {
            book.lock().unwrap().insert(key.clone(), Known::Unknown);
        }
        let committed = calls.commit(&layer, &extract).await;
        note(&book, &extract, Known::Gone, &committed);
        if !note(&book, &layer, Known::There, &committed) {
            return;
        }
        book.lock()
            .unwrap()
            .insert(container.clone(), Known::Unknown);
        let prepared = calls.prepare(&container, &layer, [].into()).await;
        if !note(&book, &container, Known::There, &prepared) {
            return;
        }
        for key in [&container, &layer] {
            if n % 3 == 0 {
                continue;
            }
            book.lock().unwrap().insert(key.clone(), Known::Unknown);
            let removed = calls.remove(key).await;
            if !note(&book, key, Known::Gone, &removed) {
                return;
            }
        }
    }
}

/// Everything fits together, and is what the clients were told.
async fn consistent(world: &World, book: &Book) {
    let mut calls = world.calls().await;
    let there = calls.list(&[]).await.unwrap();
    let names: BTreeSet<_> = there.iter().map(|info| info.name.clone()).collect();
    for (key, known) in book.lock().unwrap().iter() {
        match known {
            Known::There => assert!(names.contains(key), "{key} was answered and is lost"),
            Known::Gone => assert!(!names.contains(key), "{key} was removed and is back"),
            Known::Unknown => {}
        }
    }
    for info in &there {
        assert!(
            info.parent.is_empty() || names.contains(&info.parent),
            "{info:?}"
        );
        if info.kind() != narfs::snapshotter::wire::Kind::Committed {
            calls.mounts(&info.name).await.unwrap();
        }
    }
    calls.cleanup().await.unwrap();
    assert_eq!(
        world.directories().len(),
        there.len(),
        "directories of no snapshot"
    );
    let log = world.log();
    assert!(!log.contains("is missing"), "{log}");
    // What is not finished any more is swept up as containerd's collector would.
    for _ in 0..3 {
        for info in calls.list(&[]).await.unwrap() {
            // Parents first fail, and come again in the next sweep.
            let _ = calls.remove(&info.name).await;
        }
    }
    assert!(calls.list(&[]).await.unwrap().is_empty());
    calls.cleanup().await.unwrap();
    assert!(world.directories().is_empty());
    world.views(0).await;
    book.lock().unwrap().clear();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kills_leave_everything_consistent() {
    let mut world = World::start(&[]).await;
    let packages: Vec<_> = (0..8).flat_map(|n| program(&format!("p{n}"))).collect();
    world.add(&packages);
    let book = Book::default();
    for round in 0..ROUNDS {
        let mut clients = Vec::new();
        for client in 0..CLIENTS {
            let calls = world.calls().await;
            let name = format!("r{round}c{client}");
            clients.push(tokio::spawn(work(
                calls,
                book.clone(),
                name,
                packages.clone(),
            )));
        }
        let after = u64::from(noise(round + 1, 1)[0]);
        tokio::time::sleep(Duration::from_micros(after * 400)).await;
        world.kill();
        for client in clients {
            client.await.unwrap();
        }
        world.run().await;
        consistent(&world, &book).await;
    }
}
