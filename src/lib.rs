//! narfs: Nix binary caches mounted as `/nix/store`, fetched when read.
//!
//! The way of a byte, from the cache up to the program that reads it:
//!
//! ```text
//! metrics       what is measured: declarations, cells, Prometheus' text
//! trace         what happened when, recorded where somebody asked to know it
//! substituter   where bytes come from: http(s), file, s3; credentials, retries
//! codec         how they are packed: xz, zstd, none, …; random access where the format allows it
//! nix           what they mean: store paths, narinfos, signatures, listings, NARs (pure, no I/O)
//! tree          names, sizes and offsets of one store path, compiled into a flat index
//! chunks        the signed chunk index of a NAR (pure, no I/O)
//! content       where they rest: sparse NAR files, maps of what is valid, the database
//! store         the lazy store: admission, fetch lanes, trust, progress
//! publish       closures written into a cache
//! fuse          the kernel protocol, and nothing but that
//! config        what a user has set        failure   how narfs ends: statuses, causes, hints
//! image         container images whose store paths a snapshotter brings
//! daemon        one process for a state directory: mounts, control socket, lifetime
//! snapshotter   containers: containerd's snapshots service, over gRPC
//! demo, cli     all of it shown on one machine; what a user types and reads
//! ```
//!
//! Arrows point from a lower line of this list to the ones above it only.

pub mod chunks;
pub mod cli;
pub mod codec;
pub mod config;
pub mod content;
pub mod daemon;
pub mod demo;
pub mod failure;
pub mod fuse;
pub mod image;
pub mod metrics;
pub mod nix;
pub mod profile;
pub mod publish;
pub mod snapshotter;
pub mod store;
pub mod substituter;
pub mod trace;
pub mod tree;
