//! The image's bytes, written out: a change that fails here needs a new version of the format.

use super::model::{HASH, dir, file, link, program};
use crate::tree::{Damage, Tree, TreeError, compile_listing, format};

/// A record from its fields.
fn bytes(fields: &[&[u8]]) -> Vec<u8> {
    fields.concat()
}

#[test]
fn golden_bytes() {
    let model = dir([
        ("bin", dir([("x", program("12345"))])),
        ("e", dir([])),
        ("lib", link("bin/x")),
        ("readme", file("")),
    ]);
    // The numbers below come from another implementation of NAR and CRC-32 than this one.
    let nar_size = model.nar().len() as u64;
    assert_eq!(nar_size, 1032);
    let header = bytes(&[
        b"narfsidx",
        &[1, 0, 0, 0],
        &[6, 0, 0, 0],
        &[19, 0, 0, 0, 0, 0, 0, 0],
        &[0x08, 0x04, 0, 0, 0, 0, 0, 0],
        &[7; 32],
        &[0; 8],
        &[0x00; 4],
        &[0; 20],
    ]);
    let entries = bytes(&[
        // root: children 1..5
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // bin: children 5..6
        &[0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        &[5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // e: empty, its children would begin at 6
        &[0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        &[6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // lib -> bin/x
        &[0, 0, 0, 0, 4, 0, 0, 0, 3, 3, 5, 0, 7, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // readme: no bytes, at 984
        &[0, 0, 0, 0, 12, 0, 0, 0, 6, 1, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0xd8, 0x03, 0, 0, 0, 0, 0, 0],
        // bin/x: executable, 5 bytes, at 400
        &[1, 0, 0, 0, 18, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0x90, 0x01, 0, 0, 0, 0, 0, 0],
    ]);
    let mut want = bytes(&[
        &header, &entries, b"bin", b"e", b"lib", b"bin/x", b"readme", b"x",
    ]);
    want[72..76].copy_from_slice(&0xf411_2a96u32.to_le_bytes());
    let image = model.compile(false);
    assert_eq!(image, want);
}

#[test]
fn a_file_or_symlink_alone_has_one_entry() {
    for (model, len) in [(file("abc"), 96 + 32), (link("t"), 96 + 32 + 1)] {
        let image = model.compile(false);
        assert_eq!(image.len(), len);
        let tree = Tree::from_image(image).unwrap();
        assert_eq!(
            (tree.len(), tree.name(crate::tree::EntryIndex::ROOT)),
            (1, &b""[..])
        );
    }
}

fn sealed(mut image: Vec<u8>) -> Result<Tree, TreeError> {
    let sum = format::checksum(&image);
    image[format::CHECKSUM_AT..][..4].copy_from_slice(&sum.to_le_bytes());
    Tree::from_image(image)
}

fn damage(result: Result<Tree, TreeError>) -> Damage {
    match result {
        Err(TreeError::Image(damage)) => damage,
        other => panic!("{other:?}"),
    }
}

#[test]
fn says_what_is_wrong_with_a_header() {
    let good = dir([("a", file("1"))]).compile(false);
    for len in 0..format::HEADER_LEN {
        assert_eq!(
            damage(Tree::from_image(good[..len].to_vec())),
            Damage::Magic
        );
    }
    let with = |at: usize, byte: u8| {
        let mut image = good.clone();
        image[at] = byte;
        sealed(image)
    };
    assert_eq!(damage(with(0, b'N')), Damage::Magic);
    assert_eq!(damage(with(8, 2)), Damage::Version(2));
    assert_eq!(damage(with(12, 0)), Damage::Header("number of entries"));
    assert_eq!(damage(with(15, 1)), Damage::Header("number of entries"));
    assert_eq!(
        damage(with(20, 1)),
        Damage::Header("number of bytes of strings")
    );
    assert!(matches!(damage(with(12, 3)), Damage::Length { .. }));
    assert!(matches!(damage(with(64, 2)), Damage::Header(_)));
    assert!(matches!(damage(with(65, 1)), Damage::Header(_)));
    assert!(matches!(damage(with(95, 1)), Damage::Header(_)));
    assert!(matches!(damage(with(24, 1)), Damage::NarSize(_)));
    let mut longer = good.clone();
    longer.push(0);
    assert!(matches!(
        damage(Tree::from_image(longer)),
        Damage::Length { .. }
    ));
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() = b'b';
    assert_eq!(damage(Tree::from_image(flipped)), Damage::Checksum);
    assert!(with(64, 1).is_ok(), "the source alone may differ");
}

#[test]
fn says_what_is_wrong_with_an_entry() {
    // Entries: 0 root (1..4), 1 a/ (4..5), 2 b -> t, 3 c, 4 a/d
    let good = dir([
        ("a", dir([("d", file("1"))])),
        ("b", link("t")),
        ("c", file("22")),
    ])
    .compile(false);
    let with = |entry: usize, changes: &[(usize, u8)]| {
        let mut image = good.clone();
        for (at, byte) in changes {
            image[format::HEADER_LEN + entry * format::ENTRY_LEN + at] = *byte;
        }
        match damage(sealed(image)) {
            Damage::Entry { entry, what } => (entry, what),
            other => panic!("{other}"),
        }
    };
    assert_eq!(with(3, &[(9, 4)]), (3, "kind"));
    assert_eq!(with(3, &[(10, 1)]), (3, "reserved byte"));
    assert_eq!(with(0, &[(0, 1)]), (0, "name or parent, being the root"));
    assert_eq!(with(3, &[(4, 4)]), (3, "place of its name"));
    assert_eq!(with(2, &[(12, 0)]), (2, "place of its target"));
    assert_eq!(with(2, &[(10, 0)]), (2, "target"));
    assert_eq!(with(0, &[(16, 2)]), (0, "range of children"));
    assert_eq!(with(0, &[(20, 200)]), (0, "range of children"));
    assert_eq!(with(1, &[(20, 0)]), (4, "place: it is in no directory"));
    assert_eq!(with(0, &[(20, 4)]), (4, "parent"));
    assert_eq!(with(4, &[(0, 0)]), (4, "parent"));
    assert_eq!(with(3, &[(24, 0)]), (3, "place in the NAR"));
    assert_eq!(
        with(3, &std::array::from_fn::<_, 8, _>(|i| (16 + i, 0xff))).1,
        "size"
    );
    // A directory that is its own child: entry 1 claims itself.
    assert_eq!(with(0, &[(20, 0)]), (1, "place: it is in no directory"));
    // Names: strings are `abtcd`.
    let names = good.len() - 5;
    let name = |at: usize, byte: u8| {
        let mut image = good.clone();
        image[names + at] = byte;
        damage(sealed(image))
    };
    assert_eq!(
        name(0, b'/'),
        Damage::Entry {
            entry: 1,
            what: "name"
        }
    );
    assert_eq!(
        name(0, b'b'),
        Damage::Entry {
            entry: 2,
            what: "name: it is not sorted"
        }
    );
    assert_eq!(
        name(0, b'.'),
        Damage::Entry {
            entry: 1,
            what: "name"
        }
    );
    assert_eq!(
        name(2, 0),
        Damage::Entry {
            entry: 2,
            what: "target"
        }
    );
}

#[test]
fn too_deep_an_image_is_refused() {
    // A chain of directories `a/a/a…`, put together by hand: the compilers refuse to make it.
    let chain = |depth: u32| {
        let dirs = depth + 1;
        let nar_size = 24
            + 16
            + 16
            + 24
            + 16
            + u64::from(depth) * (16 + 16 + 16 + 16 + 16 + 16 + 16 + 24 + 16 + 16);
        let header = format::Header {
            entries: dirs,
            strings: depth.into(),
            nar_size,
            nar_hash: HASH,
            source: crate::tree::Source::Listing,
        };
        let mut image = header.encode().to_vec();
        for number in 0..dirs {
            let count = u32::from(number < depth);
            let entry = format::Entry {
                parent: number.saturating_sub(1),
                name_at: number.saturating_sub(1),
                name_len: (number != 0).into(),
                kind: format::Kind::Directory {
                    first: number + 1,
                    count,
                },
            };
            image.extend(entry.encode());
        }
        image.extend(std::iter::repeat_n(b'a', depth as usize));
        sealed(image)
    };
    assert_eq!(chain(2048).unwrap().len(), 2049);
    assert_eq!(
        damage(chain(2049)),
        Damage::Entry {
            entry: 2049,
            what: "depth"
        }
    );
    assert!(compile_listing(b"{}", HASH, 1).is_err());
}
