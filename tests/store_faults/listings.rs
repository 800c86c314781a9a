//! Listings, which nobody signs, against the NARs they claim to describe.

use std::sync::Arc;

use narfs::{
    store::{Lane, Path},
    tree::{EntryIndex, Node, Source},
};

use crate::{
    support::{
        cache::{Cache, Item, Package, Packing, directory, exec, file, key, link, noise},
        scripted::{Gate, Reply},
    },
    world::{Setup, World, admitted, all_right, fetched, serve, soon, truth, until},
};

/// A package of every kind of entry.
pub fn truthful() -> Package {
    Package::new("described", &described())
}

fn described() -> Item {
    directory([
        ("a", file(noise(1, 1000))),
        ("b", exec(noise(2, 2000))),
        ("big", file(noise(3, 600_000))),
        (
            "dir",
            directory([
                ("inner", file(noise(4, 3000))),
                ("other", file(noise(5, 512))),
            ]),
        ),
        ("link", link("dir/inner")),
        ("z", file(noise(6, 4000))),
    ])
}

/// Listings that add up to the right size and are wrong nevertheless.
fn lies() -> Vec<(&'static str, String)> {
    let item = |change: fn(&mut Vec<(Vec<u8>, Item)>)| {
        let Item::Directory(mut entries) = described() else {
            unreachable!()
        };
        change(&mut entries);
        let lie = Package::new("described", &Item::Directory(entries));
        assert_eq!(
            lie.nar.len(),
            truthful().nar.len(),
            "else it would be refused at once"
        );
        lie.listing()
    };
    vec![
        (
            "two sizes",
            item(|e| {
                e[0].1 = file(noise(1, 1008));
                e[1].1 = exec(noise(1, 1992));
            }),
        ),
        (
            "two sizes far apart",
            item(|e| {
                e[0].1 = file(noise(1, 992));
                e[5].1 = file(noise(1, 4008));
            }),
        ),
        (
            "a size, inside its padding",
            item(|e| {
                e[3].1 = directory([
                    ("inner", file(noise(4, 2993))),
                    ("other", file(noise(5, 512))),
                ])
            }),
        ),
        (
            "who may be executed",
            item(|e| {
                e[0].1 = exec(noise(1, 1000));
                e[1].1 = file(noise(2, 2000));
            }),
        ),
        ("a name", item(|e| e[0].0 = b"A".into())),
        ("a link's target", item(|e| e[4].1 = link("dir/other"))),
        (
            "the order of names",
            item(|e| {
                e[3].1 = directory([
                    ("inner", file(noise(5, 512))),
                    ("other", file(noise(4, 3000))),
                ]);
            }),
        ),
        (
            "a file inside a file",
            item(|e| {
                // As many bytes as the entry `a` takes away are hidden in `big`.
                let Item::File(contents, _) = &mut e[2].1 else {
                    unreachable!()
                };
                let all = narfs_len(&described());
                contents.clear();
                e.remove(0);
                let without = narfs_len(&Item::Directory(e.clone()));
                let Item::File(contents, _) = &mut e[1].1 else {
                    unreachable!()
                };
                contents.resize(all - without, 0);
            }),
        ),
        (
            "one file more",
            item(|e| {
                let all = narfs_len(&described());
                e.insert(1, (b"aa".into(), file("")));
                let Item::File(contents, _) = &mut e[3].1 else {
                    unreachable!()
                };
                contents.clear();
                let without = narfs_len(&Item::Directory(e.clone()));
                let Item::File(contents, _) = &mut e[3].1 else {
                    unreachable!()
                };
                contents.resize(all - without, 0);
            }),
        ),
    ]
}

fn narfs_len(item: &Item) -> usize {
    crate::support::cache::nar(item).len()
}

/// The files of the tree that is believed.
fn files(path: &Path) -> Vec<(EntryIndex, String, u64)> {
    let file = |n| match path.tree.node(EntryIndex(n)) {
        Some(Node::Regular { size, .. }) => {
            let name = String::from_utf8(path.tree.path_of(EntryIndex(n))).unwrap();
            Some((EntryIndex(n), name, size))
        }
        _ => None,
    };
    (0..path.tree.len()).filter_map(file).collect()
}

