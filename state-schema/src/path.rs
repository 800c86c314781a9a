//! The status of one store path.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// What one store path is, and how much of it is here: `.nix-snapshotter/<hash>-<name>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PathStatus {
    /// SHA-256 of the path's uncompressed NAR (the narinfo's `NarHash`), as `sha256:` and 64
    /// hexadecimal digits.
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub digest: String,

    /// Bytes of the uncompressed NAR (the narinfo's `NarSize`).
    pub size: u64,

    /// Bytes of the uncompressed NAR that are kept here and can be read without the network.
    /// Exact at every moment; survives restarts of the daemon; falls when content is collected.
    pub fetched_size: u64,

    /// `fetchedSize` in percent of `size`, rounded down to hundredths: 100 means all of it. An
    /// empty path counts as 100.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub fetched_percent: f64,

    /// Why the path cannot be read or completed at present. Absent when nothing is wrong; goes
    /// away when the path recovers (`lastError` stays).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,

    /// The store path, absolute: `/nix/store/<hash>-<name>`.
    #[schemars(regex(pattern = r"^/nix/store/[0-9a-df-np-sv-z]{32}-.+$"))]
    pub store_path: String,

    /// What is going on with the path.
    pub state: PathState,

    /// Whether the whole NAR was hashed here and has the hash in `digest`. While it is false,
    /// bytes rest on the signature of the narinfo alone (`verify = "stream"`).
    pub verified: bool,

    /// Regular files in the path. Absent until its listing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,

    /// Files, directories and symbolic links in the path, its root included. Absent until its
    /// listing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,

    /// URL of the binary cache that the path comes from, without credentials. Absent when no
    /// cache has been chosen yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub substituter: Option<String>,

    /// How that cache packs the NAR: `none`, `xz`, `zstd`, `bzip2`, `gzip`, `br` or `lz4`.
    /// Absent when no cache has been chosen yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,

    /// When this state directory first learned of the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_seen: Option<Timestamp>,

    /// When bytes of the path last arrived from a cache. Absent when none ever did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_fetched: Option<Timestamp>,

    /// The last thing that went wrong, kept after the path has recovered. Absent when nothing
    /// ever did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
}

/// What is going on with a store path.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PathState {
    /// Its narinfo is known and trusted; none of its content is here.
    Known,
    /// Content is arriving now.
    Fetching,
    /// Some of its content is here and nothing is arriving.
    Partial,
    /// All of its content is here.
    Complete,
    /// What a cache sent does not have the hash that was signed: the content was dropped and
    /// reads fail until another cache delivers the right one.
    Quarantined,
    /// No cache gave a narinfo with a signature that is trusted: nothing of it is served.
    Refused,
}

impl PathState {
    /// Every state, in the order in which a path usually goes through them.
    pub const ALL: [Self; 6] = [
        Self::Known,
        Self::Fetching,
        Self::Partial,
        Self::Complete,
        Self::Quarantined,
        Self::Refused,
    ];

    /// As it is written in the documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Fetching => "fetching",
            Self::Partial => "partial",
            Self::Complete => "complete",
            Self::Quarantined => "quarantined",
            Self::Refused => "refused",
        }
    }
}

impl std::fmt::Display for PathState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Something that went wrong, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastError {
    /// What went wrong, in a sentence. Long ones are cut, which an ellipsis (…) at the end shows.
    pub message: String,

    /// When it happened.
    pub at: Timestamp,

    /// URL of the binary cache it happened with, without credentials. Absent when it had nothing
    /// to do with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub substituter: Option<String>,
}

/// `fetched` in percent of `size`, rounded down to hundredths, so that 100 means all of it.
/// Nothing of nothing is 100.
pub fn percent(fetched: u64, size: u64) -> f64 {
    if fetched >= size {
        return 100.0;
    }
    // Whole hundredths first: a quotient of floats could round up to 100.
    let hundredths = u128::from(fetched) * 10_000 / u128::from(size);
    hundredths as f64 / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_percent_means_all_of_it() {
        assert_eq!(percent(0, 0), 100.0);
        assert_eq!(percent(0, 7), 0.0);
        assert_eq!(percent(1, 3), 33.33);
        assert_eq!(percent(u64::MAX - 1, u64::MAX), 99.99);
        assert_eq!(percent(u64::MAX, u64::MAX), 100.0);
    }

    #[test]
    fn states_are_written_as_they_are_named() {
        for state in PathState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }

    #[test]
    fn what_is_unknown_is_absent() {
        let text = serde_json::to_string(&crate::padded::tests::path_status()).unwrap();
        assert!(!text.contains("null"), "{text}");
        assert!(!text.contains("\"error\""), "{text}");
        for field in [
            "digest",
            "size",
            "fetchedSize",
            "fetchedPercent",
            "storePath",
        ] {
            assert!(
                text.contains(&format!("\"{field}\":")),
                "{field} is not in {text}"
            );
        }
    }
}
