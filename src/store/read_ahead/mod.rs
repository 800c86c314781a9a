//! Fetching ahead of a program that starts: what its image says it will load.
//!
//! A dynamic loader opens one library after the other, each in another store path, and waits for
//! each. The image that it begins with names them all: the interpreter, the needed libraries, and
//! where they are searched for; a script names its interpreter. Whenever the beginning of such a
//! file is read for the first time, the files that it names are found in the known trees and
//! fetched in the read-ahead lane, and so on for each of them. That is no guess: it is what the
//! loader is about to open.
//!
//! What a program loads later by itself (Python's extension modules, an image tool's coders) it
//! has in its own store path. Once that is here, what these modules name is fetched too if it is
//! [small](SMALL_FILE): less on the link than the round trip it saves. Fetching the large ones
//! too cost a start more time than it saved, measured with python3.11.

mod elf;

use std::{
    collections::HashSet,
    ops::Range,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
};

use futures_util::future::join_all;

use super::{
    Core, Lane, Path, Slot,
    fetch::{Delivered, Nar, Want},
};
use crate::{
    nix::StorePath,
    tree::{EntryIndex, Node},
};

/// Images above this are left to their readers, in bytes: to be parsed, one is held in memory.
const LARGEST_IMAGE: u64 = 64 << 20;
/// Modules above this are not looked into, in bytes: modules are small, and there may be many.
const LARGEST_MODULE: u64 = 4 << 20;
/// What a module names is fetched before it is asked for if it comes in so many bytes: less than
/// a link of 100 Mbit/s carries in a round trip of 20 ms.
const SMALL_FILE: u64 = 128 << 10;
/// Bytes of an image that tell which parts of it are loaded: its headers are within the first page.
const BEGINNING: u64 = 64 << 10;
/// How far around a small file its neighbours are fetched at first, in bytes of the NAR.
const FIRST_REACH: u64 = 512 << 10;
/// How often that is doubled: up to 8 MiB.
const MOST_DOUBLED: u32 = 4;
/// Links followed for one name; as many as the kernel follows.
const MAX_LINKS: u32 = 40;
/// Longest first line of a script, in bytes, as the kernel has it (`BINPRM_BUF_SIZE`).
const SHEBANG: usize = 256;

/// Files that were examined already: nothing new is to be learned from them.
#[derive(Default)]
pub(super) struct Examined(Mutex<HashSet<(Slot, EntryIndex)>>);

impl Examined {
    fn first_time(&self, slot: Slot, entry: EntryIndex) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((slot, entry))
    }
}

/// A file that is named by another.
type Target = (Arc<Path>, EntryIndex);

impl Core {
    /// Looks at the beginning of a file that was just read.
    pub(super) fn examine(self: &Arc<Self>, path: &Arc<Path>, entry: EntryIndex, beginning: &[u8]) {
        let loads_others = beginning.starts_with(elf::MAGIC) || beginning.starts_with(b"#!");
        if !loads_others || !self.examined.first_time(path.slot, entry) {
            return;
        }
        let (core, first) = (self.clone(), (path.clone(), entry));
        self.runtime.spawn(async move { core.follow(first).await });
    }

    /// Fetches what a file names, and then what its modules name if it is a program.
    async fn follow(self: Arc<Self>, first: Target) {
        self.fetch_named(vec![first.clone()], u64::MAX).await;
        let modules = self.named_by_modules(first).await;
        self.fetch_named(modules, SMALL_FILE).await;
    }

    /// Fetches files and what they name, breadth first as a loader does, in NARs of at most
    /// `largest` packed bytes.
    async fn fetch_named(self: &Arc<Self>, targets: Vec<Target>, largest: u64) {
        // What a file names can't be known before it is here; the files of one generation come
        // side by side, and each that has come brings its own names in.
        let mut running = tokio::task::JoinSet::new();
        let step = |target: Target| {
            let core = self.clone();
            async move { core.named_by(target).await }
        };
        for target in targets
            .into_iter()
            .filter(|(path, _)| path.packed_size() <= largest)
        {
            running.spawn(step(target));
        }
        while let Some(found) = running.join_next().await {
            for (path, entry) in found.unwrap_or_default() {
                if path.packed_size() <= largest && self.examined.first_time(path.slot, entry) {
                    running.spawn(step((path, entry)));
                }
            }
        }
    }

