//! `narfs image build`, run as a user runs it: the real binary over real caches. What it writes, held
//! against the OCI specification; what it asks the caches for; what it refuses; and what the real
//! containerd and skopeo make of it.

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/containerd/mod.rs"]
mod containerd;

#[path = "../support/corpus.rs"]
mod corpus;

#[path = "../support/mounted.rs"]
mod mounted;

#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "../cli_verbs/run.rs"]
mod run;

mod archive;
mod based;
mod built;
mod imported;
mod output;
mod refused;
mod rooted;
