//! What the store is told: trust, bounds, lifetimes. Filled from the configuration.

use std::time::Duration;

use super::profiles::Profiles;
use crate::{content::Limits, nix::TrustedKeys};

/// When a reader gets bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// As they arrive; the NAR's hash is checked when it is complete.
    #[default]
    Stream,
    /// Only from NARs whose whole hash was checked.
    BeforeRead,
}

/// Settings of a store; [`Settings::default`] is what the documentation promises.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Keys whose signature makes a narinfo trusted.
    pub keys: TrustedKeys,
    /// Refuse what no trusted key signed and no content address proves.
    pub require_signatures: bool,
    /// When a reader gets bytes.
    pub verify: Verify,
    /// Longest wait of a lookup for a narinfo and a listing. Short, because a process that
    /// waits in a lookup can't be killed.
    pub lookup_timeout: Duration,
    /// Longest wait of a lookup for a NAR to be indexed that has no listing.
    pub index_timeout: Duration,
    /// Longest wait of a read in which its NAR makes no progress.
    pub read_timeout: Duration,
    /// Longest wait of any request, whatever the progress.
    pub request_cap: Duration,
    /// How long a cache is known to have a path.
    pub positive_ttl: Duration,
    /// How long a cache is known not to have a path.
    pub negative_ttl: Duration,
    /// Small requests (narinfos, listings) under way at once.
    pub connections: usize,
    /// Opens the next cache's narinfo when the one before did not answer for so long.
    pub hedge_after: Duration,
    /// Most that is fetched ahead of a sequential reader where ranges are served, in bytes.
    pub read_ahead: u64,
    /// Where profiles come from.
    pub profiles: Profiles,
    /// Most that is kept.
    pub limits: Limits,
    /// Bytes a second that are looked through in the background for what the disk changed; 0 for none.
    pub scrub_rate: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            keys: TrustedKeys::default(),
            require_signatures: true,
            verify: Verify::Stream,
            lookup_timeout: Duration::from_secs(15),
            index_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(120),
            request_cap: Duration::from_secs(3600),
            positive_ttl: Duration::from_secs(30 * 24 * 3600),
            negative_ttl: Duration::from_secs(3600),
            connections: 25,
            hedge_after: Duration::from_secs(1),
            read_ahead: 8 << 20,
            profiles: Profiles::default(),
            limits: Limits::default(),
            scrub_rate: 0,
        }
    }
}
