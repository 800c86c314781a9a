//! Views: subsets of the store with a root directory each. The library without a mount
//! (`store.rs`), and as lowers of overlays, which is what they are for (`mounted.rs`; needs root).

#[path = "../support/mod.rs"]
mod support;
#[path = "../store_faults/world.rs"]
#[allow(dead_code, reason = "made for more than is used here")]
mod world;

mod mounted;
mod store;
