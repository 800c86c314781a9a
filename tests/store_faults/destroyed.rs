//! What narfs writes down for itself is destroyed, in part or all of it: it opens, serves what is
//! right, and fetches the rest again.

use std::{fs, path::Path};

use crate::{
    support::cache::{Cache, Package, Packing, directory, file, key, noise},
    world::{Setup, World, all_right, fetched, flushed, serve},
};

/// Files below `content/` with this extension, or the database for none.
fn files(state: &Path, extension: Option<&str>) -> Vec<std::path::PathBuf> {
    let Some(extension) = extension else {
        return vec![state.join("narfs.redb")];
    };
    let names = fs::read_dir(state.join("content")).unwrap();
    let paths = names.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect()
}

fn destroy(file: &Path, how: &str) {
    let bytes = fs::read(file).unwrap();
    match how {
        "gone" => fs::remove_file(file).unwrap(),
        "empty" => fs::write(file, "").unwrap(),
        "cut off" => fs::write(file, &bytes[..bytes.len() / 2]).unwrap(),
        "noise" => fs::write(file, noise(7, bytes.len())).unwrap(),
        "flipped" => {
            let flipped: Vec<_> = bytes.iter().map(|byte| byte ^ 0x10).collect();
            fs::write(file, flipped).unwrap();
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_destroyed_costs_requests_and_nothing_else() {
    let key = key();
    let cache = Cache::new(&key);
    let listed = Package::new(
        "listed",
        &directory([
            ("data", file(noise(1, 200_000))),
            ("end", file(noise(2, 100_000))),
        ]),
    );
    let unlisted = Package::new("unlisted", &directory([("data", file(noise(3, 200_000)))]));
    cache.add(&listed, Packing::Zstd);
    cache.add_unlisted(&unlisted, Packing::Zstd);
    let server = serve(cache.path());
    let setup = Setup::trusting(&key);
    for extension in [None, Some("map"), Some("index"), Some("nar")] {
        for how in ["gone", "empty", "cut off", "noise", "flipped"] {
            // A NAR whose bytes are wrong is for `narfs check` and the scrub to find.
            if extension == Some("nar") && ["noise", "flipped"].contains(&how) {
                continue;
            }
            println!("{extension:?}: {how}");
            let World { store, state } = setup.store(&[&server]);
            for p in [&listed, &unlisted] {
                fetched(&store, p).await.unwrap();
            }
            flushed(&store).await;
            drop(store);
            let victims = files(state.path(), extension);
            assert!(!victims.is_empty(), "there is nothing to destroy");
            for victim in victims {
                destroy(&victim, how);
            }
            let store = setup.open(state.path(), &[&server]);
            for p in [&listed, &unlisted] {
                all_right(&store, p).await;
                fetched(&store, p).await.unwrap();
            }
            let again = store.clone();
            let report = tokio::task::spawn_blocking(move || again.check(&[], |_, _| {}).unwrap());
            let report = report.await.unwrap();
            assert!(
                report
                    .checked
                    .iter()
                    .all(|checked| checked.problem.is_none()),
                "{report:?}"
            );
        }
    }
}
