//! What holds for every tree.

use proptest::prelude::*;

use super::model::{HASH, Model, index, models, names, without_source};
use crate::tree::{EntryIndex, Node, Source, Tree, TreeError, compile_listing, format, to_listing};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn listing_and_nar_make_the_same_image(
        model in models(),
        pieces in prop::collection::vec(1usize..50, 1..6),
        backwards: bool,
    ) {
        let from_nar = index(&model.nar(), &pieces).unwrap();
        let from_listing = model.compile(backwards);
        prop_assert_eq!(without_source(from_nar.clone()), without_source(from_listing.clone()));
        let (nar, listing) = (Tree::from_image(from_nar).unwrap(), Tree::from_image(from_listing).unwrap());
        prop_assert_eq!((nar.source(), listing.source()), (Source::Nar, Source::Listing));
        prop_assert_eq!(nar.same_as(&listing), Ok(()));
    }

    #[test]
    fn every_entry_is_found_as_it_is(model in models(), absent in names()) {
        let tree = model.tree();
        let nar = model.nar();
        prop_assert_eq!(tree.nar_size(), nar.len() as u64);
        let all = model.walk();
        prop_assert_eq!(tree.len() as usize, all.len());
        for (path, want) in all {
            let entry = tree.resolve(&path).unwrap();
            prop_assert_eq!(tree.path_of(entry), path.clone());
            match (want, tree.node(entry).unwrap()) {
                (Model::Dir(entries), Node::Directory { children }) => {
                    let found: Vec<&[u8]> = children.clone().map(|e| tree.name(EntryIndex(e))).collect();
                    let names: Vec<&[u8]> = entries.keys().map(Vec::as_slice).collect();
                    prop_assert_eq!(found, names);
                    for child in children.map(EntryIndex) {
                        prop_assert_eq!(tree.parent(child), entry);
                        prop_assert_eq!(tree.lookup(entry, tree.name(child)), Some(child));
                    }
                    prop_assert_eq!(tree.lookup(entry, &absent).is_some(), entries.contains_key(&absent));
                }
                (Model::File { executable, contents }, Node::Regular { executable: x, size, offset }) => {
                    prop_assert_eq!(*executable, x);
                    prop_assert_eq!(&nar[offset as usize..][..size as usize], contents.as_slice());
                    prop_assert_eq!(tree.lookup(entry, b"x"), None);
                }
                (Model::Link(target), Node::Symlink { target: found }) => prop_assert_eq!(target, found),
                (want, found) => prop_assert!(false, "{want:?} became {found:?}"),
            }
        }
    }

    #[test]
    fn a_written_listing_reads_back(model in models()) {
        let tree = model.tree();
        let text = to_listing(&tree);
        let again = compile_listing(text.as_bytes(), HASH, tree.nar_size());
        let lossy = model.walk().iter().any(|(path, m)| {
            std::str::from_utf8(path).is_err()
                || matches!(m, Model::Link(target) if std::str::from_utf8(target).is_err())
        });
        match again {
            Ok(image) => prop_assert_eq!(image, tree.image()),
            Err(why) => prop_assert!(lossy, "{why}"),
        }
        // What is written is what a common JSON parser reads, too; it stops at a depth of 128.
        prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
    }

    #[test]
    fn a_changed_byte_is_seen(model in models(), at: prop::sample::Index, change in 1u8..) {
        let mut image = model.compile(false);
        let at = at.index(image.len());
        image[at] ^= change;
        prop_assert!(Tree::from_image(image).is_err());
    }

    /// Past the checksum, the rest of the checks let nothing through that no compiler writes.
    #[test]
    fn a_forged_image_is_refused_or_canonical(
        model in models(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut image = model.compile(false);
        let len = image.len();
        for (at, byte) in changes {
            image[at.index(len)] = byte;
        }
        let sum = format::checksum(&image);
        image[format::CHECKSUM_AT..][..4].copy_from_slice(&sum.to_le_bytes());
        match Tree::from_image(image.clone()) {
            Err(TreeError::Image(_)) => {}
            Err(other) => prop_assert!(false, "{other}"),
            Ok(tree) => {
                let again = compile_listing(to_listing(&tree).as_bytes(), tree.nar_hash(), tree.nar_size());
                if let Ok(again) = again {
                    prop_assert_eq!(without_source(again), without_source(image));
                }
            }
        }
    }

    /// What is indexed is an archive for `nix-archive` as well, whatever was done to it.
    #[test]
    fn a_damaged_nar_is_refused_or_still_a_nar(
        model in models(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in 0usize..4,
    ) {
        let mut nar = model.nar();
        let len = nar.len();
        for (at, byte) in changes {
            nar[at.index(len)] = byte;
        }
        nar.truncate(len - cut);
        let mut indexer = crate::tree::NarIndexer::new();
        let pushed = indexer.push(&nar);
        let again = indexer.push(b"");
        if pushed.is_err() {
            prop_assert_eq!(&pushed, &again, "a refusal lasts");
        }
        let theirs = nix_archive::nar::decode(&nar);
        match indexer.finish(HASH) {
            Ok(image) => {
                prop_assert!(theirs.is_ok(), "only narfs reads this");
                prop_assert!(Tree::from_image(image).is_ok());
            }
            Err(why) => prop_assert!(theirs.is_err() || excused(&why), "only narfs refuses this: {why}"),
        }
    }
}

/// What `nix-archive` lets through: targets that no symlink has.
fn excused(why: &crate::tree::NarError) -> bool {
    matches!(
        why,
        crate::tree::NarError::Refused {
            refusal: crate::tree::Refusal::IllegalTarget,
            ..
        }
    )
}
