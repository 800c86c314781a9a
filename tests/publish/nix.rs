//! The real Nix over what was published of the real caches.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    corpus,
    world::{Place, narinfos, url},
};

/// Runs the real nix; trusts only `key`.
fn nix(home: &Path, key: &str, arguments: &[&str]) -> Vec<u8> {
    let settings = format!(
        "experimental-features = nix-command\nbuild-users-group =\nsubstituters =\nrequire-sigs = true\n\
         trusted-public-keys = {key}\n"
    );
    let output = Command::new("nix")
        .args(arguments)
        .env("NIX_CONFIG", settings)
        .env("HOME", home)
        .stdin(Stdio::null())
        .output()
        .expect("nix is installed by tests/setup");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nix {arguments:?}: {errors}");
    output.stdout
}

fn root() -> String {
    corpus::store_path("redis-server").display().to_string()
}

/// The listing of a path, as the cache has it.
fn listing(cache: &Path, path: &str) -> Value {
    let hash = &path["/nix/store/".len()..][..32];
    serde_json::from_slice(&fs::read(cache.join(format!("{hash}.ls"))).unwrap()).unwrap()
}

#[test]
fn nix_copies_and_verifies_what_was_published_from_a_cache() {
    let place = Place::new();
    let (original, out) = (corpus::cache("zstd"), place.path("out"));
    let root = root();
    let key = corpus::public_key();
    let report = place.published(&url(&original), &url(&out), &["--trusted-key", &key, &root]);
    let closure = corpus::closure(Path::new(&root));
    assert_eq!(report["written"], closure.len());
    let public = place.key.public();
    let copy = place.path("copy");
    let store = copy.display().to_string();
    nix(
        &place.path("home"),
        &public,
        &["copy", "--from", &url(&out), "--to", &store, &root],
    );
    nix(
        &place.path("home"),
        &public,
        &["store", "verify", "--store", &store, "--recursive", &root],
    );
    for path in &closure {
        let have = copy.join(path.strip_prefix("/").unwrap());
        let mut diff = Command::new("diff");
        diff.args(["-r", "--no-dereference"]).arg(path).arg(have);
        assert!(diff.status().unwrap().success(), "{}", path.display());
        // Listings say the same as those that Nix made.
        let path = path.display().to_string();
        assert_eq!(listing(&out, &path), listing(&original, &path));
    }
    // Nix's own view of the cache, with its listings.
    let listed = |cache: &Path| {
        let arguments = ["store", "ls", "--json", "-R", "--store", &url(cache), &root];
        serde_json::from_slice::<Value>(&nix(&place.path("home"), &public, &arguments)).unwrap()
    };
    assert_eq!(listed(&out), listed(&original));
    // The key that signed there is still trusted here.
    nix(
        &place.path("home"),
        &key,
        &[
            "copy",
            "--from",
            &url(&out),
            "--to",
            &place.path("2").display().to_string(),
            &root,
        ],
    );
    place.assert_clean();
}

#[test]
fn a_local_store_gives_the_same_as_a_cache_of_it() {
    let place = Place::new();
    let root = root();
    let (local, cached) = (place.path("local"), place.path("cached"));
    place.published("/nix/store", &url(&local), &["--jobs", "2", &root]);
    let key = corpus::public_key();
    place.published(
        &url(&corpus::cache("xz")),
        &url(&cached),
        &["--trusted-key", &key, &root],
    );
    let (a, b) = (narinfos(&local), narinfos(&cached));
    assert!(!a.is_empty() && a.keys().eq(b.keys()));
    for (hash, a) in &a {
        let b = &b[hash];
        assert_eq!(
            (&a.url, a.file_hash, &a.references),
            (&b.url, b.file_hash, &b.references)
        );
        assert_eq!(
            fs::read(local.join(&a.url)).unwrap(),
            fs::read(cached.join(&b.url)).unwrap()
        );
        let index = format!("{}.chunks", a.url);
        assert_eq!(
            fs::read(local.join(&index)).unwrap(),
            fs::read(cached.join(&index)).unwrap()
        );
    }
    let gone = "/nix/store/00000000000000000000000000000000-gone";
    let output = place
        .publish("/nix/store", &url(&local), &[gone])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains("nix path-info") && errors.contains("gone"),
        "{errors}"
    );
}
