//! How much memory the process keeps for itself between bursts of work.
//!
//! Decompression allocates and frees hundreds of megabytes on a dozen threads. The C library
//! would keep an arena for each thread and the freed pages in all of them.
#![allow(unsafe_code)]

/// Arenas for all threads together; more only where they are under contention.
const ARENAS: libc::c_int = 2;
/// From this size on, an allocation is a mapping of its own and goes back when it is freed; in
/// bytes. Left to itself, the C library raises it with the sizes it sees.
const OWN_MAPPING_FROM: libc::c_int = 256 * 1024;

/// Limits what the allocator keeps. To be called before there is a second thread.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only changes numbers of the allocator; these are within its documented
    // ranges. A refusal (0) changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_FROM);
    }
}

/// Gives freed pages back to the system; takes a few milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
