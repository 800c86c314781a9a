//! The directories and links of a base image, out of its layers: what the root directory looks
//! like that links are put into.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
};

use tar::EntryType;

use super::root::split;

/// Most links on the way to a directory (as Linux has it).
const MAX_LINKS: usize = 40;
/// What takes away an entry of the layers below it, in front of its name.
const WHITEOUT: &[u8] = b".wh.";
/// What takes away everything that the layers below have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What stands somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Thing {
    Directory,
    Link(Vec<u8>),
    Other,
}

/// A file system without its files' content, by paths without the leading slash.
#[derive(Debug, Clone, Default)]
pub struct Below(BTreeMap<Vec<u8>, Thing>);

impl Below {
    /// Puts a layer, a tar, on top.
    ///
    /// # Errors
    /// When it can't be read, or is no tar.
    pub fn add_layer(&mut self, tar: impl Read) -> io::Result<()> {
        let (mut added, mut removed) = (Vec::new(), BTreeSet::new());
        let mut opaque = BTreeSet::new();
        for entry in tar::Archive::new(tar).entries()? {
            let entry = entry?;
            let Some(path) = clean(&entry.path_bytes()) else {
                continue;
            };
            let (parent, name) = split(&path);
            if name == OPAQUE {
                opaque.insert(parent.to_vec());
            } else if let Some(name) = name.strip_prefix(WHITEOUT) {
                removed.insert(join(parent, name));
            } else {
                let link = || entry.link_name_bytes().map(|l| l.into_owned());
                let thing = match entry.header().entry_type() {
                    EntryType::Directory => Thing::Directory,
                    EntryType::Symlink => Thing::Link(link().unwrap_or_default()),
                    _ => Thing::Other,
                };
                added.push((path, thing));
            }
        }
        // Whiteouts are for what is below, wherever they stand in the layer.
        for path in &removed {
            self.remove(path, true);
        }
        for path in &opaque {
            self.remove(path, false);
        }
        for (path, thing) in added {
            self.add(path, thing);
        }
        Ok(())
    }

    fn add(&mut self, path: Vec<u8>, thing: Thing) {
        // Parents may be left out of a layer.
        let mut parent = split(&path).0;
        while !parent.is_empty() && !self.0.contains_key(parent) {
            self.0.insert(parent.to_vec(), Thing::Directory);
            parent = split(parent).0;
        }
        if thing != Thing::Directory {
            self.remove(&path, true);
        }
        self.0.insert(path, thing);
    }

    /// Removes everything in a directory, and itself if `whole`.
    fn remove(&mut self, path: &[u8], whole: bool) {
        if whole {
            self.0.remove(path);
        }
        let from = match path.is_empty() {
            true => Vec::new(),
            false => join(path, b""),
        };
        let inside = self.0.range(from.clone()..).map(|(path, _)| path);
        let inside: Vec<_> = inside
            .take_while(|p| p.starts_with(&from))
            .cloned()
            .collect();
        inside.iter().for_each(|path| drop(self.0.remove(path)));
    }

    /// Whether a directory stands there itself.
    pub(super) fn is_directory(&self, path: &[u8]) -> bool {
        path.is_empty() || self.0.get(path) == Some(&Thing::Directory)
    }

    /// The directory that a path leads to, with every link on the way and at its end followed. It
    /// need not be there.
    ///
    /// # Errors
    /// With what is neither a directory nor a link to one, or leads in a circle.
    pub(super) fn directory(&self, path: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        let names = |path: &[u8]| -> Vec<Vec<u8>> {
            let names = path.split(|c| *c == b'/');
            let real = names.filter(|name| !name.is_empty() && *name != b".");
            real.rev().map(<[u8]>::to_vec).collect()
        };
        // Those still to go, the next one last.
        let mut left = names(path);
        let (mut at, mut links) = (Vec::new(), 0);
        while let Some(name) = left.pop() {
            if name == b".." {
                at = split(&at).0.to_vec();
                continue;
            }
            let next = join(&at, &name);
            match self.0.get(&next) {
                Some(Thing::Directory) | None => at = next,
                Some(Thing::Other) => return Err(next),
                Some(Thing::Link(_)) if links == MAX_LINKS => return Err(next),
                Some(Thing::Link(target)) => {
                    links += 1;
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    left.extend(names(target));
                }
            }
        }
        Ok(at)
    }

    /// Where a path leads with the links on the way to it followed, but not it itself.
    pub fn place(&self, path: &[u8]) -> Vec<u8> {
        let (parent, name) = split(path);
        match self.directory(parent) {
            Ok(parent) => join(&parent, name),
            // There can be nothing.
            Err(_) => path.to_vec(),
        }
    }

    /// Whether something stands at a path, with the links on the way to it followed.
    pub fn has(&self, path: &[u8]) -> bool {
        self.0.contains_key(&self.place(path))
    }

    /// `dir/`, `link -> target`, `file`.
    #[cfg(test)]
    pub(super) fn of(lines: &[&str]) -> Self {
        let mut below = Self::default();
        for line in lines {
            let (path, thing) = match (line.split_once(" -> "), line.strip_suffix('/')) {
                (Some((path, target)), _) => (path, Thing::Link(target.into())),
                (None, Some(path)) => (path, Thing::Directory),
                (None, None) => (*line, Thing::Other),
            };
            below.add(path.into(), thing);
        }
        below
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    match parent.is_empty() {
        true => name.to_vec(),
        false => [parent, b"/", name].concat(),
    }
}

/// A path of a tar as it stands in the table; `None` for the root itself, and what leads out of it.
fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let names = path.split(|c| *c == b'/');
    let names: Vec<_> = names.filter(|n| !n.is_empty() && *n != b".").collect();
    (!names.is_empty() && !names.contains(&&b".."[..])).then(|| names.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, kind, target) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(0);
            match kind {
                EntryType::Symlink => tar.append_link(&mut header, path, target),
                _ => tar.append_data(&mut header, path, io::empty()),
            }
            .unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn layers_lie_on_each_other() {
        use EntryType::{Directory, Regular, Symlink};
        let mut below = Below::default();
        let bottom = [
            ("./usr/bin/sh", Regular, ""),
            ("bin", Symlink, "usr/bin"),
            ("etc/", Directory, ""),
            ("etc/a/x", Regular, ""),
            ("etc/b/y", Regular, ""),
            ("etc/ab", Regular, ""),
            ("opt/old/z", Regular, ""),
        ];
        below.add_layer(&layer(&bottom)[..]).unwrap();
        assert!(below.is_directory(b"usr/bin") && below.has(b"bin/sh") && below.has(b"/bin"));
        let top = [
            ("etc/.wh.a", Regular, ""),
            ("etc/b", Regular, ""),
            ("opt/new", Regular, ""),
            ("opt/.wh..wh..opq", Regular, ""),
        ];
        below.add_layer(&layer(&top)[..]).unwrap();
        assert!(!below.has(b"etc/a") && !below.has(b"etc/a/x") && below.has(b"etc/ab"));
        assert!(!below.is_directory(b"etc/b") && !below.has(b"etc/b/y"));
        assert!(!below.has(b"opt/old") && below.has(b"opt/new") && below.is_directory(b"opt"));
        let rest = [(".wh..wh..opq", Regular, "")];
        below.add_layer(&layer(&rest)[..]).unwrap();
        assert!(!below.has(b"usr"));
        assert!(
            below
                .add_layer(&b"no tar at all, but long enough for a header".repeat(20)[..])
                .is_err()
        );
    }
}
