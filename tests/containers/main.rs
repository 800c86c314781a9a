//! Containers: real containerd in three versions, runc, real caches and registries, and the
//! snapshotter between them. Needs root, `/dev/fuse` and what `tests/setup` makes; fails where one
//! of them is missing.
//!
//! ```text
//! world.rs      what every test here starts: caches, link, snapshotter, containerd, images
//! link.rs, snapshotter.rs, status.rs   parts of that
//! programs.rs   real programs from images, with `ctr`, on each containerd
//! pods.rs       the same as a kubelet has it: pulled from a registry, in a pod
//! layers.rs     ordinary images: as the overlayfs snapshotter has them, in everything
//! mixed.rs      images of ordinary and Nix layers in any order
//! native.rs     what is here whole, read by the kernel alone
//! lifetime.rs   containerd, snapshotter and cache stop, die and come back under containers
//! users.rs      user namespaces: all of it as an ordinary user, and single containers
//! many.rs       100 containers of one closure, a closure of 5,000 paths
//! ```

#[path = "../support/admin.rs"]
mod admin;
#[path = "../support/containerd/mod.rs"]
mod containerd;
#[path = "../support/corpus.rs"]
mod corpus;
#[path = "../support/cri.rs"]
mod cri;
#[path = "../support/mounted.rs"]
mod mounted;
#[path = "../support/oci.rs"]
mod oci;
#[path = "../support/registry.rs"]
mod registry;
#[path = "../support/synthetic.rs"]
mod synthetic;

mod layers;
mod lifetime;
mod link;
mod many;
mod mixed;
mod native;
mod pods;
mod programs;
mod snapshotter;
mod status;
mod users;
mod world;
