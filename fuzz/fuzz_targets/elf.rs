//! Any bytes as an ELF image, as read-ahead looks at what it fetched. Panics are bugs; what an image names is
//! bounded whatever its length, and no byte of it is fetched twice.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narfs::store::all_of_image;

fuzz_target!(|image: &[u8]| {
    let (names, parts) = all_of_image(image);
    assert!(names.len() <= 2 * 1024 + 1);
    assert!(names.iter().all(|name| name.len() <= 4096));
    for parts in parts {
        assert!(parts.iter().all(|part| part.start < part.end));
        assert!(parts.is_sorted_by(|a, b| a.end < b.start));
    }
});
