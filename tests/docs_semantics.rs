//! The examples of `docs/semantics.md` are run, in order, against a mount of a small cache, and
//! have to print what the page says. Needs root and `/dev/fuse`; fails without.
//!
//! A block that is opened with `console` holds commands, each behind `$ `, with their output.
//! They run in the mountpoint, with `HELLO`, `OTHER` and `DAMAGED` set to names of store paths.

#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "support/cache.rs"]
mod cache;
#[path = "support/mounted.rs"]
mod mounted;

use std::{fs, path::Path, process::Command};

use cache::{Cache, Package, Packing, directory, exec, file, link};
use mounted::{Mounted, Setup};

/// Commands of the page with what they print.
fn examples() -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/semantics.md");
    let page = fs::read_to_string(page).unwrap();
    let blocks = page.split("```console\n").skip(1);
    let mut found: Vec<(String, String)> = Vec::new();
    for line in blocks.flat_map(|rest| rest.split("```").next().unwrap().lines()) {
        match (line.strip_prefix("$ "), found.last_mut()) {
            (Some(command), _) => found.push((command.to_owned(), String::new())),
            (None, Some((_, output))) => *output += &format!("{line}\n"),
            (None, None) => panic!("output before any command: {line}"),
        }
    }
    found
}

#[test]
fn every_example_prints_what_the_page_says() {
    let examples = examples();
    assert!(examples.len() >= 10, "{} examples", examples.len());
    let key = cache::key();
    let stranger = cache::key();
    let cache = Cache::new(&key);
    let hello = Package::new(
        "hello",
        &directory([
            (
                "bin",
                directory([("hello", exec("#!/bin/sh\necho Hello, world!\n"))]),
            ),
            (
                "share",
                directory([("doc", file("words\n")), ("link", link("doc"))]),
            ),
        ]),
    );
    cache.add(&hello, Packing::Zstd);
    let other = Package::new("other", &file("nobody signed this\n"));
    cache.add(&other, Packing::Zstd);
    let mut narinfo = other.narinfo(Packing::Zstd);
    stranger.sign(&mut narinfo);
    cache.write(&other.narinfo_url(), narinfo.to_text().as_bytes());
    let damaged = Package::new("damaged", &file("as it was signed\n"));
    cache.add(&damaged, Packing::None);
    let mut bytes = damaged.nar.clone();
    bytes.reverse();
    cache.write(&damaged.nar_url(Packing::None), &bytes);

    let url = format!("file://{}", cache.path().display());
    let mounted = Mounted::start(Setup::new(url, key.public()));
    for (command, expected) in examples {
        let output = Command::new("sh")
            .args(["-c", &format!("exec 2>&1\n{command}")])
            .current_dir(mounted.path())
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("HELLO", hello.path.to_string())
            .env("OTHER", other.path.to_string())
            .env("DAMAGED", damaged.path.to_string())
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(printed, expected, "$ {command}");
    }
}
