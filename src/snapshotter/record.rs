//! What is known of a snapshot.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::filter::Fields;
use crate::nix::StorePath;

/// Labels, in the order of their keys.
pub type Labels = BTreeMap<String, String>;

/// A snapshot: its key and what is known of it.
pub type Keyed = (Arc<str>, Arc<Record>);

/// The number of a snapshot: names its directory and its view, is never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SnapshotId(pub u64);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Being written.
    Active,
    /// To be read only.
    View,
    /// Finished: others may have it as their parent.
    Committed,
}

impl Kind {
    /// As filters and messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::View => "view",
            Self::Committed => "committed",
        }
    }
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds since 1970.
    pub seconds: u64,
    /// And nanoseconds.
    pub nanos: u32,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            seconds: since.as_secs(),
            nanos: since.subsec_nanos(),
        }
    }
}

/// What something takes of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes, by allocated blocks.
    pub size: u64,
    /// Inodes.
    pub inodes: u64,
}

/// What a layer adds to a container's `/nix/store`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NixLayer {
    /// The layer's own paths.
    #[serde(with = "base_names")]
    pub own: Vec<StorePath>,
    /// Those and the ones of the Nix layers below it: what the status directory lists.
    #[serde(with = "base_names")]
    pub shown: Vec<StorePath>,
}

/// A snapshot. What it is called is the key that it stands under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub id: SnapshotId,
    /// What it is.
    pub kind: Kind,
    /// Key of its parent.
    pub parent: Option<String>,
    /// Its labels; none is empty.
    pub labels: Labels,
    /// When it was made, or committed.
    pub created: Moment,
    /// When it was changed.
    pub updated: Moment,
    /// What it took of the disk when it was committed.
    #[serde(default)]
    pub usage: Usage,
    /// If it is a Nix layer.
    #[serde(default)]
    pub nix: Option<NixLayer>,
}

/// A record and its key, for filters.
pub struct Named<'a>(pub &'a str, pub &'a Record);

impl Fields for Named<'_> {
    fn field(&self, path: &[String]) -> Option<&str> {
        let Self(key, record) = *self;
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "kind" => Some(record.kind.name()),
            "name" => Some(key),
            "parent" => Some(record.parent.as_deref().unwrap_or_default()),
            "labels" => record.labels.get(&rest.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

/// Labels as they are kept: containerd's own databases drop those without a value.
pub fn kept_labels(labels: impl IntoIterator<Item = (String, String)>) -> Labels {
    labels
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

/// Store paths by their base names.
mod base_names {
    use super::*;

    pub(super) fn serialize<S: Serializer>(paths: &[StorePath], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(paths)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<StorePath>, D::Error> {
        let names = Vec::<String>::deserialize(d)?;
        let parsed = names.iter().map(|name| StorePath::parse(name));
        parsed.collect::<Result<_, _>>().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_back_as_it_was_written() {
        let path = StorePath::parse("2j8qw9i2q1p6cmli6976v4wi0sw9r4p5-python3-3.11").unwrap();
        let record = Record {
            id: SnapshotId(7),
            kind: Kind::Committed,
            parent: Some("default/1/sha256:a".into()),
            labels: kept_labels([("a".into(), "b".into()), ("gone".into(), String::new())]),
            created: Moment::now(),
            updated: Moment::now(),
            usage: Usage { size: 1, inodes: 2 },
            nix: Some(NixLayer {
                own: vec![path.clone()],
                shown: vec![path],
            }),
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        assert_eq!(record.labels.len(), 1);
        assert!(serde_json::from_str::<Record>(&text.replace("2j8qw9", "e")).is_err());
    }

    #[test]
    fn filters_see_its_fields() {
        let record = Record {
            id: SnapshotId(7),
            kind: Kind::View,
            parent: None,
            labels: Labels::from([("a.b/c".into(), "d".into())]),
            created: Moment::now(),
            updated: Moment::now(),
            usage: Usage::default(),
            nix: None,
        };
        let of = |path: &[&str]| {
            let path: Vec<_> = path.iter().map(|p| String::from(*p)).collect();
            Named("k", &record).field(&path).map(str::to_owned)
        };
        assert_eq!(of(&["kind"]).as_deref(), Some("view"));
        assert_eq!(of(&["name"]).as_deref(), Some("k"));
        assert_eq!(of(&["parent"]).as_deref(), Some(""));
        assert_eq!(of(&["labels", "a.b/c"]).as_deref(), Some("d"));
        assert_eq!(of(&["labels", "a", "b/c"]).as_deref(), Some("d"));
        assert_eq!(of(&["labels"]), None);
        assert_eq!(of(&["other"]), None);
    }
}
