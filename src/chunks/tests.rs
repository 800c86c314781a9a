//! The format's bytes, and what is refused.

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;

/// A key made of fixed bytes.
fn key() -> SigningKey {
    let seed = [7_u8; 32];
    let pair = ed25519_dalek::SigningKey::from_bytes(&seed).to_keypair_bytes();
    SigningKey::parse(&format!("cache-1:{}", data_encoding::BASE64.encode(&pair))).unwrap()
}

fn keys() -> TrustedKeys {
    TrustedKeys::parse([key().public()]).unwrap()
}

/// Of chunks with these packed and unpacked sizes.
fn index(sizes: &[(u32, u32)], behind: u64) -> ChunkIndex {
    let mut chunks: Vec<Chunk> = Vec::new();
    for (packed, size) in sizes {
        let (p, n) = chunks.last().map_or((0, 0), |c| (c.packed.end, c.nar.end));
        chunks.push(Chunk {
            packed: p..p + u64::from(*packed),
            nar: n..n + u64::from(*size),
            digest: Sha256::digest(n.to_le_bytes()).into(),
        });
    }
    let last = chunks.last().cloned().unwrap();
    ChunkIndex {
        nar_hash: NarHash::from_bytes([1; 32]),
        nar_size: last.nar.end,
        file_hash: NarHash::from_bytes([2; 32]),
        file_size: last.packed.end + behind,
        structure: [3; 32],
        chunks,
    }
}

#[test]
fn the_bytes_of_version_1_stay_as_they_are() {
    let bytes = index(&[(100, 300), (7, 64)], 33).to_bytes(&key());
    let mut want = b"narfschk\x01\0\0\0\x02\0\0\0".to_vec();
    want.extend([1; 32]);
    want.extend(364_u64.to_le_bytes());
    want.extend([2; 32]);
    want.extend(140_u64.to_le_bytes());
    want.extend([3; 32]);
    want.extend([100, 0, 0, 0, 44, 1, 0, 0]);
    want.extend(Sha256::digest(0_u64.to_le_bytes()));
    want.extend([7, 0, 0, 0, 64, 0, 0, 0]);
    want.extend(Sha256::digest(300_u64.to_le_bytes()));
    assert_eq!(&bytes[..want.len()], want);
    let behind = &bytes[want.len()..];
    assert_eq!((behind.len(), &behind[..8]), (72, &b"\x07cache-1"[..]));
    // Ed25519 is deterministic, so the whole is.
    let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(&bytes));
    assert_eq!(digest, GOLDEN);
}

/// SHA-256 of the index in the test above.
const GOLDEN: &str = "c1d3ecc350f34d95a21063ff89627393226d055983d4af88849dacebc7b9f2ca";

#[test]
fn an_index_of_something_else_is_refused() {
    let info = |nar: u8, file: u8| {
        let text = format!(
            "StorePath: /nix/store/0z9wcv93z7bc9zqh1f5wwplw6rq7k925-x\nURL: nar/x.nar.zst\nCompression: zstd\n\
             FileHash: {}\nFileSize: 140\nNarHash: {}\nNarSize: 364\n",
            NarHash::from_bytes([file; 32]),
            NarHash::from_bytes([nar; 32])
        );
        let hash = crate::nix::StorePathHash::parse(b"0z9wcv93z7bc9zqh1f5wwplw6rq7k925").unwrap();
        NarInfo::parse(text.as_bytes(), &hash).unwrap()
    };
    let index = index(&[(100, 300), (7, 64)], 33);
    assert_eq!(index.check(&info(1, 2)), Ok(()));
    assert_eq!(index.check(&info(9, 2)), Err(IndexError::Other("NAR")));
    assert_eq!(index.check(&info(1, 9)), Err(IndexError::Other("file")));

    let mut narinfo = info(1, 2);
    assert!(!announced(&narinfo, &keys()));
    announce(&key(), &mut narinfo);
    announce(&key(), &mut narinfo);
    assert_eq!(narinfo.signatures.len(), 1);
    assert!(announced(&narinfo, &keys()));
    let others = TrustedKeys::parse([SigningKey::generate("cache-1").unwrap().public()]).unwrap();
    assert!(!announced(&narinfo, &others));
    narinfo.file_size = Some(141);
    assert!(
        !announced(&narinfo, &keys()),
        "packed anew by another cache"
    );
}

#[test]
fn another_key_and_another_version_are_named() {
    let mut bytes = index(&[(1, 1)], 0).to_bytes(&key());
    let none = TrustedKeys::default();
    let untrusted = IndexError::Untrusted {
        key: "cache-1".into(),
    };
    assert_eq!(ChunkIndex::parse(&bytes, &none), Err(untrusted));
    bytes[8] = 2;
    assert_eq!(
        ChunkIndex::parse(&bytes, &keys()),
        Err(IndexError::Version(2))
    );
    assert_eq!(
        ChunkIndex::parse(b"<html>", &keys()),
        Err(IndexError::NotAnIndex)
    );
}

#[test]
fn what_cannot_be_is_refused_even_if_it_is_signed() {
    let refused = |wrong: ChunkIndex| {
        let parsed = ChunkIndex::parse(&wrong.to_bytes(&key()), &keys());
        assert!(
            matches!(parsed, Err(IndexError::Contradiction(_))),
            "{parsed:?}"
        );
    };
    let good = || index(&[(100, 300), (7, 64)], 33);
    refused(ChunkIndex {
        nar_size: 365,
        ..good()
    });
    refused(ChunkIndex {
        file_size: 106,
        ..good()
    });
    refused(ChunkIndex {
        chunks: vec![],
        ..good()
    });
    refused(index(&[(0, 1)], 9));
    refused(index(&[(1, 0), (1, 1)], 9));
    refused(index(&[(1, MAX_CHUNK + 1)], 9));
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        sizes in prop::collection::vec((1..=u32::from(u16::MAX), 1..=MAX_CHUNK), 1..40),
        behind in 0..1000_u64,
    ) {
        let index = index(&sizes, behind);
        prop_assert_eq!(ChunkIndex::parse(&index.to_bytes(&key()), &keys()), Ok(index));
    }

    #[test]
    fn a_changed_bit_and_a_cut_are_seen(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let bytes = index(&[(100, 300), (7, 64), (9, 9)], 33).to_bytes(&key());
        let mut changed = bytes.clone();
        let at = at.index(bytes.len());
        changed[at] ^= 1 << bit;
        prop_assert!(ChunkIndex::parse(&changed, &keys()).is_err());
        prop_assert!(ChunkIndex::parse(&bytes[..at], &keys()).is_err());
    }

    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let all = [&b"narfschk\x01\0\0\0"[..], &bytes].concat();
        let _ = ChunkIndex::parse(&all, &keys());
    }
}
