//! The snapshotter under faults: the real program with its real mount, a web server for a cache
//! that misbehaves on command, and calls over its socket.
//!
//! What always has to hold: a call that was answered lasts, one that failed leaves nothing, and
//! whatever stops the program, the next one puts right what it left and says so.
//!
//! Needs root and /dev/fuse.

#[path = "../support/mod.rs"]
mod support;

mod caches;
mod database;
mod disk;
mod healing;
mod kills;
mod socket;
mod takeover;
mod world;
