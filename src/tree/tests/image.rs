//! Opening images from files, and comparing trees.

use super::model::{dir, file, link, program};
use crate::tree::{Differs, EntryIndex, Node, Tree, TreeError};

#[test]
fn opens_a_mapped_file_as_it_was_compiled() {
    let model = dir([("a", file("1")), ("b", dir([("c", link("/nix"))]))]);
    let image = model.compile(false);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &image).unwrap();
    let tree = Tree::open(file.path()).unwrap();
    assert_eq!(tree.image(), image);
    let link = tree.resolve(b"/b//c/").unwrap();
    assert_eq!(tree.node(link), Some(Node::Symlink { target: b"/nix" }));
    assert_eq!(tree.resolve(b""), Some(EntryIndex::ROOT));
    assert_eq!((tree.resolve(b"a/x"), tree.resolve(b"b/..")), (None, None));
    let sent = std::thread::spawn(move || tree.len());
    assert_eq!(sent.join().unwrap(), 4);
}

#[test]
fn a_missing_empty_or_cut_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.index");
    let missing = Tree::open(&path).unwrap_err();
    assert!(missing.is_missing(), "{missing}");
    let image = file("1").compile(false);
    for len in [0, 1, 95, 96, image.len() - 1] {
        std::fs::write(&path, &image[..len]).unwrap();
        let cut = Tree::open(&path).unwrap_err();
        assert!(
            matches!(cut, TreeError::File { .. }) && !cut.is_missing(),
            "{len}: {cut}"
        );
    }
    assert!(Tree::open(dir.path()).is_err(), "a directory");
}

#[test]
fn entries_that_do_not_exist_are_nothing() {
    let tree = dir([("a", file("1"))]).tree();
    for entry in [2, u32::MAX].map(EntryIndex) {
        assert_eq!((tree.node(entry), tree.name(entry)), (None, &b""[..]));
        assert_eq!(
            (tree.parent(entry), tree.lookup(entry, b"a")),
            (EntryIndex::ROOT, None)
        );
    }
}

#[test]
fn names_the_first_difference() {
    let base = dir([
        ("a", file("1")),
        ("b", dir([("x", file("2")), ("y", link("t"))])),
    ]);
    let with = |b: [(&str, crate::tree::tests::model::Model); 2]| {
        dir([("a", file("1")), ("b", dir(b))]).tree()
    };
    let cases = [
        (
            with([("x", file("22")), ("y", link("t"))]),
            "b/x",
            Differs::Size(1, 2),
        ),
        (
            with([("x", program("2")), ("y", link("t"))]),
            "b/x",
            Differs::Executable,
        ),
        (
            with([("x", file("2")), ("y", link("u"))]),
            "b/y",
            Differs::Target,
        ),
        (
            with([("x", file("2")), ("y", file("t"))]),
            "b/y",
            Differs::Kind,
        ),
        (
            with([("x", file("2")), ("z", link("t"))]),
            "b/y",
            Differs::Missing,
        ),
        (
            with([("w", file("2")), ("y", link("t"))]),
            "b/w",
            Differs::Unexpected,
        ),
        (dir([("a", file("1"))]).tree(), "b", Differs::Missing),
        (
            dir([("a", file("1")), ("b", dir([]))]).tree(),
            "b/x",
            Differs::Missing,
        ),
        (file("1").tree(), "", Differs::Kind),
    ];
    let base = base.tree();
    for (other, path, what) in cases {
        let found = base.same_as(&other).unwrap_err();
        assert_eq!(
            (found.path.as_slice(), found.what),
            (path.as_bytes(), what),
            "{found}"
        );
        let back = other.same_as(&base).unwrap_err();
        assert_eq!(back.path, found.path);
    }
    assert_eq!(base.same_as(&base), Ok(()));
}
