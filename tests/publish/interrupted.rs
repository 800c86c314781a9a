//! Kills, a full disk, and two at once: the cache is valid at every moment, and the next run goes on.

use std::{fs, process::Command, thread, time::Duration};

use narfs::nix::TrustedKeys;

use crate::{
    support::cache::{Cache, Packing, directory, file, key, noise},
    world::{Place, assert_valid, chain, ended, narinfos, report, url},
};

fn keys(place: &Place) -> TrustedKeys {
    TrustedKeys::parse([place.key.public()]).unwrap()
}

#[test]
fn a_killed_publisher_leaves_a_valid_cache_and_the_next_goes_on() {
    let (place, key) = (Place::new(), key());
    let source = Cache::new(&key);
    let packages = chain(12, 600_000);
    source.add_all(&packages, Packing::Zstd);
    let (from, out) = (url(source.path()), place.path("out"));
    let (to, top) = (url(&out), packages.last().unwrap().path.absolute());
    let public = key.public();
    let arguments = [
        "--trusted-key",
        &public,
        "--jobs",
        "3",
        "--level",
        "1",
        &top,
    ];
    let mut most = 0;
    // Each is given a little longer than the one before, so that they die everywhere.
    for patience in (20..).step_by(35) {
        let mut child = place.publish(&from, &to, &arguments).spawn().unwrap();
        thread::sleep(Duration::from_millis(patience));
        let done = child.try_wait().unwrap().is_some();
        let _ = child.kill();
        let _ = child.wait();
        let there = assert_valid(&out, &keys(&place));
        assert!(there >= most, "{there} after {most}");
        most = there;
        if done {
            break;
        }
    }
    let before: Vec<_> = fs::read_dir(out.join("nar"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    let times: Vec<_> = before
        .iter()
        .map(|p| fs::metadata(p).unwrap().modified().unwrap())
        .collect();
    let report = place.published(&from, &to, &arguments);
    assert_eq!(report["paths"], packages.len());
    assert_eq!(assert_valid(&out, &keys(&place)), packages.len());
    // What was there was not written again.
    for (path, time) in before.iter().zip(times) {
        let is_part = path.extension().is_some_and(|e| e == "part");
        assert!(
            is_part || fs::metadata(path).unwrap().modified().unwrap() == time,
            "{path:?}"
        );
    }
    let again = place.published(&from, &to, &arguments);
    assert_eq!(
        (&again["present"], &again["written"]),
        (&packages.len().into(), &0.into())
    );
}

#[test]
fn two_publishers_at_once_make_one_cache() {
    let (place, key) = (Place::new(), key());
    let source = Cache::new(&key);
    let packages = chain(6, 300_000);
    source.add_all(&packages, Packing::Xz);
    let (from, out) = (url(source.path()), place.path("out"));
    let top = packages.last().unwrap().path.absolute();
    let public = key.public();
    let start = || {
        let arguments = ["--trusted-key", &public, "--level", "1", &top];
        place
            .publish(&from, &url(&out), &arguments)
            .spawn()
            .unwrap()
    };
    let both = [start(), start()];
    for child in both {
        assert_eq!(report(&ended(child), 0)["failed"], 0);
    }
    assert_eq!(assert_valid(&out, &keys(&place)), packages.len());
    let parts = fs::read_dir(&out)
        .unwrap()
        .chain(fs::read_dir(out.join("nar")).unwrap());
    let parts = parts.filter(|e| {
        e.as_ref()
            .unwrap()
            .path()
            .extension()
            .is_some_and(|e| e == "part")
    });
    assert_eq!(parts.count(), 0);
}

#[test]
fn a_full_disk_is_said_and_gone_on_from() {
    let (place, key) = (Place::new(), key());
    let source = Cache::new(&key);
    let packages = chain(4, 400_000);
    source.add_all(&packages, Packing::Zstd);
    let out = place.path("out");
    fs::create_dir(&out).unwrap();
    let mount = |options: &str| {
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&out);
        assert!(
            mount.status().unwrap().success(),
            "this test needs to be root"
        );
    };
    mount("size=1m");
    struct Unmount<'a>(&'a std::path::Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0).status();
        }
    }
    let _unmount = Unmount(&out);
    let top = packages.last().unwrap().path.absolute();
    let public = key.public();
    let arguments = ["--trusted-key", &public, "--jobs", "1", &top];
    let output = place
        .publish(&url(source.path()), &url(&out), &arguments)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let failed = report(&output, 1);
    assert!(
        errors.contains("No space left") && errors.contains("/out"),
        "{errors}"
    );
    assert!(errors.contains("run it again"), "{errors}");
    let there = assert_valid(&out, &keys(&place));
    assert!(there > 0 && there < packages.len(), "{there}");
    assert_eq!(failed["written"], there);
    mount("remount,size=20m");
    let report = place.published(&url(source.path()), &url(&out), &arguments);
    assert_eq!(report["present"], there);
    assert_eq!(assert_valid(&out, &keys(&place)), packages.len());
    place.assert_clean();
}

