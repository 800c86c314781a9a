//! What a view has and shows, for how long, and at which numbers.

use narfs::{
    content::EvictGoal,
    nix::StorePath,
    store::{
        Attr, Directory, Found, Lane, Node, NodeId, Store, StoreError, ViewContents, ViewId,
        ViewName,
    },
};

use crate::{
    support::cache::{Cache, Package, Packing, directory, exec, file, key, link, noise},
    world::{Setup, answer, fetched, flushed, serve, until},
};

fn name(name: &str) -> ViewName {
    ViewName::parse(name).unwrap()
}

/// A library and a program that refers to it, and a stranger.
fn packages() -> [Package; 3] {
    let lib = Package::new("lib", &directory([("lib.so", file(noise(1, 70_000)))]));
    let tool = directory([
        ("bin", directory([("tool", exec("#!/bin/sh\n"))])),
        ("so", link("../lib.so")),
    ]);
    let tool = Package::new("tool", &tool).with_references(&[&lib]);
    let stranger = Package::new("stranger", &file("alone"));
    [lib, tool, stranger]
}

fn paths(packages: &[&Package]) -> Vec<StorePath> {
    packages.iter().map(|p| p.path.clone()).collect()
}

async fn admit(store: &Store, packages: &[&Package]) {
    let report = store.admit_all(&paths(packages), Lane::Demand).await;
    assert!(report.failed.is_empty(), "{:?}", report.failed);
}

async fn found(store: &Store, parent: NodeId, name: &str) -> Option<Attr> {
    match answer(store.lookup(parent, name.as_bytes())).await {
        Ok(Found::Node(attr)) => Some(attr),
        Ok(Found::Never | Found::NotNow) | Err(StoreError::NoEntry) => None,
        Err(error) => panic!("{name}: {error}"),
    }
}

/// The node at the end of a way of names from the top.
async fn at(store: &Store, way: &str) -> Option<NodeId> {
    let mut node = Store::top();
    for name in way.split('/') {
        node = found(store, node, name).await?.node;
    }
    Some(node)
}

