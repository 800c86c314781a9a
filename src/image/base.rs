//! The image that another one is built on, out of an OCI archive or one of `docker save`.

use std::{io::Read, path::Path};

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Digest, ImageError, Platform,
    archive::{Archive, Packing, Part},
    below::Below,
    blob,
};

/// Deepest nesting of indexes in indexes.
const MAX_NESTING: u32 = 4;

/// An image to build on.
pub struct Base {
    archive: Archive,
    /// Its configuration as it stands.
    pub(super) config: Value,
    /// Its layers, the lowest first.
    pub(super) layers: Vec<BaseLayer>,
    /// Which machines it is for.
    pub platform: Platform,
}

/// A layer of it.
pub(super) struct BaseLayer {
    pub descriptor: Descriptor,
    pub digest: Digest,
    pub diff_id: String,
    pub bytes: Part,
}

/// `manifest.json`, an image of it (`docker save`, the format before OCI's).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    layers: Vec<String>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

/// An image that could be meant.
struct Candidate {
    manifest: ImageManifest,
    config: Value,
    platform: Option<Platform>,
    name: String,
}

impl Base {
    /// Reads an archive. Of several images, takes the one for `wanted`, else for this machine.
    ///
    /// # Errors
    /// When there is no such image, several, or one whose parts are missing or damaged.
    pub fn open(path: &Path, wanted: Option<&Platform>) -> Result<Self, ImageError> {
        let archive = Archive::open(path)?;
        if let Some(index) = archive.document("index.json")? {
            return Self::of_oci(archive, &index, wanted);
        }
        match archive.document("manifest.json")? {
            Some(manifest) => Self::of_docker(archive, &manifest, wanted),
            None => Err(archive.unfit(
                "it has neither an index.json (OCI archive) nor a manifest.json (docker save)",
            )),
        }
    }

    /// What its layers make of the root directory.
    ///
    /// # Errors
    /// When a layer can't be read.
    pub fn below(&self) -> Result<Below, ImageError> {
        let mut below = Below::default();
        for layer in &self.layers {
            let tar = layer.bytes.unpacked();
            tar.and_then(|tar| below.add_layer(tar)).map_err(|e| {
                self.archive
                    .unfit(format!("its layer {} cannot be read: {e}", layer.digest))
            })?;
        }
        Ok(below)
    }

    pub(super) fn file(&self) -> &Path {
        self.archive.path()
    }

    fn of_oci(
        archive: Archive,
        index: &[u8],
        wanted: Option<&Platform>,
    ) -> Result<Self, ImageError> {
        let mut found = Vec::new();
        candidates(
            &archive,
            &parsed(&archive, "index.json", index)?,
            0,
            &mut found,
        )?;
        let Candidate {
            manifest,
            config,
            platform,
            ..
        } = choose(&archive, found, wanted)?;
        let mut layers = Vec::new();
        for descriptor in manifest.layers() {
            let Some(digest) = Digest::parse(descriptor.digest().as_ref()) else {
                let why = format!(
                    "its layer {} is not named by a SHA-256",
                    descriptor.digest()
                );
                return Err(archive.unfit(why));
            };
            let Some(bytes) = archive.get(&digest.file()) else {
                return Err(archive.unfit(format!("its layer {digest} is not in the archive")));
            };
            let mut descriptor = descriptor.clone();
            descriptor.set_media_type(ours(descriptor.media_type()));
            descriptor.set_urls(None);
            layers.push((descriptor, digest, bytes.clone()));
        }
        Self::new(archive, config, platform, layers)
    }

