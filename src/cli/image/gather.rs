//! What the caches have to say for an image: the closure, what its paths are, and whether what the
//! image is to run is there. Narinfos and listings; where a cache has no listing, the beginning of
//! a NAR, and of the paths that are looked into the whole of it.

use std::{collections::HashSet, time::Instant};

use futures_util::{StreamExt, stream};

use super::super::{
    Exit, Failure, StoreFile,
    in_store::{self, Place},
    output::{Terminal, counting::Counting, human},
    parse_store_file,
};
use crate::{
    daemon::store_failure,
    image::{Below, Copied, CopyToRoot, Mountpoint, Program, RootEntries, RootEntry},
    nix::{RootKind, STORE_DIR, StorePath},
    store::{Description, Store, StoreError},
    tree::{EntryIndex, Node},
};

/// Questions on their way at a time; the store lets as many through as there are connections.
const AT_ONCE: usize = 256;

/// The file of a closure-info that names its paths.
const STORE_PATHS: &str = "store-paths";

/// Asks the caches.
pub(super) struct Gather<'a> {
    pub store: &'a Store,
    pub terminal: Terminal,
    pub quiet: bool,
}

impl Gather<'_> {
    fn counting(&self, what: &'static str) -> Counting {
        Counting::new(&self.terminal, self.quiet, what)
    }

    /// Everything that `roots` refer to, they among it, in order.
    pub async fn closure(&self, roots: &[StorePath]) -> Result<Vec<Description>, Failure> {
        let mut counting = self.counting("narinfo");
        let tell = |done, of| counting.update(Instant::now(), done, of);
        let answers = self.store.describe_closure_telling(roots, tell).await;
        let (mut closure, mut failed) = (Vec::new(), Vec::new());
        for (path, answer) in answers {
            match answer {
                Ok(description) if description.served() => closure.push(description),
                Ok(description) => failed.push(StoreError::Untrusted {
                    path,
                    substituter: description.substituter,
                }),
                Err(error) => failed.push(error),
            }
        }
        if let Some((first, others)) = failed.split_first() {
            let mut failure = store_failure(first);
            if !others.is_empty() {
                let others = human::count(others.len() as u64, "other path");
                failure.causes.push(format!("{others} failed too"));
            }
            return Err(failure);
        }
        closure.sort_by(|a, b| a.narinfo.store_path.cmp(&b.narinfo.store_path));
        Ok(closure)
    }

    /// The paths that a closure-info stands for: all that it refers to, without itself.
    pub async fn closure_of_info(&self, info: &StorePath) -> Result<Vec<Description>, Failure> {
        let mut closure = self.closure(std::slice::from_ref(info)).await?;
        let list = StoreFile {
            store_path: info.clone(),
            inside: STORE_PATHS.into(),
        };
        match in_store::find(self.store, &list, true).await {
            Ok(place) if matches!(place.node(), Some(Node::Regular { .. })) => {}
            Err(failure) if failure.exit != Exit::NotFound => return Err(failure),
            _ => {
                let what = format!(
                    "{} is no closure-info: it has no file {STORE_PATHS}",
                    info.absolute()
                );
                return Err(Failure::new(Exit::Usage, what).hint(
                    "it is a store path that Nix builds, with `pkgs.closureInfo { rootPaths = [ … ]; }`; without \
                     one, use --scheme store-paths",
                ));
            }
        }
        closure.retain(|description| description.narinfo.store_path != *info);
        Ok(closure)
    }

    /// What has to stand where each path is mounted.
    pub async fn mountpoints(&self, closure: &[Description]) -> Result<Vec<Mountpoint>, Failure> {
        let mut counting = self.counting("listing");
        let one = async |description: &Description| self.mountpoint(description).await;
        let mut answers = stream::iter(closure).map(one).buffer_unordered(AT_ONCE);
        let mut mountpoints = Vec::new();
        while let Some(mountpoint) = answers.next().await {
            mountpoints.push(mountpoint?);
            counting.update(Instant::now(), mountpoints.len(), closure.len());
        }
        mountpoints.sort();
        Ok(mountpoints)
    }

    async fn mountpoint(&self, description: &Description) -> Result<Mountpoint, Failure> {
        let path = description.narinfo.store_path.clone();
        let kind = self.store.root_kind(description).await;
        let directory = match kind.map_err(|e| store_failure(&e))? {
            RootKind::Directory => true,
            RootKind::File => false,
            // A mount over it comes to stand where it leads.
            RootKind::Symlink => match in_store::find(self.store, &whole(&path), true).await {
                Ok(place) => is_directory(&place),
                Err(failure) if failure.exit == Exit::NotFound => false,
                Err(failure) => return Err(failure),
            },
        };
        Ok(Mountpoint { path, directory })
    }

    /// Everything in a store path that is to be linked in the root directory.
    pub async fn copy_to_root(&self, path: &StorePath) -> Result<CopyToRoot, Failure> {
        let place = in_store::find(self.store, &whole(path), true).await?;
        if !is_directory(&place) {
            let what = format!("{} is a file", path.absolute());
            let hint = "only what is in a directory can be linked in the root directory";
            return Err(Failure::new(Exit::Usage, what).hint(hint));
        }
        let tree = &place.path.tree;
        let mut entries = Vec::new();
        let mut left = vec![(place.entry, Vec::new())];
        while let Some((entry, path)) = left.pop() {
            let kind = match tree.node(entry) {
                Some(Node::Directory { children }) => {
                    for child in children.rev().map(EntryIndex) {
                        let name = tree.name(child);
                        let path = match path.is_empty() {
                            true => name.to_vec(),
                            false => [&path, &b"/"[..], name].concat(),
                        };
                        left.push((child, path));
                    }
                    Copied::Directory
                }
                _ => Copied::Link,
            };
            if !path.is_empty() {
                entries.push((path, kind));
            }
        }
        Ok(CopyToRoot {
            path: path.clone(),
            entries,
        })
    }
}

