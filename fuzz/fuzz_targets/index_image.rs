//! Errors are fine; panics are bugs. An image that opens can be walked to every entry by every
//! accessor, and is the only image of its tree. The checksum is made right first, since chance
//! would never get past it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narfs::tree::{EntryIndex, Node, Tree, compile_listing, to_listing};

/// Where the checksum stands: `docs/on-disk.md`.
const CHECKSUM: std::ops::Range<usize> = 72..76;

/// With the bytes cleared that tell the source, and the checksum over them.
fn without_source(image: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    image[64] = 0;
    image[CHECKSUM].fill(0);
    image
}

fuzz_target!(|input: &[u8]| {
    let mut image = input.to_vec();
    if image.len() >= 96 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&image[..CHECKSUM.start]);
        crc.update(&image[CHECKSUM.end..]);
        image[CHECKSUM].copy_from_slice(&crc.finalize().to_le_bytes());
    }
    let Ok(tree) = Tree::from_image(image.clone()) else {
        return;
    };
    for entry in (0..tree.len()).map(EntryIndex) {
        let path = tree.path_of(entry);
        assert_eq!(tree.resolve(&path), Some(entry));
        match tree.node(entry).expect("it is below the number of entries") {
            Node::Directory { children } => {
                for child in children.map(EntryIndex) {
                    assert_eq!(tree.parent(child), entry);
                    assert_eq!(tree.lookup(entry, tree.name(child)), Some(child));
                }
            }
            Node::Regular { size, offset, .. } => assert!(offset + size < tree.nar_size()),
            Node::Symlink { target } => assert!(!target.is_empty()),
        }
    }
    assert_eq!(tree.node(EntryIndex(tree.len())), None);
    if let Ok(again) = compile_listing(
        to_listing(&tree).as_bytes(),
        tree.nar_hash(),
        tree.nar_size(),
    ) {
        assert_eq!(without_source(&again), without_source(&image));
    }
});
