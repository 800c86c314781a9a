//! The same as Nix's own commands say of the caches that Nix made.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{corpus, run::Place};

const CACHES: [&str; 4] = ["none", "zstd", "xz", "br"];

fn nix(args: &[&str]) -> Vec<u8> {
    let output = Command::new("nix")
        .args(["--extra-experimental-features", "nix-command"])
        .args(args)
        .stderr(Stdio::piped())
        .output()
        .expect("nix is installed by tests/setup");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nix {args:?}: {errors}");
    output.stdout
}

fn over(cache: &str) -> (Place, String) {
    let url = format!("file://{}", corpus::cache(cache).display());
    let mut place = Place::bare();
    place.flag("--trusted-key", &corpus::public_key());
    place.flag("--cache", &url);
    (place, url)
}

fn root() -> String {
    corpus::store_path("redis-server").display().to_string()
}

/// Without offsets, which narfs does not print.
fn without_offsets(mut node: Value) -> Value {
    if let Some(node) = node.as_object_mut() {
        node.remove("narOffset");
        if let Some(Value::Object(entries)) = node.get_mut("entries") {
            for entry in entries.values_mut() {
                *entry = without_offsets(entry.take());
            }
        }
    }
    node
}

#[test]
fn ls_and_cat_say_what_nix_says() {
    let root = root();
    for cache in CACHES {
        let (place, url) = over(cache);
        let want: Value = serde_json::from_slice(&nix(&[
            "store", "ls", "--json", "-R", "--store", &url, &root,
        ]))
        .unwrap();
        let have = place.run(&["ls", "--json", "-R", &root]).with(0).json();
        assert_eq!(have, without_offsets(want), "{cache}");
        let file = format!("{root}/bin/redis-cli");
        let want = nix(&["store", "cat", "--store", &url, &file]);
        assert!(place.run(&["cat", &file]).with(0).out == want, "{cache}");
        place.assert_clean();
    }
}

#[test]
fn path_info_says_what_nix_says() {
    let root = root();
    let (place, url) = over("zstd");
    let want: Value =
        serde_json::from_slice(&nix(&["path-info", "--json", "-r", "--store", &url, &root]))
            .unwrap();
    let mut have = place
        .run(&["path-info", "--json", "-c", &root])
        .with(0)
        .json();
    let sorted = |list: &Value| {
        let mut list = list.as_array().unwrap().clone();
        list.sort_by_key(|item| item["path"].as_str().unwrap_or_default().to_owned());
        list
    };
    let (have, want) = (sorted(&have.take()), sorted(&want));
    assert_eq!(have.len(), want.len());
    for (have, want) in have.iter().zip(&want) {
        for field in ["path", "narSize", "references", "signatures", "url"] {
            assert_eq!(have[field], want[field], "{field}");
        }
        // Nix's name of it.
        assert_eq!(have["fileSize"], want["downloadSize"]);
    }
}
