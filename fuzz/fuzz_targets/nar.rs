//! Errors are fine; panics are bugs. How a NAR is cut into pieces does not matter; what is indexed
//! makes a valid image, is a NAR for `nix-archive` as well, and has the layout that its own listing
//! computes. The first byte of the input is the size of the pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narfs::{
    nix::NarHash,
    tree::{ListingError, NarError, NarIndexer, Tree, compile_listing, to_listing},
};

const HASH: NarHash = NarHash::from_bytes([7; 32]);

fn index(nar: &[u8], piece: usize) -> Result<Vec<u8>, NarError> {
    let mut indexer = NarIndexer::new();
    nar.chunks(piece)
        .try_for_each(|piece| indexer.push(piece))?;
    assert_eq!(indexer.position(), nar.len() as u64);
    indexer.finish(HASH)
}

fuzz_target!(|input: &[u8]| {
    let Some((piece, nar)) = input.split_first() else {
        return;
    };
    let whole = index(nar, usize::MAX);
    assert_eq!(whole, index(nar, usize::from(*piece).max(1)));
    let Ok(image) = whole else { return };
    let tree = Tree::from_image(image).expect("what is indexed is an image");
    assert_eq!(tree.nar_size(), nar.len() as u64);
    match nix_archive::nar::decode(nar) {
        // Its limit of depth is lower than ours.
        Ok(_) | Err(nix_archive::nar::Error::MaxDepth(_)) => {}
        Err(why) => panic!("only narfs reads this: {why}"),
    }
    match compile_listing(to_listing(&tree).as_bytes(), HASH, tree.nar_size()) {
        Ok(again) => {
            let again = Tree::from_image(again).expect("what compiles is an image");
            assert_eq!(again.same_as(&tree), Ok(()));
        }
        Err(why) => assert!(matches!(why, ListingError::Lossy { .. }), "{why}"),
    }
});
