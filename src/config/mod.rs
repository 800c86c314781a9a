//! What a user has set: one typed [`Config`] from files, environment, flags and `nix.conf`.
//!
//! Everything about a setting — its key, environment variable, flag, default, type and help — is
//! said once, in `keys.rs`; files, environment, flags, `narfs config` and the test that reads
//! `docs/configuration.md` all work from that table. What sets a value later wins:
//!
//! 1. the defaults,
//! 2. `/etc/narfs/config.toml`, then `$XDG_CONFIG_HOME/narfs/config.toml` (`--config FILE`
//!    replaces both),
//! 3. environment variables, `NARFS_…`,
//! 4. flags.
//!
//! A `nix.conf` named by one of these comes right before the place that names it. Each value
//! remembers where it came from ([`Origin`]).
//!
//! Reads files and, in [`Environment::of_process`], the process environment; no network.

mod caches;
mod error;
mod file;
mod keys;
mod load;
mod nix_conf;
mod nix_import;
mod origin;
mod print;
#[cfg(test)]
mod tests;
mod types;
pub mod units;
mod value;

pub use caches::{CacheConfig, DEFAULT_CACHE, DEFAULT_KEY, TrustedKeyTexts, mask_url};
pub use error::ConfigError;
pub use file::parse_file;
pub use keys::{Config, KEYS, KeySpec, Kind, key_spec};
pub use load::{Environment, Flags, load};
pub use nix_conf::{Setting, parse as parse_nix_conf};
pub use origin::Origin;
pub use print::Secrets;
pub use types::{
    AllowOther, ByteSize, Color, Listen, LogFormat, NativeFiles, OpenMode, Profiles, Quota,
    Threads, TimeToLive, Verify,
};
pub(crate) use value::nearest;
