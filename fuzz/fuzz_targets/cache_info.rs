//! Errors are fine; panics are bugs. A store directory is always an absolute path.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narfs::nix::CacheInfo;

fuzz_target!(|text: &[u8]| {
    if let Ok(info) = CacheInfo::parse(text) {
        assert!(info.store_dir.starts_with('/'));
    }
});
