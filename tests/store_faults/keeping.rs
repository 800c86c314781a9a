//! What is kept: flipped bits, lost trees, restarts in the middle, and the status that tells.

use std::{
    fs,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use narfs::store::{Found, Node, NodeId, ViewId};

use crate::{
    support::{
        cache::{Cache, Package, Packing, directory, file, key, noise},
        scripted::Reply,
    },
    world::{
        Setup, World, admitted, all_right, answer, fetched, flushed, read, serve, soon, truth,
        until,
    },
};

fn package() -> Package {
    Package::new(
        "kept",
        &directory([
            ("data", file(noise(1, 500_000))),
            ("end", file(noise(2, 300_000))),
        ]),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_are_found_dropped_and_fetched_again() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package();
    cache.add(&p, Packing::Zstd);
    let server = serve(cache.path());
    let world = Setup::trusting(&key).store(&[&server]);
    fetched(&world, &p).await.unwrap();
    flushed(&world).await;
    let kept = world
        .state
        .path()
        .join(format!("content/{}.nar", p.hash().nix32()));
    let mut byte = [0];
    let nar = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(kept)
        .unwrap();
    nar.read_exact_at(&mut byte, 200_000).unwrap();
    nar.write_all_at(&[byte[0] ^ 1], 200_000).unwrap();
    let store = world.store.clone();
    let report = tokio::task::spawn_blocking(move || store.check(&[], |_, _| {}).unwrap())
        .await
        .unwrap();
    assert!(
        report.checked.iter().any(|c| c.problem.is_some()),
        "{report:?}"
    );
    // The rest of it is right and stays; nobody was given the block, so the kernel has nothing to drop.
    let before = server.count(&p.nar_url(Packing::Zstd));
    all_right(&world, &p).await;
    assert_eq!(server.count(&p.nar_url(Packing::Zstd)), before + 1);
    let store = world.store.clone();
    fetched(&world, &p).await.unwrap();
    let report = tokio::task::spawn_blocking(move || store.check(&[], |_, _| {}).unwrap())
        .await
        .unwrap();
    assert!(
        report.checked.iter().all(|c| c.problem.is_none()),
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_nar_whose_tree_is_lost_is_indexed_from_the_disk() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package();
    cache.add_unlisted(&p, Packing::Zstd);
    let server = serve(cache.path());
    let setup = Setup::trusting(&key);
    let World { store, state } = setup.store(&[&server]);
    fetched(&store, &p).await.unwrap();
    drop(store);
    for damage in [None, Some(&b"not a tree"[..])] {
        let tree = state
            .path()
            .join(format!("content/{}.index", p.hash().nix32()));
        match damage {
            None => fs::remove_file(tree).unwrap(),
            Some(bytes) => fs::write(tree, bytes).unwrap(),
        }
        server.clear();
        let store = setup.open(state.path(), &[&server]);
        all_right(&store, &p).await;
        assert_eq!(server.count(&p.nar_url(Packing::Zstd)), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_middle_keeps_what_came_and_goes_on() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package();
    for packing in [Packing::Zstd, Packing::Frames, Packing::None] {
        cache.add(&p, packing);
        let server = serve(cache.path());
        let packed = packing.pack(&p.nar).len() as u64;
        server.on(
            &p.nar_url(packing),
            Reply::as_it_is().cut_after(packed * 2 / 3),
        );
        let setup = Setup::trusting(&key);
        let World { store, state } = setup.store(&[&server]);
        assert!(read(&store, &p, "data", 0, 1000).await.unwrap() == truth(&p, "data")[..1000]);
        server.vanish();
        let _ = fetched(&store, &p).await;
        flushed(&store).await;
        let path = admitted(&store, &p).await;
        let before = store.fetched_bytes(&path);
        drop((store, path));
        let store = setup.open(state.path(), &[&server]);
        let path = admitted(&store, &p).await;
        assert_eq!(store.fetched_bytes(&path), before, "{packing:?}");
        assert!(before > 0);
        assert!(read(&store, &p, "data", 0, 1000).await.unwrap() == truth(&p, "data")[..1000]);
        server.forget(&p.nar_url(packing));
        server.come_back();
        all_right(&store, &p).await;
        fetched(&store, &p).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_always_parses_and_never_says_too_much() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package();
    cache.add(&p, Packing::None);
    let server = serve(cache.path());
    let world = Setup::trusting(&key).store(&[&server]);
    let path = admitted(&world, &p).await;
    let status = NodeId::of(Node::StatusDir(ViewId::WHOLE));
    let name = format!("{}.json", p.path);
    let Found::Node(attr) = answer(world.lookup(status, name.as_bytes())).await.unwrap() else {
        panic!()
    };
    let summary = NodeId::of(Node::Summary(ViewId::WHOLE));
    let over = Arc::new(AtomicBool::new(false));
    let polls = [attr.node, summary].map(|node| {
        let (store, over) = (world.store.clone(), over.clone());
        std::thread::spawn(move || {
            let (mut buf, mut last, mut count) = (Vec::new(), 0, 0_u32);
            while !over.load(SeqCst) || count == 0 {
                store.read_now(node, 0, 1 << 20, &mut buf).unwrap().unwrap();
                assert_eq!(buf.len(), 4096);
                let json: serde_json::Value = serde_json::from_slice(&buf).unwrap();
                let (fetched, size) = (
                    json["fetchedSize"].as_u64().unwrap(),
                    json["size"].as_u64().unwrap(),
                );
                assert!(
                    fetched <= size && fetched >= last,
                    "{last} {fetched} {size}"
                );
                last = fetched;
                count += 1;
            }
        })
    });
    let mut at = 0;
    while at < 500_000 {
        soon(read(&world, &p, "data", at, 10_000)).await.unwrap();
        at += 10_000;
    }
    fetched(&world, &p).await.unwrap();
    over.store(true, SeqCst);
    polls.into_iter().for_each(|poll| poll.join().unwrap());
    until(|| world.path_status(&path).verified).await;
    let status = world.path_status(&path);
    assert_eq!(
        (status.fetched_size, status.size),
        (p.nar.len() as u64, p.nar.len() as u64)
    );
}
