//! Any bytes as an access profile. Errors are fine, panics are bugs, and what is accepted says the same when it is
//! written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narfs::profile::{MAX_RANGES, Profile};

fuzz_target!(|data: &[u8]| {
    let Ok(profile) = Profile::parse(data) else {
        return;
    };
    let ranges = || profile.reads.iter().flat_map(|read| &read.ranges);
    assert!(ranges().count() <= MAX_RANGES);
    assert!(ranges().all(|range| range.start < range.end));
    profile.extent();
    let again = Profile::parse(profile.text().as_bytes()).expect("what was written");
    assert_eq!(again, profile);
});
