//! How much may be kept: a quota, a floor of free space, in bytes or in parts of the file system.

use rustix::fs::statvfs;

use super::{ContentError, ContentStore};

/// An amount of disk space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Hundredths of the file system that the state directory is on, at most 100.
    PerCent(u8),
}

impl Amount {
    fn of(self, size: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            // In this order: the largest file systems have 2^63 bytes.
            Self::PerCent(part) => size / 100 * u64::from(part.min(100)),
        }
    }
}

/// What bounds what is kept; of both, the one that asks for more room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// The most that is kept.
    pub quota: Option<Amount>,
    /// The least that stays free for others.
    pub keep_free: Option<Amount>,
}

/// A file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// All of it.
    pub size: u64,
    /// What can still be written by others than root.
    pub free: u64,
}

impl Limits {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.quota.is_some() || self.keep_free.is_some()
    }

    /// The most that may be kept on this file system while `usage` is; `None` for no limit.
    pub fn most(&self, usage: u64, fs: FileSystem) -> Option<u64> {
        let quota = self.quota.map(|quota| quota.of(fs.size));
        let room = self.keep_free.map(|floor| {
            usage
                .saturating_add(fs.free)
                .saturating_sub(floor.of(fs.size))
        });
        quota.into_iter().chain(room).min()
    }
}

impl ContentStore {
    /// The file system that everything is kept on.
    pub fn file_system(&self) -> Result<FileSystem, ContentError> {
        let content = self.shared.content();
        let stat = statvfs(content)
            .map_err(|e| ContentError::io("look at the space of", content, e.into()))?;
        Ok(FileSystem {
            size: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// Bytes that are kept, and the most that may be, where what else is kept takes `beside` bytes of it.
    pub fn room(&self, limits: &Limits, beside: u64) -> Result<(u64, Option<u64>), ContentError> {
        let usage = self.usage()?;
        let most = limits.most(usage.saturating_add(beside), self.file_system()?);
        Ok((usage, most.map(|most| most.saturating_sub(beside))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_that_asks_for_more_room_counts() {
        let fs = FileSystem {
            size: 1000,
            free: 300,
        };
        let limits = |quota, keep_free| Limits { quota, keep_free };
        let (bytes, part) = (|n| Some(Amount::Bytes(n)), |n| Some(Amount::PerCent(n)));
        assert_eq!(Limits::default().most(200, fs), None);
        assert!(!Limits::default().any());
        for (quota, keep_free, most) in [
            (bytes(150), None, 150),
            (part(20), None, 200),
            (None, bytes(100), 400),
            (None, part(45), 50),
            (None, part(60), 0),
            (bytes(150), part(45), 50),
            (bytes(40), part(45), 40),
        ] {
            let limits = limits(quota, keep_free);
            assert_eq!(limits.most(200, fs), Some(most), "{limits:?}");
            assert!(limits.any());
        }
    }
}
