//! One process for a state directory: its store, its mounts, its control socket, its end.
//!
//! ```text
//! open.rs      the configuration ──▶ a store
//! scratch.rs   a store for one command, in a directory that goes with it
//! serve.rs     mounts, signals, readiness, idle end
//! protocol.rs  what is said over the control socket
//! server.rs    the socket              service.rs   what is answered, with a store at hand
//! client.rs    the other end: a running daemon, or the store opened on the spot
//! admin/       HTTP: metrics, readiness, what goes on
//! confine/     what a daemon of the mount helper gives up
//! socket.rs    a private socket that is made again when it vanishes
//! hosted.rs    a daemon in a verb's own process (`narfs trace`)
//! keeper.rs    a mount that outlives the process
//! memory.rs    what the process keeps for itself
//! spawn.rs     a daemon in the background
//! reach.rs     the daemon that runs share, started by the first of them
//! terms.rs     whether a running daemon serves what this command wants
//! namespace.rs a private /nix/store for one program (`narfs run`)
//! ```

pub mod admin;
pub mod client;
pub mod confine;
mod hosted;
pub mod keeper;
mod memory;
pub mod namespace;
mod open;
pub mod protocol;
pub mod reach;
pub mod scratch;
mod serve;
mod server;
mod service;
mod socket;
pub mod spawn;
mod terms;

pub use admin::METRICS;
pub(crate) use admin::{Admin, Check, Office, answers};
pub(crate) use hosted::Hosted;
pub(crate) use memory::limit_arenas;
pub(crate) use open::limits;
pub use open::{open_store, open_store_in, runtime, substituter_at};
pub(crate) use serve::{
    Activity, DRAIN, IDLE_TICK, Shared, Signal, end_runtime, mount_failure, store_failure,
};
pub use serve::{Serve, serve};
pub(crate) use server::Server;
pub(crate) use socket::{Socket, check_free};
pub use terms::Terms;
