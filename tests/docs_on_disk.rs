//! `docs/on-disk.md` shows a tiny index and a tiny map as the code writes them, byte for byte.

use std::{fs, path::Path};

use narfs::{
    content::{Checkpoint, Extents, Map},
    nix::NarHash,
    tree::{Tree, compile_listing},
};

/// The lines of `bytes` as `xxd -p` has them, 16 bytes each, with the offset in front.
fn dump(bytes: &[u8]) -> String {
    let line = |(n, row): (usize, &[u8])| {
        let hex: Vec<_> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:04x}  {}\n", n * 16, hex.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

/// The code block of the page that is opened with `language`.
fn block(language: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/on-disk.md");
    let page = fs::read_to_string(path).unwrap();
    let (_, rest) = page
        .split_once(&format!("```{language}\n"))
        .expect(language);
    rest.split("```").next().unwrap().to_owned()
}

fn hash() -> NarHash {
    NarHash::from_bytes([0xab; 32])
}

#[test]
fn the_index_is_the_one_that_the_code_writes() {
    let listing = block("json index");
    let image = compile_listing(listing.as_bytes(), hash(), 480).unwrap();
    assert!(Tree::from_image(image.clone()).is_ok());
    assert_eq!(block("hex index"), dump(&image));
}

#[test]
fn the_map_is_the_one_that_the_code_writes() {
    let map = Map {
        hash: hash(),
        nar_size: 480,
        verified: false,
        was_verified: false,
        sums: vec![0x1122_3344, 0x5566_7788],
        extents: Extents::from_sorted(vec![0..64, 128..480]).unwrap(),
        checkpoint_source: 7,
        checkpoints: vec![Checkpoint {
            packed: 32,
            nar: 128,
        }],
    };
    assert_eq!(block("hex map"), dump(&map.encode()));
}
