//! Where bytes rest: sparse NAR files, maps of what is valid in them, compiled trees, the database.
//!
//! Uses [`crate::nix`] and the checkpoints of [`crate::codec`]; knows nothing of the network or of mounts. All of it is one state directory, mode 0700:
//!
//! | name | what | see |
//! |---|---|---|
//! | `version`, `lock` | format of the directory; who uses it | `state_dir.rs` |
//! | `content/<nix32 of the NAR hash>.nar` | the uncompressed NAR, sparse while partial, always of the NAR's size | `nar_file.rs` |
//! | `content/<…>.map` | which of its bytes are valid, and their sums | `map.rs` |
//! | `content/<…>.index` | the compiled tree | the layer `tree` |
//! | `content/<…>.chunks` | the chunk index that a cache has of it | the layer `chunks` |
//! | `tmp/` | files being written, before they get their name; emptied at the start | `shared.rs` |
//! | `narfs.spare` | slots that the database could not take | `db/spare.rs` |
//! | `narfs.redb` | slots, narinfos, roots, uses, facts | [`db`] |
//!
//! # What always holds
//!
//! - A byte is called valid in memory after the whole write that brought it succeeded, and on the disk (by the map)
//!   after it was synced. So a kill or a power cut at any instruction loses what came in the last half second, and
//!   nothing else.
//! - A valid byte does not change. Whoever writes it first wins. Bytes go with all the others, by
//!   [`NarFile::discard`], which begins a new *generation* with a new file, or by whole cells (`sums.rs`), which
//!   counts a *removal*. A reader compares both before and after it reads.
//! - Every read is held against the sums that were made of the bytes when they came (`sums.rs`). What differs is no
//!   longer valid; nothing else goes with it.
//! - A map is believed if it is whole, speaks of this NAR and this size, and the NAR file has no hole where it says
//!   that bytes are. Otherwise nothing is valid, and a warning says why.
//! - A map that was removed stays removed (the directory is synced) before another NAR file gets its name.
//!
//! # Who acts
//!
//! - Callers' threads read and write NAR files, and read the database.
//! - `narfs-persist` makes new bytes durable: half a second after the first of them, at once when a NAR was verified;
//!   [`ContentStore::flush`] does a round of it on the caller's thread.
//! - `narfs-db` does all writes to the database.
//!
//! # Order of locks
//!
//! Each may be taken while those before it in this list are held, never the other way round:
//!
//! 1. the round of the persister;
//! 2. a NAR file's `writer`: one writer, or a discard;
//! 3. a NAR file's `persisting`: its map on the disk is written or removed;
//! 4. a part of the table of living NAR files;
//! 5. a NAR file's `state`;
//! 6. the open files; the persister's queue; the usage count. Nothing is taken while one of these is held.
//!
//! Nothing is read from or written to a NAR file while 4, 5 or 6 is held. No `Arc<NarFile>` is dropped while 4 is held:
//! the last one takes it.

pub mod db;

mod check;
mod error;
mod evict;
mod extents;
mod fds;
mod limits;
mod map;
mod nar_file;
mod persist;
mod shared;
mod state_dir;
mod store;
mod sums;
mod usage;

#[cfg(test)]
mod tests;

pub use crate::codec::Checkpoint;
pub use check::{CheckProgress, CheckReport, Damage, DamageKind, Kept};
pub use db::{
    CachedNarinfo, Db, KeptOfPath, KeptView, MAX_VIEW, NarinfoTtl, PathError, PathFacts, Pending,
};
pub use error::ContentError;
pub use evict::{EvictGoal, EvictPlan, Evicted, Parts, Rank, Victim};
pub use extents::Extents;
pub use fds::MAX_OPEN_FILES;
pub use limits::{Amount, FileSystem, Limits};
pub use map::{Map, MapError};
pub use nar_file::{Hold, NarFile, PIECE};
pub use state_dir::{LOG_FILE, STATE_VERSION};
pub use store::{ContentStore, OpenOptions};
pub use sums::BLOCK as SUM_BLOCK;
