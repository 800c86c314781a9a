//! What the real nix unpacks from the corpus: what a mount has to show.
//!
//! Not the machine's own `/nix/store`: programs that ran from it as root may have written there.
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    corpus,
    snapshot::{Snapshot, snapshot},
};

/// The trees of some store paths by their names below `/nix/store`.
pub type Trees = BTreeMap<String, Snapshot>;

/// A field of a path's narinfo in the cache `none`, whose NARs are packed with nothing.
fn narinfo(digest: &str) -> BTreeMap<String, String> {
    let file = corpus::cache("none").join(format!("{digest}.narinfo"));
    let text = fs::read_to_string(&file)
        .unwrap_or_else(|e| panic!("{}: {e}: run tests/setup", file.display()));
    let fields = text.lines().filter_map(|line| line.split_once(": "));
    fields.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// The names of a closure, its root first.
pub fn closure(root: &Path) -> Vec<String> {
    let name = root.file_name().expect("a name").to_string_lossy();
    let mut names = vec![name.into_owned()];
    let mut at = 0;
    while at < names.len() {
        let info = narinfo(&names[at][..32]);
        for reference in info["References"].split_whitespace() {
            if !names.iter().any(|name| name == reference) {
                names.push(reference.to_owned());
            }
        }
        at += 1;
    }
    names
}

/// Where the NAR of a path lies, packed with nothing.
pub fn nar(name: &str) -> PathBuf {
    corpus::cache("none").join(&narinfo(&name[..32])["URL"])
}

/// A path as `nix-store --restore` unpacks it; `directory` must not exist.
pub fn restore(name: &str, directory: &Path) {
    let nar = File::open(nar(name)).expect("the NAR is there");
    let restored = Command::new("nix-store")
        .arg("--restore")
        .arg(directory)
        .stdin(nar)
        .status()
        .expect("nix-store is installed by tests/setup");
    assert!(restored.success(), "nix-store --restore of {name}");
}

/// The trees of a closure, unpacked once for all tests.
pub fn trees(root: &Path) -> Arc<Trees> {
    static KNOWN: Mutex<BTreeMap<PathBuf, Arc<Trees>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let unpack = || {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let trees = closure(root).into_iter().map(|name| {
            let at = directory.path().join(&name);
            restore(&name, &at);
            let tree = snapshot(&at);
            (name, tree)
        });
        Arc::new(trees.collect())
    };
    known.entry(root.to_owned()).or_insert_with(unpack).clone()
}
