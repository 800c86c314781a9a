//! A binary cache in memory, as `nix copy` would write it: narinfos, listings, NARs in zstd.

use std::{
    collections::HashMap,
    io::{self, Write},
    path::Path,
};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::closure::Package;
use crate::{
    nix::{Compression, NarHash, NarInfo, SigningKey, StorePath, hash::NarHasher, nar},
    tree::{NarIndexer, Tree, to_listing},
};

/// Quick, and all the difference that the demonstration needs.
const LEVEL: i32 = 1;

/// Files of a cache by their names.
#[derive(Default)]
pub struct Cache {
    files: HashMap<String, Bytes>,
    /// What was packed.
    pub packed: Vec<Packed>,
}

/// A store path in the cache.
pub struct Packed {
    /// Its name.
    pub path: StorePath,
    /// Bytes of its NAR.
    pub nar_size: u64,
    /// Bytes of its NAR, compressed.
    pub file_size: u64,
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        let mut cache = Self::default();
        cache.put(
            "nix-cache-info".into(),
            b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n".to_vec(),
        );
        cache
    }

    fn put(&mut self, name: String, bytes: Vec<u8>) {
        self.files.insert(name, bytes.into());
    }

    /// Bytes of all NARs.
    pub fn size(&self) -> u64 {
        self.packed.iter().map(|packed| packed.nar_size).sum()
    }

    /// Bytes of all NARs, compressed.
    pub fn file_size(&self) -> u64 {
        self.packed.iter().map(|packed| packed.file_size).sum()
    }

    /// A file of the cache.
    pub fn file(&self, name: &str) -> Option<Bytes> {
        self.files.get(name).cloned()
    }

    /// Adds a store path; its files are written below `scratch` for as long as that takes.
    ///
    /// # Errors
    /// When they can't be written or read back.
    pub fn add(&mut self, package: &Package, scratch: &Path, key: &SigningKey) -> io::Result<()> {
        let root = scratch.join(package.path.to_string());
        package.write(&root)?;
        let mut out = Out {
            hasher: NarHasher::new(),
            indexer: NarIndexer::new(),
            packer: zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?,
        };
        nar::dump(&root, &mut out).map_err(io::Error::other)?;
        std::fs::remove_dir_all(&root)?;
        let Out {
            hasher,
            indexer,
            packer,
        } = out;
        let (packed, nar_size, nar_hash) = (packer.finish()?, indexer.position(), hasher.finish());
        let image = indexer.finish(nar_hash).map_err(io::Error::other)?;
        let listing = to_listing(&Tree::from_image(image).map_err(io::Error::other)?);
        let file_hash = NarHash::from_bytes(Sha256::digest(&packed).into());
        let mut references = package.references.clone();
        references.sort();
        let mut info = NarInfo {
            store_path: package.path.clone(),
            url: format!("nar/{}.nar.zst", file_hash.nix32()),
            compression: Compression::Zstd,
            file_hash: Some(file_hash),
            file_size: Some(packed.len() as u64),
            nar_hash,
            nar_size,
            references,
            deriver: None,
            signatures: vec![],
            ca: None,
        };
        key.sign(&mut info);
        let digest = package.path.hash();
        self.packed.push(Packed {
            path: package.path.clone(),
            nar_size,
            file_size: packed.len() as u64,
        });
        self.put(format!("{digest}.narinfo"), info.to_text().into_bytes());
        self.put(format!("{digest}.ls"), listing.into_bytes());
        self.put(info.url, packed);
        Ok(())
    }
}

/// Where a NAR goes as it is made: hashed, indexed and compressed in one pass.
struct Out {
    hasher: NarHasher,
    indexer: NarIndexer,
    packer: zstd::stream::write::Encoder<'static, Vec<u8>>,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.indexer.push(bytes).map_err(io::Error::other)?;
        self.packer.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
