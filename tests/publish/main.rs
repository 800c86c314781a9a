//! `narfs publish`, the real binary: what it writes is read by the real Nix and by narfs, and a cache
//! is valid whatever interrupts it.

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/corpus.rs"]
mod corpus;

mod interrupted;
mod lazy;
mod nix;
mod profile;
mod servers;
mod since;
mod world;
