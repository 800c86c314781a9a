//! `nix-cache-info`: what a binary cache says about itself.
//!
//! Source of the format: `BinaryCacheStore::init` in Nix's `libstore/binary-cache-store.cc`.

use super::STORE_DIR;

/// Longest `nix-cache-info` that is read, in bytes: real ones have three lines.
pub const MAX_CACHE_INFO: usize = 64 << 10;

/// What a cache says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// The store its paths belong to; `/nix/store` if it does not say.
    pub store_dir: String,
    /// Whether it wants to be asked about many paths at once.
    pub want_mass_query: bool,
    /// Lower ones are asked first; `None` if it does not say.
    pub priority: Option<u32>,
}

/// Why a text is no `nix-cache-info`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheInfoError {
    /// Nothing in it that belongs into one, such as an HTML page that came with status 200.
    #[error("this is no nix-cache-info; does the URL lead to a Nix binary cache?")]
    NotCacheInfo,
    /// A priority that is no number.
    #[error("the cache's priority is {0:?}, which is no number from 0 to 4294967295")]
    Priority(String),
}

impl CacheInfo {
    /// Reads a `nix-cache-info`; fields that narfs does not know are ignored.
    pub fn parse(text: &[u8]) -> Result<Self, CacheInfoError> {
        if text.len() > MAX_CACHE_INFO {
            return Err(CacheInfoError::NotCacheInfo);
        }
        let text = std::str::from_utf8(text).map_err(|_| CacheInfoError::NotCacheInfo)?;
        let mut info = Self {
            store_dir: STORE_DIR.into(),
            want_mass_query: false,
            priority: None,
        };
        let mut known = text.trim().is_empty();
        for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            known |= matches!(name, "StoreDir" | "WantMassQuery" | "Priority");
            match name {
                // Nix compares text; `/nix/store/` means the same store.
                "StoreDir" if !value.is_empty() => {
                    info.store_dir = format!("/{}", value.trim_matches('/'));
                }
                "WantMassQuery" => info.want_mass_query = value == "1",
                "Priority" => {
                    let priority = value
                        .parse()
                        .map_err(|_| CacheInfoError::Priority(value.into()))?;
                    info.priority = Some(priority);
                }
                _ => {}
            }
        }
        if known {
            Ok(info)
        } else {
            Err(CacheInfoError::NotCacheInfo)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_caches_write() {
        let text = b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\nFuture: x\n";
        let want = CacheInfo {
            store_dir: "/nix/store".into(),
            want_mass_query: true,
            priority: Some(40),
        };
        assert_eq!(CacheInfo::parse(text), Ok(want));
        let bare = CacheInfo::parse(b"StoreDir: /nix/store").unwrap();
        assert_eq!((bare.want_mass_query, bare.priority), (false, None));
        assert_eq!(CacheInfo::parse(b"").unwrap().store_dir, "/nix/store");
        assert_eq!(
            CacheInfo::parse(b"StoreDir: /gnu/store\r\n")
                .unwrap()
                .store_dir,
            "/gnu/store"
        );
    }

    #[test]
    fn refuses_what_is_none() {
        let html = b"<!DOCTYPE html>\n<a href=\"http://x\">sign in</a>";
        assert_eq!(CacheInfo::parse(html), Err(CacheInfoError::NotCacheInfo));
        assert_eq!(
            CacheInfo::parse(b"\xff\xfe"),
            Err(CacheInfoError::NotCacheInfo)
        );
        assert!(matches!(
            CacheInfo::parse(b"Priority: -1"),
            Err(CacheInfoError::Priority(_))
        ));
    }
}
