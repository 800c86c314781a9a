//! Whole mounts: the real program, real caches, the real kernel. Needs root, `/dev/fuse` and what
//! `tests/setup` makes; fails where one of them is missing.
//!
//! ```text
//! attributes.rs  what programs see apart from bytes; read-only
//! gate.rs        requests and upcalls of fixed workloads, counted
//! programs.rs    real programs from a mount over /nix/store
//! trees.rs       every packing of the caches against what the real nix unpacks
//! ```

#[path = "../support/corpus.rs"]
mod corpus;
#[path = "../support/mounted.rs"]
mod mounted;
#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "../support/scripted/mod.rs"]
mod scripted;
#[path = "../support/snapshot.rs"]
mod snapshot;

mod attributes;
mod gate;
mod programs;
mod trees;
mod truth;
