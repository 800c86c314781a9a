//! What is known is admitted again from what is kept of it, and asked for only where that is gone.

use std::fs;

use narfs::{
    content::{ContentStore, OpenOptions},
    store::{Lane, Store},
};

use crate::{
    support::{
        cache::{Cache, Package, Packing, directory, file, key},
        scripted::Server,
    },
    world::{PATIENCE, Setup, all_right, flushed, serve, soon},
};

/// Leaves of the closure; more than are admitted with one look at the database.
const MANY: usize = 150;

fn leaf(n: usize) -> Package {
    let text = format!("the data of leaf {n}");
    Package::new(&format!("leaf-{n}"), &directory([("data", file(text))]))
}

fn closure() -> (Package, Vec<Package>) {
    let leaves: Vec<Package> = (0..MANY).map(leaf).collect();
    let all: Vec<&Package> = leaves.iter().collect();
    (
        Package::new("top", &file("top")).with_references(&all),
        leaves,
    )
}

/// Admits the closure, and holds every tree against its archive.
async fn admit(store: &Store, top: &Package, leaves: &[Package]) {
    let report = soon(store.admit_closure(std::slice::from_ref(&top.path), Lane::Demand)).await;
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert_eq!(report.admitted.len(), 1 + leaves.len());
    assert_eq!(report.admitted[0], top.path, "breadth first");
    let mut numbers: Vec<u32> = Vec::new();
    for package in leaves.iter().chain([top]) {
        let path = store.known(&package.path).unwrap();
        path.tree.same_as(&package.tree()).unwrap();
        assert_eq!(path.nar_hash, package.hash());
        assert_eq!(path.references[..], package.references[..]);
        numbers.push(path.slot.0);
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(
        numbers.len(),
        report.admitted.len(),
        "each has its own slot"
    );
}

fn asked(server: &Server) -> Vec<String> {
    let mut all: Vec<String> = server.requests().into_iter().map(|r| r.path).collect();
    all.retain(|path| path != "/nix-cache-info");
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_closure_is_admitted_again_and_what_is_gone_of_it_is_asked_for() {
    let key = key();
    let cache = Cache::new(&key);
    let (top, leaves) = closure();
    cache.add_all(leaves.iter().chain([&top]), Packing::Zstd);
    let server = serve(cache.path());
    let setup = Setup::trusting(&key);
    let state = tempfile::tempdir().unwrap();
    let store = setup.open(state.path(), &[&server]);
    admit(&store, &top, &leaves).await;
    let slots = |store: &Store| -> Vec<u32> {
        let slot = |p: &Package| store.known(&p.path).unwrap().slot.0;
        leaves.iter().map(slot).collect()
    };
    let first = slots(&store);
    let name = store.substituters()[0].name().to_owned();
    flushed(&store).await;
    drop(store);

    // All of it is here.
    server.clear();
    let store = setup.open(state.path(), &[&server]);
    admit(&store, &top, &leaves).await;
    assert_eq!(asked(&server), [] as [&str; 0]);
    assert_eq!(slots(&store), first);
    let counters = store.counters();
    assert_eq!(counters.admitted.get(), 1 + MANY as u64);
    assert_eq!(counters.narinfo_hits.get(), 1 + MANY as u64);
    // A second time nothing is done.
    admit(&store, &top, &leaves).await;
    assert_eq!(counters.admitted.get(), 1 + MANY as u64);
    drop(store);

    // Of some something is gone, or wrong.
    let content = ContentStore::open(state.path(), OpenOptions { wait: PATIENCE }).unwrap();
    let (no_tree, bad_tree, no_narinfo) = (&leaves[3], &leaves[77], &leaves[149]);
    fs::remove_file(content.tree_path(&no_tree.hash())).unwrap();
    let bad = content.tree_path(&bad_tree.hash());
    let mut bytes = fs::read(&bad).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&bad, bytes).unwrap();
    let forgotten = content.db().forget_narinfo(&name, &no_narinfo.path.hash());
    forgotten.await.unwrap();
    drop(content);
    let store = setup.open(state.path(), &[&server]);
    admit(&store, &top, &leaves).await;
    let mut expected = vec![
        no_tree.listing_url(),
        bad_tree.listing_url(),
        no_narinfo.narinfo_url(),
    ];
    expected.sort();
    let mut asked = asked(&server);
    // Together with a narinfo its listing may be asked for.
    asked.retain(|path| *path != no_narinfo.listing_url());
    assert_eq!(asked, expected);
    for package in [no_tree, bad_tree, no_narinfo, &leaves[0], &top] {
        all_right(&store, package).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_keys_signed_is_not_taken_from_what_is_kept() {
    let (ours, theirs) = (key(), narfs::nix::SigningKey::generate("other-1").unwrap());
    let cache = Cache::new(&ours);
    let (top, leaves) = closure();
    cache.add_all(leaves.iter().chain([&top]), Packing::Zstd);
    let server = serve(cache.path());
    let state = tempfile::tempdir().unwrap();
    let store = Setup::trusting(&ours).open(state.path(), &[&server]);
    admit(&store, &top, &leaves).await;
    flushed(&store).await;
    drop(store);
    let store = Setup::trusting(&theirs).open(state.path(), &[&server]);
    let all: Vec<_> = leaves.iter().map(|p| p.path.clone()).collect();
    let report = soon(store.admit_all(&all, Lane::Demand)).await;
    assert_eq!(report.admitted, []);
    assert_eq!(report.failed.len(), MANY);
    assert!(all.iter().all(|path| store.known(path).is_none()));
}
