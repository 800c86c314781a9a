//! Small binary caches packed by the test itself, honest ones and others.
//!
//! ```ignore
//! let key = cache::key();
//! let hello = Package::new("hello", tree([("bin/hello", exec("…")), ("share/doc", file("…"))]));
//! let cache = Cache::new(&key);                  // a directory, for `Server::directory` or file://
//! cache.add(&hello, Packing::Zstd);              // narinfo, listing, NAR
//! cache.write_listing(&hello, "…");              // and now the lies
//! ```

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use narfs::{
    nix::{Compression, NarHash, NarHasher, NarInfo, SigningKey, StorePath},
    tree::{NarIndexer, Tree, to_listing},
};
use tempfile::TempDir;

/// A file system object, in any state: the order and the names of a directory are taken as given.
#[derive(Clone)]
pub enum Item {
    /// Contents, and whether it may be executed.
    File(Vec<u8>, bool),
    /// Target.
    Link(Vec<u8>),
    /// Names and what they lead to.
    Directory(Vec<(Vec<u8>, Item)>),
}

/// A plain file.
pub fn file(contents: impl Into<Vec<u8>>) -> Item {
    Item::File(contents.into(), false)
}

/// An executable file.
pub fn exec(contents: impl Into<Vec<u8>>) -> Item {
    Item::File(contents.into(), true)
}

/// A symbolic link.
pub fn link(target: &str) -> Item {
    Item::Link(target.into())
}

/// A directory, in the order given.
pub fn directory<const N: usize>(entries: [(&str, Item); N]) -> Item {
    Item::Directory(
        entries
            .into_iter()
            .map(|(name, item)| (name.into(), item))
            .collect(),
    )
}

/// Bytes that do not compress and differ from seed to seed.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(size + 8);
    while out.len() < size {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        out.extend(state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    out.truncate(size);
    out
}

/// The NAR of an item, however illegal.
pub fn nar(item: &Item) -> Vec<u8> {
    let mut out = Vec::new();
    token(&mut out, b"nix-archive-1");
    node(&mut out, item);
    out
}

fn token(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(8), 0);
}

fn node(out: &mut Vec<u8>, item: &Item) {
    let words = |out: &mut Vec<u8>, words: &[&[u8]]| words.iter().for_each(|word| token(out, word));
    words(out, &[b"(", b"type"]);
    match item {
        Item::File(contents, executable) => {
            words(out, &[b"regular"]);
            if *executable {
                words(out, &[b"executable", b""]);
            }
            words(out, &[b"contents", contents]);
        }
        Item::Link(target) => words(out, &[b"symlink", b"target", target]),
        Item::Directory(entries) => {
            words(out, &[b"directory"]);
            for (name, item) in entries {
                words(out, &[b"entry", b"(", b"name", name, b"node"]);
                node(out, item);
                words(out, &[b")"]);
            }
        }
    }
    words(out, &[b")"]);
}

/// The SHA-256 of a NAR.
pub fn hash(nar: &[u8]) -> NarHash {
    let mut hasher = NarHasher::new();
    hasher.update(nar);
    hasher.finish()
}

/// A store path and its truth.
#[derive(Clone)]
pub struct Package {
    /// Its name.
    pub path: StorePath,
    /// Its archive.
    pub nar: Vec<u8>,
    /// What it refers to.
    pub references: Vec<StorePath>,
}

impl Package {
    /// `<digest of the name>-<name>` with this content.
    pub fn new(name: &str, item: &Item) -> Self {
        Self::of_nar(name, nar(item))
    }

    /// The same with the archive as it stands.
    pub fn of_nar(name: &str, nar: Vec<u8>) -> Self {
        Self {
            path: store_path(name),
            nar,
            references: Vec::new(),
        }
    }

    /// With these references.
    pub fn with_references(mut self, references: &[&Package]) -> Self {
        self.references = references
            .iter()
            .map(|package| package.path.clone())
            .collect();
        self.references.sort();
        self
    }

    /// The tree that is in the archive. Panics for an illegal one.
    pub fn tree(&self) -> Tree {
        let mut indexer = NarIndexer::new();
        indexer.push(&self.nar).unwrap();
        Tree::from_image(indexer.finish(self.hash()).unwrap()).unwrap()
    }

    /// The hash of the archive.
    pub fn hash(&self) -> NarHash {
        hash(&self.nar)
    }

    /// The listing of the tree, as JSON.
    pub fn listing(&self) -> String {
        to_listing(&self.tree())
    }

    /// Where its narinfo is, as the path of a request.
    pub fn narinfo_url(&self) -> String {
        format!("/{}.narinfo", self.path.hash())
    }

    /// Where its listing is.
    pub fn listing_url(&self) -> String {
        format!("/{}.ls", self.path.hash())
    }

    /// Where its NAR is, if packed so.
    pub fn nar_url(&self, packing: Packing) -> String {
        format!("/nar/{}.nar{}", self.hash().nix32(), packing.suffix())
    }

