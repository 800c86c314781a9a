//! Caches that are gone, slow, or do not have what a layer needs.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::{
    support::scripted::{Gate, Reply},
    world::{World, nix_labels, program},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_cache_fails_prepare_clearly_and_a_retry_works() {
    let world = World::start(&["--tries=1", "--lookup-timeout=3s", "--connect-timeout=2s"]).await;
    let packages = program("tool");
    world.add(&packages);
    let mut calls = world.calls().await;
    calls.prepare("base", "", [].into()).await.unwrap();
    calls.commit("base-layer", "base").await.unwrap();
    world.server.vanish();
    let begun = Instant::now();
    let error = calls
        .prepare("extract", "base-layer", nix_labels(&packages))
        .await
        .unwrap_err();
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    for part in [&*packages[0].path.to_string(), "127.0.0.1", "2 of 2"] {
        assert!(error.message().contains(part), "{part}: {error}");
    }
    // Nothing is left behind.
    assert_eq!(
        calls.stat("extract").await.unwrap_err().code(),
        Code::NotFound
    );
    calls.cleanup().await.unwrap();
    assert_eq!(world.directories().len(), 1);
    world.views(0).await;
    world.server.come_back();
    let labels = nix_labels(&packages);
    calls
        .prepare("extract", "base-layer", labels)
        .await
        .unwrap();
    calls.commit("layer", "extract").await.unwrap();
    let mounts = calls
        .prepare("container", "layer", [].into())
        .await
        .unwrap();
    let lowers = mounts[0]
        .options
        .iter()
        .find(|o| o.starts_with("lowerdir="))
        .unwrap();
    let view = world
        .mountpoint()
        .join("views")
        .join(&world.views(1).await[0]);
    assert!(lowers.contains(&*view.to_string_lossy()), "{lowers}");
    let library = view.join("nix/store").join(packages[1].path.to_string());
    assert_eq!(
        std::fs::read_to_string(library.join("lib")).unwrap(),
        "tool"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_and_unsigned_paths_are_told_apart_from_a_network_that_fails() {
    let world = World::start(&["--tries=1", "--narinfo-ttl-negative=0s"]).await;
    let (known, unknown) = (program("known"), program("unknown"));
    world.add(&known);
    let mut calls = world.calls().await;
    let error = calls
        .prepare("a", "", nix_labels(known.iter().chain(&unknown)))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(error.message().contains("2 of 4"), "{error}");
    assert!(
        error.message().contains(&unknown[0].path.to_string()),
        "{error}"
    );
    let narinfo = unknown[0].narinfo(crate::support::cache::Packing::Zstd);
    let text = narinfo.to_text();
    world
        .server
        .on(&unknown[0].narinfo_url(), Reply::file(text));
    let error = calls
        .prepare("b", "", nix_labels([&unknown[0]]))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(
        error.message().contains("no signature by a trusted key"),
        "{error}"
    );
    for bad in ["/etc/passwd", "/nix/store/nothing", ""] {
        let labels = [
            ("containerd.io/snapshot/nix-closure".into(), bad.into()),
            ("containerd.io/snapshot/nix-layer".into(), "true".into()),
        ];
        let error = calls.prepare("c", "", labels.into()).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("nix-"), "{error}");
    }
    assert!(calls.list(&[]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_hangs_holds_up_nobody_else() {
    let world = World::start(&["--lookup-timeout=50s"]).await;
    let (slow, quick) = (program("slow"), program("quick"));
    world.add(slow.iter().chain(&quick));
    let gate = Gate::new();
    world
        .server
        .on(&slow[0].narinfo_url(), Reply::as_it_is().behind(&gate));
    let mut calls = world.calls().await;
    let waiting = tokio::spawn({
        let (mut calls, labels) = (calls.clone(), nix_labels(&slow));
        async move { calls.prepare("slow", "", labels).await }
    });
    let gate_reached = gate.clone();
    tokio::task::spawn_blocking(move || gate_reached.wait_for(1))
        .await
        .unwrap();
    calls
        .prepare("quick", "", nix_labels(&quick))
        .await
        .unwrap();
    calls.commit("quick-layer", "quick").await.unwrap();
    calls
        .prepare("container", "quick-layer", [].into())
        .await
        .unwrap();
    calls.remove("container").await.unwrap();
    assert_eq!(calls.list(&[]).await.unwrap().len(), 1);
    assert!(!waiting.is_finished());
    // The key is free as long as nobody has it.
    calls.prepare("slow", "", [].into()).await.unwrap();
    gate.open();
    let late = waiting.await.unwrap().unwrap_err();
    assert_eq!(late.code(), Code::AlreadyExists, "{late}");
    calls.cleanup().await.unwrap();
    assert_eq!(world.directories().len(), 2);
    world.views(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_layers_that_share_paths_admit_each_once() {
    let world = World::start(&[]).await;
    let packages: Vec<_> = (0..10).flat_map(|n| program(&format!("p{n}"))).collect();
    world.add(&packages);
    let calls = world.calls().await;
    let all = (0..50).map(|n| {
        let (mut calls, labels) = (calls.clone(), nix_labels(&packages));
        tokio::spawn(async move { calls.prepare(&format!("k{n}"), "", labels).await })
    });
    let all: Vec<_> = all.collect();
    for one in all {
        one.await.unwrap().unwrap();
    }
    for package in &packages {
        assert_eq!(
            world.server.count(&package.narinfo_url()),
            1,
            "{}",
            package.path
        );
    }
    world.views(50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_mountpoints_is_known_when_it_is_committed() {
    let world = World::start(&["--tries=1", "--narinfo-ttl-negative=0s"]).await;
    let packages = program("tool");
    let mut calls = world.calls().await;
    let mounts = calls.prepare("extract", "", [].into()).await.unwrap();
    for package in &packages {
        let store = std::path::Path::new(&mounts[0].source).join("nix/store");
        std::fs::create_dir_all(store.join(package.path.to_string())).unwrap();
    }
    let error = calls.commit("layer", "extract").await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(error.message().contains("2 of 2"), "{error}");
    assert_eq!(calls.stat("extract").await.unwrap().name, "extract");
    world.add(&packages);
    calls.commit("layer", "extract").await.unwrap();
    let mounts = calls.view("look", "layer").await.unwrap();
    let view = world
        .mountpoint()
        .join("views")
        .join(&world.views(1).await[0]);
    assert_eq!(mounts[0].r#type, "overlay");
    assert!(
        mounts[0]
            .options
            .last()
            .unwrap()
            .contains(&*view.to_string_lossy())
    );
    let own = crate::world::names(&view.join("nix/store"));
    assert_eq!(own, packages.iter().map(|p| p.path.to_string()).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn mountpoints_are_only_that_if_so_told() {
    let world = World::start(&["--no-detect-nix-layers"]).await;
    let packages = program("tool");
    let mut calls = world.calls().await;
    let mounts = calls.prepare("extract", "", [].into()).await.unwrap();
    let store = std::path::Path::new(&mounts[0].source).join("nix/store");
    std::fs::create_dir_all(store.join(packages[0].path.to_string())).unwrap();
    calls.commit("layer", "extract").await.unwrap();
    world.views(0).await;
    assert!(world.server.requests().is_empty());
}
