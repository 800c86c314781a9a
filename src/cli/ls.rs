//! `narfs ls`: what is in a store path, straight from the caches.

use serde_json::{Map, Value, json};

use super::{
    Failure, StoreFile,
    in_store::{self, Place},
    output::{self, Terminal},
    parse_store_file,
};
use crate::{
    config::Config,
    daemon::scratch::with_scratch_store,
    tree::{EntryIndex, Node, Tree},
};

const LONG: &str = "\
Lists a directory of a store path, or names a file of it. Needs no mount and no daemon; fetches \
the narinfo and the listing, and the archive only if the cache has no listing.

Symbolic links on the way are followed, also into other store paths; the last one is shown itself. \
With --long: mode, size in bytes (of a link: of its target), name, and target of links.";

const AFTER: &str = "\
Exit status:
  0  listed
  2  the command line or the configuration is wrong
  3  no cache has the store path, or there is no such file in it
  4  the store path has no trusted signature
  5  no cache can be reached or answered in time
  130  interrupted

Examples:
  $ narfs ls /nix/store/HASH-hello-2.12.1
  $ narfs ls -lR /nix/store/HASH-hello-2.12.1/bin";

/// Arguments of `narfs ls`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(about = "List a directory of a store path, straight from the caches", long_about = LONG, after_long_help = AFTER)]
pub struct LsArgs {
    /// A store path, or a file or directory in it
    #[arg(value_name = "STOREPATH[/FILE]", value_parser = parse_store_file)]
    pub path: StoreFile,

    /// Show mode, size in bytes and the target of links as well
    #[arg(long, short)]
    pub long: bool,

    /// Everything below, as paths from there
    #[arg(long, short = 'R')]
    pub recursive: bool,

    /// Print one JSON object in the form of Nix's listings (`nix store ls --json`): a directory's
    /// entries with their types and sizes, with --recursive theirs as well
    #[arg(long)]
    pub json: bool,
}

/// Lists.
///
/// # Errors
/// When there is no such path or file, or it can't be had.
pub fn run(config: &Config, args: &LsArgs) -> Result<(), Failure> {
    let place = with_scratch_store(config, async |store| {
        in_store::find(store, &args.path, false).await
    })?;
    let terminal = Terminal::of_stdout(config.color);
    if args.json {
        let value = node(
            &place.path.tree,
            place.entry,
            if args.recursive { u32::MAX } else { 1 },
        );
        return output::print(&output::json(&value, terminal.width.is_some())?);
    }
    let mut listed = Vec::new();
    collect(&place, args.recursive, &mut listed);
    output::write(&text(&place.path.tree, &listed, args.long, &terminal)).map(drop)
}

/// Entries with the names that they are shown by.
type Listed = Vec<(EntryIndex, Vec<u8>)>;

fn collect(place: &Place, recursive: bool, listed: &mut Listed) {
    let tree = &place.path.tree;
    let Some(Node::Directory { children }) = place.node() else {
        let name = match place.entry.0 {
            0 => place.path.store_path.to_string().into_bytes(),
            _ => tree.name(place.entry).to_vec(),
        };
        listed.push((place.entry, name));
        return;
    };
    // Those still to be shown, the next one last.
    let mut left: Listed = Vec::new();
    let below = |children: std::ops::Range<u32>, prefix: &[u8], left: &mut Listed| {
        for child in children.rev().map(EntryIndex) {
            let name = [prefix, tree.name(child)].concat();
            left.push((child, name));
        }
    };
    below(children, b"", &mut left);
    while let Some((entry, name)) = left.pop() {
        if let (true, Some(Node::Directory { children })) = (recursive, tree.node(entry)) {
            below(children, &[&name[..], b"/"].concat(), &mut left);
        }
        listed.push((entry, name));
    }
}

fn text(tree: &Tree, listed: &Listed, long: bool, terminal: &Terminal) -> Vec<u8> {
    let width = listed
        .iter()
        .map(|(entry, _)| size(tree, *entry).to_string().len())
        .max()
        .unwrap_or(0);
    let mut text = Vec::new();
    for (entry, name) in listed {
        if long {
            text.extend(
                format!("{} {:>width$} ", mode(tree, *entry), size(tree, *entry)).into_bytes(),
            );
        }
        text.extend(shown(name, terminal));
        if let (true, Some(Node::Symlink { target })) = (long, tree.node(*entry)) {
            text.extend_from_slice(b" -> ");
            text.extend(shown(target, terminal));
        }
        text.push(b'\n');
    }
    text
}

/// The bytes of a name; on a terminal without those that move the cursor.
fn shown(name: &[u8], terminal: &Terminal) -> Vec<u8> {
    match terminal.width {
        None => name.to_vec(),
        Some(_) => {
            let text = String::from_utf8_lossy(name);
            text.chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .collect::<String>()
                .into_bytes()
        }
    }
}

fn mode(tree: &Tree, entry: EntryIndex) -> &'static str {
    match tree.node(entry) {
        Some(Node::Directory { .. }) | None => "dr-xr-xr-x",
        Some(Node::Regular {
            executable: true, ..
        }) => "-r-xr-xr-x",
        Some(Node::Regular {
            executable: false, ..
        }) => "-r--r--r--",
        Some(Node::Symlink { .. }) => "lrwxrwxrwx",
    }
}

fn size(tree: &Tree, entry: EntryIndex) -> u64 {
    match tree.node(entry) {
        Some(Node::Regular { size, .. }) => size,
        Some(Node::Symlink { target }) => target.len() as u64,
        Some(Node::Directory { .. }) | None => 0,
    }
}

/// As Nix's listings have it, directories `depth` deep. The recursion is bounded by the depth that
/// trees may have ([`crate::tree`]).
fn node(tree: &Tree, entry: EntryIndex, depth: u32) -> Value {
    match tree.node(entry) {
        Some(Node::Regular {
            executable: true,
            size,
            ..
        }) => {
            json!({"type": "regular", "size": size, "executable": true})
        }
        Some(Node::Regular { size, .. }) => json!({"type": "regular", "size": size}),
        Some(Node::Symlink { target }) => {
            json!({"type": "symlink", "target": String::from_utf8_lossy(target)})
        }
        Some(Node::Directory { children }) if depth > 0 => {
            let child = |n| {
                let entry = EntryIndex(n);
                (
                    String::from_utf8_lossy(tree.name(entry)).into_owned(),
                    node(tree, entry, depth - 1),
                )
            };
            let entries: Map<String, Value> = children.map(child).collect();
            json!({"type": "directory", "entries": entries})
        }
        Some(Node::Directory { .. }) | None => json!({"type": "directory"}),
    }
}
