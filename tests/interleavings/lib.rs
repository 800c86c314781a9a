//! Modules of narfs, as they are, compiled against a standard library whose threads, locks and
//! atomics are shuttle's. `tests/` drives them; each test runs many times, each time in another
//! order, and says in which one it failed: `shuttle::replay` takes that.
//!
//! What is here is what has races to lose: [`store::lanes`], [`store::single_flight`], and all of [`content`] (the
//! map of what is valid, eviction against readers, what is made durable). What only waits for the
//! network is not: the rest of the store has no locks that are held for more than assignments.

// The modules' own tests run where they belong, and not with these threads.
#![cfg(not(test))]
#![allow(dead_code, reason = "narfs uses more of these modules than is here")]

extern crate interleaved_std as std;
extern crate interleaved_tokio as tokio;

#[path = "../../src/codec/checkpoint.rs"]
mod checkpoint;
#[path = "../../src/content/mod.rs"]
pub mod content;
#[path = "../../src/metrics/mod.rs"]
pub mod metrics;
#[path = "../../src/nix/mod.rs"]
pub mod nix;
pub mod store;

/// Of the codecs only what the content remembers of them.
mod codec {
    pub use crate::checkpoint::Checkpoint;
}
