//! Views in a real mount, and under real overlays.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use narfs::{
    fuse::{Layout, Mount, MountOptions, unmount},
    store::{Lane, Store, ViewName},
};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::{
    support::cache::{Cache, Package, Packing, directory, exec, file, key, noise},
    world::{Setup, serve},
};

/// A mount of everything; gone when it is dropped.
struct Mounted {
    directory: tempfile::TempDir,
    overlays: Vec<PathBuf>,
}

impl Mounted {
    fn start(store: &Store) -> Self {
        assert!(
            rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "this test needs root and /dev/fuse; it is not skipped without"
        );
        let directory = tempfile::tempdir().unwrap();
        let mountpoint = directory.path().join("mnt");
        fs::create_dir(&mountpoint).unwrap();
        let options = MountOptions {
            allow_other: true,
            threads: 2,
            layout: Layout::Node,
            upcalls: Default::default(),
        };
        // Its session goes on by itself until somebody unmounts it.
        drop(Mount::new(store, &mountpoint, &options).unwrap());
        Self {
            directory,
            overlays: Vec::new(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    /// An overlay with these lowers, topmost first, and an upper of its own.
    fn overlay(&mut self, lowers: &[PathBuf]) -> PathBuf {
        let of = |what: &str| {
            let n = self.overlays.len();
            let path = self.directory.path().join(format!("{what}{n}"));
            fs::create_dir(&path).unwrap();
            path
        };
        let (merged, upper, work) = (of("merged"), of("upper"), of("work"));
        let lowers: Vec<_> = lowers.iter().map(|l| l.display().to_string()).collect();
        let data = format!(
            "lowerdir={},upperdir={},workdir={}",
            lowers.join(":"),
            upper.display(),
            work.display()
        );
        let data = std::ffi::CString::new(data).unwrap();
        rustix::mount::mount(
            "overlay",
            &merged,
            "overlay",
            MountFlags::empty(),
            data.as_c_str(),
        )
        .expect("an overlay over a view");
        self.overlays.push(merged.clone());
        merged
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for overlay in &self.overlays {
            let _ = rustix::mount::unmount(overlay, UnmountFlags::DETACH);
        }
        let _ = unmount(&self.path(), true);
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_see_their_closure_under_an_overlay() {
    let key = key();
    let lib = Package::new("lib", &directory([("data", file(noise(1, 300_000)))]));
    let tool = directory([("bin", directory([("tool", exec("#!/bin/sh\necho hi\n"))]))]);
    let tool = Package::new("tool", &tool);
    let cache = Cache::new(&key);
    cache.add_all([&lib, &tool], Packing::Zstd);
    let server = serve(cache.path());
    let store = Setup::trusting(&key).store(&[&server]);
    let all = [lib.path.clone(), tool.path.clone()];
    store.admit_all(&all, Lane::Demand).await;
    let view = |name| ViewName::parse(name).unwrap();
    store
        .make_view(&view("base"), &all[..1], &[])
        .await
        .unwrap();
    store
        .make_view(&view("app"), &all[1..], &all)
        .await
        .unwrap();

    let (tool, lib, data) = (all[1].clone(), all[0].clone(), lib.nar.clone());
    let again = store.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let mut mounted = Mounted::start(&again);
        let at = |way: &str| mounted.path().join(way);
        assert_eq!(names(&mounted.path()), ["store", "views"]);
        assert_eq!(names(&at("views")), ["app", "base"]);
        assert_eq!(fs::metadata(mounted.path()).unwrap().ino(), 1);
        let file = format!("{lib}/data");
        assert_eq!(
            fs::metadata(at("store").join(&file)).unwrap().ino(),
            fs::metadata(at("views/base/nix/store").join(&file))
                .unwrap()
                .ino(),
        );

        let (app, base) = (at("views/app"), at("views/base"));
        let root = mounted.overlay(&[app.clone(), base.clone()]);
        assert_eq!(names(&root), ["nix"], ".nix-snapshotter is hidden");
        let mut both = vec![lib.to_string(), tool.to_string()];
        both.sort();
        assert_eq!(names(&root.join("nix/store")), both);
        let mut status: Vec<_> = both.iter().map(|path| format!("{path}.json")).collect();
        status.push("summary.json".into());
        status.sort();
        assert_eq!(names(&root.join(".nix-snapshotter")), status);
        let summary = || -> serde_json::Value {
            let text = fs::read(root.join(".nix-snapshotter/summary.json")).unwrap();
            serde_json::from_slice(&text).unwrap()
        };
        assert_eq!(summary()["paths"]["total"], 2);
        assert_eq!(
            summary()["fetchedSize"],
            0,
            "nothing was fetched by looking"
        );
        let read = fs::read(root.join("nix/store").join(&file)).unwrap();
        assert!(data.windows(read.len()).any(|part| part == read) && read.len() == 300_000);
        assert!(summary()["fetchedSize"].as_u64().unwrap() >= 300_000);
        let mut run = std::process::Command::new(root.join(format!("nix/store/{tool}/bin/tool")));
        let ran = run.output().unwrap();
        assert_eq!(ran.stdout, b"hi\n");
        // The container may write where it likes: into its own upper.
        fs::write(root.join("nix/store").join(&file), "mine").unwrap();
        fs::create_dir(root.join("nix/var")).unwrap();
        assert_eq!(
            fs::read(root.join("nix/store").join(&file)).unwrap(),
            b"mine"
        );
        assert_eq!(
            fs::metadata(base.join("nix/store").join(&file))
                .unwrap()
                .len(),
            300_000
        );
        mounted
    });
    let mounted = looked.await.unwrap();

    // A name that leads to another view leads there at once.
    let way = mounted.path().join("views/app/nix/store");
    store.make_view(&view("app"), &all[..1], &[]).await.unwrap();
    let expected = vec![all[0].to_string()];
    crate::world::until(|| names(&way) == expected).await;
    store.remove_view(&view("app")).await.unwrap();
    crate::world::until(|| !way.exists()).await;
    tokio::task::spawn_blocking(move || drop(mounted))
        .await
        .unwrap();
}
