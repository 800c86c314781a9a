//! What containerd and a proxy snapshotter say to each other: the messages of
//! `containerd.services.snapshots.v1` and `containerd.types.Mount`, by hand, and the service that
//! `build.rs` makes around them.
//!
//! Field numbers are containerd's, `api/services/snapshots/v1/snapshots.proto` and
//! `api/types/mount.proto`. Fields that it adds later are skipped when they come.

use std::collections::HashMap;

pub use prost_types::{FieldMask, Timestamp};

/// No answer but that it was done.
pub type Empty = ();

/// One mount of a container's root, as for mount(2).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Mount {
    /// Type: `bind`, `overlay`.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// What is mounted.
    #[prost(string, tag = "2")]
    pub source: String,
    /// Where in the container, if not at its root. Nothing here uses it.
    #[prost(string, tag = "3")]
    pub target: String,
    /// Options as in fstab.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Not said.
    Unknown = 0,
    /// Mounted to be read only.
    View = 1,
    /// Being written.
    Active = 2,
    /// Finished: others may have it as their parent.
    Committed = 3,
}

/// A snapshot as containerd sees it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Info {
    /// Its key; of a committed one its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Name of its parent, or empty.
    #[prost(string, tag = "2")]
    pub parent: String,
    /// What it is.
    #[prost(enumeration = "Kind", tag = "3")]
    pub kind: i32,
    /// When it was made.
    #[prost(message, optional, tag = "4")]
    pub created_at: Option<Timestamp>,
    /// When it was changed.
    #[prost(message, optional, tag = "5")]
    pub updated_at: Option<Timestamp>,
    /// Labels.
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
}

/// Asks for a snapshot to write to.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PrepareSnapshotRequest {
    /// Name of the snapshotter, which is not looked at: one listens on a socket.
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// What it shall be called.
    #[prost(string, tag = "2")]
    pub key: String,
    /// Name of its parent, or empty.
    #[prost(string, tag = "3")]
    pub parent: String,
    /// Labels.
    #[prost(map = "string, string", tag = "4")]
    pub labels: HashMap<String, String>,
}

/// How to mount it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PrepareSnapshotResponse {
    /// The mounts, in their order.
    #[prost(message, repeated, tag = "1")]
    pub mounts: Vec<Mount>,
}

/// Asks for a snapshot to read.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ViewSnapshotRequest {
    /// As in [`PrepareSnapshotRequest`].
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// What it shall be called.
    #[prost(string, tag = "2")]
    pub key: String,
    /// Name of its parent, or empty.
    #[prost(string, tag = "3")]
    pub parent: String,
    /// Labels.
    #[prost(map = "string, string", tag = "4")]
    pub labels: HashMap<String, String>,
}

/// How to mount it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ViewSnapshotResponse {
    /// The mounts, in their order.
    #[prost(message, repeated, tag = "1")]
    pub mounts: Vec<Mount>,
}

/// Asks how to mount an active snapshot or a view.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MountsRequest {
    /// As in [`PrepareSnapshotRequest`].
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// Which one.
    #[prost(string, tag = "2")]
    pub key: String,
}

/// How to mount it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MountsResponse {
    /// The mounts, in their order.
    #[prost(message, repeated, tag = "1")]
    pub mounts: Vec<Mount>,
}

/// Asks for the end of a snapshot.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveSnapshotRequest {
    /// As in [`PrepareSnapshotRequest`].
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// Which one.
    #[prost(string, tag = "2")]
    pub key: String,
}

/// Asks that an active snapshot be finished under a name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CommitSnapshotRequest {
    /// As in [`PrepareSnapshotRequest`].
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// What it shall be called from now on.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Which one.
    #[prost(string, tag = "3")]
    pub key: String,
    /// Labels of the committed snapshot.
    #[prost(map = "string, string", tag = "4")]
    pub labels: HashMap<String, String>,
}

/// Asks what a snapshot is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatSnapshotRequest {
    /// As in [`PrepareSnapshotRequest`].
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// Which one.
    #[prost(string, tag = "2")]
    pub key: String,
}

/// What it is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatSnapshotResponse {
    /// Always there.
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

/// Asks for other labels.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateSnapshotRequest {
    /// As in [`PrepareSnapshotRequest`].
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// Which one, by its name, and what it shall have.
    #[prost(message, optional, tag = "2")]
    pub info: Option<Info>,
    /// Which fields are meant: `labels`, `labels.KEY`; none means all that can change.
    #[prost(message, optional, tag = "3")]
    pub update_mask: Option<FieldMask>,
}

/// What it is afterwards.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateSnapshotResponse {
    /// Always there.
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

/// Asks for all snapshots that one of the filters takes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListSnapshotsRequest {
    /// As in [`PrepareSnapshotRequest`].
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// In containerd's filter language; none takes all.
    #[prost(string, repeated, tag = "2")]
    pub filters: Vec<String>,
}

/// A part of the answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListSnapshotsResponse {
    /// Some of them.
    #[prost(message, repeated, tag = "1")]
    pub info: Vec<Info>,
}

/// Asks what a snapshot takes of the disk, without its parents.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UsageRequest {
    /// As in [`PrepareSnapshotRequest`].
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// Which one.
    #[prost(string, tag = "2")]
    pub key: String,
}

/// What it takes.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct UsageResponse {
    /// Bytes.
    #[prost(int64, tag = "1")]
    pub size: i64,
    /// Inodes.
    #[prost(int64, tag = "2")]
    pub inodes: i64,
}

/// Asks that what removed snapshots left be deleted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CleanupRequest {
    /// As in [`PrepareSnapshotRequest`].
    #[prost(string, tag = "1")]
    pub snapshotter: String,
}

/// The service, of which containerd is the client.
pub mod service {
    #![allow(
        missing_docs,
        clippy::all,
        reason = "generated by tonic-build, which documents what it can"
    )]
    include!(concat!(
        env!("OUT_DIR"),
        "/containerd.services.snapshots.v1.Snapshots.rs"
    ));
}

pub use service::{
    snapshots_client::SnapshotsClient,
    snapshots_server::{Snapshots, SnapshotsServer},
};

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// Bytes as containerd's own code writes them, by the rules of protocol buffers.
    #[test]
    fn a_commit_is_read_field_by_field() {
        let bytes = b"\x0a\x05narfs\x12\x04name\x1a\x03key\x22\x06\x0a\x01a\x12\x01b\x2a\x01z";
        let read = CommitSnapshotRequest::decode(&bytes[..]).unwrap();
        assert_eq!((&*read.name, &*read.key), ("name", "key"));
        assert_eq!(read.labels, HashMap::from([("a".into(), "b".into())]));
    }

    #[test]
    fn mounts_are_written_field_by_field() {
        let mount = Mount {
            r#type: "bind".into(),
            source: "/s".into(),
            target: String::new(),
            options: vec!["rw".into(), "rbind".into()],
        };
        assert_eq!(
            mount.encode_to_vec(),
            b"\x0a\x04bind\x12\x02/s\x22\x02rw\x22\x05rbind"
        );
    }
}
