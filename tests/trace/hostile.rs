//! Names that mean harm, or are no text, or both.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
};

use super::{
    Traced, agree,
    browser::Page,
    cache::{self, Cache, Item, Package, Packing, exec, file},
    ends, list, number,
};

const MARKUP: &[u8] = b"<img src=x onerror=alert(1)><script>document.body.id='x'<";
const QUOTES: &[u8] = b"\"'><b id=hacked>&lt;\n\x1b[31m";
const NO_TEXT: &[u8] = b"\xff\xfe<i>caf\xe9";

#[test]
fn names_that_mean_harm_are_text() {
    let bytes = |n: usize| file(cache::noise(n as u64, 5000 + n));
    let names = [MARKUP, QUOTES, NO_TEXT];
    let mut entries: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(n, name)| (name.to_vec(), bytes(n)))
        .collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let program = exec("#!/bin/sh\ncat \"${0%/bin/*}\"/share/* | wc -c\nexit 3\n");
    let bin = Item::Directory(vec![(b"read".to_vec(), program)]);
    let root = vec![
        (b"bin".to_vec(), bin),
        (b"share".to_vec(), Item::Directory(entries)),
    ];
    let package = Package::new("hostile", &Item::Directory(root));
    let key = cache::key();
    let cache = Cache::new(&key);
    cache.add(&package, Packing::Zstd);
    // Another user reads it.
    fs::set_permissions(cache.path(), PermissionsExt::from_mode(0o755)).expect("ours");

    let traced = Traced::new();
    let url = format!("file://{}", cache.path().display());
    let mut command = traced.command(&url, &key.public(), &[]);
    command.arg(format!("{}/bin/read", package.path.absolute()));
    command.arg(std::ffi::OsStr::from_bytes(b"</code><u>\xff"));
    let output = command.output().expect("bash is there");
    ends(&output, 3, "15003\n");

    let document = traced.document();
    let page = Page::open(&traced.page(), "");
    agree(&document, &page);
    for tag in [
        "<img",
        "<b ",
        "<b>",
        "<i>",
        "<u>",
        "id=\"x\"",
        "hacked\">",
        "\u{1b}",
    ] {
        assert!(!page.html().contains(tag), "{tag}");
    }
    assert_eq!(page.html().matches("<script>").count(), 1, "its own");
    // They are there, as what they are.
    for shown in [
        "&lt;img src=x onerror=alert(1)&gt;&lt;script&gt;",
        "&lt;b id=hacked&gt;&amp;lt;\\n\\u{1b}[31m",
        "\\xff\\xfe&lt;i&gt;caf\\xe9",
    ] {
        assert!(page.html().contains(shown), "{shown}");
    }
    let files = list(&document, "files");
    let no_text = files
        .iter()
        .find(|file| file["file"] == "share/\\xff\\xfe<i>caf\\xe9");
    assert_eq!(number(&no_text.expect("it was read")["touched"]), 5002);
    assert_eq!(files.len(), 4);
}
