//! Listings that caches write, that no cache should write, and that are large.

use super::model::HASH;
use crate::tree::{EntryIndex, ListingError, Node, Refusal, Tree, compile_listing, limits};

/// Compiles, taking the NAR's size from the refusal of a wrong one.
fn compile(listing: &[u8]) -> Result<Tree, ListingError> {
    let size = match compile_listing(listing, HASH, 0) {
        Err(ListingError::Total {
            computed,
            claimed: 0,
        }) => computed,
        other => return other.map(|_| unreachable!("a NAR of 0 bytes")),
    };
    Ok(Tree::from_image(compile_listing(listing, HASH, size)?).unwrap())
}

fn node(json: &str) -> Result<Tree, ListingError> {
    compile(format!("{{\"version\":1,\"root\":{json}}}").as_bytes())
}

fn entries(json: &str) -> Result<Tree, ListingError> {
    node(&format!(
        "{{\"type\":\"directory\",\"entries\":{{{json}}}}}"
    ))
}

#[test]
fn reads_what_nix_writes() {
    // `nix copy --to file:///…?write-nar-listing=1` of Nix 2.8, white space added.
    let text = br#"{ "version": 1, "root": {"type":"directory","entries":{
        "bin":{"type":"directory","entries":{"x":{"type":"regular","size":3,"executable":true,"narOffset":400}}},
        "a\"\\\u00e9\ud83d\ude00\n":{"type":"symlink","target":"bin/x"},"empty":{"type":"regular","size":0,"narOffset":0}}} }"#;
    let error = compile(text).unwrap_err();
    let ListingError::Offset {
        path,
        claimed: 400,
        computed,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(path, b"bin/x");
    let right = String::from_utf8(text.to_vec())
        .unwrap()
        .replace("400", &computed.to_string());
    let tree = compile(right.as_bytes()).unwrap();
    assert!(tree.resolve("a\"\\é😀\n".as_bytes()).is_some());
    let x = tree.resolve(b"bin/x").unwrap();
    assert_eq!(
        tree.node(x),
        Some(Node::Regular {
            executable: true,
            size: 3,
            offset: computed
        })
    );
}

#[test]
fn ignores_what_it_does_not_know() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let unknown = format!(
        "{{\"x\":{deep},\"y\":[1,-2.5e+3,null,true,{{\"a\":{{}},\"b\":[[],{{}}]}}],\"type\":\"regular\",\"size\":1}}"
    );
    assert_eq!(node(&unknown).unwrap().len(), 1);
    let nulls = "{\"narOffset\":null,\"entries\":null,\"type\":\"regular\",\"executable\":null,\"size\":1,\"target\": null}";
    assert_eq!(node(nulls).unwrap().len(), 1);
    assert!(node("{\"type\":\"regular\",\"size\":null}").is_err());
    assert!(node("{\"type\":\"regular\",\"size\":nul}").is_err());
}

#[test]
fn refuses_what_is_no_listing() {
    let texts = [
        "",
        " ",
        "<html></html>",
        "[]",
        "{",
        "{}",
        "null",
        "{\"version\":1}",
        "{\"root\":{}}",
        "{\"version\":1,\"root\":[]}",
        "{\"version\":1,\"root\":{}}",
        "{,\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1}}",
        "{\"version\":1,,\"root\":{\"type\":\"regular\",\"size\":1}}",
        "{\"version\":1 \"root\":{\"type\":\"regular\",\"size\":1}}",
        "{\"version\":01,\"root\":{\"type\":\"regular\",\"size\":1}}",
        "{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1}} x",
        "{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1},}",
        "{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1,\"z\":[1,]}}",
        "{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1,\"z\":[1 2]}}",
        "{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1,\"z\":{\"a\" 1}}}",
        "{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1,\"z\":nul}}",
        "{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1,\"z\":\"\\x\"}}",
        "{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1,\"z\":\"\\ud800\"}}",
        "{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1,\"z\":\"\\ud800\\u0041\"}}",
        "{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1,\"z\":\"\\u00g0\"}}",
        "{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1,\"z\":\"\n\"}}",
        "{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1},\"root\":{\"type\":\"regular\",\"size\":1}}",
    ];
    for text in texts {
        let error = compile(text.as_bytes()).unwrap_err();
        let is = matches!(
            error,
            ListingError::Malformed { .. } | ListingError::Entry { .. }
        );
        assert!(is, "{text}: {error}");
    }
    for version in ["2", "1.0", "-1", "1e0"] {
        let text =
            format!("{{\"version\":{version},\"root\":{{\"type\":\"regular\",\"size\":1}}}}");
        assert_eq!(
            compile(text.as_bytes()).unwrap_err(),
            ListingError::Version(version.into())
        );
    }
}

