//! Images for narfs's snapshotter and for nix-snapshotter, made without Nix.
//!
//! Such an image is an ordinary OCI image whose topmost layer has no files, only mountpoints: one
//! for each store path of a closure. Its annotations name the store paths, and the snapshotter
//! brings them. So an image of gigabytes is a file of kilobytes.
//!
//! Pure but for reading a base and writing the archive; what has to be known of the store paths,
//! the caller finds out. The same input makes the same bytes, whenever and wherever.
//!
//! ```text
//! reference.rs  names of images            platform.rs  for which machines they are
//! layer.rs      the Nix layer              root.rs      links in the root directory
//! base.rs       the image below            below.rs     its directories
//! archive.rs    reading archives           write.rs     writing one
//! config.rs     how the image is run       blob.rs      digests, JSON
//! ```

mod archive;
mod base;
mod below;
mod blob;
mod config;
mod error;
mod layer;
mod platform;
mod reference;
mod root;
mod write;

use oci_spec::image::{ImageIndexBuilder, ImageManifestBuilder, MediaType, SCHEMA_VERSION};
use serde_json::json;

pub use base::Base;
pub use below::Below;
pub use blob::Digest;
pub use config::Settings;
pub use error::ImageError;
pub use layer::{Mountpoint, Scheme};
pub use platform::Platform;
pub use reference::{Reference, ReferenceError};
pub use root::{Copied, CopyToRoot, RootEntries, RootEntry, root_entries};
pub use write::Image;

use write::Piece;

/// What an image is made of.
pub struct Recipe {
    /// Its name.
    pub name: Reference,
    /// For which machines it is.
    pub platform: Platform,
    /// What is below the Nix layer.
    pub base: Option<Base>,
    /// The store paths, in order.
    pub mountpoints: Vec<Mountpoint>,
    /// How the layer names them.
    pub scheme: Scheme,
    /// What is linked in the root directory.
    pub root: RootEntries,
    /// How it is run.
    pub settings: Settings,
}

/// What an image runs, and whether its variables say where programs are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The first word of entrypoint and command.
    pub word: Option<String>,
    /// Whether the variable `PATH` is set.
    pub has_path: bool,
}

/// What an image with these settings runs.
pub fn program(base: Option<&Base>, settings: &Settings, platform: &Platform) -> Program {
    let config = config::config(base.map(|base| &base.config), settings, platform);
    let (word, has_path) = config::program(&config);
    Program {
        word: word.map(str::to_owned),
        has_path,
    }
}

/// Makes an image.
///
/// # Errors
/// When its documents can't be put into words.
pub fn build(recipe: Recipe) -> Result<Image, ImageError> {
    let Recipe {
        name,
        platform,
        base,
        mountpoints,
        scheme,
        root,
        settings,
    } = recipe;
    let nix = layer::layer(&mountpoints, &scheme, &root)?;
    let below = base.iter().flat_map(|base| &base.layers);
    let mut ids: Vec<String> = below.clone().map(|layer| layer.diff_id.clone()).collect();
    ids.push(nix.diff_id.to_string());
    let mut config = config::config(base.as_ref().map(|b| &b.config), &settings, &platform);
    config["rootfs"] = json!({"type": "layers", "diff_ids": ids});
    let config = blob::json(&config)?;
    let config_digest = Digest::of(&config);

    let mut layers: Vec<_> = below.map(|layer| layer.descriptor.clone()).collect();
    layers.push(nix.descriptor.clone());
    let files: Vec<String> = layers
        .iter()
        .map(|l| blob_file(l.digest().as_ref()))
        .collect();
    let size = config.len() as u64;
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(blob::descriptor(
            MediaType::ImageConfig,
            config_digest,
            size,
        )?)
        .layers(layers)
        .build()?;
    let manifest = blob::json(&manifest)?;
    let digest = Digest::of(&manifest);

    let size = manifest.len() as u64;
    let mut descriptor = blob::descriptor(MediaType::ImageManifest, digest, size)?;
    descriptor.set_platform(Some(platform.for_descriptor()?));
    let names = [
        ("io.containerd.image.name", name.to_string()),
        ("org.opencontainers.image.ref.name", name.tag().to_owned()),
    ];
    let names = names.map(|(key, value)| (key.to_owned(), value));
    descriptor.set_annotations(Some(names.into()));
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests([descriptor])
        .build()?;
    // For tools that know no OCI archives (`docker load`, `skopeo docker-archive:`).
    let for_docker = json!([{
        "Config": config_digest.file(), "RepoTags": [name.familiar()], "Layers": files,
    }]);

    let mut image = Image::new(name, digest, config_digest);
    image.add(
        "oci-layout",
        Piece::Bytes(br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
    );
    image.add("index.json", Piece::Bytes(blob::json(&index)?));
    image.add("manifest.json", Piece::Bytes(blob::json(&for_docker)?));
    image.add(&digest.file(), Piece::Bytes(manifest));
    image.add(&config_digest.file(), Piece::Bytes(config));
    image.add(&nix.digest.file(), Piece::Bytes(nix.bytes));
    if let Some(base) = base {
        image.add_base(base);
    }
    Ok(image)
}

/// Where the blob with this digest, as text, is in an archive.
fn blob_file(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}