    /// Brings a file and says which files it names.
    async fn named_by(self: &Arc<Self>, (path, entry): Target) -> Vec<Target> {
        let Some(image) = self.bring(&path, entry).await else {
            return Vec::new();
        };
        let directory = path.tree.path_of(path.tree.parent(entry));
        let origin = format!(
            "{}/{}",
            path.store_path.absolute(),
            String::from_utf8_lossy(&directory)
        );
        let mut found = Vec::new();
        if let Some(interpreter) = shebang(&image) {
            found.extend(self.resolve(interpreter).await);
        }
        let Some(needs) = elf::needs(&image) else {
            return found;
        };
        if let Some(interpreter) = &needs.interpreter {
            found.extend(self.resolve(interpreter).await);
        }
        let mut directories = Vec::new();
        for search in &needs.search {
            let search = search
                .replace("$ORIGIN", &origin)
                .replace("${ORIGIN}", &origin);
            directories.extend(self.resolve(&search).await);
        }
        for library in &needs.libraries {
            for (path, directory) in &directories {
                if let Some(file) = path.tree.lookup(*directory, library.as_bytes()) {
                    found.extend(self.resolve_from(path.clone(), file, Vec::new()).await);
                    break;
                }
            }
        }
        found
    }

    /// The files that the modules of a program name.
    async fn named_by_modules(self: &Arc<Self>, (path, entry): Target) -> Vec<Target> {
        let mut found = Vec::new();
        let Some(image) = self.bring(&path, entry).await else {
            return found;
        };
        let is_program = elf::needs(&image).is_some_and(|needs| needs.interpreter.is_some());
        let Ok(nar) = self.nar_of(&path) else {
            return found;
        };
        // Where parts can be fetched apart, the modules that are used come when they are.
        if !is_program || !nar.is_streamed() {
            return found;
        }
        if self
            .ensure(&nar, Want::Verified, Lane::Background)
            .await
            .is_err()
        {
            return found;
        }
        for module in (0..path.tree.len()).map(EntryIndex) {
            let looked_into = match path.tree.node(module) {
                Some(Node::Regular { size, .. }) => size <= LARGEST_MODULE,
                _ => false,
            };
            let is_library = path.tree.name(module).windows(3).any(|part| part == b".so");
            if !looked_into || !is_library {
                continue;
            }
            found.extend(self.named_by((path.clone(), module)).await);
        }
        found
    }

    /// The whole of a file, fetched in the read-ahead lane.
    async fn bring(self: &Arc<Self>, path: &Arc<Path>, entry: EntryIndex) -> Option<Vec<u8>> {
        let Some(Node::Regular { size, offset, .. }) = path.tree.node(entry) else {
            return None;
        };
        if size == 0 || size > LARGEST_IMAGE {
            return None;
        }
        let nar = self.nar_of(path).ok()?;
        let all = 0..size;
        if nar.is_indexed() && size > BEGINNING {
            let beginning = self.part(&nar, offset, 0..BEGINNING).await?;
            if let Some(parts) = elf::loaded(&beginning) {
                // What its loader does not read stays zero, and costs no memory.
                let mut image = vec![0; usize::try_from(size).ok()?];
                let inside = |part: Range<u64>| part.start.min(size)..part.end.min(size);
                let parts: Vec<_> = parts.into_iter().map(inside).collect();
                let coming = parts
                    .iter()
                    .map(|part| self.part(&nar, offset, part.clone()));
                for (part, bytes) in parts.iter().zip(join_all(coming).await) {
                    image[part.start as usize..part.end as usize].copy_from_slice(&bytes?);
                }
                image[..beginning.len()].copy_from_slice(&beginning);
                return Some(image);
            }
        }
        self.part(&nar, offset, all).await
    }

