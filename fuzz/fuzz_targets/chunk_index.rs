//! Any bytes as a chunk index. Errors are fine, panics are bugs, and what is accepted covers its NAR.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use narfs::{
    chunks::{ChunkIndex, MAX_CHUNK},
    nix::{SigningKey, TrustedKeys},
};

/// 64 bytes of a key pair are all it takes; the fuzzer gets past the signature by signing anew.
static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate("fuzz-1").expect("a key"));

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