#[test]
fn refuses_nodes_that_contradict_themselves() {
    let nodes = [
        "{\"size\":1}",
        "{\"type\":\"regular\"}",
        "{\"type\":\"regular\",\"size\":1,\"entries\":{}}",
        "{\"type\":\"regular\",\"size\":1,\"target\":\"x\"}",
        "{\"type\":\"symlink\"}",
        "{\"type\":\"symlink\",\"target\":\"x\",\"size\":1}",
        "{\"type\":\"directory\"}",
        "{\"type\":\"directory\",\"entries\":{},\"size\":1}",
        "{\"type\":\"directory\",\"entries\":{},\"entries\":{}}",
        "{\"type\":\"fifo\",\"size\":1}",
        "{\"type\":\"regular\",\"type\":\"regular\",\"size\":1}",
        "{\"type\":\"regular\",\"size\":1,\"size\":2}",
        "{\"type\":\"regular\",\"size\":-1}",
        "{\"type\":\"regular\",\"size\":1.5}",
        "{\"type\":\"regular\",\"size\":1e3}",
        "{\"type\":\"regular\",\"size\":18446744073709551616}",
        "{\"type\":\"regular\",\"size\":1,\"narOffset\":-8}",
    ];
    for json in nodes {
        let error = node(json).unwrap_err();
        assert!(
            matches!(&error, ListingError::Entry { path, .. } if path.is_empty()),
            "{json}: {error}"
        );
    }
    for json in [
        "{\"type\":1}",
        "{\"type\":\"regular\",\"size\":\"1\"}",
        "{\"executable\":1}",
    ] {
        assert!(
            matches!(node(json), Err(ListingError::Malformed { .. })),
            "{json}"
        );
    }
}

#[test]
fn refuses_names_and_targets_with_the_limit() {
    let file = "{\"type\":\"regular\",\"size\":1}";
    let refused = |json: &str| match entries(json).unwrap_err() {
        ListingError::Refused { refusal, .. } => refusal,
        other => panic!("{json}: {other}"),
    };
    for name in ["", ".", "..", "a/b", "/", "a\\u0000", "../../etc/passwd"] {
        assert_eq!(
            refused(&format!("\"{name}\":{file}")),
            Refusal::IllegalName,
            "{name}"
        );
    }
    assert_eq!(
        refused(&format!("\"a\":{file},\"b\":{file},\"a\":{file}")),
        Refusal::Duplicate
    );
    assert_eq!(
        refused(&format!("\"a\":{file},\"\\u0061\":{file}")),
        Refusal::Duplicate
    );
    let long = "n".repeat(10_000_000);
    assert_eq!(
        refused(&format!("\"{long}\":{file}")),
        Refusal::NameTooLong(10_000_000)
    );
    assert_eq!(
        refused(&format!("\"{}\":{file}", &long[..256])),
        Refusal::NameTooLong(256)
    );
    assert!(entries(&format!("\"{}\":{file}", &long[..255])).is_ok());
    let link = |target: &str| format!("\"l\":{{\"type\":\"symlink\",\"target\":\"{target}\"}}");
    assert_eq!(refused(&link("")), Refusal::IllegalTarget);
    assert_eq!(refused(&link("a\\u0000b")), Refusal::IllegalTarget);
    assert_eq!(refused(&link(&long[..4096])), Refusal::TargetTooLong(4096));
    assert!(entries(&link(&long[..4095])).is_ok());
}

