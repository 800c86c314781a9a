//! Publishing: a closure written into a cache that every Nix reads as usual, and narfs down to the
//! chunk.
//!
//! ```text
//! source   which paths, and their NARs: from a cache, or from a Nix store of this machine
//! cut      where a NAR is cut into chunks
//! pack     the chunks as zstd frames, with a seek table
//! target   what the cache has, and what is written into it in which order
//! run      all paths side by side
//! ```
//!
//! What always holds, also when it is killed at any moment: a narinfo is written when its NAR, its
//! chunk index and its listing are there, and after the narinfos of everything that the path refers
//! to. So a cache is valid at every moment, and the next run goes on where this one stopped. Files
//! are made from the NAR and the settings alone: two who publish the same at once write the same.
//!
//! Acts: a task for each path, of which [`Settings::jobs`] at a time fetch, pack and write; the
//! work on bytes is on threads of the runtime's blocking pool.

mod cut;
mod error;
mod local;
mod pack;
mod run;
mod source;
mod target;

pub use cut::{Size, cut};
pub use error::PublishError;
pub use local::LocalStore;
pub use pack::{Packed, pack};
pub use run::{Outcome, PathReport, Progress, Report, Request, State, publish};
pub use source::Supplier;
pub use target::{Standing, Target};

/// How to publish.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Size of a chunk.
    pub size: Size,
    /// Level of zstd.
    pub level: i32,
    /// Paths that are worked on at a time.
    pub jobs: usize,
    /// Say what would be done, and write nothing.
    pub dry_run: bool,
    /// Tries of a NAR.
    pub tries: u32,
}
