//! The verbs that need no mount, run as a user runs them: the real binary over real caches.
//! What they print, how they end, what they ask the caches for, and what they leave behind.

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/corpus.rs"]
mod corpus;

mod kept;
mod nix;
mod priorities;
mod room;
mod run;
mod straight;
