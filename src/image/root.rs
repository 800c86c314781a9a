//! What a store path's files are linked at in the image's root directory (`copyToRoot`).
//!
//! Each file of it becomes a link to itself at the same place below `/`, each directory a
//! directory. Directories of the base stay as they are; where the base has a link to a directory
//! (`/bin`, in most distributions), what would come there comes to where it leads: a directory in
//! its place would hide everything behind it.

use std::collections::BTreeMap;

use super::{ImageError, below::Below};
use crate::nix::StorePath;

/// Whiteouts of the layer format: such a name takes away what is below.
const WHITEOUT: &[u8] = b".wh.";

/// The entries of a layer, by their path without the leading slash.
pub type RootEntries = BTreeMap<Vec<u8>, RootEntry>;

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootEntry {
    /// A directory of mode 0755.
    Directory,
    /// An empty file to mount over.
    Mountpoint,
    /// A symbolic link to this.
    Link(Vec<u8>),
}

/// A store path that is linked into the root directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyToRoot {
    /// The store path.
    pub path: StorePath,
    /// Everything in it, by its path in there; a directory comes before what it holds.
    pub entries: Vec<(Vec<u8>, Copied)>,
}

/// What an entry of a store path becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// A directory.
    Directory,
    /// A link: it is a file or a link itself.
    Link,
}

/// What comes to stand in the root directory.
///
/// # Errors
/// [`ImageError::Root`] when two things want one place, or it cannot be had.
pub fn root_entries(copies: &[CopyToRoot], below: &Below) -> Result<RootEntries, ImageError> {
    let mut entries = RootEntries::new();
    for copy in copies {
        for (inside, kind) in &copy.entries {
            place(&mut entries, copy, inside, *kind, below)?;
        }
    }
    Ok(entries)
}

fn place(
    entries: &mut RootEntries,
    copy: &CopyToRoot,
    inside: &[u8],
    kind: Copied,
    below: &Below,
) -> Result<(), ImageError> {
    let what = [copy.path.absolute().as_bytes(), b"/", inside].concat();
    let refused = |why: String| ImageError::Root {
        what: lossy(&what),
        at: lossy(inside),
        why,
    };
    let (parent, name) = split(inside);
    if name.starts_with(WHITEOUT) {
        return Err(refused(
            "names that begin with .wh. take things away in layers, and cannot stand there".into(),
        ));
    }
    if [&b"nix/store"[..], b".nix-snapshotter"].contains(&inside)
        || inside == b"nix" && kind == Copied::Link
    {
        return Err(refused("that place is the store's own".into()));
    }
    let parent = below.directory(parent).map_err(|link| {
        refused(format!(
            "the base has /{}, which is no directory",
            lossy(&link)
        ))
    })?;
    let at = match parent.is_empty() {
        true => name.to_vec(),
        false => [&parent, &b"/"[..], name].concat(),
    };
    let before = entries.get(&at);
    match kind {
        Copied::Directory => match (below.directory(&at), before) {
            (Err(_), _) => {
                let why = "the base has a file there, and this is a directory";
                Err(refused(why.into()))
            }
            (_, Some(RootEntry::Link(other))) => {
                Err(refused(format!("{} is linked there", lossy(other))))
            }
            (Ok(place), _) => {
                // What the base has keeps its owner and mode.
                if !below.is_directory(&place) {
                    entries.insert(place, RootEntry::Directory);
                }
                Ok(())
            }
        },
        Copied::Link => match before {
            Some(RootEntry::Link(other)) if *other != what => {
                Err(refused(format!("{} is linked there", lossy(other))))
            }
            Some(RootEntry::Directory | RootEntry::Mountpoint) => {
                Err(refused("another --copy-to-root has a directory there".into()))
            }
            _ if below.is_directory(&at) => Err(refused(
                "the base has a directory there, and the link would hide everything in it; copy a store path \
                 that has a directory there too"
                    .into(),
            )),
            _ => {
                entries.insert(at, RootEntry::Link(what));
                Ok(())
            }
        },
    }
}

