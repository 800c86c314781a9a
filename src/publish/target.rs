//! The cache that is written to: what it has already, and how files get into it.

use std::{path::Path, time::Duration};

use super::PublishError;
use crate::{
    chunks::{ChunkIndex, announce, announced, file_name},
    codec,
    nix::{CacheInfo, MAX_NARINFO, NarInfo, STORE_DIR, SigningKey, StorePath, TrustedKeys},
    profile::{self, Profile},
    substituter::{Deadline, FetchError, Label, Substituter, Upload},
    tree::{Tree, to_listing_with_offsets},
};

/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Media types, as Nix sends them.
const NARINFO: Label = Label {
    kind: "text/x-nix-narinfo",
    encoding: None,
};
const NAR: Label = Label {
    kind: "application/x-nix-nar",
    encoding: None,
};
const LISTING: Label = Label {
    kind: "application/json",
    encoding: None,
};
const CACHE_INFO: Label = Label {
    kind: "text/x-nix-cache-info",
    encoding: None,
};
const PROFILE: Label = Label {
    kind: "application/json",
    encoding: None,
};
const CHUNKS: Label = Label {
    kind: "application/octet-stream",
    encoding: None,
};

/// A cache that is written to, and the key that signs for it.
pub struct Target {
    /// The cache.
    pub cache: Substituter,
    key: SigningKey,
    keys: TrustedKeys,
}

/// What the cache has of a path.
#[derive(Debug)]
pub enum Standing {
    /// All of it, as this key would publish it.
    Published,
    /// A narinfo of the same NAR, which lacks something: our signature, or chunks.
    Other(Box<NarInfo>),
    /// Nothing.
    Absent,
}

/// A path that is ready to be written.
pub(super) struct Ready<'a> {
    pub info: NarInfo,
    pub tree: &'a Tree,
    pub index: ChunkIndex,
    pub packed: &'a Path,
}

impl Target {
    /// A cache, written to in the name of this key.
    ///
    /// # Errors
    /// Never in practice: the public half of a key is one.
    pub fn new(cache: Substituter, key: SigningKey) -> Result<Self, crate::nix::KeyError> {
        let keys = TrustedKeys::parse([key.public()])?;
        Ok(Self { cache, key, keys })
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(PATIENCE)
    }

    /// Makes a cache of it, if it is none; one that is there stays as it is.
    pub(super) async fn prepare(&self, priority: u32, dry: bool) -> Result<(), PublishError> {
        if !dry {
            self.cache
                .prepare_to_write()
                .await
                .map_err(PublishError::Cache)?;
        }
        let there = match self.cache.cache_info_text(self.deadline()).await {
            Ok(there) => there,
            // A directory that would be made.
            Err(_) if dry => None,
            Err(error) => return Err(PublishError::Cache(error)),
        };
        match there {
            Some(text) => {
                // One that cannot be read is left to those who can.
                let info = CacheInfo::parse(&text).ok();
                match info.filter(|info| info.store_dir != STORE_DIR) {
                    None => Ok(()),
                    Some(info) => Err(PublishError::Foreign {
                        cache: self.cache.name().to_owned(),
                        store_dir: info.store_dir,
                    }),
                }
            }
            None if dry => Ok(()),
            None => {
                let text =
                    format!("StoreDir: {STORE_DIR}\nWantMassQuery: 1\nPriority: {priority}\n");
                let text = Upload::Bytes(text.into());
                let put = self.cache.put("nix-cache-info", &text, CACHE_INFO).await;
                put.map_err(PublishError::Cache)
            }
        }
    }

    /// Writes the profile of a path beside its narinfo, in the place of another.
    pub(super) async fn put_profile(&self, profile: &Profile) -> Result<(), PublishError> {
        let file = profile::file_name(&profile.root.hash());
        let text = Upload::Bytes(profile.text().into_bytes().into());
        let put = self.cache.put(&file, &text, PROFILE).await;
        put.map_err(|error| PublishError::Target {
            path: profile.root.clone(),
            error,
        })
    }

    /// What the cache has of a path.
    pub(super) async fn standing(&self, wanted: &NarInfo) -> Result<Standing, PublishError> {
        let path = &wanted.store_path;
        let failed = |error| PublishError::Target {
            path: path.clone(),
            error,
        };
        let document = self.cache.narinfo(&path.hash(), self.deadline()).await;
        let Some(document) = document.map_err(failed)? else {
            return Ok(Standing::Absent);
        };
        let text = codec::decode_small(document.encoding.as_deref(), &document.bytes, MAX_NARINFO);
        let text = text.unwrap_or(document.bytes);
        let there =
            NarInfo::parse(&text, &path.hash()).map_err(|error| PublishError::Unreadable {
                cache: self.cache.name().to_owned(),
                path: path.clone(),
                error: error.into(),
            })?;
        if there.store_path != *path || there.nar_hash != wanted.nar_hash {
            return Err(PublishError::Conflict {
                cache: self.cache.name().to_owned(),
                path: path.clone(),
                there: there.nar_hash.into(),
                here: wanted.nar_hash.into(),
                file: format!("{}.narinfo", path.hash()),
            });
        }
        let complete = self.complete(&there, wanted).await.map_err(failed)?;
        Ok(match complete {
            true => Standing::Published,
            false => Standing::Other(Box::new(there)),
        })
    }

