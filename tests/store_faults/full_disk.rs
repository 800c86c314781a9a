//! A full disk: reads are slower and never wrong, and what fits later is kept later.
//!
//! Needs root, for a file system of its own.

use std::{fs, io::Write, path::Path, process::Command};

use narfs::store::{StoreError, Verify};

use crate::{
    support::cache::{Cache, Package, Packing, directory, file, key, noise},
    world::{Setup, admitted, all_right, fetched, flushed, serve, soon},
};

/// A small file system in memory.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size},mode=0700"),
                "tmpfs",
            ])
            .arg(directory.path());
        assert!(
            mount.status().unwrap().success(),
            "this test needs to be root"
        );
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut filler = fs::File::create(self.path().join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn package(name: &str, seed: u64) -> Package {
    Package::new(
        name,
        &directory([
            ("a", file(noise(seed, 700_000))),
            ("b", file(noise(seed + 1, 900))),
            ("z", file(noise(seed + 2, 700_000))),
        ]),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_serves_every_read_and_heals() {
    let key = key();
    let cache = Cache::new(&key);
    let (before, after) = (package("known-before", 1), package("met-when-full", 5));
    for packing in [Packing::Zstd, Packing::Xz, Packing::None, Packing::Blocks] {
        println!("{packing:?}");
        cache.add_all([&before, &after], packing);
        let server = serve(cache.path());
        let disk = Tmpfs::new("24m");
        let setup = Setup::trusting(&key);
        let store = setup.open(disk.path(), &[&server]);
        admitted(&store, &before).await;
        flushed(&store).await;
        disk.fill();
        all_right(&store, &before).await;
        let path = admitted(&store, &before).await;
        assert!(!store.path_status(&path).verified);
        let unkept = soon(store.prefetch(&path, narfs::store::Lane::Demand))
            .await
            .unwrap_err();
        assert!(
            matches!(unkept.root(), StoreError::Unkept { .. }),
            "{unkept}"
        );
        all_right(&store, &before).await;
        // A path that was not known needs a number that lasts: without room an error, no absence.
        if let Err(error) = soon(store.admit(&after.path)).await {
            assert!(!error.is_absence(), "{error}");
        }
        disk.make_room();
        all_right(&store, &before).await;
        fetched(&store, &before).await.unwrap();
        all_right(&store, &before).await;
        all_right(&store, &after).await;
        fetched(&store, &after).await.unwrap();
        assert!(store.path_status(&path).verified);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn before_read_a_full_disk_is_an_error_until_there_is_room() {
    let key = key();
    let cache = Cache::new(&key);
    let p = package("strict", 1);
    for packing in [Packing::Zstd, Packing::None] {
        cache.add(&p, packing);
        let server = serve(cache.path());
        let disk = Tmpfs::new("24m");
        let setup = Setup::trusting(&key).with(|s| s.verify = Verify::BeforeRead);
        let store = setup.open(disk.path(), &[&server]);
        admitted(&store, &p).await;
        flushed(&store).await;
        disk.fill();
        let error = crate::world::read(&store, &p, "a", 0, 100)
            .await
            .unwrap_err();
        assert!(matches!(error.root(), StoreError::Unkept { .. }), "{error}");
        assert!(server.count(&p.nar_url(packing)) <= 4, "asked on and on");
        disk.make_room();
        all_right(&store, &p).await;
    }
}
