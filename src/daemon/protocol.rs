//! What is said over the control socket, `control.sock` in the state directory.
//!
//! One request a connection, as one line of JSON; with [`Request::Attach`] comes a descriptor of
//! `/dev/fuse`. Answers are lines of JSON, the last of which is no [`Reply::Progress`]. Both ends
//! are of one version of narfs: a daemon of another version says so in [`Reply::Refused`].

use std::collections::BTreeMap;

use narfs_state_schema::{PathStatus, Summary};
use serde::{Deserialize, Serialize};

use super::Terms;
use crate::{content::Limits, failure::Failure, store::CheckReport};

/// Name of the socket in the state directory.
pub const SOCKET: &str = "control.sock";
/// Longest line, in bytes: a status of 100,000 paths.
pub const MAX_LINE: u64 = 256 << 20;

/// A request with the version of who asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// Version of the client.
    pub version: String,
    /// What it asks.
    pub request: Request,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Who are you?
    Info,
    /// How far are these paths (all, if none is named)?
    Status {
        /// Base names of store paths.
        paths: Vec<String>,
    },
    /// Serve the mount whose descriptor comes along.
    Attach,
    /// Make this path known and say whether that works.
    Admit {
        /// Base name of a store path.
        path: String,
    },
    /// Fetch all of these.
    Prefetch {
        /// Base names of store paths.
        paths: Vec<String>,
        /// And everything they refer to.
        closure: bool,
    },
    /// Hash what is kept.
    Check {
        /// Base names of store paths; all, if none is named.
        paths: Vec<String>,
        /// Fetch again what is damaged and was dropped.
        repair: bool,
    },
    /// Make room.
    Gc {
        /// Bytes that may stay.
        to: Option<u64>,
        /// Without it, what these allow; without any of them, all goes that no root keeps.
        limits: Limits,
        /// Partial content that no root keeps goes too.
        partial: bool,
        /// Only say what would go.
        dry_run: bool,
    },
    /// Keep what there is of these and of all they refer to, whatever room is made.
    Pin {
        /// Base names of store paths.
        paths: Vec<String>,
    },
    /// They may go again.
    Unpin {
        /// Base names of store paths.
        paths: Vec<String>,
    },
    /// What is pinned?
    Pins,
    /// Which access profiles are kept?
    Profiles,
    /// The access profile of this path.
    Profile {
        /// Base name of a store path.
        path: String,
    },
    /// Keep this access profile.
    KeepProfile {
        /// Its text.
        text: String,
    },
    /// Forget the access profiles of these paths.
    ForgetProfiles {
        /// Base names of store paths.
        paths: Vec<String>,
    },
    /// End.
    Stop,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Info`].
    Info(Info),
    /// To [`Request::Status`].
    Status {
        /// Totals.
        summary: Box<Summary>,
        /// The paths asked for.
        paths: Vec<PathStatus>,
    },
    /// How far a long request is; more follows.
    Progress {
        /// Paths it works on.
        paths: Vec<PathStatus>,
    },
    /// How far a check is; more follows.
    Checking {
        /// Bytes hashed.
        done: u64,
        /// Bytes to hash.
        total: u64,
    },
    /// What a check found.
    Checked {
        /// NAR by NAR.
        report: CheckReport,
        /// Exit status of the first repair that failed.
        unrepaired: Option<u8>,
    },
    /// What went or would go.
    Collected(Collected),
    /// What is pinned.
    Pins {
        /// In order.
        pins: Vec<Pin>,
    },
    /// Which access profiles are kept.
    Profiles {
        /// In order.
        profiles: Vec<ProfileInfo>,
    },
    /// An access profile.
    Profile {
        /// Its text.
        text: String,
    },
    /// Done.
    Done,
    /// It did not work.
    Failed {
        /// Exit status.
        exit: u8,
        /// What did not work.
        message: String,
        /// Why, the nearest cause first.
        causes: Vec<String>,
        /// What to do about it.
        hint: Option<String>,
    },
    /// It was not tried.
    Refused {
        /// Why.
        message: String,
    },
}

impl Request {
    /// Whether it shows or frees what is kept, and nothing where nothing is.
    pub fn needs_state(&self) -> bool {
        matches!(
            self,
            Self::Status { .. }
                | Self::Check { .. }
                | Self::Gc { .. }
                | Self::Unpin { .. }
                | Self::Pins
                | Self::Profiles
                | Self::Profile { .. }
                | Self::ForgetProfiles { .. }
        )
    }
}

impl From<&Failure> for Reply {
    fn from(failure: &Failure) -> Self {
        Self::Failed {
            exit: failure.exit.code(),
            message: failure.what.clone(),
            causes: failure.causes.clone(),
            hint: failure.hint.clone(),
        }
    }
}

impl Reply {
    /// Whether more follows.
    pub fn is_last(&self) -> bool {
        !matches!(self, Reply::Progress { .. } | Reply::Checking { .. })
    }
}

/// Who a daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Its caches, without credentials, in order.
    pub caches: Vec<String>,
    /// What it serves, and whom it trusts.
    #[serde(default)]
    pub terms: Terms,
    /// Mounts that it serves.
    pub mounts: usize,
    /// What its store counted since the start, by the names of [`crate::store::Counters`].
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
}

/// What a collection did or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// NARs that went, with the bytes that each freed and their store paths.
    pub nars: Vec<CollectedNar>,
    /// Bytes freed.
    pub freed: u64,
    /// Bytes that were kept before.
    pub before: u64,
    /// NARs that somebody began to use meanwhile; they stayed.
    pub spared: u64,
    /// Bytes that may stay, if that was a goal.
    pub goal: Option<u64>,
    /// Whether the goal was reached.
    pub enough: bool,
}

/// A pinned store path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pin {
    /// Absolute.
    pub store_path: String,
    /// Store paths that it refers to, directly or through others, with itself; as far as is known.
    pub closure: u64,
    /// Bytes of disk that are taken by what is kept of them.
    pub kept: u64,
}

/// An access profile that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileInfo {
    /// The program's store path, absolute.
    pub store_path: String,
    /// Store paths that its start reads.
    pub paths: u64,
    /// Parts of them.
    pub parts: u64,
    /// Bytes of their NARs.
    pub bytes: u64,
}

/// One NAR of [`Collected`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedNar {
    /// `sha256:…`
    pub nar: String,
    /// Store paths, as far as they are known.
    pub paths: Vec<String>,
    /// Bytes on disk.
    pub bytes: u64,
    /// Whether only what was not read lately goes, and the rest stays.
    #[serde(default)]
    pub partly: bool,
}