#[test]
fn says_that_bytes_were_lost() {
    for (json, path) in [
        (
            "\"a\u{fffd}\":{\"type\":\"regular\",\"size\":1}",
            "a\u{fffd}",
        ),
        (
            "\"a\\ufffd\":{\"type\":\"regular\",\"size\":1}",
            "a\u{fffd}",
        ),
        ("\"l\":{\"type\":\"symlink\",\"target\":\"\u{fffd}\"}", "l"),
    ] {
        let lossy = ListingError::Lossy {
            path: path.as_bytes().to_vec(),
        };
        assert_eq!(entries(json).unwrap_err(), lossy);
    }
    // Bytes as Nix 2.8 writes them are not lost.
    let mut raw = b"{\"version\":1,\"root\":{\"type\":\"directory\",\"entries\":{\"a".to_vec();
    raw.extend(b"\xff\xfe\":{\"type\":\"regular\",\"size\":1}}}}");
    assert!(compile(&raw).unwrap().resolve(b"a\xff\xfe").is_some());
}

fn nested(depth: usize) -> String {
    let open = "{\"type\":\"directory\",\"entries\":{\"d\":".repeat(depth);
    open + "{\"type\":\"regular\",\"size\":1}" + &"}}".repeat(depth)
}

#[test]
fn depth_is_limited_by_a_number_and_not_by_the_stack() {
    let limit = limits::MAX_DEPTH as usize;
    let tree = node(&nested(limit)).unwrap();
    assert_eq!(tree.len(), limits::MAX_DEPTH + 1);
    assert_eq!(
        tree.path_of(EntryIndex(limits::MAX_DEPTH)).len(),
        2 * limit - 1
    );
    for depth in [limit + 1, 10_000, 100_000] {
        let error = node(&nested(depth)).unwrap_err();
        let is = matches!(&error, ListingError::Refused { path, refusal: Refusal::TooDeep } if path.len() == 2 * limit + 1);
        assert!(is, "{depth}: {error}");
    }
}

#[test]
fn a_directory_may_have_100_000_entries() {
    let names: Vec<String> = (0..100_000).rev().map(|n| format!("file-{n}")).collect();
    let json: Vec<String> = names
        .iter()
        .map(|n| format!("\"{n}\":{{\"type\":\"regular\",\"size\":{}}}", n.len()))
        .collect();
    let tree = entries(&json.join(",")).unwrap();
    assert_eq!(tree.len(), 100_001);
    for name in &names {
        let entry = tree.lookup(EntryIndex::ROOT, name.as_bytes()).unwrap();
        assert!(
            matches!(tree.node(entry), Some(Node::Regular { size, .. }) if size == name.len() as u64)
        );
    }
    assert_eq!(tree.lookup(EntryIndex::ROOT, b"file-100000"), None);
}

#[test]
fn files_may_be_larger_than_memory_but_not_than_numbers() {
    let big = 5 << 30;
    let tree = entries(&format!(
        "\"a\":{{\"type\":\"regular\",\"size\":{big}}},\"b\":{{\"type\":\"regular\",\"size\":1}}"
    ))
    .unwrap();
    let offset = |name| match tree.node(tree.resolve(name).unwrap()) {
        Some(Node::Regular { offset, .. }) => offset,
        other => panic!("{other:?}"),
    };
    assert!(offset(b"b") > offset(b"a") + big);
    for size in [u64::MAX, u64::MAX - 7, u64::MAX - 200] {
        let json = format!("\"a\":{{\"type\":\"regular\",\"size\":{size}}}");
        let large = ListingError::Refused {
            path: b"a".to_vec(),
            refusal: Refusal::TooLarge,
        };
        assert_eq!(entries(&json).unwrap_err(), large);
    }
    let half = "{\"type\":\"regular\",\"size\":9223372036854775807}";
    let json = format!("\"a\":{half},\"b\":{half}");
    let large = ListingError::Refused {
        path: b"b".to_vec(),
        refusal: Refusal::TooLarge,
    };
    assert_eq!(entries(&json).unwrap_err(), large);
}

#[test]
fn the_total_has_to_be_the_narinfo_s() {
    let text = b"{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":1}}";
    // magic 24, `(` 16, `type` 16, `regular` 16, `contents` 16, length 8, byte and padding 8, `)` 16
    assert!(compile_listing(text, HASH, 120).is_ok());
    for claimed in [119, 121, 128, u64::MAX] {
        let total = ListingError::Total {
            claimed,
            computed: 120,
        };
        assert_eq!(compile_listing(text, HASH, claimed), Err(total));
    }
}
