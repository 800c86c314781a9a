//! Errors are fine; panics are bugs. What is read is written and read again as the same, and
//! nothing is believed without a key unless its content address is of the one kind that proves it.
//! Whatever can be read can be signed, and the signature is of all that decides.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use narfs::nix::{NarHash, NarInfo, SigningKey, StorePathHash, Trust, TrustedKeys};

/// Not made by chance: the same input has to do the same.
static KEY: LazyLock<SigningKey> = LazyLock::new(|| {
    let pair = "fuzz-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA7aie8zrakLWKjqNAqbw1zZTIVdx3iQ6Y6wEihi1naKQ==";
    SigningKey::parse(pair).expect("a pair of 32 zero bytes and what belongs to them")
});
static TRUSTED: LazyLock<TrustedKeys> =
    LazyLock::new(|| TrustedKeys::parse([KEY.public()]).expect("its public half"));

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

    let mut signed = info;
    KEY.sign(&mut signed);
    let key = KEY.name().to_owned();
    assert_eq!(signed.trust(&TRUSTED), Trust::Signed { key });
    assert_eq!(
        NarInfo::parse(signed.to_text().as_bytes(), &asked).as_ref(),
        Ok(&signed)
    );
    signed.nar_hash = match signed.nar_hash {
        hash if hash == NarHash::from_bytes([7; 32]) => NarHash::from_bytes([8; 32]),
        _ => NarHash::from_bytes([7; 32]),
    };
    assert!(!matches!(signed.trust(&TRUSTED), Trust::Signed { .. }));
});
