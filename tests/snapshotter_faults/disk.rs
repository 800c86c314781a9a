//! A full disk: calls fail with what to do, what there is stays, and room makes it work again.

use std::{fs, io::Write, path::Path, process::Command};

use tonic::Code;

use crate::world::World;

/// A small file system in memory.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={size},mode=0700");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(directory.path());
        assert!(
            mount.status().unwrap().success(),
            "this test needs to be root"
        );
        Self(directory)
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut filler = fs::File::create(self.0.path().join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.path().join("filler")).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_survived() {
    let disk = Tmpfs::new("16m");
    let mut world = World::prepare(&[]).at(&disk.path().join("root"));
    world.run().await;
    let mut calls = world.calls().await;
    for n in 0..20 {
        calls
            .prepare(&format!("before{n}"), "", [].into())
            .await
            .unwrap();
    }
    disk.fill();
    let mut failed = 0;
    // Long labels need new pages of the database.
    let label = |n: usize| [(format!("l{n}"), "x".repeat(4000))].into();
    for n in 0..40 {
        if let Err(error) = calls.prepare(&format!("full{n}"), "", label(n)).await {
            assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
            assert_eq!(
                calls.stat(&format!("full{n}")).await.unwrap_err().code(),
                Code::NotFound
            );
            failed += 1;
        }
    }
    assert!(failed > 0, "the disk was never full");
    let there = calls.list(&[]).await.unwrap();
    assert_eq!(there.len(), 60 - failed);
    calls.mounts("before7").await.unwrap();
    disk.make_room();
    calls.prepare("after", "", label(99)).await.unwrap();
    calls.remove("before3").await.unwrap();
    calls.cleanup().await.unwrap();
    assert_eq!(world.directories().len(), 60 - failed);
    world.kill();
    world.run().await;
    assert_eq!(
        world.calls().await.list(&[]).await.unwrap().len(),
        60 - failed
    );
}
