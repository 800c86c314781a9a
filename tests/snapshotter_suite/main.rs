//! What containerd expects of a snapshotter, as black-box cases over gRPC: the real program, real
//! mounts, real files. The first half checks what containerd's own test suite for snapshotters
//! checks; the second, in the manner of the remote snapshotters' tests, layers whose content comes
//! from binary caches.
//!
//! ```text
//! tree.rs        changes done in snapshots and in a flat directory, compared
//! layers.rs      file systems over several layers
//! lifecycle.rs   prepare, commit, view, remove, and what they refuse
//! records.rs     stat, list, update, usage, cleanup
//! mounts.rs      the mounts themselves
//! closures.rs    Nix layers of real closures
//! chains.rs      Nix layers on each other and among ordinary layers
//! refused.rs     Nix layers that can't be had
//! shared.rs      many Nix layers at once
//! lasting.rs     restarts, roots, usage
//! nix.rs         what those five share
//! ```
//!
//! Needs root, `/dev/fuse` and what `tests/setup` makes; fails where one of them is missing.

#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "../support/cache.rs"]
mod cache;
#[path = "../support/corpus.rs"]
mod corpus;
#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "../support/scripted/mod.rs"]
mod scripted;
#[path = "../support/snapshot.rs"]
mod snapshot;
#[path = "../support/snapshotter/mod.rs"]
mod snapshotter;
#[path = "../support/truth.rs"]
mod truth;

mod tree;

mod layers;
mod lifecycle;
mod mounts;
mod records;

mod chains;
mod closures;
mod lasting;
mod nix;
mod refused;
mod shared;
