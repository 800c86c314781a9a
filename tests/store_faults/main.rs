//! The lazy store under bad input and faults: the library without a mount, real caches in
//! temporary directories, and a web server that misbehaves on command.
//!
//! What always has to hold: a reader gets the right bytes or an error, never anything else and
//! never after its bound; an error is never remembered as absence; a fault of one path, one
//! cache or one reader is nobody else's; and what is over is over, without a restart.
//!
//! Nothing here depends on the clock but for bounds: where an order of events matters, the server
//! holds its replies at gates.

#[path = "../support/mod.rs"]
mod support;

mod absence;
mod access;
mod chunks;
mod damage;
mod destroyed;
mod everywhere;
mod failover;
mod full_disk;
mod keeping;
mod known;
mod listings;
mod narinfos;
mod network;
mod readers;
mod refused_listings;
mod room;
mod slow;
mod world;