    /// Whether what stands there is what this key would publish, with all its files.
    async fn complete(&self, there: &NarInfo, wanted: &NarInfo) -> Result<bool, FetchError> {
        let fingerprint = there.fingerprint();
        let signed = there
            .signatures
            .iter()
            .any(|s| self.keys.verify(fingerprint.as_bytes(), s));
        let same = there.references == wanted.references && there.nar_size == wanted.nar_size;
        // Signatures that came since are added.
        let all = wanted
            .signatures
            .iter()
            .all(|s| s.key() == self.key.name() || there.signatures.contains(s));
        if !(signed && same && all && announced(there, &self.keys)) {
            return Ok(false);
        }
        let (index, hash) = (file_name(&there.url), there.store_path.hash());
        let (nar, index, listing) = tokio::join!(
            self.cache.size_of(&there.url, self.deadline()),
            self.cache.chunk_index(&index, self.deadline()),
            // Of what is packed on the way no server tells the size.
            self.cache.listing(&hash, self.deadline()),
        );
        let index = index?.and_then(|bytes| ChunkIndex::parse(&bytes, &self.keys).ok());
        let indexed = index.is_some_and(|index| index.check(there).is_ok());
        Ok(nar? == there.file_size && indexed && listing?.is_some())
    }

    /// Writes everything of a path but its narinfo.
    pub(super) async fn put_files(&self, ready: &Ready<'_>) -> Result<(), FetchError> {
        let info = &ready.info;
        let url = &info.url;
        if self.cache.size_of(url, self.deadline()).await? != Some(ready.index.file_size) {
            let nar = Upload::File {
                path: ready.packed.into(),
                size: ready.index.file_size,
            };
            self.cache.put(url, &nar, NAR).await?;
        }
        let index = Upload::Bytes(ready.index.to_bytes(&self.key).into());
        self.cache.put(&file_name(url), &index, CHUNKS).await?;
        let (listing, label) = self.listing(ready.tree);
        let name = format!("{}.ls", info.store_path.hash());
        self.cache.put(&name, &listing, label).await
    }

    /// A listing as it is written: packed where that can be said with it, as the largest cache does.
    fn listing(&self, tree: &Tree) -> (Upload, Label) {
        let text = to_listing_with_offsets(tree);
        if !self.cache.keeps_encoding() {
            return (Upload::Bytes(text.into()), LISTING);
        }
        let mut packed = Vec::new();
        let parameters = brotli::enc::BrotliEncoderParams::default();
        match brotli::BrotliCompress(&mut text.as_bytes(), &mut packed, &parameters) {
            Ok(_) => {
                let encoding = Some("br");
                (
                    Upload::Bytes(packed.into()),
                    Label {
                        encoding,
                        ..LISTING
                    },
                )
            }
            // Writing to memory has no way to fail.
            Err(_) => (Upload::Bytes(text.into()), LISTING),
        }
    }

    /// Writes the narinfo, with the signatures that the one there has.
    pub(super) async fn put_narinfo(&self, mut info: NarInfo) -> Result<(), PublishError> {
        let path = info.store_path.clone();
        // Asked anew: somebody may have written it meanwhile.
        if let Standing::Other(there) = self.standing(&info).await? {
            for signature in there.signatures {
                if !info.signatures.contains(&signature) {
                    info.signatures.push(signature);
                }
            }
        }
        self.key.sign(&mut info);
        announce(&self.key, &mut info);
        let name = format!("{}.narinfo", path.hash());
        let text = Upload::Bytes(info.to_text().into());
        let put = self.cache.put(&name, &text, NARINFO).await;
        put.map_err(|error| PublishError::Target { path, error })
    }

    /// The index of a path that was published, if it has one.
    pub(super) async fn index_of(&self, path: &StorePath) -> Option<(NarInfo, ChunkIndex)> {
        let document = self
            .cache
            .narinfo(&path.hash(), self.deadline())
            .await
            .ok()??;
        let info = NarInfo::parse(&document.bytes, &path.hash()).ok()?;
        let file = file_name(&info.url);
        let bytes = self
            .cache
            .chunk_index(&file, self.deadline())
            .await
            .ok()??;
        let index = ChunkIndex::parse(&bytes, &self.keys).ok()?;
        Some((info, index))
    }
}

/// The name of a packed NAR in a cache, as Nix gives it.
pub(super) fn nar_file(index: &ChunkIndex) -> String {
    format!("nar/{}.nar.zst", index.file_hash.nix32())
}
