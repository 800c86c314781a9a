//! Small caches of trees that no package has: written NAR by NAR, signed, with or without listings.
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use narfs::{
    nix::{Compression, NarHash, NarHasher, NarInfo, SigningKey, StorePath},
    tree::{NarIndexer, Tree, to_listing},
};

/// A tree to be packed. Names in a directory have to be sorted, as in every NAR.
pub enum Node {
    File(Vec<u8>),
    Executable(Vec<u8>),
    Link(Vec<u8>),
    Directory(Vec<(Vec<u8>, Node)>),
}

impl Node {
    /// Something of this name in a directory.
    pub fn named(self, name: impl AsRef<[u8]>) -> (Vec<u8>, Self) {
        (name.as_ref().to_vec(), self)
    }

    /// The NAR, as the Nix manual gives its grammar.
    pub fn nar(&self) -> Vec<u8> {
        let mut out = Vec::new();
        text(&mut out, b"nix-archive-1");
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        text(out, b"(");
        text(out, b"type");
        match self {
            Self::File(bytes) | Self::Executable(bytes) => {
                text(out, b"regular");
                if matches!(self, Self::Executable(_)) {
                    text(out, b"executable");
                    text(out, b"");
                }
                text(out, b"contents");
                text(out, bytes);
            }
            Self::Link(target) => {
                text(out, b"symlink");
                text(out, b"target");
                text(out, target);
            }
            Self::Directory(entries) => {
                text(out, b"directory");
                assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "names in order");
                for (name, node) in entries {
                    for word in [&b"entry"[..], b"(", b"name", name, b"node"] {
                        text(out, word);
                    }
                    node.write(out);
                    text(out, b")");
                }
            }
        }
        text(out, b")");
    }
}

/// Length (64 bit, little-endian), bytes, zeros up to a multiple of 8.
pub fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// The listing that nix would write for a NAR.
pub fn listing(nar: &[u8]) -> String {
    let mut indexer = NarIndexer::new();
    indexer.push(nar).expect("a NAR");
    let image = indexer.finish(hash(nar)).expect("a NAR");
    to_listing(&Tree::from_image(image).expect("an index"))
}

fn hash(bytes: &[u8]) -> NarHash {
    let mut hasher = NarHasher::new();
    hasher.update(bytes);
    hasher.finish()
}

/// Whether a path gets a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    Yes,
    No,
}

/// A cache in a temporary directory.
pub struct Cache {
    pub directory: tempfile::TempDir,
    key: SigningKey,
}

impl Cache {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(
            directory.path().join("nix-cache-info"),
            "StoreDir: /nix/store\n",
        )
        .expect("written");
        fs::create_dir(directory.path().join("nar")).expect("made");
        let key = SigningKey::generate("synthetic-1").expect("random bytes");
        Self { directory, key }
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.directory.path().display())
    }

    pub fn key(&self) -> String {
        self.key.public()
    }

    /// A store path of this name.
    pub fn path(name: &str) -> StorePath {
        let digest = hash(name.as_bytes());
        let digits = narfs::nix::base32::encode(&digest.as_bytes()[..20]);
        StorePath::parse(&format!("{digits}-{name}")).expect("a store path")
    }

    /// Puts a tree into the cache; its absolute store path.
    pub fn add(&self, name: &str, node: &Node, packing: Compression, listed: Listed) -> PathBuf {
        let nar = node.nar();
        let packed = match packing {
            Compression::None => nar.clone(),
            Compression::Zstd => zstd::bulk::compress(&nar, 1).expect("packed"),
            other => panic!("{other:?} is not packed here"),
        };
        let path = Self::path(name);
        let url = format!("nar/{}.nar", hash(&packed).nix32());
        fs::write(self.directory.path().join(&url), &packed).expect("written");
        let listing = (listed == Listed::Yes).then(|| listing(&nar));
        let size = nar.len() as u64;
        self.announce(&path, &url, packing, hash(&nar), size, listing.as_deref());
        PathBuf::from(path.absolute())
    }

    /// Has a path that is there refer to others.
    pub fn refer(&self, path: &StorePath, mut references: Vec<StorePath>) {
        references.sort();
        let narinfo = format!("{}.narinfo", path.hash());
        let file = self.directory.path().join(narinfo);
        let text = fs::read(&file).expect("the path is there");
        let mut info = NarInfo::parse(&text, &path.hash()).expect("a narinfo");
        info.references = references;
        info.signatures.clear();
        self.key.sign(&mut info);
        fs::write(file, info.to_text()).expect("written");
    }

    /// Writes narinfo and listing of a path.
    pub fn announce(
        &self,
        path: &StorePath,
        url: &str,
        compression: Compression,
        nar_hash: NarHash,
        nar_size: u64,
        listing: Option<&str>,
    ) {
        let mut info = NarInfo {
            store_path: path.clone(),
            url: url.to_owned(),
            compression,
            file_hash: None,
            file_size: (compression == Compression::None).then_some(nar_size),
            nar_hash,
            nar_size,
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        };
        self.key.sign(&mut info);
        let file = |kind: &str| {
            self.directory
                .path()
                .join(format!("{}.{kind}", path.hash()))
        };
        fs::write(file("narinfo"), info.to_text()).expect("written");
        if let Some(listing) = listing {
            fs::write(file("ls"), listing).expect("written");
        }
    }
}

/// Unpacks with the real nix; `directory` must not exist.
pub fn restore(node: &Node, directory: &Path) {
    use std::{io::Write, process::Stdio};
    let mut child = std::process::Command::new("nix-store")
        .arg("--restore")
        .arg(directory)
        .stdin(Stdio::piped())
        .spawn()
        .expect("nix-store is installed by tests/setup");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(&node.nar()).expect("taken");
    drop(stdin);
    assert!(child.wait().expect("it ends").success());
}
