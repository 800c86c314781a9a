//! Every setting, said once: key, type, environment variable, flag, default and help.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use toml::{Spanned, de::DeValue};

use super::{
    AllowOther, ByteSize, CacheConfig, Color, Listen, LogFormat, NativeFiles, OpenMode, Origin,
    Profiles, Quota, Secrets, Threads, TimeToLive, TrustedKeyTexts, Verify,
    value::{BadValue, Context, Value},
};

pub use super::value::Kind;

/// What is known of a setting.
#[derive(Debug, Clone, Copy)]
pub struct KeySpec {
    /// Its key in configuration files.
    pub name: &'static str,
    /// Its environment variable.
    pub env: &'static str,
    /// Its flag, without dashes.
    pub flag: &'static str,
    /// Whether its flag stands in the help of every verb, and not only in that of `narfs config`.
    pub prominent: bool,
    /// Its default, as it would be written in a variable.
    pub default: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What it does, in sentences.
    pub help: &'static str,
}

impl KeySpec {
    /// Its default, for people.
    pub fn default_text(&self) -> &'static str {
        match (self.name, self.default) {
            ("state-dir", _) => {
                "/var/lib/narfs for root, otherwise narfs in the user's data directory ($XDG_DATA_HOME, else ~/.local/share)"
            }
            (_, "") => "none",
            (_, default) => default,
        }
    }

    /// What it does, without the white space of the source.
    pub fn help_text(&self) -> &'static str {
        self.help.trim()
    }
}

