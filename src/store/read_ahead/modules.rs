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

use std::{collections::HashMap, sync::Arc};

use futures_util::{StreamExt, stream};

use super::{Target, elf};
use crate::{
    store::{Core, Lane, Slot},
    tree::{EntryIndex, Node},
};

/// Modules above this are not looked into, in bytes: modules are small, and there may be many.
const LARGEST_MODULE: u64 = 4 << 20;
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
            self.fetch_likely(most_named(large), budget),
        );
    }

    /// Fetches the first of these, each with its store path named by so many modules.
    async fn fetch_likely(self: &Arc<Self>, targets: Vec<Target>, budget: u64) {
        let mut left = budget;
        let chosen = targets.into_iter().filter(|(path, entry)| {
            let fits = path.packed_size() <= left;
            if fits && self.examined.first_time(path.slot, *entry) {
                left -= path.packed_size();
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
        // Where parts can be fetched apart, the modules that are used come when they are.
        if !is_program || !nar.is_streamed() {
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
            // Nobody waits for a module that may never be used.
            found.extend(
                self.named_by((path.clone(), module), Lane::Background)
                    .await,
            );
        }
        found
    }
}

/// One file of each store path (which is what comes with it), those first whose path is named
/// most often; of these the smaller ones.
fn most_named(targets: Vec<Target>) -> Vec<Target> {
    let mut times: HashMap<Slot, usize> = HashMap::new();
    for (path, _) in &targets {
        *times.entry(path.slot).or_default() += 1;
    }
    let mut each: HashMap<Slot, Target> = HashMap::new();
    for target in targets {
        // The last file of a NAR in one stream brings all others along.
        each.entry(target.0.slot)
            .and_modify(|(_, entry)| *entry = (*entry).max(target.1))
            .or_insert(target);
    }
    let mut each: Vec<Target> = each.into_values().collect();
    each.sort_by_key(|(path, _)| {
        (
            std::cmp::Reverse(times[&path.slot]),
            path.packed_size(),
            path.slot,
        )
    });
    each
}
