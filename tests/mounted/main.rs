//! Whole mounts: the real program, real caches, the real kernel. Needs root, `/dev/fuse` and what
//! `tests/setup` makes; fails where one of them is missing.
//!
//! ```text
//! admin.rs       metrics and what goes on, over HTTP
//! attributes.rs  what programs see apart from bytes; read-only
//! faults.rs      everything around a mount fails, and somebody looks at it all the while
//! gate.rs        requests and upcalls of fixed workloads, counted
//! lifecycle.rs   how mounts begin and end
//! logs.rs        lines of a cache that goes; no secrets
//! odd.rs         paths that no package has, made for the test
//! pages.rs       what the kernel keeps of what containers read
//! programs.rs    real programs from a mount over /nix/store
//! space.rs       little room, a full disk, a disk that changes what it keeps
//! status.rs      the status directory while things happen
//! top.rs         narfs top on a terminal
//! trees.rs       every packing of the caches against what the real nix unpacks
//! xattrs.rs      user.narfs.*
//! ```

#[path = "../support/admin.rs"]
mod admin_client;
#[path = "../support/corpus.rs"]
mod corpus;
#[path = "../support/generated.rs"]
mod generated;
#[path = "../support/mounted.rs"]
mod mounted;
#[path = "../support/prober.rs"]
mod prober;
#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "../support/scripted/mod.rs"]
mod scripted;
#[path = "../support/snapshot.rs"]
mod snapshot;
#[path = "../support/synthetic.rs"]
mod synthetic;
#[path = "../support/truth.rs"]
mod truth;

mod admin;
mod attributes;
mod faults;
mod gate;
mod lifecycle;
mod logs;
mod odd;
mod pages;
mod programs;
mod space;
mod status;
mod top;
mod trees;
mod xattrs;
