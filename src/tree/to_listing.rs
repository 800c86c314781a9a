//! Writes a tree's listing, for caches that narfs publishes, demonstrates or tests.

use super::{EntryIndex, Node, Tree, walk::Step};

/// The listing of a tree, as `nix copy` writes `.ls` files, without `narOffset`.
///
/// JSON holds text only: bytes of names and targets that are not UTF-8 become U+FFFD, as in
/// harmonia's listings, which [`super::compile_listing`] refuses as lossy.
pub fn to_listing(tree: &Tree) -> String {
    written(tree, false)
}

/// As [`to_listing`], with where in the NAR each file's bytes are (`narOffset`), as Nix writes it.
pub fn to_listing_with_offsets(tree: &Tree) -> String {
    written(tree, true)
}

fn written(tree: &Tree, offsets: bool) -> String {
    let mut out = String::from("{\"version\":1,\"root\":");
    for step in tree.walk() {
        match step {
            Step::Enter(entry, _) => enter(tree, EntryIndex(entry), offsets, &mut out),
            Step::Leave(_) => out.push_str("}}"),
        }
    }
    out.push('}');
    out
}

fn enter(tree: &Tree, entry: EntryIndex, offsets: bool, out: &mut String) {
    if entry != EntryIndex::ROOT {
        if !out.ends_with('{') {
            out.push(',');
        }
        text(tree.name(entry), out);
        out.push(':');
    }
    match tree.node(entry) {
        Some(Node::Regular {
            executable,
            size,
            offset,
        }) => {
            out.push_str(&format!("{{\"type\":\"regular\",\"size\":{size}"));
            if executable {
                out.push_str(",\"executable\":true");
            }
            if offsets {
                out.push_str(&format!(",\"narOffset\":{offset}"));
            }
            out.push('}');
        }
        Some(Node::Symlink { target }) => {
            out.push_str("{\"type\":\"symlink\",\"target\":");
            text(target, out);
            out.push('}');
        }
        Some(Node::Directory { .. }) | None => {
            out.push_str("{\"type\":\"directory\",\"entries\":{");
        }
    }
}

/// A JSON string.
fn text(bytes: &[u8], out: &mut String) {
    out.push('"');
    for c in String::from_utf8_lossy(bytes).chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}
