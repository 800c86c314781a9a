//! Any bytes as a chunk index. Errors are fine, panics are bugs, and what is accepted covers its NAR.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use narfs::{
    chunks::{ChunkIndex, MAX_CHUNK},
    nix::{SigningKey, TrustedKeys},
};

/// The fuzzer gets past the signature by signing anew. Not made by chance: the same input has to do the same.
static KEY: LazyLock<SigningKey> = LazyLock::new(|| {
    let pair = "fuzz-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA7aie8zrakLWKjqNAqbw1zZTIVdx3iQ6Y6wEihi1naKQ==";
    SigningKey::parse(pair).expect("a pair of 32 zero bytes and what belongs to them")
});

fn check(index: &ChunkIndex) {
    let (mut packed, mut nar) = (0, 0);
    for chunk in &index.chunks {
        assert!(chunk.packed.start == packed && chunk.nar.start == nar);
        assert!(chunk.packed.end > packed && chunk.nar.end > nar);
        assert!(chunk.nar.end - nar <= u64::from(MAX_CHUNK));
        (packed, nar) = (chunk.packed.end, chunk.nar.end);
    }
    assert!(nar == index.nar_size && packed <= index.file_size);
}

fuzz_target!(|data: &[u8]| {
    let keys = TrustedKeys::parse([KEY.public()]).expect("its public half");
    if let Ok(index) = ChunkIndex::parse(data, &keys) {
        check(&index);
    }
    // Signed, whatever it says.
    if let Some(index) = ChunkIndex::parse_unsigned(data) {
        check(&index);
        let again = ChunkIndex::parse(&index.to_bytes(&KEY), &keys);
        assert_eq!(again.as_ref(), Ok(&index));
    }
});