/// Reads a file as the believed tree has it: the whole truth or an error.
async fn read_believed(
    world: &World,
    p: &Package,
    path: &Arc<Path>,
    entry: EntryIndex,
    name: &str,
    size: u64,
) {
    if size == 0 {
        // Nothing is read of it, so nothing can contradict it.
        return;
    }
    let real = p.tree();
    let outcome = soon(world.store.read_file(path, entry, 0, size as u32 + 1)).await;
    match outcome {
        Ok(bytes) => {
            let right = real.resolve(name.as_bytes()).map(|_| truth(p, name));
            assert!(right.as_ref() == Some(&bytes), "{name}: wrong bytes");
        }
        Err(error) => assert!(!error.is_absence(), "{name}: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_listing_never_leads_to_a_wrong_byte() {
    let key = key();
    let cache = Cache::new(&key);
    let p = truthful();
    for packing in [Packing::None, Packing::Zstd, Packing::Seekable, Packing::Xz] {
        cache.add(&p, packing);
        for (what, listing) in lies() {
            cache.write_listing(&p, &listing);
            let server = serve(cache.path());
            let count = files(&*admitted(&Setup::trusting(&key).store(&[&server]), &p).await).len();
            // Each file first, and behind it all of them through the same belief.
            for first in 0..count {
                println!("{packing:?}: {what}, file {first} first");
                let world = Setup::trusting(&key).store(&[&server]);
                let path = admitted(&world, &p).await;
                let mut order = files(&path);
                order.rotate_left(first);
                for (entry, name, size) in order {
                    read_believed(&world, &p, &path, entry, &name, size).await;
                }
                // What is fetched whole is right, whatever was believed before.
                fetched(&world, &p).await.unwrap();
                until(|| {
                    world
                        .known(&p.path)
                        .is_some_and(|p| p.tree.source() == Source::Nar)
                })
                .await;
                all_right(&world, &p).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_listing_is_found_by_fetching_everything() {
    let key = key();
    let cache = Cache::new(&key);
    let p = truthful();
    for packing in Packing::ALL {
        cache.add(&p, packing);
        for (what, listing) in lies() {
            println!("{packing:?}: {what}");
            cache.write_listing(&p, &listing);
            let server = serve(cache.path());
            let world = Setup::trusting(&key).store(&[&server]);
            let old = admitted(&world, &p).await;
            let _ = soon(world.prefetch(&old, Lane::Demand)).await;
            fetched(&world, &p).await.unwrap();
            until(|| {
                world
                    .known(&p.path)
                    .is_some_and(|p| p.tree.source() == Source::Nar)
            })
            .await;
            all_right(&world, &p).await;
            // Who still holds what was believed gets nothing through it.
            for (entry, name, size) in files(&old) {
                read_believed(&world, &p, &old, entry, &name, size).await;
            }
            // And so it stays.
            let setup = Setup::trusting(&key);
            let World { store, state } = world;
            drop((store, old));
            let again = setup.open(state.path(), &[&server]);
            all_right(&again, &p).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_nar_is_indexed_the_wrong_tree_gives_out_nothing() {
    let key = key();
    let cache = Cache::new(&key);
    let p = truthful();
    cache.add(&p, Packing::Zstd);
    let (_, listing) = lies().swap_remove(1);
    cache.write_listing(&p, &listing);
    let server = serve(cache.path());
    let gate = Gate::new();
    let packed = Packing::Zstd.pack(&p.nar);
    let almost = packed.len() as u64 - 10;
    server.script(
        &p.nar_url(Packing::Zstd),
        [
            Reply::as_it_is(),
            Reply::as_it_is().pausing_at(almost, &gate),
        ],
    );
    let world = Setup::trusting(&key).store(&[&server]);
    let path = admitted(&world, &p).await;
    let reading = tokio::spawn({
        let (store, path) = (world.store.clone(), path.clone());
        async move {
            store
                .read_file(&path, path.tree.resolve(b"a").unwrap(), 0, 5000)
                .await
        }
    });
    gate.wait_for(1);
    until(|| world.fetched_bytes(&path) > 500_000).await;
    let inner = path.tree.resolve(b"dir/inner").unwrap();
    let early = tokio::spawn({
        let (store, path) = (world.store.clone(), path.clone());
        async move { store.read_file(&path, inner, 0, 5000).await }
    });
    tokio::task::yield_now().await;
    gate.open();
    for (name, outcome) in [
        ("a", soon(reading).await.unwrap()),
        ("dir/inner", soon(early).await.unwrap()),
    ] {
        assert!(
            outcome.is_err() || outcome.unwrap() == truth(&p, name),
            "{name}"
        );
    }
    until(|| {
        world
            .known(&p.path)
            .is_some_and(|p| p.tree.source() == Source::Nar)
    })
    .await;
    all_right(&world, &p).await;
}
