//! A containerd proxy snapshotter over the lazy store: `containerd.services.snapshots.v1`.
//!
//! ```text
//! wire.rs      the messages and the service as they go over the socket
//! ```

pub mod wire;
