//! What the store did, counted: the performance gate of the tests, and the status.

use crate::metrics::Counter;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Everything that is counted, since the process started.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// Names and values, in a fixed order.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Names looked up by the kernel.
    lookups,
    /// Attributes asked for by the kernel.
    getattrs,
    /// Directories listed (calls of `readdir` and `readdirplus`).
    readdirs,
    /// Link targets read.
    readlinks,
    /// Reads by the kernel.
    reads,
    /// Reads that had to wait for a fetch.
    read_misses,
    /// Reads that the disk answered with other bytes than were kept; readers got those of a cache.
    damaged_reads,
    /// Kept bytes that the scrub looked through.
    scrubbed,
    /// NARs in which the scrub found damage.
    scrub_damages,
    /// Bytes handed to readers.
    read_bytes,
    /// Compressed bytes of NARs that came from caches.
    fetched,
    /// Bytes of NARs that were copied from another NAR here, and not fetched.
    copied,
    /// Bytes of NARs that were fetched because an access profile names them.
    profile_fetched,
    /// Of those, bytes that were not read by the end of the start.
    profile_unread,
    /// Store paths admitted: narinfo trusted, tree compiled.
    admitted,
    /// Store paths whose admission failed.
    admission_failures,
    /// NARs dropped because they were not what their narinfo promised.
    quarantined,
    /// NARs whose whole hash was checked.
    verified,
    /// Questions for narinfos that were answered without asking a cache.
    narinfo_hits,
    /// Questions for narinfos that went to a cache, one for each cache asked.
    narinfo_misses,
    /// NARs dropped to make room.
    evicted,
    /// Bytes on disk that were freed by that.
    evicted_bytes,
}
