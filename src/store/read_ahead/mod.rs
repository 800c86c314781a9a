//! Fetching ahead of a program that starts: what its image says it will load.
//!
//! A dynamic loader opens one library after the other, each in another store path, and waits for
//! each. The image that it begins with names them all: the interpreter, the needed libraries, and
//! where they are searched for; a script names its interpreter. Whenever the beginning of such a
//! file is read for the first time, the files that it names are found in the known trees and
//! fetched in the read-ahead lane, and so on for each of them. That is no guess: it is what the
//! loader is about to open.
//!
//! What a program loads later by itself is in `modules.rs`, and small files that it reads in
//! `neighbours.rs`.

mod elf;
mod modules;
mod neighbours;

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::join_all;

pub use elf::all_of_image;
pub(super) use neighbours::Kinds;

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
/// Most that is fetched of images beyond what their loader reads, for one program, in unpacked
/// bytes: what a link of 200 Mbit/s brings in the time that a program needs to start.
const MOST_OF_RESTS: u64 = 16 << 20;
/// Bytes of an image that tell which parts of it are loaded: its headers are within the first page.
const BEGINNING: u64 = 64 << 10;
/// Images up to this are fetched whole, in bytes: what a loader does not read of them is less on
/// the link than the round trips that asking by parts takes.
const SMALL_IMAGE: u64 = 512 << 10;
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

/// A file, and how many others named it.
struct Named {
    target: Target,
    times: u32,
}

impl Core {
    /// Looks at the beginning of a file that was just read.
    pub(super) fn examine(self: &Arc<Self>, path: &Arc<Path>, entry: EntryIndex, beginning: &[u8]) {
        let loads_others = beginning.starts_with(elf::MAGIC) || beginning.starts_with(b"#!");
        if !loads_others
            || self.guides.guides(path.slot)
            || !self.examined.first_time(path.slot, entry)
        {
            return;
        }
        let (core, first) = (self.clone(), (path.clone(), entry));
        self.runtime.spawn(async move { core.follow(first).await });
    }

    /// Fetches all of a program whose beginning has to be waited for, where it comes in chunks: what is
    /// run is used more than anything that it names, and the link is idle while names are found.
    pub(super) fn read_program(self: &Arc<Self>, path: &Arc<Path>, entry: EntryIndex) {
        if let Some(Node::Regular {
            executable: true, ..
        }) = path.tree.node(entry)
        {
            let mut left = MOST_OF_RESTS;
            self.fetch_rest(&(path.clone(), entry), Lane::Background, &mut left);
        }
    }

    /// Fetches what a file names, and what its modules name if it is a program.
    async fn follow(self: Arc<Self>, first: Target) {
        let mut left = MOST_OF_RESTS;
        // What is loaded is asked for before the rest, and by itself.
        let rest = async { self.fetch_rest(&first, Lane::Background, &mut left) };
        tokio::join!(self.bring(&first.0, first.1, Lane::ReadAhead), rest);
        let libraries = async {
            for named in self.fetch_named(vec![first.clone()], u64::MAX).await {
                self.fetch_rest(&named.target, Lane::ReadAhead, &mut left);
            }
        };
        tokio::join!(libraries, self.follow_modules(first.clone()));
    }

    /// Fetches the rest of an image of which only what is loaded was fetched, if that is no more than
    /// what is `left`: of a program of many libraries most use little of most.
    fn fetch_rest(self: &Arc<Self>, (path, entry): &Target, lane: Lane, left: &mut u64) {
        let (Some(Node::Regular { size, offset, .. }), Ok(nar)) =
            (path.tree.node(*entry), self.nar_of(path))
        else {
            return;
        };
        let range = offset..offset + size;
        let missing = nar.file.missing(range.clone());
        let missing: u64 = missing.iter().map(|m| m.end - m.start).sum();
        if nar.is_indexed() && missing <= *left {
            *left -= missing;
            self.fetch_in(&nar, range, lane);
        }
    }

    /// Fetches files and what they name, breadth first as a loader does, in NARs of at most
    /// `largest` packed bytes. Says which were named, those first that were named most often.
    async fn fetch_named(self: &Arc<Self>, targets: Vec<Target>, largest: u64) -> Vec<Named> {
        let mut all: HashMap<(Slot, EntryIndex), Named> = HashMap::new();
        // What a file names can't be known before it is here; the files of one generation come
        // side by side, and each that has come brings its own names in.
        let mut running = tokio::task::JoinSet::new();
        let step = |target: Target| {
            let core = self.clone();
            async move { core.named_by(target, Lane::ReadAhead).await }
        };
        for target in targets
            .into_iter()
            .filter(|(path, _)| path.packed_size() <= largest)
        {
            running.spawn(step(target));
        }
        while let Some(found) = running.join_next().await {
            for (path, entry) in found.unwrap_or_default() {
                let named = all.entry((path.slot, entry)).or_insert_with(|| Named {
                    target: (path.clone(), entry),
                    times: 0,
                });
                named.times += 1;
                if path.packed_size() <= largest && self.examined.first_time(path.slot, entry) {
                    running.spawn(step((path, entry)));
                }
            }
        }
        let mut all: Vec<_> = all.into_values().collect();
        all.sort_by_key(|named| {
            let (path, entry) = &named.target;
            (
                std::cmp::Reverse(named.times),
                path.packed_size(),
                path.slot,
                *entry,
            )
        });
        all
    }

