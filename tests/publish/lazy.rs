//! A program started from a published cache: real python from real NARs, by the chunk.

use std::{fs, path::Path, process::Command};

use crate::{
    corpus,
    support::scripted::{Request, Server},
    world::{Place, url},
};

/// Twelve modules, with libraries behind some of them.
const SCRIPT: &str = "import json, http.client, email.message, sqlite3, decimal, ctypes, xml.etree.ElementTree, \
                      urllib.request, asyncio, logging, argparse, unittest; print('imported')";

/// Most requests for parts of NARs, and most bytes of them, that such a start may cost: 97 and
/// 14.6 MB when this was written, of 22 MB.
const MOST_REQUESTS: usize = 110;
const MOST_BYTES: u64 = 17_000_000;

/// What a request for (a part of) a NAR brings, in bytes.
fn bytes(request: &Request, whole: impl FnOnce() -> u64) -> u64 {
    let Some(range) = request.header("range") else {
        return whole();
    };
    let (from, to) = range
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
        .unwrap_or_else(|| panic!("{range}"));
    let number = |text: &str| {
        text.parse::<u64>()
            .unwrap_or_else(|e| panic!("{range}: {e}"))
    };
    number(to) - number(from) + 1
}

/// Starts python from the published cache that `server` serves, with a state directory of this name.
pub fn started(place: &Place, server: &Server, state: &str, more: &[&str]) {
    let mut python: Command = place.command(&["--cache", &server.base(), "--trusted-key"]);
    python
        .arg(place.key.public())
        .arg("--state-dir")
        .arg(place.path(state));
    python.args(more).arg("run");
    python.arg(corpus::store_path("python3.11").join("bin/python3.11"));
    python.args(["-I", "-c", SCRIPT]);
    let output = python.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(output.stdout, b"imported\n", "{errors}");
}

/// How many requests for (parts of) NARs came, and the bytes that they brought.
pub fn of_nars(server: &Server, cache: &Path) -> (usize, u64) {
    let requests = server.requests();
    let of_nars: Vec<_> = requests
        .iter()
        .filter(|request| request.path.starts_with("/nar/") && !request.path.ends_with(".chunks"))
        .collect();
    let sizes = of_nars.iter().map(|request| {
        let file = cache.join(request.path.trim_start_matches('/'));
        bytes(request, || fs::metadata(file).unwrap().len())
    });
    (of_nars.len(), sizes.sum())
}

#[test]
fn python_starts_with_few_requests_and_the_chunks_that_it_needs() {
    let place = Place::new();
    let root = corpus::store_path("python3.11");
    let cache = place.path("cache");
    place.published(
        &url(&corpus::cache("zstd")),
        &url(&cache),
        &[
            "--trusted-key",
            &corpus::public_key(),
            &root.display().to_string(),
        ],
    );
    let server = Server::start();
    server.directory(&cache);
    started(&place, &server, "state", &[]);
    let (count, sum) = of_nars(&server, &cache);
    eprintln!("{count} requests, {sum} bytes");
    assert!(count <= MOST_REQUESTS, "{count} requests");
    assert!(sum <= MOST_BYTES, "{sum} bytes");
}