#[test]
fn what_is_there_is_respected() {
    let (place, key) = (Place::new(), key());
    let source = Cache::new(&key);
    let packages = chain(1, 1000);
    source.add_all(&packages, Packing::None);
    let (from, out) = (url(source.path()), place.path("out"));
    let (to, top) = (url(&out), packages.last().unwrap().path.absolute());
    let public = key.public();
    let arguments = ["--trusted-key", &public, &top];
    // Nothing is written in a dry run, not even the directory.
    let dry = place.published(&from, &to, &["--trusted-key", &public, "--dry-run", &top]);
    assert_eq!((&dry["dryRun"], &dry["written"]), (&true.into(), &2.into()));
    assert!(!out.exists());
    // Another store's cache is refused.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("nix-cache-info"), "StoreDir: /gnu/store\n").unwrap();
    let refused = place.publish(&from, &to, &arguments).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("/gnu/store"));
    // One's own words stay.
    let words = "StoreDir: /nix/store\nWantMassQuery: 0\nPriority: 7\n";
    fs::write(out.join("nix-cache-info"), words).unwrap();
    place.published(&from, &to, &arguments);
    assert_eq!(
        fs::read_to_string(out.join("nix-cache-info")).unwrap(),
        words
    );
    // Signatures of others stay, too.
    let infos = narinfos(&out);
    let top_info = &infos[&packages.last().unwrap().path.hash()];
    let names: Vec<_> = top_info.signatures.iter().map(|s| s.key()).collect();
    assert_eq!(names, ["test-1", "published-1", "published-1.chunks-1"]);
    // The same path with another NAR is not replaced.
    let other =
        crate::support::cache::Package::new("top", &directory([("x", file(noise(1, 100)))]));
    let others = Cache::new(&key);
    others.add(&other, Packing::None);
    let refused = place
        .publish(&url(others.path()), &to, &arguments)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("has") && errors.contains(".narinfo"),
        "{errors}"
    );
    assert_valid(&out, &keys(&place));
}

#[test]
fn a_lying_source_is_not_published() {
    let (place, key) = (Place::new(), key());
    let source = Cache::new(&key);
    let packages = chain(2, 1000);
    source.add_all(&packages, Packing::None);
    let mut nar = packages[0].nar.clone();
    let at = nar.len() - 200;
    nar[at] ^= 1;
    source.write(&packages[0].nar_url(Packing::None), &nar);
    let out = place.path("out");
    let top = packages.last().unwrap().path.absolute();
    let public = key.public();
    let arguments = ["--trusted-key", &public, &top];
    let output = place
        .publish(&url(source.path()), &url(&out), &arguments)
        .output()
        .unwrap();
    let report = report(&output, 4);
    // What refers to it is held back.
    assert_eq!(
        (&report["failed"], &report["written"]),
        (&3.into(), &0.into())
    );
    assert_eq!(assert_valid(&out, &keys(&place)), 0);
    // An unsigned source is not read at all.
    let output = place
        .publish(&url(source.path()), &url(&out), &[&top])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
}
