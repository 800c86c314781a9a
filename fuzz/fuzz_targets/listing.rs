//! Errors are fine; panics are bugs. A listing that compiles makes an image that passes every
//! check, and the listing of that image compiles to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narfs::{
    nix::NarHash,
    tree::{ListingError, Tree, compile_listing, to_listing},
};

fuzz_target!(|text: &[u8]| {
    let hash = NarHash::from_bytes([7; 32]);
    // A NAR is never empty: this tells which size the listing makes.
    let Err(ListingError::Total { computed, .. }) = compile_listing(text, hash, 0) else {
        return;
    };
    let image = compile_listing(text, hash, computed).expect("the size is right");
    let tree = Tree::from_image(image.clone()).expect("what compiles is an image");
    assert_eq!((tree.nar_size(), tree.same_as(&tree)), (computed, Ok(())));
    match compile_listing(to_listing(&tree).as_bytes(), hash, computed) {
        Ok(again) => assert_eq!(again, image),
        // Names that are not UTF-8 are read, but JSON cannot write them.
        Err(why) => assert!(matches!(why, ListingError::Lossy { .. }), "{why}"),
    }
});
