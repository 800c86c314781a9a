//! The names, sizes, links and offsets of one store path, compiled into a flat index.
//!
//! A tree is made from a listing ([`compile_listing`]) or from the NAR as it passes
//! ([`NarIndexer`]); both give the same image, which is described in [`mod@format`] and is used in
//! place, mapped from its file ([`Tree`]). Everything that comes from outside is checked once,
//! when it is compiled or opened: the accessors of a [`Tree`] cannot fail.
//!
//! ```text
//! listing ─ json ─┐
//!                 ├─ draft ─ sort, number, compute the NAR's layout ─ image ─ validate ─ Tree
//! NAR ── indexer ─┘
//! ```

pub mod format;
pub mod limits;

mod compare;
mod draft;
mod image;
mod json;
mod layout;
mod listing;
mod map;
mod nar_index;
mod skeleton;
mod to_listing;
mod validate;
mod walk;

#[cfg(test)]
mod tests;

pub use compare::{Difference, Differs};
pub use image::{EntryIndex, Node, Tree, TreeError};
pub use limits::Refusal;
pub use listing::{ListingError, compile_listing};
pub use nar_index::{NarError, NarIndexer};
pub use skeleton::{Mismatch, SkeletonCheck, structure};
pub use to_listing::{to_listing, to_listing_with_offsets};
pub use validate::Damage;

/// What a tree was compiled from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The cache's listing: unsigned, to be compared with the NAR once that has come.
    Listing,
    /// The NAR itself.
    Nar,
}

/// A path inside a store path as messages show it: what is not printable is escaped.
pub(crate) fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        return "its root".into();
    }
    path.utf8_chunks()
        .flat_map(|chunk| {
            let valid = chunk.valid().escape_debug().collect::<String>();
            [valid, chunk.invalid().escape_ascii().to_string()]
        })
        .collect()
}
