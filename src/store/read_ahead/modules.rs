//! What a program loads later by itself: Python's extension modules, an image tool's coders.
//!
//! They are in the program's own store path, and each names libraries as any image does. As soon
//! as they are here, what they name is fetched, while the program is still busy with other things:
//!
//! - What is [small](SMALL_FILE) at once: it is less on the link than the round trip it saves.
//! - What is large a few at a time, those first that most modules name, up to a
//!   [share](LARGE_SHARE) of what the program itself cost: a program uses some of its modules, and
//!   which ones only it knows. Whatever it does ask for overtakes them.
//!
//! All large ones side by side cost a start more time than it saved, and without any of them the
//! link is idle while the program computes up to the first that it needs: a sixth of a start of
//! python3.11 that imports its ssl and sqlite3.

use std::{collections::HashMap, ops::Range, sync::Arc};

use futures_util::{StreamExt, stream};

use super::{Target, elf};
use crate::{
    store::{
        Core, Lane, Path, Slot,
        fetch::{Nar, Want},
    },
    tree::{EntryIndex, Node},
};

/// Modules above this are not looked into, in bytes: modules are small, and there may be many.
const LARGEST_MODULE: u64 = 4 << 20;
/// Modules that lie within so many bytes of their NAR are fetched in one, where they can be.
const ALL_MODULES: u64 = 4 << 20;
/// What comes in so many bytes is small: less than a link of 100 Mbit/s carries in a round trip
/// of 20 ms.
const SMALL_FILE: u64 = 128 << 10;
/// Large libraries are fetched as long as all of them take, packed, at most one part in so many
/// of what the program's own store path takes.
const LARGE_SHARE: u64 = 2;
/// Large libraries fetched side by side. A second one fills the round trip of the first; each
/// more would be in front of a reader who waits for another.
const LARGE_AT_ONCE: usize = 2;

impl Core {
    /// Fetches what the modules of a program name.
    pub(super) async fn follow_modules(self: &Arc<Self>, program: Target) {
        let budget = program.0.packed_size() / LARGE_SHARE;
        let named = self.named_by_modules(program).await;
        let (small, large): (Vec<_>, Vec<_>) = named
            .into_iter()
            .partition(|(path, _)| path.packed_size() <= SMALL_FILE);
        let (_, ()) = tokio::join!(
            self.fetch_named(small, SMALL_FILE),
            self.fetch_likely(most_named(large, |path| self.comes_alone(path)), budget),
        );
    }

    /// Fetches the first of these, each with its store path named by so many modules.
    async fn fetch_likely(self: &Arc<Self>, targets: Vec<Target>, budget: u64) {
        let mut left = budget;
        let chosen = targets.into_iter().filter(|(path, entry)| {
            let cost = self.packed_cost(path, *entry);
            let fits = cost <= left;
            if fits && self.examined.first_time(path.slot, *entry) {
                left -= cost;
                return true;
            }
            false
        });
        let chosen: Vec<Target> = chosen.collect();
        stream::iter(chosen)
            .for_each_concurrent(LARGE_AT_ONCE, |(path, entry)| async move {
                // That it is here is all that is wanted.
                let _ = self.fetch_file(&path, entry, Lane::ReadAhead).await;
            })
            .await;
    }

    /// What it takes to have a file, packed, in bytes.
    fn packed_cost(&self, path: &Arc<Path>, entry: EntryIndex) -> u64 {
        let packed = path.packed_size();
        match path.tree.node(entry) {
            Some(Node::Regular { size, .. }) if self.comes_alone(path) => {
                let part = u128::from(packed) * u128::from(size) / u128::from(path.nar_size.max(1));
                u64::try_from(part).unwrap_or(packed)
            }
            _ => packed,
        }
    }

    /// Whether a file of it can be had without what lies in front of it.
    fn comes_alone(&self, path: &Arc<Path>) -> bool {
        self.nar_of(path).is_ok_and(|nar| nar.is_indexed())
    }

    /// Fetches modules that lie side by side, if that is not too much; whether they are here.
    async fn fetch_together(
        self: &Arc<Self>,
        nar: &Arc<Nar>,
        path: &Path,
        modules: &[EntryIndex],
    ) -> bool {
        let mut all: Option<Range<u64>> = None;
        for module in modules {
            if let Some(Node::Regular { size, offset, .. }) = path.tree.node(*module) {
                let sofar = all.unwrap_or(offset..offset);
                all = Some(sofar.start.min(offset)..sofar.end.max(offset + size));
            }
        }
        let Some(all) = all.filter(|all| all.end - all.start <= ALL_MODULES) else {
            return false;
        };
        let want = Want::Bytes(all);
        self.ensure(nar, want, Lane::Background).await.is_ok()
    }

    /// The files that the modules of a program name, as often as they are named. As each module comes.
    async fn named_by_modules(self: &Arc<Self>, (path, entry): Target) -> Vec<Target> {
        let mut found = Vec::new();
        let Some(image) = self.bring(&path, entry, Lane::ReadAhead).await else {
            return found;
        };
        let is_program = elf::needs(&image).is_some_and(|needs| needs.interpreter.is_some());
        drop(image);
        let Ok(nar) = self.nar_of(&path) else {
            return found;
        };
        // Where each part costs a request, the modules that are used come when they are.
        if !is_program || !(nar.is_streamed() || nar.is_indexed()) {
            return found;
        }
        let modules = modules(&path);
        if nar.is_indexed() && !self.fetch_together(&nar, &path, &modules).await {
            return found;
        }
        for module in modules {
            // Nobody waits for a module that may never be used.
            found.extend(
                self.named_by((path.clone(), module), Lane::Background)
                    .await,
            );
        }
        found
    }
}

/// Libraries in a store path that are small enough to be looked into.
fn modules(path: &Path) -> Vec<EntryIndex> {
    let is_module = |entry: &EntryIndex| {
        let is_small = match path.tree.node(*entry) {
            Some(Node::Regular { size, .. }) => size <= LARGEST_MODULE,
            _ => false,
        };
        is_small && path.tree.name(*entry).windows(3).any(|part| part == b".so")
    };
    (0..path.tree.len())
        .map(EntryIndex)
        .filter(is_module)
        .collect()
}

/// Those first whose store path is named most often; of these the smaller ones. Of each store path
/// one file that brings the others along, or each file where it comes alone.
fn most_named(targets: Vec<Target>, comes_alone: impl Fn(&Arc<Path>) -> bool) -> Vec<Target> {
    let mut times: HashMap<Slot, usize> = HashMap::new();
    let mut each: HashMap<(Slot, Option<EntryIndex>), Target> = HashMap::new();
    for target in targets {
        let (path, entry) = &target;
        *times.entry(path.slot).or_default() += 1;
        let file = comes_alone(path).then_some(*entry);
        // The last file of a NAR in one stream brings all others along.
        each.entry((path.slot, file))
            .and_modify(|(_, last)| *last = (*last).max(*entry))
            .or_insert(target.clone());
    }
    let mut each: Vec<Target> = each.into_values().collect();
    each.sort_by_key(|(path, entry)| {
        (
            std::cmp::Reverse(times[&path.slot]),
            path.packed_size(),
            path.slot,
            *entry,
        )
    });
    each
}
