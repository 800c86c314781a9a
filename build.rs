//! Generates client and server of containerd's snapshots service around the hand-written messages
//! of `src/snapshotter/wire.rs`, so that building needs no `protoc`.

use tonic_build::manual::{Builder, Method, Service};

/// Each call, what it is asked with and what it answers; all of them but `List` answer once.
const CALLS: [(&str, &str, &str, &str); 10] = [
    (
        "prepare",
        "Prepare",
        "PrepareSnapshotRequest",
        "PrepareSnapshotResponse",
    ),
    (
        "view",
        "View",
        "ViewSnapshotRequest",
        "ViewSnapshotResponse",
    ),
    ("mounts", "Mounts", "MountsRequest", "MountsResponse"),
    ("commit", "Commit", "CommitSnapshotRequest", "Empty"),
    ("remove", "Remove", "RemoveSnapshotRequest", "Empty"),
    (
        "stat",
        "Stat",
        "StatSnapshotRequest",
        "StatSnapshotResponse",
    ),
    (
        "update",
        "Update",
        "UpdateSnapshotRequest",
        "UpdateSnapshotResponse",
    ),
    (
        "list",
        "List",
        "ListSnapshotsRequest",
        "ListSnapshotsResponse",
    ),
    ("usage", "Usage", "UsageRequest", "UsageResponse"),
    ("cleanup", "Cleanup", "CleanupRequest", "Empty"),
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut service = Service::builder()
        .name("Snapshots")
        .package("containerd.services.snapshots.v1")
        .comment("The service that containerd speaks to a proxy snapshotter.");
    for (name, route, input, output) in CALLS {
        let mut method = Method::builder()
            .name(name)
            .route_name(route)
            .comment(format!("`{route}` of the service."))
            .input_type(format!("crate::snapshotter::wire::{input}"))
            .output_type(format!("crate::snapshotter::wire::{output}"))
            .codec_path("tonic_prost::ProstCodec");
        if route == "List" {
            method = method.server_streaming();
        }
        service = service.method(method.build());
    }
    // Without `connect`, which would need the transport of a client in every build of narfs.
    Builder::new()
        .build_transport(false)
        .compile(&[service.build()]);
}
