//! Any text as a configuration file or a `nix.conf`. Errors are fine; panics are bugs.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(error) = narfs::config::parse_file(text) {
        // Positions in messages are computed from spans: that has to work for any text too.
        let _ = (error.to_string(), error.hint());
    }
    let lines = text.lines().count();
    for setting in narfs::config::parse_nix_conf(text) {
        assert!((1..=lines).contains(&setting.line));
        assert!(!setting.key.is_empty());
    }
    let _ = narfs::config::mask_url(text);
    use narfs::config::units;
    if let Some(time) = units::parse_duration(text) {
        assert_eq!(
            units::parse_duration(&units::format_duration(time)),
            Some(time)
        );
    }
    if let Some(size) = units::parse_size(text) {
        assert_eq!(units::parse_size(&units::format_size(size)), Some(size));
    }
});
