//! Trees as tests describe them, written as NAR by `nix-archive` and as listing by hand.

use std::collections::BTreeMap;

use nix_archive::nar::Encoder;
use proptest::prelude::*;

use crate::{
    nix::NarHash,
    tree::{NarError, NarIndexer, Tree, compile_listing},
};

/// A hash to tell images by; what it is does not matter to this layer.
pub const HASH: NarHash = NarHash::from_bytes([7; 32]);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Model {
    Dir(BTreeMap<Vec<u8>, Model>),
    File { executable: bool, contents: Vec<u8> },
    Link(Vec<u8>),
}

pub fn dir<const N: usize>(entries: [(&str, Model); N]) -> Model {
    Model::Dir(
        entries
            .into_iter()
            .map(|(name, m)| (name.as_bytes().to_vec(), m))
            .collect(),
    )
}

pub fn file(contents: &str) -> Model {
    Model::File {
        executable: false,
        contents: contents.into(),
    }
}

pub fn program(contents: &str) -> Model {
    Model::File {
        executable: true,
        contents: contents.into(),
    }
}

pub fn link(target: &str) -> Model {
    Model::Link(target.into())
}

impl Model {
    pub fn nar(&self) -> Vec<u8> {
        fn node(model: &Model, name: Option<&[u8]>, out: &mut Encoder<Vec<u8>>) {
            match model {
                Model::Dir(entries) => {
                    out.start_directory(name).unwrap();
                    entries
                        .iter()
                        .for_each(|(name, model)| node(model, Some(name), out));
                    out.end_directory().unwrap();
                }
                Model::File {
                    executable,
                    contents,
                } => {
                    out.regular(name, *executable, contents).unwrap();
                }
                Model::Link(target) => out.symlink(name, target).unwrap(),
            }
        }
        let mut out = Encoder::new(Vec::new()).unwrap();
        node(self, None, &mut out);
        out.finish().unwrap()
    }

    /// The listing as older Nix writes it (type first, sorted), or the other way round.
    pub fn listing(&self, backwards: bool) -> Vec<u8> {
        fn object(mut members: Vec<Vec<u8>>, backwards: bool, out: &mut Vec<u8>) {
            if backwards {
                members.reverse();
            }
            out.push(b'{');
            out.extend(members.join(&b','));
            out.push(b'}');
        }
        fn node(model: &Model, backwards: bool) -> Vec<u8> {
            let members = match model {
                Model::Dir(entries) => {
                    let entries = entries.iter().map(|(name, model)| {
                        [string(name), b" : ".to_vec(), node(model, backwards)].concat()
                    });
                    let mut member = b"\"entries\":".to_vec();
                    object(entries.collect(), backwards, &mut member);
                    vec![b"\"type\":\"directory\"".to_vec(), member]
                }
                Model::File {
                    executable,
                    contents,
                } => vec![
                    b"\"type\":\"regular\"".to_vec(),
                    format!("\"size\":{}", contents.len()).into(),
                    format!("\"executable\":{executable}").into(),
                ],
                Model::Link(target) => vec![
                    b"\"type\": \"symlink\"".to_vec(),
                    [b"\"target\":".to_vec(), string(target)].concat(),
                ],
            };
            let mut out = Vec::new();
            object(members, backwards, &mut out);
            out
        }
        let root = [b"\"root\":".to_vec(), node(self, backwards)].concat();
        let mut out = Vec::new();
        object(vec![b"\"version\":1".to_vec(), root], backwards, &mut out);
        out
    }

    pub fn tree(&self) -> Tree {
        Tree::from_image(self.compile(false)).unwrap()
    }

    pub fn compile(&self, backwards: bool) -> Vec<u8> {
        compile_listing(&self.listing(backwards), HASH, self.nar().len() as u64).unwrap()
    }

    /// Every entry with its path.
    pub fn walk(&self) -> Vec<(Vec<u8>, &Model)> {
        let mut found = vec![(Vec::new(), self)];
        let mut next = 0;
        while let Some((path, model)) = found.get(next).cloned() {
            if let Model::Dir(entries) = model {
                for (name, model) in entries {
                    let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    found.push(([&path, slash, name].concat(), model));
                }
            }
            next += 1;
        }
        found
    }
}

/// As Nix writes strings: what is not UTF-8 stays as it is.
fn string(text: &[u8]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for b in text {
        match b {
            b'"' | b'\\' => out.extend([b'\\', *b]),
            0..0x20 => out.extend(format!("\\u{b:04x}").bytes()),
            _ => out.push(*b),
        }
    }
    out.push(b'"');
    out
}

/// Indexes a NAR in pieces of these sizes, over and over.
pub fn index(nar: &[u8], pieces: &[usize]) -> Result<Vec<u8>, NarError> {
    let mut indexer = NarIndexer::new();
    let mut sizes = pieces.iter().cycle();
    let mut rest = nar;
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |s| *s.min(&rest.len()));
        indexer.push(&rest[..size])?;
        rest = &rest[size..];
    }
    assert_eq!(indexer.position(), nar.len() as u64);
    indexer.finish(HASH)
}

/// The image with the bytes cleared that depend on the source.
pub fn without_source(mut image: Vec<u8>) -> Vec<u8> {
    image[64] = 0;
    image[72..76].fill(0);
    image
}

pub fn names() -> impl Strategy<Value = Vec<u8>> {
    let any = prop::collection::vec(1u8..=255, 1..12);
    prop_oneof![
        4 => "[a-c]{1,2}".prop_map(String::into_bytes),
        2 => "[a-zA-Z0-9._+-]{1,20}".prop_map(String::into_bytes),
        1 => "\\PC{1,8}".prop_map(String::into_bytes),
        2 => any,
        1 => Just(vec![b'n'; 255]),
    ]
    .prop_filter("no file's name", |name| {
        crate::tree::limits::check_name(name).is_ok() && !lossy(name)
    })
}

fn lossy(text: &[u8]) -> bool {
    text.windows(3).any(|w| w == "\u{fffd}".as_bytes())
}

pub fn models() -> impl Strategy<Value = Model> {
    let bytes = |len| prop::collection::vec(any::<u8>(), len);
    let target = prop::collection::vec(1u8..=255, 1..30).prop_filter("lossy", |t| !lossy(t));
    let leaf = prop_oneof![
        3 => (any::<bool>(), bytes(0..40)).prop_map(|(executable, contents)| Model::File { executable, contents }),
        1 => target.prop_map(Model::Link),
    ];
    leaf.prop_recursive(6, 80, 8, |inner| {
        prop::collection::btree_map(names(), inner, 0..8).prop_map(Model::Dir)
    })
}
