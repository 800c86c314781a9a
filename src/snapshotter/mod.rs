//! A containerd proxy snapshotter over the lazy store: `containerd.services.snapshots.v1`.
//!
//! ```text
//! serve.rs        from the start to the end   metrics.rs  what is counted
//! wire.rs         the messages and the service as they go over the socket
//! service.rs      the calls as they come over it
//! snapshots.rs    the ten calls: Prepare, View, Mounts, Commit, Remove, Stat, Update, List, Usage, Cleanup
//! heal.rs         what a kill or a power cut left, put right at the start
//! layer.rs        which layers are Nix layers, and what they bring
//! closures.rs     what is needed of the store
//! mounts.rs       how a snapshot is mounted
//! native/         what is here whole, as files that the kernel reads itself
//! directories.rs  snapshots/ID/fs and work
//! metadata/       snapshots.redb              record.rs   what is known of a snapshot
//! filter.rs       containerd's filter language
//! error.rs        what can go wrong, and the code that containerd gets for it
//! ```

pub mod closures;
pub mod directories;
mod error;
mod filter;
mod heal;
mod layer;
pub mod metadata;
mod metrics;
pub mod mounts;
mod native;
pub mod record;
mod serve;
pub mod service;
mod snapshots;
pub mod wire;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod twin;

pub use error::{MetadataError, SnapshotError};
pub use heal::Healed;
pub use layer::{LayerError, Wanted};
pub use metrics::METRICS;
pub use serve::{MOUNTPOINT, Serve, serve};
pub use snapshots::{ADMISSION, Options, Snapshots};
