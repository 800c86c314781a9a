//! Errors are fine; panics are bugs. Settings written one to a line read back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narfs::nix::nix_conf::{INCLUDE, INCLUDE_IF_PRESENT, parse};

fuzz_target!(|text: &[u8]| {
    let Ok(settings) = parse(text) else { return };
    let mut again = String::new();
    for (key, value) in &settings {
        assert!(!key.is_empty() && !key.contains([' ', '\t', '\r', '\n']) && !key.contains('#'));
        let directive = key == INCLUDE || key == INCLUDE_IF_PRESENT;
        let equals = if directive { "" } else { "= " };
        again.push_str(&format!("{key} {equals}{value}\n"));
    }
    assert_eq!(parse(again.as_bytes()), Ok(settings));
});