    fn of_docker(
        archive: Archive,
        manifest: &[u8],
        wanted: Option<&Platform>,
    ) -> Result<Self, ImageError> {
        let images: Vec<DockerImage> = parsed(&archive, "manifest.json", manifest)?;
        let [image] = &images[..] else {
            let names: Vec<_> = images
                .iter()
                .map(|i| i.repo_tags.iter().flatten().next().map_or("?", |t| t))
                .collect();
            return Err(archive.unfit(format!(
                "it holds {} images ({}); save only one",
                images.len(),
                names.join(", ")
            )));
        };
        let missing = |name: &str| archive.unfit(format!("its {name} is not in the archive"));
        let config = archive.document(&image.config)?;
        let config = config.ok_or_else(|| missing(&image.config))?;
        let config: Value = parsed(&archive, &image.config, &config)?;
        let platform = Platform::of_config(&config);
        if let (Some(wanted), Some(platform)) = (wanted, &platform)
            && !wanted.takes(platform)
        {
            return Err(archive.unfit(format!("it is for {platform}, not {wanted}")));
        }
        let mut layers = Vec::new();
        for name in &image.layers {
            let bytes = archive.get(name).ok_or_else(|| missing(name))?;
            let digest = bytes.digest().map_err(|e| archive.failed(e))?;
            let kind = match bytes.packing().map_err(|e| archive.failed(e))? {
                Packing::None => MediaType::ImageLayer,
                Packing::Gzip => MediaType::ImageLayerGzip,
                Packing::Zstd => MediaType::ImageLayerZstd,
            };
            let descriptor = blob::descriptor(kind, digest, bytes.len())?;
            layers.push((descriptor, digest, bytes.clone()));
        }
        Self::new(archive, config, platform, layers)
    }

    fn new(
        archive: Archive,
        config: Value,
        platform: Option<Platform>,
        layers: Vec<(Descriptor, Digest, Part)>,
    ) -> Result<Self, ImageError> {
        let Some(platform) = platform.or_else(|| Platform::of_config(&config)) else {
            return Err(archive.unfit("its configuration does not say that it is for Linux"));
        };
        let ids = config["rootfs"]["diff_ids"].as_array();
        let ids: Vec<&str> = ids
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if ids.len() != layers.len() {
            return Err(archive.unfit(format!(
                "it has {} layers, but its configuration names {}",
                layers.len(),
                ids.len()
            )));
        }
        let with_id = |((descriptor, digest, bytes), id): ((_, Digest, Part), &&str)| BaseLayer {
            descriptor,
            digest,
            diff_id: (*id).to_owned(),
            bytes,
        };
        let layers: Vec<_> = layers.into_iter().zip(&ids).map(with_id).collect();
        let base = Self {
            archive,
            config,
            layers,
            platform,
        };
        base.check_sizes()?;
        Ok(base)
    }

    fn check_sizes(&self) -> Result<(), ImageError> {
        for layer in &self.layers {
            let (said, is) = (layer.descriptor.size(), layer.bytes.len());
            if said != is {
                let why = format!("its layer {} has {is} bytes, not {said}", layer.digest);
                return Err(self.archive.unfit(why));
            }
            let plain = *layer.descriptor.media_type() == MediaType::ImageLayer;
            if plain && layer.diff_id != layer.digest.to_string() {
                let why = format!(
                    "its layer {} is {} by its configuration",
                    layer.digest, layer.diff_id
                );
                return Err(self.archive.unfit(why));
            }
        }
        Ok(())
    }
}

fn parsed<'a, T: Deserialize<'a>>(
    archive: &Archive,
    name: &str,
    bytes: &'a [u8],
) -> Result<T, ImageError> {
    serde_json::from_slice(bytes)
        .map_err(|e| archive.unfit(format!("its {name} cannot be understood: {e}")))
}

/// The blob that a descriptor names, checked; `None` if it is not here: archives of one platform
/// keep the index of all.
fn document(archive: &Archive, descriptor: &Descriptor) -> Result<Option<Vec<u8>>, ImageError> {
    let Some(wanted) = Digest::parse(descriptor.digest().as_ref()) else {
        return Ok(None);
    };
    let Some(bytes) = archive.document(&wanted.file())? else {
        return Ok(None);
    };
    let found = Digest::of(&bytes);
    match found == wanted {
        true => Ok(Some(bytes)),
        false => Err(ImageError::Damaged {
            file: archive.path().into(),
            blob: wanted.file(),
            found,
            wanted,
        }),
    }
}

