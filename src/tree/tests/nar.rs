//! NARs token by token.

use super::model::{HASH, dir, file, index, link, program};
use crate::tree::{EntryIndex, NarError, NarIndexer, Node, Refusal, Tree, limits};

fn token(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// The tokens behind the magic.
fn nar(tokens: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    token(&mut out, b"nix-archive-1");
    tokens.iter().for_each(|t| token(&mut out, t));
    out
}

fn words(text: &str) -> Vec<u8> {
    nar(&text
        .split(' ')
        .map(|w| w.trim_matches('\'').as_bytes())
        .collect::<Vec<_>>())
}

const FILE: &str = "( type regular contents x )";

fn entry(name: &str) -> String {
    format!("entry ( name {name} node {FILE} )")
}

fn error(nar: &[u8]) -> NarError {
    let error = index(nar, &[]).unwrap_err();
    let bytewise = index(nar, &[1]).unwrap_err();
    assert_eq!(error, bytewise, "the same in one piece and in many");
    error
}

#[test]
fn every_cut_into_two_pieces_gives_the_same_image() {
    let model = dir([
        ("a", program("123")),
        ("b", dir([("c", link("x"))])),
        ("d", file("")),
    ]);
    let nar = model.nar();
    let whole = index(&nar, &[]).unwrap();
    for at in 0..=nar.len() {
        let mut indexer = NarIndexer::new();
        indexer.push(&nar[..at]).unwrap();
        assert_eq!(indexer.position(), at as u64);
        if at < nar.len() {
            let cut = NarError::Truncated { at: at as u64 };
            let mut early = NarIndexer::new();
            early.push(&nar[..at]).unwrap();
            assert_eq!(early.finish(HASH), Err(cut));
        }
        indexer.push(&nar[at..]).unwrap();
        assert_eq!(indexer.finish(HASH).unwrap(), whole);
    }
}

#[test]
fn refuses_other_words_than_the_format_has() {
    let texts = [
        "[ type regular contents x )",
        "( kind regular contents x )",
        "( type fifo )",
        "( type regular target x )",
        "( type regular executable x contents x )",
        "( type regular executable '' target x )",
        "( type regular contents x ]",
        "( type symlink contents x )",
        "( type symlink target x ]",
        "( type directory file",
        "( type directory entry [",
        "( type directory entry ( node",
        "( type directory entry ( name a type",
        "( type directory entry ( name a node ( type symlink target x ) ]",
        "( type directory thewordistoolong",
        // Nix always writes contents, so a layout without is computed by nobody.
        "( type regular )",
    ];
    for text in texts {
        let error = error(&words(text));
        assert!(matches!(error, NarError::Token { .. }), "{text}: {error}");
    }
    let mut other = Vec::new();
    token(&mut other, b"nix-archive-2");
    assert_eq!(
        error(&other),
        NarError::Token {
            at: 24,
            expected: "`nix-archive-1`"
        }
    );
    // An absurd length is refused before anything of it has come.
    assert!(matches!(
        error(&u64::MAX.to_le_bytes()),
        NarError::Token { at: 8, .. }
    ));
}

#[test]
fn refuses_padding_and_whatever_follows() {
    let good = words(FILE);
    let padded: Vec<usize> = (8..good.len()).filter(|at| good[*at] == 0).collect();
    let mut refused = 0;
    for at in padded {
        let mut bad = good.clone();
        bad[at] = 1;
        refused +=
            usize::from(matches!(error(&bad), NarError::Padding { at: p } if p == at as u64));
    }
    // magic 3, `(` 7, type 4, regular 1, contents 0, x 7, `)` 7
    assert_eq!(refused, 29);
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(
        error(&longer),
        NarError::Trailing {
            at: good.len() as u64
        }
    );
    let mut indexer = NarIndexer::new();
    indexer.push(&good).unwrap();
    assert!(indexer.push(b"").is_ok() && indexer.push(b"x").is_err());
    assert_eq!(indexer.position(), good.len() as u64);
    assert!(indexer.finish(HASH).is_err(), "a refusal lasts");
}

#[test]
fn refuses_names_as_listings_do() {
    let with = |names: &[&str]| {
        let entries: Vec<String> = names.iter().map(|n| entry(n)).collect();
        words(&format!("( type directory {} )", entries.join(" ")))
    };
    assert!(index(&with(&["a", "a.b", "ab", "b"]), &[]).is_ok());
    let refused = |names: &[&str]| match error(&with(names)) {
        NarError::Refused { refusal, .. } => refusal,
        other => panic!("{names:?}: {other}"),
    };
    for name in ["''", ".", "..", "a/b", "a\0b"] {
        assert_eq!(refused(&[name]), Refusal::IllegalName, "{name}");
    }
    assert_eq!(refused(&["a", "a"]), Refusal::Duplicate);
    assert_eq!(
        error(&with(&["b", "a"])),
        NarError::Unsorted {
            path: b"a".to_vec()
        }
    );
    assert_eq!(refused(&[&"n".repeat(256)]), Refusal::NameTooLong(256));
    assert!(index(&with(&[&"n".repeat(255)]), &[3]).is_ok());
    let symlink = |target: &str| words(&format!("( type symlink target {target} )"));
    for (target, refusal) in [
        ("''".to_owned(), Refusal::IllegalTarget),
        ("a\0".to_owned(), Refusal::IllegalTarget),
        ("t".repeat(4096), Refusal::TargetTooLong(4096)),
    ] {
        assert_eq!(
            error(&symlink(&target)),
            NarError::Refused {
                path: vec![],
                refusal
            }
        );
    }
    assert!(index(&symlink(&"t".repeat(4095)), &[]).is_ok());
}

#[test]
fn depth_is_limited_as_in_listings() {
    let nested = |depth: usize| {
        let open = "( type directory entry ( name d node ".repeat(depth);
        words(&(open + FILE + &" ) )".repeat(depth)))
    };
    let tree =
        Tree::from_image(index(&nested(limits::MAX_DEPTH as usize), &[1000]).unwrap()).unwrap();
    assert_eq!(tree.len(), limits::MAX_DEPTH + 1);
    for depth in [limits::MAX_DEPTH as usize + 1, 10_000] {
        let error = index(&nested(depth), &[]).unwrap_err();
        assert!(
            matches!(
                error,
                NarError::Refused {
                    refusal: Refusal::TooDeep,
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn contents_of_any_length_pass_without_being_kept() {
    let size: u64 = 5 << 30;
    let mut indexer = NarIndexer::new();
    let mut head = words("( type directory entry ( name big node ( type regular contents");
    head.extend(size.to_le_bytes());
    indexer.push(&head).unwrap();
    let mebibyte = vec![0; 1 << 20];
    for _ in 0..size >> 20 {
        indexer.push(&mebibyte).unwrap();
    }
    let mut tail = Vec::new();
    for word in [
        ")", ")", "entry", "(", "name", "next", "node", "(", "type", "regular", "contents", "x",
        ")", ")", ")",
    ] {
        token(&mut tail, word.as_bytes());
    }
    indexer.push(&tail).unwrap();
    let tree = Tree::from_image(indexer.finish(HASH).unwrap()).unwrap();
    let big = tree.lookup(EntryIndex::ROOT, b"big").unwrap();
    let want = Node::Regular {
        executable: false,
        size,
        offset: head.len() as u64,
    };
    assert_eq!(tree.node(big), Some(want));

    let mut absurd = words("( type regular contents");
    absurd.extend((u64::MAX - 3).to_le_bytes());
    let large = NarError::Refused {
        path: vec![],
        refusal: Refusal::TooLarge,
    };
    assert_eq!(error(&absurd), large);
}