    /// An unsigned narinfo that says the truth.
    pub fn narinfo(&self, packing: Packing) -> NarInfo {
        NarInfo {
            store_path: self.path.clone(),
            url: self.nar_url(packing)[1..].to_owned(),
            compression: packing.compression(),
            file_hash: None,
            file_size: None,
            nar_hash: self.hash(),
            nar_size: self.nar.len() as u64,
            references: self.references.clone(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        }
    }
}

/// A store path with this name; its digest is made of the name.
pub fn store_path(name: &str) -> StorePath {
    let digest = hash(name.as_bytes()).nix32();
    StorePath::parse(&format!("{}-{name}", &digest[digest.len() - 32..])).unwrap()
}

/// How a cache packs a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// As it is: any range.
    None,
    /// One frame: from the front only.
    Zstd,
    /// A frame for every [`BLOCK`] bytes, with their sizes in the frames only.
    Frames,
    /// The same with a seek table at the end.
    Seekable,
    /// One block: from the front only.
    Xz,
    /// A block for every [`BLOCK`] bytes, with an index at the end.
    Blocks,
}

/// Bytes in a block or frame.
pub const BLOCK: usize = 200_000;

impl Packing {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Zstd,
        Self::Frames,
        Self::Seekable,
        Self::Xz,
        Self::Blocks,
    ];

    fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Zstd => ".zst",
            Self::Frames => ".frames.zst",
            Self::Seekable => ".seekable.zst",
            Self::Xz => ".xz",
            Self::Blocks => ".blocks.xz",
        }
    }

    /// What the narinfo calls it.
    pub fn compression(self) -> Compression {
        match self {
            Self::None => Compression::None,
            Self::Xz | Self::Blocks => Compression::Xz,
            _ => Compression::Zstd,
        }
    }

    /// Packs.
    pub fn pack(self, nar: &[u8]) -> Vec<u8> {
        match self {
            Self::None => nar.to_vec(),
            Self::Zstd => zstd::encode_all(nar, 3).unwrap(),
            Self::Frames => frames(nar).concat(),
            Self::Seekable => seekable(nar),
            Self::Xz => xz(nar, &["-T1"]),
            Self::Blocks => xz(nar, &["-T2", &format!("--block-size={BLOCK}")]),
        }
    }
}

fn frames(nar: &[u8]) -> Vec<Vec<u8>> {
    nar.chunks(BLOCK)
        .map(|part| zstd::bulk::compress(part, 3).unwrap())
        .collect()
}

/// Frames and a seek table ("Zstandard Seekable Format", version 0.1.0).
fn seekable(nar: &[u8]) -> Vec<u8> {
    let frames = frames(nar);
    let mut table = Vec::new();
    for (frame, part) in frames.iter().zip(nar.chunks(BLOCK)) {
        table.extend((frame.len() as u32).to_le_bytes());
        table.extend((part.len() as u32).to_le_bytes());
    }
    table.extend((frames.len() as u32).to_le_bytes());
    table.push(0);
    table.extend(0x8F92_EAB1_u32.to_le_bytes());
    let mut out = frames.concat();
    out.extend(0x184D_2A5E_u32.to_le_bytes());
    out.extend((table.len() as u32).to_le_bytes());
    out.extend(table);
    out
}

/// What `xz` writes, with one thread or several: only then do block headers say their sizes. The
/// crate's encoder has one thread.
fn xz(nar: &[u8], arguments: &[&str]) -> Vec<u8> {
    let mut child = Command::new("xz")
        .args(["-1", "-c"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the tests need the program xz");
    let mut input = child.stdin.take().unwrap();
    let packed = thread::scope(|scope| {
        scope.spawn(move || input.write_all(nar).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(packed.status.success());
    packed.stdout
}

/// A key to sign with.
pub fn key() -> SigningKey {
    SigningKey::generate("test-1").unwrap()
}

/// A cache in a directory of its own.
pub struct Cache<'a> {
    directory: TempDir,
    key: &'a SigningKey,
}

impl<'a> Cache<'a> {
    /// An empty one whose narinfos are signed with `key`.
    pub fn new(key: &'a SigningKey) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("nar")).unwrap();
        fs::write(
            directory.path().join("nix-cache-info"),
            "StoreDir: /nix/store\n",
        )
        .unwrap();
        Self { directory, key }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Adds a package with its listing.
    pub fn add(&self, package: &Package, packing: Packing) {
        self.add_unlisted(package, packing);
        self.write_listing(package, &package.listing());
    }

    /// Adds packages with their listings.
    pub fn add_all<'p>(&self, packages: impl IntoIterator<Item = &'p Package>, packing: Packing) {
        packages
            .into_iter()
            .for_each(|package| self.add(package, packing));
    }

    /// Adds a package without a listing.
    pub fn add_unlisted(&self, package: &Package, packing: Packing) {
        self.write_narinfo(package.narinfo(packing));
        self.write(&package.nar_url(packing), &packing.pack(&package.nar));
    }

    /// Signs and writes a narinfo.
    pub fn write_narinfo(&self, mut narinfo: NarInfo) {
        self.key.sign(&mut narinfo);
        self.write(
            &format!("/{}.narinfo", narinfo.store_path.hash()),
            narinfo.to_text().as_bytes(),
        );
    }

    /// Writes a listing, whatever it says.
    pub fn write_listing(&self, package: &Package, listing: &str) {
        self.write(&package.listing_url(), listing.as_bytes());
    }

    /// Writes the file that a request for `url` gets.
    pub fn write(&self, url: &str, bytes: &[u8]) {
        let mut file = fs::File::create(self.path().join(&url[1..])).unwrap();
        file.write_all(bytes).unwrap();
    }
}