    /// Brings a file in `lane` and says which files it names.
    async fn named_by(self: &Arc<Self>, (path, entry): Target, lane: Lane) -> Vec<Target> {
        let Some(image) = self.bring(&path, entry, lane).await else {
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

    /// The whole of a file, fetched in `lane`.
    async fn bring(
        self: &Arc<Self>,
        path: &Arc<Path>,
        entry: EntryIndex,
        lane: Lane,
    ) -> Option<Vec<u8>> {
        if let Some(image) = self.bring_loaded(path, entry, lane).await {
            return Some(image);
        }
        let (nar, range, delivered) = self.fetch_file(path, entry, lane).await?;
        bytes_of(&nar, range, delivered)
    }

    /// What a loader reads of an image, where that can be fetched alone; the rest of it stays zero.
    async fn bring_loaded(
        self: &Arc<Self>,
        path: &Arc<Path>,
        entry: EntryIndex,
        lane: Lane,
    ) -> Option<Vec<u8>> {
        let Some(Node::Regular { size, offset, .. }) = path.tree.node(entry) else {
            return None;
        };
        let nar = self.nar_of(path).ok()?;
        if !nar.is_indexed() || size <= SMALL_IMAGE || size > LARGEST_IMAGE {
            return None;
        }
        let beginning = self.part(&nar, offset, 0..BEGINNING, lane).await?;
        let inside = |part: Range<u64>| part.start.min(size)..part.end.min(size);
        let parts: Vec<_> = elf::loaded(&beginning)?.into_iter().map(inside).collect();
        let coming = parts
            .iter()
            .map(|part| self.part(&nar, offset, part.clone(), lane));
        let bytes = join_all(coming).await;
        // What is not written to costs no memory.
        let mut image = vec![0; usize::try_from(size).ok()?];
        for (part, bytes) in parts.iter().zip(bytes) {
            image[part.start as usize..part.end as usize].copy_from_slice(&bytes?);
        }
        image[..beginning.len()].copy_from_slice(&beginning);
        // Nobody waits for the code here: the names are in.
        for part in elf::run_by_loader(&image).into_iter().map(inside) {
            self.fetch_ahead(&nar, offset + part.start..offset + part.end);
        }
        Some(image)
    }

    /// A part of the file that begins at `offset` in the NAR.
    async fn part(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        offset: u64,
        part: Range<u64>,
        lane: Lane,
    ) -> Option<Vec<u8>> {
        if part.is_empty() {
            return Some(Vec::new());
        }
        let range = offset + part.start..offset + part.end;
        let delivered = self.ensure(nar, Want::Bytes(range.clone()), lane).await;
        bytes_of(nar, range, delivered.ok()?)
    }

    /// Has a file fetched in `lane`: its NAR, and where it lies in it.
    async fn fetch_file(
        self: &Arc<Self>,
        path: &Arc<Path>,
        entry: EntryIndex,
        lane: Lane,
    ) -> Option<(Arc<Nar>, Range<u64>, Delivered)> {
        let Some(Node::Regular { size, offset, .. }) = path.tree.node(entry) else {
            return None;
        };
        if size == 0 || size > LARGEST_IMAGE {
            return None;
        }
        let nar = self.nar_of(path).ok()?;
        let range = offset..offset + size;
        match self.ensure(&nar, Want::Bytes(range.clone()), lane).await {
            Ok(delivered) => Some((nar, range, delivered)),
            Err(error) => {
                // Who really needs it will be told.
                tracing::debug!(path = %path.store_path, %error, "not read ahead");
                None
            }
        }
    }

    /// The file or directory that an absolute path leads to in the store, if its store path is
    /// known or can be admitted.
    async fn resolve(self: &Arc<Self>, absolute: &str) -> Option<Target> {
        let (store_path, rest) = StorePath::parse_with_rest(absolute).ok()?;
        let path = self.known_or_admitted(&store_path).await?;
        self.resolve_from(path, EntryIndex::ROOT, parts(rest)).await
    }

    pub(super) async fn known_or_admitted(
        self: &Arc<Self>,
        store_path: &StorePath,
    ) -> Option<Arc<Path>> {
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

/// What was delivered of a NAR.
fn bytes_of(nar: &Nar, range: Range<u64>, delivered: Delivered) -> Option<Vec<u8>> {
    match delivered {
        Delivered::Bytes(bytes) => Some(bytes),
        Delivered::OnDisk => {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
            nar.file.read_at(&mut bytes, range.start).ok()?;
            Some(bytes)
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
