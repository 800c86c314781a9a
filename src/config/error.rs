//! Why a configuration cannot be used.

use std::{io, path::PathBuf};

use super::Origin;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that was named cannot be read, or one in a standard place is there but unreadable.
    #[error("the configuration file {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file larger than any configuration is.
    #[error("{} is larger than {limit} bytes: that is no configuration", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit, in bytes.
        limit: u64,
    },
    /// No TOML.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What is wrong, from the TOML parser.
        message: String,
    },
    /// A key that narfs does not know.
    #[error("{}:{line}: {key:?} is not a key{}", path.display(), within(table))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// As written.
        key: String,
        /// The table that it stands in, if that is not the whole file.
        table: Option<&'static str>,
        /// The known key that looks most like it.
        nearest: Option<&'static str>,
    },
    /// A value that does not fit its key.
    #[error("{origin}: {key}: {message}")]
    Value {
        /// Where it was set.
        origin: Origin,
        /// The key.
        key: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// An environment variable that holds no UTF-8.
    #[error("the environment variable {0} is not UTF-8")]
    NotUtf8(String),
    /// An ordinary user without a home directory.
    #[error(
        "there is no state directory: none is set, and neither HOME nor XDG_DATA_HOME tells where to put one"
    )]
    NoStateDir,
    /// `include` in a `nix.conf` nested too deep: most likely a file that includes itself.
    #[error("{}:{line}: more than {depth} nix.conf files include one another", path.display())]
    IncludeDepth {
        /// The file with the `include`.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// How deep they may nest.
        depth: usize,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey {
                nearest: Some(nearest),
                ..
            } => Some(format!("did you mean {nearest:?}?")),
            Self::UnknownKey { .. } => Some("`narfs config` lists every key".into()),
            Self::NoStateDir => Some(
                "name one with --state-dir, NARFS_STATE_DIR or state-dir in a configuration file"
                    .into(),
            ),
            Self::Value { key, .. } => super::key_spec(key).map(|spec| {
                format!(
                    "{key} is {}; its default is {}",
                    spec.kind.expects(),
                    spec.default_text()
                )
            }),
            Self::IncludeDepth { .. } => Some("does a file include itself?".into()),
            Self::Read { .. } | Self::TooLarge { .. } | Self::Syntax { .. } | Self::NotUtf8(_) => {
                None
            }
        }
    }
}

fn within(table: &Option<&'static str>) -> String {
    table.map_or_else(|| " of narfs".into(), |table| format!(" of {table}"))
}