/// Media types of Docker in the words of OCI: the bytes are the same.
fn ours(kind: &MediaType) -> MediaType {
    match kind.as_ref() {
        "application/vnd.docker.image.rootfs.diff.tar" => MediaType::ImageLayer,
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => MediaType::ImageLayerGzip,
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => MediaType::ImageLayerZstd,
        _ => kind.clone(),
    }
}

/// Every image that an index leads to and that is here.
fn candidates(
    archive: &Archive,
    index: &ImageIndex,
    depth: u32,
    found: &mut Vec<Candidate>,
) -> Result<(), ImageError> {
    if depth == MAX_NESTING {
        return Err(archive.unfit("its indexes are nested too deep"));
    }
    for descriptor in index.manifests() {
        let note = |key: &str| descriptor.annotations().as_ref()?.get(key).cloned();
        // What builders say of an image, beside it.
        if note("vnd.docker.reference.type").is_some() {
            continue;
        }
        let Some(bytes) = document(archive, descriptor)? else {
            continue;
        };
        let name = descriptor.digest().to_string();
        match descriptor.media_type().as_ref() {
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => {
                let inner = parsed(archive, &name, &bytes)?;
                candidates(archive, &inner, depth + 1, found)?;
            }
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => {
                let manifest: ImageManifest = parsed(archive, &name, &bytes)?;
                let Some(config) = document(archive, manifest.config())? else {
                    continue;
                };
                let config: Value = parsed(archive, manifest.config().digest().as_ref(), &config)?;
                let said = Platform::of_descriptor(descriptor);
                found.push(Candidate {
                    platform: said.or_else(|| Platform::of_config(&config)),
                    manifest,
                    config,
                    name: note("io.containerd.image.name")
                        .or_else(|| note("org.opencontainers.image.ref.name"))
                        .unwrap_or(name),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

fn choose(
    archive: &Archive,
    found: Vec<Candidate>,
    wanted: Option<&Platform>,
) -> Result<Candidate, ImageError> {
    let here = Platform::of_this_machine();
    let all: Vec<_> = found
        .iter()
        .map(|c| match &c.platform {
            Some(platform) => format!("{} for {platform}", c.name),
            None => c.name.clone(),
        })
        .collect();
    if all.is_empty() {
        return Err(archive.unfit("it holds no image whose manifest and configuration are there"));
    }
    let alone = found.len() == 1 && wanted.is_none();
    let asked = wanted.unwrap_or(&here);
    let fits = |c: &Candidate| alone || c.platform.as_ref().is_some_and(|p| asked.takes(p));
    let mut fitting = found.into_iter().filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(archive.unfit(format!("it has no image for {asked}: {}", all.join(", ")))),
        (Some(_), Some(_)) => Err(archive.unfit(format!(
            "it holds several images for {asked}, and should hold one: {}",
            all.join(", ")
        ))),
    }
}

/// Copies a layer, and checks on the way that its name is right.
pub(super) fn copy(
    base: &Base,
    layer: &BaseLayer,
    mut piece: impl FnMut(&[u8]) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let (mut bytes, mut hasher) = (layer.bytes.clone(), blob::Hasher::default());
    let mut buffer = vec![0; 1 << 18];
    loop {
        let n = bytes
            .read(&mut buffer)
            .map_err(|e| base.archive.failed(e))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        piece(&buffer[..n])?;
    }
    let found = hasher.finish();
    match found == layer.digest {
        true => Ok(()),
        false => Err(ImageError::Damaged {
            file: base.file().into(),
            blob: layer.digest.file(),
            found,
            wanted: layer.digest,
        }),
    }
}
