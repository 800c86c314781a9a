//! Small files like those that were waited for.
//!
//! A program that reads a small file that had to be fetched usually reads more of the kind: the
//! modules of a scripting language, icons, message catalogues. Which ones only it knows, but they
//! end alike, and lie near: where its chunks can be fetched apart, those around the file come along,
//! the nearest first, and the more files of a kind were waited for, the further. What ends
//! differently stays where it is: a Python that reads compiled modules never reads their sources,
//! which lie between them.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Core, Path};
use crate::{
    store::fetch::Nar,
    tree::{EntryIndex, Node, Tree},
};

/// A wait for a file below this says that more of its kind are read, in bytes.
const SMALL_FILE: u64 = 128 << 10;
/// What is below this comes along, in bytes.
const COMES_ALONG: u64 = 256 << 10;
/// How many bytes of the kind come along at the first wait.
const FIRST_REACH: u64 = 512 << 10;
/// How often that is made four times as much: up to 8 MiB.
const MOST_STEPS: u32 = 2;
/// Kinds of files of one NAR that are told apart.
const MOST_KINDS: usize = 64;
/// Between two files that are fetched in one there may be so many bytes of others.
const BETWEEN: u64 = 4 << 10;

/// What of a NAR's small files was waited for.
#[derive(Debug, Default)]
pub(in crate::store) struct Kinds(Mutex<HashMap<Vec<u8>, Kind>>);

#[derive(Debug, Default)]
struct Kind {
    waits: u32,
    /// Where the files lie in the NAR, in order, without those that are large.
    files: Arc<[Range<u64>]>,
}

impl Kinds {
    /// Notes a wait for `entry`: the files of its kind, and how many bytes of them are to come along.
    fn note_wait(&self, tree: &Tree, entry: EntryIndex) -> Option<(Arc<[Range<u64>]>, u64)> {
        let ending = ending(tree.name(entry));
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !kinds.contains_key(ending) {
            if kinds.len() == MOST_KINDS {
                return None;
            }
            let files = small_files(tree, ending).into();
            kinds.insert(ending.to_vec(), Kind { waits: 0, files });
        }
        let kind = kinds.get_mut(ending)?;
        let steps = kind.waits.min(MOST_STEPS);
        kind.waits += 1;
        Some((kind.files.clone(), FIRST_REACH << (2 * steps)))
    }
}

impl Core {
    /// Fetches the neighbours of a file that has to be waited for, if it is small.
    pub(in crate::store) fn read_neighbours(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        path: &Path,
        entry: EntryIndex,
    ) {
        let Some(Node::Regular { size, offset, .. }) = path.tree.node(entry) else {
            return;
        };
        if size >= SMALL_FILE || !nar.is_proven() {
            return;
        }
        let Some((files, reach)) = nar.kinds.note_wait(&path.tree, entry) else {
            return;
        };
        for part in around(&files, offset, reach) {
            self.fetch_ahead(nar, part);
        }
    }
}

/// What a name ends with, from its last dot; nothing if it has none.
fn ending(name: &[u8]) -> &[u8] {
    match name.iter().rposition(|byte| *byte == b'.') {
        Some(dot) => &name[dot..],
        None => b"",
    }
}

fn small_files(tree: &Tree, kind: &[u8]) -> Vec<Range<u64>> {
    let mut files: Vec<Range<u64>> = (0..tree.len())
        .map(EntryIndex)
        .filter_map(|entry| match tree.node(entry)? {
            Node::Regular { size, offset, .. }
                if (1..COMES_ALONG).contains(&size) && ending(tree.name(entry)) == kind =>
            {
                Some(offset..offset + size)
            }
            _ => None,
        })
        .collect();
    files.sort_unstable_by_key(|file| file.start);
    files
}

/// The files around `offset` that make up `reach` bytes, in as few parts as they lie in, the nearest first.
fn around(files: &[Range<u64>], offset: u64, reach: u64) -> Vec<Range<u64>> {
    let at = files.partition_point(|file| file.start < offset);
    let (mut before, mut after) = (files[..at].iter().rev(), files[at..].iter());
    let (mut last, mut next) = (before.next(), after.next());
    let mut parts: Vec<Range<u64>> = Vec::new();
    let mut left = reach;
    while left > 0 {
        let take_next = match (last, next) {
            (None, None) => break,
            (last, next) => match (last, next) {
                (Some(last), Some(next)) => next.start - offset <= offset - last.start,
                (_, next) => next.is_some(),
            },
        };
        let file = match take_next {
            true => std::mem::replace(&mut next, after.next()),
            false => std::mem::replace(&mut last, before.next()),
        };
        let Some(file) = file else { break };
        left = left.saturating_sub(file.end - file.start);
        let touches = |part: &Range<u64>| {
            file.start <= part.end + BETWEEN && part.start <= file.end + BETWEEN
        };
        match parts.iter_mut().rev().take(2).find(|part| touches(part)) {
            Some(part) => *part = part.start.min(file.start)..part.end.max(file.end),
            None => parts.push(file.clone()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_their_ending() {
        assert_eq!(ending(b"a.cpython-311.pyc"), b".pyc");
        assert_eq!(ending(b"README"), b"");
        assert_eq!(ending(b".hidden"), b".hidden");
    }

    #[test]
    fn the_nearest_come_first_and_in_few_parts() {
        let files = [0..10, 12..20, 100_000..100_010, 200_000..200_100];
        let parts = |offset, reach| -> Vec<(u64, u64)> {
            let parts = around(&files, offset, reach);
            parts.iter().map(|part| (part.start, part.end)).collect()
        };
        assert_eq!(parts(0, 5), [(0, 10)]);
        assert_eq!(parts(12, 18), [(0, 20)]);
        assert_eq!(
            parts(100_000, 1000),
            [(100_000, 100_010), (0, 20), (200_000, 200_100)]
        );
        assert_eq!(parts(300_000, 100), [(200_000, 200_100)]);
        assert!(around(&[], 7, 100).is_empty());
    }
}