/// Parent and name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|c| *c == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(n: u8, entries: &[&str]) -> CopyToRoot {
        let entry = |text: &&str| match text.strip_suffix('/') {
            Some(path) => (path.as_bytes().to_vec(), Copied::Directory),
            None => (text.as_bytes().to_vec(), Copied::Link),
        };
        CopyToRoot {
            path: StorePath::parse(&format!("{n:032}-p")).unwrap(),
            entries: entries.iter().map(entry).collect(),
        }
    }

    fn shown(copies: &[CopyToRoot], below: &Below) -> Result<Vec<String>, String> {
        let entries = root_entries(copies, below).map_err(|e| e.to_string())?;
        let line = |(path, entry): (Vec<u8>, RootEntry)| match entry {
            RootEntry::Link(target) => format!("{} -> {}", lossy(&path), &lossy(&target)[42..]),
            _ => format!("{}/", lossy(&path)),
        };
        Ok(entries.into_iter().map(line).collect())
    }

    fn nothing() -> Below {
        Below::default()
    }

    #[test]
    fn files_become_links_and_directories_are_shared() {
        let copies = [
            copy(1, &["bin/", "bin/a", "etc/", "etc/passwd"]),
            copy(2, &["bin/", "bin/b", "var/", "var/empty/"]),
            copy(2, &["bin/", "bin/b"]),
        ];
        let want = [
            "bin/",
            "bin/a -> 1-p/bin/a",
            "bin/b -> 2-p/bin/b",
            "etc/",
            "etc/passwd -> 1-p/etc/passwd",
            "var/",
            "var/empty/",
        ];
        assert_eq!(shown(&copies, &nothing()).unwrap(), want);
    }

    #[test]
    fn one_place_holds_one_thing() {
        for (copies, why) in [
            ([copy(1, &["a"]), copy(2, &["a"])], "1-p/a is linked there"),
            ([copy(1, &["a"]), copy(2, &["a/"])], "1-p/a is linked there"),
            ([copy(1, &["a/"]), copy(2, &["a"])], "has a directory there"),
            ([copy(1, &[".wh.a"]), copy(2, &[])], ".wh."),
            ([copy(1, &["a/", "a/.wh..wh..opq"]), copy(2, &[])], ".wh."),
            ([copy(1, &["nix"]), copy(2, &[])], "the store's own"),
            (
                [copy(1, &["nix/", "nix/store/"]), copy(2, &[])],
                "the store's own",
            ),
            (
                [copy(1, &[".nix-snapshotter/"]), copy(2, &[])],
                "the store's own",
            ),
        ] {
            let error = shown(&copies, &nothing()).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(shown(&[copy(1, &["nix/", "nix/var/"])], &nothing()).is_ok());
    }

    #[test]
    fn the_bases_directories_stay_and_its_links_are_followed() {
        let below = Below::of(&[
            "usr/",
            "usr/bin/",
            "bin -> usr/bin",
            "lib -> /usr/lib",
            "usr/lib/",
            "etc/",
            "etc/hosts",
            "sbin -> bin",
            "loop -> loop",
            "up -> ../../usr",
            "gone -> nowhere",
            "dir/",
            "lost -> gone/x",
        ]);
        let copies = [copy(
            1,
            &[
                "bin/",
                "bin/a",
                "lib/",
                "lib/l",
                "sbin/",
                "sbin/s",
                "etc/",
                "etc/hosts",
                "up/",
                "up/u",
                "new/",
                "new/n",
            ],
        )];
        let want = [
            "etc/hosts -> 1-p/etc/hosts",
            "new/",
            "new/n -> 1-p/new/n",
            "usr/bin/a -> 1-p/bin/a",
            "usr/bin/s -> 1-p/sbin/s",
            "usr/lib/l -> 1-p/lib/l",
            "usr/u -> 1-p/up/u",
        ];
        assert_eq!(shown(&copies, &below).unwrap(), want);
        // A link to nothing leads to where it says.
        let want = ["nowhere/", "nowhere/x/", "nowhere/x/f -> 1-p/lost/f"];
        let copies = [copy(1, &["gone/", "lost/", "lost/f"])];
        assert_eq!(shown(&copies, &below).unwrap(), want);
        for (entries, why) in [
            (&["dir"][..], "would hide everything in it"),
            (&["etc/", "etc/hosts/"], "has a file there"),
            (&["loop/", "loop/x"], "has a file there"),
        ] {
            let error = shown(&[copy(1, entries)], &below).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let bad = CopyToRoot {
            entries: vec![(b"loop/x".to_vec(), Copied::Link)],
            ..copy(1, &[])
        };
        assert!(
            shown(&[bad], &below)
                .unwrap_err()
                .contains("/loop, which is no directory")
        );
    }
}
