//! What narfs takes of input that nobody's Nix wrote, Nix takes as well and reads the same.
//!
//! The inputs are the seeds of the fuzz targets, which fuzzing adds to, and changes of them.
//! `NARFS_FUZZED=target/fuzzing/corpus` takes all that fuzzing learned instead.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use narfs::{
    nix::{NarHash, NarInfo, StorePath, StorePathHash},
    tree::{NarIndexer, Tree},
};

use crate::{
    nix::Sandbox,
    trees::{self, Rng},
};

/// Inputs of a fuzz target, in the order of their names.
fn inputs(target: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fuzzed = std::env::var_os("NARFS_FUZZED");
    let place = fuzzed.map_or("fuzz/seeds".into(), PathBuf::from);
    let files = fs::read_dir(root.join(place).join(target)).expect("a directory of inputs");
    let files: BTreeSet<_> = files.map(|file| file.unwrap().path()).collect();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// The same with words of eight bytes, single bytes and bits changed.
fn changed(rng: &mut Rng, input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..1 + rng.below(3) {
        if bytes.len() < 16 {
            break;
        }
        let at = rng.below(bytes.len());
        let word = (at & !7).min(bytes.len() - 8);
        match rng.below(5) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = b"\0./a~\xff"[rng.below(6)],
            2 => drop(bytes.drain(word..word + 8)),
            3 => bytes.splice(word..word, input[..8].to_vec()).for_each(drop),
            _ => {
                let other = rng.below(bytes.len() - 7) & !7;
                bytes.copy_within(other..other + 8, word);
            }
        }
    }
    bytes
}

fn indexed(nar: &[u8]) -> Option<Tree> {
    let mut indexer = NarIndexer::new();
    indexer.push(nar).ok()?;
    let image = indexer.finish(NarHash::from_bytes([7; 32])).ok()?;
    Some(Tree::from_image(image).expect("what the indexer makes is an image"))
}

#[test]
fn what_is_read_as_a_nar_nix_unpacks_to_the_same() {
    let sandbox = Sandbox::new();
    let mut rng = Rng::new(11);
    let mut taken = 0;
    for input in inputs("nar") {
        // The first byte tells the fuzz target how to cut it.
        let whole = &input[input.len().min(1)..];
        let variants = (0..300).map(|_| changed(&mut rng, whole));
        for nar in [whole.to_vec()].into_iter().chain(variants) {
            let Some(tree) = indexed(&nar) else { continue };
            taken += 1;
            let place = sandbox.path().join(taken.to_string());
            let mut nix = Command::new("nix-store")
                .arg("--restore")
                .arg(&place)
                .stdin(Stdio::piped())
                .spawn()
                .expect("nix-store is installed by tests/setup");
            nix.stdin.take().unwrap().write_all(&nar).unwrap();
            assert!(nix.wait().unwrap().success(), "only narfs reads {nar:?}");
            trees::assert_same(&tree, &nar, &place);
        }
    }
    assert!(taken > 20, "{taken} were NARs");
}

/// What Nix says about a path, by a cache that has this narinfo.
fn path_info(sandbox: &Sandbox, number: usize, info: &NarInfo, text: &[u8]) -> Option<String> {
    let cache = sandbox.path().join(format!("cache-{number}"));
    fs::create_dir(&cache).unwrap();
    fs::write(cache.join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    let name = format!("{}.narinfo", info.store_path.hash());
    fs::write(cache.join(name), text).unwrap();
    let output = Command::new("nix")
        .env("HOME", sandbox.path().join("home"))
        .env("NIX_CONFIG", "experimental-features = nix-command")
        .args(["path-info", "--json", "--store"])
        .arg(format!("file://{}", cache.display()))
        .arg(info.store_path.absolute())
        .output()
        .expect("nix is installed by tests/setup");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success() && said.contains("\"narHash\"")).then_some(said)
}

/// Whether each value stands where Nix looks for it: two bytes behind the name, up to the end of the line.
fn spaced_as_by_nix(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    text.lines().all(|line| {
        let value = line.split_once(": ").map(|(_, value)| value);
        value.is_some_and(|value| value.trim() == value) || line.ends_with(": ")
    }) && text.ends_with('\n')
        && !text.contains('\r')
}

/// Holds what Nix says against what narfs read.
fn assert_says(said: &str, info: &NarInfo) {
    let said: serde_json::Value = serde_json::from_str(said).expect("JSON");
    let said = &said[0];
    assert_eq!(said["path"], info.store_path.absolute());
    let hash = said["narHash"].as_str().unwrap_or_default();
    assert_eq!(NarHash::parse(hash), Ok(info.nar_hash), "{said}");
    assert_eq!(said["narSize"], info.nar_size, "{said}");
    let references = info.references.iter().map(StorePath::absolute);
    let theirs: Vec<_> = said["references"].as_array().expect("a list").clone();
    let theirs: BTreeSet<_> = theirs.iter().filter_map(|r| r.as_str()).collect();
    let ours: Vec<_> = references.collect();
    assert_eq!(theirs, ours.iter().map(String::as_str).collect());
    if let Some(url) = said["url"].as_str() {
        assert_eq!(url, info.url, "{said}");
    }
}

#[test]
fn what_is_read_as_a_narinfo_says_the_same_to_nix() {
    let sandbox = Sandbox::new();
    let asked = StorePathHash::parse(b"0z9wcv93z7bc9zqh1f5wwplw6rq7k925").unwrap();
    let mut rng = Rng::new(12);
    let (mut read, mut as_it_is) = (0, 0);
    for input in inputs("narinfo") {
        let variants = (0..30).map(|_| changed(&mut rng, &input));
        for text in [input.clone()].into_iter().chain(variants) {
            let Ok(mut info) = NarInfo::parse(&text, &asked) else {
                continue;
            };
            read += 1;
            if !spaced_as_by_nix(&text) {
                // narfs takes a field without its space, with more of them, and lines of Windows.
            } else if let Some(said) = path_info(&sandbox, 2 * read, &info, &text) {
                as_it_is += 1;
                assert_says(&said, &info);
            }
            // What Nix refuses and narfs passes over decides nothing: without it Nix reads it.
            info.ca = None;
            let plain = info.to_text();
            let said = path_info(&sandbox, 2 * read + 1, &info, plain.as_bytes());
            assert_says(
                &said.unwrap_or_else(|| panic!("only narfs reads\n{plain}")),
                &info,
            );
        }
    }
    assert!(
        read > 10 && as_it_is > 5,
        "{read} read, {as_it_is} as they are"
    );
}
