//! What somebody or something took away while it did not run.

use std::fs;

use tonic::Code;

use crate::world::{PATIENCE, World, nix_labels, program};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_made_again_or_refused() {
    let mut world = World::start(&[]).await;
    let packages = program("tool");
    world.add(&packages);
    let mut calls = world.calls().await;
    // Numbers 1 to 6, in this order.
    calls.prepare("e1", "", [].into()).await.unwrap();
    calls.commit("base", "e1").await.unwrap();
    calls
        .prepare("e2", "", nix_labels(&packages))
        .await
        .unwrap();
    calls.commit("nix", "e2").await.unwrap();
    calls.prepare("e3", "", [].into()).await.unwrap();
    calls.commit("other", "e3").await.unwrap();
    calls.prepare("active", "base", [].into()).await.unwrap();
    calls.prepare("container", "nix", [].into()).await.unwrap();
    calls.view("look", "other").await.unwrap();
    let before = calls.list(&[]).await.unwrap();
    world.stop().await;
    let snapshots = world.root().join("snapshots");
    for lost in ["2", "3", "4"] {
        fs::remove_dir_all(snapshots.join(lost)).unwrap();
    }
    for stray in ["99/fs", "new-1/fs", "rm-7"] {
        fs::create_dir_all(snapshots.join(stray)).unwrap();
    }
    world.run().await;
    let mut calls = world.calls().await;
    assert_eq!(
        calls.list(&[]).await.unwrap(),
        before,
        "the records are what they were"
    );
    // The container's writable layer is there again; so is the layer whose view has everything.
    calls.mounts("active").await.unwrap();
    calls.mounts("container").await.unwrap();
    for refused in [
        calls.mounts("look").await.unwrap_err(),
        calls.prepare("more", "other", [].into()).await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("other is damaged"), "{refused}");
        assert!(refused.message().contains("pull them again"), "{refused}");
    }
    calls.cleanup().await.unwrap();
    let have: Vec<_> = world.directories().into_iter().collect();
    assert_eq!(have, ["1", "2", "4", "5", "6"]);
    let log = world.log();
    assert!(
        log.contains("its directory was missing and is made again, empty"),
        "{log}"
    );
    assert!(
        log.contains("directories of no snapshot are deleted"),
        "{log}"
    );
    // The damaged one can be removed, and made anew under its name.
    calls.remove("look").await.unwrap();
    calls.remove("other").await.unwrap();
    calls.prepare("e4", "", [].into()).await.unwrap();
    calls.commit("other", "e4").await.unwrap();
    calls.view("look", "other").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_forgot_its_views_has_them_again() {
    let mut world = World::start(&["--tries=1", "--lookup-timeout=2s"]).await;
    let packages = program("tool");
    world.add(&packages);
    let mut calls = world.calls().await;
    calls.prepare("e", "", nix_labels(&packages)).await.unwrap();
    calls.commit("nix", "e").await.unwrap();
    let views = world.views(1).await;
    world.stop().await;
    world.remove_mount();
    // As damage would have it: the database of what can be had again is begun afresh.
    fs::remove_file(world.root().join("narfs.redb")).unwrap();
    world.server.vanish();
    world.run().await;
    let mut calls = world.calls().await;
    let error = calls.prepare("c", "nix", [].into()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    world.server.come_back();
    let deadline = std::time::Instant::now() + PATIENCE;
    while let Err(error) = calls.prepare("c", "nix", [].into()).await {
        // The failed try made the snapshot; its mounts are what is missing.
        if error.code() == Code::AlreadyExists {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{error}");
    }
    calls.mounts("c").await.unwrap();
    assert_eq!(world.views(1).await, views);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_needs_no_network_however_many_layers_there_are() {
    let mut world = World::start(&[]).await;
    let mut calls = world.calls().await;
    for n in 0..20 {
        let packages = program(&format!("tool{n}"));
        world.add(&packages);
        calls.prepare("e", "", nix_labels(&packages)).await.unwrap();
        calls.commit(&format!("nix{n}"), "e").await.unwrap();
    }
    world.stop().await;
    world.server.vanish();
    world.server.clear();
    world.run().await;
    world.views(20).await;
    let mut calls = world.calls().await;
    for n in 0..20 {
        calls
            .prepare(&format!("c{n}"), &format!("nix{n}"), [].into())
            .await
            .unwrap();
    }
    assert!(world.server.requests().is_empty());
}
