//! Errors are fine; panics are bugs. What is read is written and read again as the same, and
//! nothing is believed without a key unless its content address is of the one kind that proves it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narfs::nix::{NarInfo, StorePathHash, Trust, TrustedKeys};

fuzz_target!(|text: &[u8]| {
    let asked = StorePathHash::parse(b"0z9wcv93z7bc9zqh1f5wwplw6rq7k925").expect("32 digits");
    let Ok(info) = NarInfo::parse(text, &asked) else {
        return;
    };
    assert_eq!(info.store_path.hash(), asked);
    assert_eq!(
        NarInfo::parse(info.to_text().as_bytes(), &asked).as_ref(),
        Ok(&info)
    );
    match info.trust(&TrustedKeys::default()) {
        Trust::Signed { key } => panic!("signed by {key}, which nobody trusts"),
        Trust::ContentAddressed => {
            let digits = info
                .ca
                .as_deref()
                .and_then(|ca| ca.strip_prefix("fixed:r:sha256:"));
            assert!(digits.is_some() && !info.references.contains(&info.store_path));
        }
        Trust::Untrusted => {}
    }
});