async fn names(store: &Store, way: &str) -> Vec<String> {
    let node = match way {
        "" => Store::top(),
        way => at(store, way).await.expect(way),
    };
    let listed: Directory = answer(store.directory(node)).await.unwrap();
    let names = listed
        .entries(0)
        .map(|e| String::from_utf8(e.name).unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn sorted(packages: &[&Package], suffix: &str) -> Vec<String> {
    let mut names: Vec<_> = packages
        .iter()
        .map(|p| format!("{}{suffix}", p.path))
        .collect();
    names.sort();
    names
}

async fn summary(store: &Store, way: &str) -> serde_json::Value {
    let node = at(store, &format!("{way}/.nix-snapshotter/summary.json")).await;
    let bytes = store.read(node.unwrap(), 0, 4096).await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_has_its_paths_and_nothing_else() {
    let (key, [lib, tool, stranger]) = (key(), packages());
    let cache = Cache::new(&key);
    cache.add_all([&lib, &tool, &stranger], Packing::Zstd);
    let server = serve(cache.path());
    let store = Setup::trusting(&key).store(&[&server]);
    admit(&store, &[&lib, &tool, &stranger]).await;
    let (base, app) = (name("base"), name("app"));
    store.make_view(&base, &paths(&[&lib]), &[]).await.unwrap();
    store
        .make_view(&app, &paths(&[&tool]), &paths(&[&lib]))
        .await
        .unwrap();

    assert_eq!(names(&store, "").await, ["store", "views"]);
    assert_eq!(names(&store, "views").await, ["app", "base"]);
    assert_eq!(names(&store, "views/app").await, ["nix"]);
    assert_eq!(names(&store, "views/app/nix").await, ["store"]);
    assert_eq!(
        names(&store, "views/app/nix/store").await,
        sorted(&[&tool], "")
    );
    let mut status = sorted(&[&tool, &lib], ".json");
    status.push("summary.json".into());
    status.sort();
    assert_eq!(names(&store, "views/app/.nix-snapshotter").await, status);
    assert_eq!(summary(&store, "views/app").await["paths"]["total"], 2);
    assert_eq!(summary(&store, "views/base").await["paths"]["total"], 1);
    assert_eq!(summary(&store, "store").await["paths"]["total"], 3);
    let sorted_paths = |packages: &[&Package]| {
        let mut paths = paths(packages);
        paths.sort_by_key(|p| store.known(p).unwrap().slot);
        paths
    };
    let expected = ViewContents {
        own: paths(&[&tool]),
        shown: sorted_paths(&[&tool, &lib]),
    };
    assert_eq!(store.view(&app), Some(expected));

    // Other names are not there, known ones included, and nobody is asked for them.
    let before = server.requests().len();
    let in_app = at(&store, "views/app/nix/store").await.unwrap();
    let unknown = "00000000000000000000000000000000-unknown";
    for other in [
        &lib.path.to_string(),
        &stranger.path.to_string(),
        unknown,
        "x",
    ] {
        let found = answer(store.lookup(in_app, other.as_bytes())).await;
        assert_eq!(found.unwrap(), Found::Never, "{other}");
    }
    let status = at(&store, "views/base/.nix-snapshotter").await.unwrap();
    assert_eq!(
        found(&store, status, &format!("{}.json", tool.path)).await,
        None
    );
    assert_eq!(at(&store, "views/none").await, None);
    assert_eq!(server.requests().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_one_number_and_a_directory_one_in_each_view() {
    let (key, [lib, tool, _]) = (key(), packages());
    let cache = Cache::new(&key);
    cache.add_all([&lib, &tool], Packing::Zstd);
    let server = serve(cache.path());
    let store = Setup::trusting(&key).store(&[&server]);
    admit(&store, &[&lib, &tool]).await;
    for view in ["a", "b"] {
        let own = paths(&[&lib, &tool]);
        store.make_view(&name(view), &own, &own).await.unwrap();
    }
    let ways = ["store", "views/a/nix/store", "views/b/nix/store"];
    let mut directories = Vec::new();
    let mut files = Vec::new();
    let mut statuses = Vec::new();
    for way in ways {
        directories.push(
            at(&store, &format!("{way}/{}/bin", tool.path))
                .await
                .unwrap(),
        );
        files.push(
            at(&store, &format!("{way}/{}/bin/tool", tool.path))
                .await
                .unwrap(),
        );
        let root = way.strip_suffix("/nix/store").unwrap_or(way);
        let status = format!("{root}/.nix-snapshotter/{}.json", tool.path);
        statuses.push(at(&store, &status).await.unwrap());
    }
    assert!(files.iter().all(|f| *f == files[0]));
    assert!(statuses.iter().all(|s| *s == statuses[0]));
    directories.sort();
    directories.dedup();
    assert_eq!(directories.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_back_with_their_numbers_and_without_the_network() {
    let (key, [lib, tool, _]) = (key(), packages());
    let cache = Cache::new(&key);
    cache.add_all([&lib, &tool], Packing::Zstd);
    let server = serve(cache.path());
    let setup = Setup::trusting(&key);
    let state = tempfile::tempdir().unwrap();
    let app = name("app");
    let way = format!("views/app/nix/store/{}/bin/tool", tool.path);
    let (node, contents) = {
        let store = setup.open(state.path(), &[&server]);
        admit(&store, &[&lib, &tool]).await;
        let own = paths(&[&lib, &tool]);
        store.make_view(&app, &own, &own).await.unwrap();
        store.make_view(&name("gone"), &own, &own).await.unwrap();
        assert!(store.remove_view(&name("gone")).await.unwrap());
        fetched(&store, &tool).await.unwrap();
        flushed(&store).await;
        (at(&store, &way).await.unwrap(), store.view(&app))
    };
    let before = server.requests().len();
    let store = setup.open(state.path(), &[&server]);
    assert_eq!(store.views(), std::slice::from_ref(&app));
    assert_eq!(store.view(&app), contents);
    // Before anything is loaded.
    let totals = summary(&store, "views/app").await;
    assert_eq!(totals["paths"]["total"], 2);
    assert_eq!(totals["paths"]["complete"], 1);
    assert_eq!(at(&store, &way).await, Some(node));
    assert_eq!(
        names(&store, "views/app/nix/store").await,
        sorted(&[&lib, &tool], "")
    );
    assert_eq!(store.read(node, 0, 100).await.unwrap(), b"#!/bin/sh\n");
    assert_eq!(
        summary(&store, "views/app").await,
        totals_of(&totals, &store).await
    );
    assert_eq!(server.requests().len(), before, "no request");
}

/// The same totals, with what differs from moment to moment taken from the newer ones.
async fn totals_of(before: &serde_json::Value, store: &Store) -> serde_json::Value {
    let mut now = summary(store, "views/app").await;
    for same in ["paths", "size", "fetchedSize", "fetchedPercent", "errors"] {
        now[same] = before[same].clone();
    }
    now
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_view_shows_is_rooted_until_it_goes() {
    let (key, [lib, tool, stranger]) = (key(), packages());
    let cache = Cache::new(&key);
    cache.add_all([&lib, &tool, &stranger], Packing::None);
    let server = serve(cache.path());
    let store = Setup::trusting(&key).store(&[&server]);
    for package in [&lib, &tool, &stranger] {
        fetched(&store, package).await.unwrap();
    }
    flushed(&store).await;
    let app = name("app");
    store
        .make_view(&app, &paths(&[&tool]), &paths(&[&lib]))
        .await
        .unwrap();
    let goes = || {
        let plan = store.plan_gc(EvictGoal::Unrooted, false).unwrap();
        let mut goes: Vec<_> = plan.victims.iter().map(|victim| victim.hash).collect();
        goes.sort();
        goes
    };
    assert_eq!(goes(), [stranger.hash()]);
    // The library is shown, but another's.
    assert!(store.view_usage(&app).unwrap() > 0);
    let base = name("base");
    store
        .make_view(&base, &paths(&[&tool, &lib]), &[])
        .await
        .unwrap();
    let (first, second) = (
        store.view_usage(&app).unwrap(),
        store.view_usage(&base).unwrap(),
    );
    assert!(second >= 70_000 && first < 70_000, "{first} {second}");

    assert!(store.remove_view(&app).await.unwrap());
    assert!(!store.remove_view(&app).await.unwrap());
    assert_eq!(goes(), [stranger.hash()], "another view still has them");
    assert!(store.remove_view(&base).await.unwrap());
    assert_eq!(goes().len(), 3);
    assert!(matches!(store.view_usage(&app), Err(StoreError::NoEntry)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_of_what_is_not_known_is_not_made() {
    let (key, [lib, tool, _]) = (key(), packages());
    let cache = Cache::new(&key);
    cache.add(&lib, Packing::Zstd);
    let server = serve(cache.path());
    let store = Setup::trusting(&key).store(&[&server]);
    let report = store.admit_all(&paths(&[&lib, &tool]), Lane::Demand).await;
    assert_eq!(report.admitted, paths(&[&lib]));
    let [(failed, error)] = &report.failed[..] else {
        panic!("{:?}", report.failed)
    };
    assert!(*failed == tool.path && error.is_absence());
    assert!(
        error.to_string().contains(&tool.path.to_string()),
        "{error}"
    );
    let made = store
        .make_view(&name("app"), &paths(&[&lib, &tool]), &[])
        .await;
    assert!(matches!(made, Err(StoreError::NoEntry)), "{made:?}");
    assert_eq!(store.views(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_again_is_the_same_view_and_other_contents_another() {
    let (key, [lib, tool, _]) = (key(), packages());
    let cache = Cache::new(&key);
    cache.add_all([&lib, &tool], Packing::Zstd);
    let server = serve(cache.path());
    let store = Setup::trusting(&key).store(&[&server]);
    admit(&store, &[&lib, &tool]).await;
    let app = name("app");
    store.make_view(&app, &paths(&[&lib]), &[]).await.unwrap();
    let first = at(&store, "views/app/nix/store").await.unwrap();
    store
        .make_view(&app, &paths(&[&lib]), &paths(&[&lib]))
        .await
        .unwrap();
    assert_eq!(at(&store, "views/app/nix/store").await, Some(first));
    store.make_view(&app, &paths(&[&tool]), &[]).await.unwrap();
    let second = at(&store, "views/app/nix/store").await.unwrap();
    assert_ne!(first, second);
    // What somebody still holds of the first is no part of the second.
    let gone = answer(store.lookup(first, tool.path.to_string().as_bytes())).await;
    assert!(matches!(gone, Err(StoreError::NoNode)), "{gone:?}");
    assert!(matches!(
        answer(store.attr(first)).await,
        Err(StoreError::NoNode)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_whose_listing_lied_stays_in_its_views() {
    let (key, [lib, tool, _]) = (key(), packages());
    let cache = Cache::new(&key);
    cache.add(&tool, Packing::Zstd);
    let name_of_lie = lib.listing().replace("lib.so", "lie.so");
    cache.add(&lib, Packing::Zstd);
    cache.write_listing(&lib, &name_of_lie);
    let server = serve(cache.path());
    let setup = Setup::trusting(&key);
    let state = tempfile::tempdir().unwrap();
    let right = format!("views/app/nix/store/{}/lib.so", lib.path);
    {
        let store = setup.open(state.path(), &[&server]);
        admit(&store, &[&lib, &tool]).await;
        let own = paths(&[&lib, &tool]);
        store.make_view(&name("app"), &own, &own).await.unwrap();
        assert_eq!(at(&store, &right).await, None);
        // The NAR tells; the path has a new slot from then on.
        fetched(&store, &lib).await.unwrap();
        assert!(at(&store, &right).await.is_some());
        flushed(&store).await;
    }
    let store = setup.open(state.path(), &[&server]);
    assert!(at(&store, &right).await.is_some());
    assert_eq!(
        names(&store, "views/app/nix/store").await,
        sorted(&[&lib, &tool], "")
    );
    assert_eq!(names(&store, "store").await, sorted(&[&lib, &tool], ""));
}

#[test]
fn the_whole_store_is_no_view_by_name() {
    assert_eq!(Store::top(), NodeId::of(Node::Top));
    assert_eq!(Store::whole(), NodeId::of(Node::Root(ViewId::WHOLE)));
}

/// Reads as the kernel does.
async fn read(store: &Store, node: NodeId) -> usize {
    let mut here = Vec::new();
    match store.read_now(node, 0, 4096, &mut here) {
        Some(done) => done.map(|()| here.len()).unwrap(),
        None => store.read(node, 0, 4096).await.unwrap().len(),
    }
}

/// Profiles are written, and read, where it may be waited for the disk.
async fn blocking<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> T {
    let store = store.clone();
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    done.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_of_a_container_is_recorded_and_guides_the_next_one() {
    let (key, [lib, tool, stranger]) = (key(), packages());
    let cache = Cache::new(&key);
    cache.add_all([&lib, &tool, &stranger], Packing::None);
    let server = serve(cache.path());
    let all = [&tool, &lib, &stranger];
    let within =
        |package: &Package, file: &str| format!("views/app/nix/store/{}{file}", package.path);
    let first = Setup::trusting(&key).store(&[&server]);
    admit(&first, &all).await;
    first
        .make_view(&name("app"), &paths(&all), &[])
        .await
        .unwrap();
    // As a container does: the program, then what it loads; nothing but the program starts.
    for file in [within(&tool, "/bin/tool"), within(&lib, "/lib.so")] {
        let node = at(&first, &file).await.unwrap();
        assert!(read(&first, node).await > 0);
    }
    let profiles = blocking(&first, Store::profiles).await;
    let roots: Vec<_> = profiles.iter().map(|profile| &profile.root).collect();
    assert_eq!(roots, [&tool.path]);
    let read_of: Vec<_> = profiles[0].reads.iter().map(|read| &read.path).collect();
    assert_eq!(read_of, [&tool.path, &lib.path]);

    let profile = profiles[0].clone();
    let next = Setup::trusting(&key).store(&[&server]);
    blocking(&next, move |store| store.keep_profile(&profile)).await;
    admit(&next, &all).await;
    next.make_view(&name("app"), &paths(&all), &[])
        .await
        .unwrap();
    // A container will be made of it: what its program reads comes before it looks anything up.
    let (_, _, named) = profiles[0].extent();
    until(|| next.counters().profile_fetched.get() == named).await;
    let program = at(&next, &within(&tool, "/bin/tool")).await.unwrap();
    let library = at(&next, &within(&lib, "/lib.so")).await.unwrap();
    let mut here = Vec::new();
    until(|| matches!(next.read_now(library, 0, 4096, &mut here), Some(Ok(())))).await;
    until(|| matches!(next.read_now(program, 0, 4096, &mut here), Some(Ok(())))).await;
    assert_eq!(next.counters().read_misses.get(), 0);
    assert_eq!(next.counters().profile_fetched.get(), named);
    // The start is recorded like any other.
    let again = blocking(&next, Store::profiles).await;
    let read_again: Vec<_> = again[0].reads.iter().map(|read| &read.path).collect();
    assert_eq!(read_again, [&lib.path, &tool.path]);
}