/// A value as a layer gives it.
pub(super) enum Raw<'a, 'i> {
    /// From an environment variable, a default or a `nix.conf`.
    Text(&'a str),
    /// From a flag.
    Flags(&'a [String]),
    /// From a file.
    Toml(&'a Spanned<DeValue<'i>>),
}

impl Raw<'_, '_> {
    fn read<T: Value>(&self, context: Context<'_>) -> Result<T, BadValue> {
        match self {
            Self::Text(text) => T::from_text(text, context),
            Self::Flags(given) => T::from_flags(given, context),
            Self::Toml(value) => T::from_toml(value, context),
        }
    }
}

/// Defines [`Config`], [`KEYS`] and how a key's text reaches its field.
macro_rules! settings {
    ($(
        $(#[doc = $doc:literal])+
        $field:ident: $type:ty = $name:literal, $env:literal, $flag:literal, $prominent:expr, $default:expr;
    )+) => {
        /// The settings in effect, and where each came from.
        #[derive(Debug, Clone)]
        pub struct Config {
            $($(#[doc = $doc])+ pub $field: $type,)+
            /// Where each key's value came from; defaults are left out.
            pub(super) origins: BTreeMap<&'static str, Origin>,
            /// The configuration files that were read.
            pub files: Vec<PathBuf>,
            /// What looks like a mistake but does not stop narfs, in sentences.
            pub warnings: Vec<String>,
        }

        /// Every setting, in the order in which they are shown.
        pub const KEYS: &[KeySpec] = &[$(KeySpec {
            name: $name,
            env: $env,
            flag: $flag,
            prominent: $prominent,
            default: $default,
            kind: <$type as Value>::KIND,
            help: concat!($($doc),+),
        },)+];

        impl Config {
            /// The defaults. Only wrong literals in this file could make it fail.
            pub(super) fn defaults(context: Context<'_>) -> Result<Self, BadValue> {
                Ok(Self {
                    $($field: <$type>::from_text($default, context)?,)+
                    origins: BTreeMap::new(),
                    files: Vec::new(),
                    warnings: Vec::new(),
                })
            }

            /// Sets `key` and remembers `origin`.
            pub(super) fn set(
                &mut self, key: &'static str, raw: &Raw<'_, '_>, context: Context<'_>, origin: Origin,
            ) -> Result<(), BadValue> {
                match key {
                    $($name => self.$field = raw.read(context)?,)+
                    _ => return Err(BadValue::new("no such key")),
                }
                self.origins.insert(key, origin);
                Ok(())
            }

            /// The value of `key` as it would stand in a file; `None` if there is no such key.
            pub fn value(&self, key: &str, secrets: Secrets) -> Option<toml::Value> {
                match key {
                    $($name => Some(self.$field.to_toml(secrets)),)+
                    _ => None,
                }
            }
        }
    };
}

settings! {
    /// The binary caches to read from, by URL (http, https, file or s3).
    caches: Vec<CacheConfig> = "caches", "NARFS_CACHES", "cache", true, super::DEFAULT_CACHE;

    /// Public keys, NAME:BASE64, whose signatures make a store path trusted.
    trusted_keys: TrustedKeyTexts = "trusted-keys", "NARFS_TRUSTED_KEYS", "trusted-key", true, super::DEFAULT_KEY;

    /// Whether a store path without a trusted signature and without a content address is refused.
    require_signatures: bool = "require-signatures", "NARFS_REQUIRE_SIGNATURES", "require-signatures", false, "true";

    /// When a reader gets bytes: as they arrive, under a signed narinfo (stream), or only when the
    /// whole NAR has been fetched and has the hash that was signed (before-read).
    verify: Verify = "verify", "NARFS_VERIFY", "verify", true, "stream";

    /// A nix.conf to take caches, keys, netrc-file, require-sigs and time-outs from.
    nix_conf: Option<PathBuf> = "nix-conf", "NARFS_NIX_CONF", "nix-conf", true, "";

    /// The directory for everything that narfs keeps; one daemon uses it at a time.
    state_dir: PathBuf = "state-dir", "NARFS_STATE_DIR", "state-dir", true, super::load::UNSET_STATE_DIR;

    /// The most disk space that kept content may take, in bytes or as a part of its file system
    /// (20%); what was not used for longest goes first.
    quota: Quota = "quota", "NARFS_QUOTA", "quota", false, "none";

    /// The free space that kept content leaves on its file system, in bytes or as a part of it.
    /// Beside a quota, the one that asks for more room counts.
    keep_free: Quota = "keep-free", "NARFS_KEEP_FREE", "keep-free", false, "none";

    /// Bytes a second that are read in the background to find what the disk changed, which is
    /// fetched again. 0 reads nothing ahead of need: every read is checked anyway.
    scrub_rate: ByteSize = "scrub-rate", "NARFS_SCRUB_RATE", "scrub-rate", false, "0B";

    /// A netrc file with user names and passwords for caches, by host.
    netrc_file: Option<PathBuf> = "netrc-file", "NARFS_NETRC_FILE", "netrc-file", false, "";

    /// The most requests under way at a time, to all caches together.
    connections: u32 = "connections", "NARFS_CONNECTIONS", "connections", false, "25";

    /// The longest wait for a connection to a cache.
    connect_timeout: Duration = "connect-timeout", "NARFS_CONNECT_TIMEOUT", "connect-timeout", false, "15s";

    /// The longest wait for the next bytes of a response.
    stall_timeout: Duration = "stall-timeout", "NARFS_STALL_TIMEOUT", "stall-timeout", false, "30s";

    /// The longest that a program waits for the answer whether a store path exists.
    lookup_timeout: Duration = "lookup-timeout", "NARFS_LOOKUP_TIMEOUT", "lookup-timeout", false, "15s";

    /// The longest that a program waits for bytes of a file. Keep it below half of the kernel's
    /// fs.fuse.max_request_timeout, where that is set.
    read_timeout: Duration = "read-timeout", "NARFS_READ_TIMEOUT", "read-timeout", false, "2m";

    /// How often a request is tried that failed in a way that may pass (429, 5xx, a broken
    /// connection).
    tries: u32 = "tries", "NARFS_TRIES", "tries", false, "5";

    /// How long the narinfo of a store path counts without asking the cache again; 0s always asks.
    narinfo_ttl_positive: TimeToLive =
        "narinfo-ttl-positive", "NARFS_NARINFO_TTL_POSITIVE", "narinfo-ttl-positive", false, "30d";

    /// How long it counts that a cache does not have a store path; 0s always asks.
    narinfo_ttl_negative: TimeToLive =
        "narinfo-ttl-negative", "NARFS_NARINFO_TTL_NEGATIVE", "narinfo-ttl-negative", false, "1h";

    /// The most that is fetched ahead of a program that reads a file in sequence, where the cache
    /// allows byte ranges. 0 fetches nothing ahead.
    read_ahead: ByteSize = "read-ahead", "NARFS_READ_AHEAD", "read-ahead", false, "8MiB";

    /// Whether what a start reads is recorded, and fetched at the next cold start before it asks; on
    /// also takes the profiles that lie beside caches made for narfs, local does not.
    profiles: Profiles = "profiles", "NARFS_PROFILES", "profiles", false, "on";

    /// Threads that take requests from the kernel; auto means two for each processor, 4 to 16.
    fuse_threads: Threads = "fuse-threads", "NARFS_FUSE_THREADS", "fuse-threads", false, "auto";

    /// How the kernel opens files of the mount: no-open lets it open them without asking narfs.
    open_mode: OpenMode = "open-mode", "NARFS_OPEN_MODE", "open-mode", false, "no-open";

    /// Whether a snapshotter's containers read what was fetched whole from files of its own, at the
    /// speed of the local file system: takes about its space again. auto means where the kernel can
    /// (Linux 6.16) and there is room.
    native_files: NativeFiles = "native-files", "NARFS_NATIVE_FILES", "native-files", false, "off";

    /// Whether other users may read the mount. auto means yes for root, and for others where
    /// /etc/fuse.conf has user_allow_other.
    allow_other: AllowOther = "allow-other", "NARFS_ALLOW_OTHER", "allow-other", false, "auto";

    /// Whether a daemon of the mount helper gives up whatever it does not need: files outside of its
    /// state directory but those that it has to read, and system calls that it never makes.
    confine: bool = "confine", "NARFS_CONFINE", "confine", false, "true";

    /// A loopback address on which metrics, readiness and what goes on can be asked for over HTTP,
    /// besides admin.sock in the state directory.
    metrics_listen: Listen = "metrics-listen", "NARFS_METRICS_LISTEN", "metrics-listen", false, "none";

    /// What is logged to standard error: a level (error, warn, info, debug, trace) or levels by
    /// part of the program, such as warn,narfs::substituter=debug.
    log: String = "log", "NARFS_LOG", "log", true, "warn,narfs=info";

    /// How log lines look: text for people, json for collectors; journald sends them to the system's
    /// journal, with fields.
    log_format: LogFormat = "log-format", "NARFS_LOG_FORMAT", "log-format", true, "text";

    /// Whether output has colours; auto means on a terminal, unless NO_COLOR is set.
    color: Color = "color", "NARFS_COLOR", "color", true, "auto";
}

impl Config {
    /// Where the value of `key` came from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }
}

/// The setting with this key.
pub fn key_spec(name: &str) -> Option<&'static KeySpec> {
    KEYS.iter().find(|spec| spec.name == name)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;

    #[test]
    fn names_follow_one_rule_and_are_unique() {
        let mut seen = BTreeSet::new();
        for spec in KEYS {
            assert_eq!(
                spec.env,
                format!("NARFS_{}", spec.name.to_uppercase().replace('-', "_"))
            );
            assert!(
                spec.flag == spec.name || format!("{}s", spec.flag) == spec.name,
                "{}",
                spec.flag
            );
            assert!(
                seen.insert(spec.name) && spec.help_text().ends_with('.'),
                "{}",
                spec.name
            );
        }
    }

    #[test]
    fn defaults_are_written_as_they_are_shown() {
        let config = Config::defaults(Context {
            base: Path::new("/"),
            home: None,
        })
        .unwrap();
        let shown = |key| match config.value(key, Secrets::Masked) {
            Some(toml::Value::String(text)) => text,
            other => other.map(|value| value.to_string()).unwrap_or_default(),
        };
        for spec in KEYS.iter().filter(|spec| !spec.kind.is_list()) {
            assert_eq!(shown(spec.name), spec.default, "{}", spec.name);
        }
        assert_eq!(config.caches[0].url.as_str(), crate::config::DEFAULT_CACHE);
        assert_eq!(config.trusted_keys.0, [crate::config::DEFAULT_KEY]);
    }
}