    /// A part of the file that begins at `offset` in the NAR, fetched in the read-ahead lane.
    async fn part(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        offset: u64,
        part: Range<u64>,
    ) -> Option<Vec<u8>> {
        let range = offset + part.start..offset + part.end;
        if range.is_empty() {
            return Some(Vec::new());
        }
        match self
            .ensure(nar, Want::Bytes(range.clone()), Lane::ReadAhead)
            .await
        {
            Ok(Delivered::Bytes(bytes)) => Some(bytes),
            Ok(Delivered::OnDisk) => {
                let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
                nar.file.read_at(&mut bytes, range.start).ok()?;
                Some(bytes)
            }
            Err(error) => {
                // Who really needs it will be told.
                tracing::debug!(path = %nar.path, %error, "not read ahead");
                None
            }
        }
    }

    /// Fetches on behind a small file that had to be waited for: programs that read many of them
    /// read their neighbours, in whatever order. The more of them were waited for, the further.
    pub(super) fn read_neighbours(self: &Arc<Self>, nar: &Arc<Nar>, range: &Range<u64>, size: u64) {
        if size >= SMALL_FILE || !nar.is_proven() {
            return;
        }
        let waits = nar.waits.fetch_add(1, Relaxed).min(MOST_DOUBLED);
        let reach = FIRST_REACH << waits;
        let before = range.start.saturating_sub(reach / 2);
        let around = before..(range.end + reach).min(nar.size);
        self.fetch_ahead(nar, around);
    }

    /// The file or directory that an absolute path leads to in the store, if its store path is
    /// known or can be admitted.
    async fn resolve(self: &Arc<Self>, absolute: &str) -> Option<Target> {
        let (store_path, rest) = StorePath::parse_with_rest(absolute).ok()?;
        let path = self.known_or_admitted(&store_path).await?;
        self.resolve_from(path, EntryIndex::ROOT, parts(rest)).await
    }

    async fn known_or_admitted(self: &Arc<Self>, store_path: &StorePath) -> Option<Arc<Path>> {
        match self.loaded(&store_path.hash()) {
            Some(path) => Some(path),
            // Without it there is nothing to read ahead; who needs it will be told why.
            None => self.admit_in_time(store_path).await.ok(),
        }
    }

    /// Goes on from an entry through `left` (names, the next one last), following links.
    async fn resolve_from(
        self: &Arc<Self>,
        mut path: Arc<Path>,
        mut entry: EntryIndex,
        mut left: Vec<String>,
    ) -> Option<Target> {
        let mut links = 0;
        loop {
            match path.tree.node(entry)? {
                Node::Regular { .. } if left.is_empty() => return Some((path, entry)),
                Node::Regular { .. } => return None,
                Node::Directory { .. } => match left.pop() {
                    None => return Some((path, entry)),
                    Some(name) if name == ".." => entry = path.tree.parent(entry),
                    Some(name) => entry = path.tree.lookup(entry, name.as_bytes())?,
                },
                Node::Symlink { target } => {
                    links += 1;
                    let target = std::str::from_utf8(target)
                        .ok()
                        .filter(|_| links <= MAX_LINKS)?;
                    if target.starts_with('/') {
                        let (store_path, rest) = StorePath::parse_with_rest(target).ok()?;
                        left.extend(parts(rest));
                        path = self.known_or_admitted(&store_path).await?;
                        entry = EntryIndex::ROOT;
                    } else {
                        left.extend(parts(target));
                        entry = path.tree.parent(entry);
                    }
                }
            }
        }
    }
}

/// The names in a relative path, the last one first.
fn parts(relative: &str) -> Vec<String> {
    relative
        .split('/')
        .filter(|p| !p.is_empty() && *p != ".")
        .rev()
        .map(str::to_owned)
        .collect()
}

/// The interpreter in a script's first line.
fn shebang(image: &[u8]) -> Option<&str> {
    let line = image.strip_prefix(b"#!")?;
    let line = line[..line.len().min(SHEBANG)]
        .split(|b| *b == b'\n')
        .next()?;
    std::str::from_utf8(line).ok()?.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_interpreter_of_a_script() {
        assert_eq!(
            shebang(b"#! /nix/store/x/bin/sh -e\necho"),
            Some("/nix/store/x/bin/sh")
        );
        assert_eq!(shebang(b"#!/bin/sh"), Some("/bin/sh"));
        assert_eq!(shebang(b"#!\n"), None);
        assert_eq!(shebang(b"\x7fELF"), None);
    }
}