fn whole(path: &StorePath) -> StoreFile {
    StoreFile {
        store_path: path.clone(),
        inside: String::new(),
    }
}

fn is_directory(place: &Place) -> bool {
    matches!(place.node(), Some(Node::Directory { .. }))
}

/// What the image consists of, for the question whether it can run its program.
pub(super) struct Contents<'a> {
    pub closure: &'a HashSet<StorePath>,
    pub root: &'a RootEntries,
    /// The base's directories, if there is a base; not known if they were not needed.
    pub base: Option<Option<&'a Below>>,
}

impl Contents<'_> {
    /// Whether the program is in the image, as far as that can be known here.
    ///
    /// # Errors
    /// When it certainly is not, or cannot be executed.
    pub async fn check(&self, store: &Store, program: &Program) -> Result<(), Failure> {
        let Some(word) = &program.word else {
            return Ok(());
        };
        if let Some(file) = self.in_store(word)? {
            return self.check_in_store(store, word, &file).await;
        }
        let known = match (word.strip_prefix('/'), &self.base) {
            (_, Some(None)) => true,
            (Some(path), Some(Some(below))) => {
                self.root.contains_key(&self.place(path)) || below.has(path.as_bytes())
            }
            (Some(path), None) => self.root.contains_key(path.as_bytes()),
            // It is looked for in PATH, or in the working directory.
            (None, Some(_)) => true,
            (None, None) => program.has_path || word.contains('/') || !self.root.is_empty(),
        };
        match known {
            true => Ok(()),
            false => {
                let what = format!("there will be no {word} in the image to run");
                Err(Failure::new(Exit::Usage, what)
                    .hint("name a program by its absolute path in the store"))
            }
        }
    }

    /// Where a path of the image, without its leading slash, comes to stand.
    fn place(&self, path: &str) -> Vec<u8> {
        match self.base.flatten() {
            Some(below) => below.place(path.as_bytes()),
            None => path.into(),
        }
    }

    /// The file of the store that a word names, by itself or through a link in the root directory.
    fn in_store(&self, word: &str) -> Result<Option<StoreFile>, Failure> {
        let Some(path) = word.strip_prefix('/') else {
            return Ok(None);
        };
        let parse = |file: &str| {
            let parsed = parse_store_file(file);
            parsed.map(Some).map_err(|e| Failure::new(Exit::Usage, e))
        };
        if path.starts_with(&STORE_DIR[1..]) {
            return parse(word);
        }
        let place = self.place(path);
        let ends = place.iter().enumerate().filter(|(_, c)| **c == b'/');
        for end in ends.map(|(at, _)| at).chain([place.len()]) {
            if let Some(RootEntry::Link(target)) = self.root.get(&place[..end]) {
                let file = [target, &place[end..]].concat();
                return parse(&String::from_utf8_lossy(&file));
            }
        }
        Ok(None)
    }

    async fn check_in_store(
        &self,
        store: &Store,
        word: &str,
        file: &StoreFile,
    ) -> Result<(), Failure> {
        let outside = |path: &StorePath| {
            let what = format!(
                "{word} is to be run, but {} is not in the image",
                path.absolute()
            );
            Failure::new(Exit::Usage, what).hint(format!("--closure {} brings it", path.absolute()))
        };
        if !self.closure.contains(&file.store_path) {
            return Err(outside(&file.store_path));
        }
        let place = in_store::find(store, file, true).await?;
        if !self.closure.contains(&place.path.store_path) {
            return Err(outside(&place.path.store_path));
        }
        match place.node() {
            Some(Node::Regular {
                executable: true, ..
            }) => Ok(()),
            Some(Node::Directory { .. }) => {
                let what = format!("{word} is to be run, but is a directory");
                let hint = format!("`narfs ls {}` shows what is in it", place.absolute());
                Err(Failure::new(Exit::Usage, what).hint(hint))
            }
            _ => {
                let what = format!("{word} is to be run, but is not executable");
                Err(Failure::new(Exit::Usage, what))
            }
        }
    }
}
