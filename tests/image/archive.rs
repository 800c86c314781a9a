//! An OCI archive, read and checked as the specification has it; and one made by hand, to build on.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::{Read, Write},
    path::Path,
};

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, OciLayout};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Directory,
    File,
    Link(String),
}

/// An image out of an archive. Everything that the specification demands was checked.
pub struct Image {
    pub files: BTreeMap<String, Vec<u8>>,
    pub named: Descriptor,
    pub manifest: ImageManifest,
    pub config: Value,
    /// Unpacked layers, the lowest first.
    pub layers: Vec<Vec<u8>>,
}

impl Image {
    pub fn read(path: &Path) -> Self {
        Self::of(&fs::read(path).unwrap())
    }

    pub fn of(bytes: &[u8]) -> Self {
        let mut files = BTreeMap::new();
        let mut names = Vec::new();
        for entry in tar::Archive::new(bytes).entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header();
            assert_eq!(
                header.mtime().unwrap() + header.uid().unwrap() + header.gid().unwrap(),
                0
            );
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            names.push(name.clone());
            if entry.header().entry_type() == EntryType::Regular {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                assert!(
                    files.insert(name, content).is_none(),
                    "a file stands there twice"
                );
            }
        }
        assert!(names.is_sorted(), "{names:?}");
        let layout: OciLayout = serde_json::from_slice(&files["oci-layout"]).unwrap();
        assert_eq!(layout.image_layout_version(), "1.0.0");
        let index: ImageIndex = serde_json::from_slice(&files["index.json"]).unwrap();
        let [named] = &index.manifests()[..] else {
            panic!("one image");
        };
        let blob = |descriptor: &Descriptor| {
            let name = format!(
                "blobs/{}",
                descriptor.digest().to_string().replace(':', "/")
            );
            let bytes = files
                .get(&name)
                .unwrap_or_else(|| panic!("{name} is missing"));
            assert_eq!(digest(bytes), descriptor.digest().to_string(), "{name}");
            assert_eq!(bytes.len() as u64, descriptor.size(), "{name}");
            bytes
        };
        let manifest: ImageManifest = serde_json::from_slice(blob(named)).unwrap();
        let config = blob(manifest.config());
        let typed: ImageConfiguration = serde_json::from_slice(config).unwrap();
        let layers: Vec<Vec<u8>> = manifest
            .layers()
            .iter()
            .map(|l| unpacked(blob(l)))
            .collect();
        let ids: Vec<String> = layers.iter().map(|tar| digest(tar)).collect();
        assert_eq!(typed.rootfs().diff_ids(), &ids);
        assert_eq!(typed.rootfs().typ(), "layers");
        assert_eq!(
            named.platform().as_ref().unwrap().architecture(),
            typed.architecture()
        );
        if let Some(history) = typed.history() {
            let layers_in_it = history.iter().filter(|h| h.empty_layer() != Some(true));
            assert_eq!(layers_in_it.count(), layers.len());
        }
        // Nothing in it that nobody names.
        let mut wanted: HashSet<String> = ["oci-layout", "index.json", "manifest.json"]
            .map(String::from)
            .into();
        let all = [named, manifest.config()]
            .into_iter()
            .chain(manifest.layers());
        wanted.extend(all.map(|d| format!("blobs/{}", d.digest().to_string().replace(':', "/"))));
        assert_eq!(files.keys().cloned().collect::<HashSet<_>>(), wanted);
        let named = named.clone();
        let config = serde_json::from_slice(config).unwrap();
        Self {
            files,
            named,
            manifest,
            config,
            layers,
        }
    }

    /// The entries of the topmost layer. All are root's and of no time.
    pub fn top(&self) -> BTreeMap<String, (Entry, u32)> {
        entries(self.layers.last().unwrap())
    }

    /// The annotations of the topmost layer, without what they all begin with.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let top = self.manifest.layers().last().unwrap();
        let all = top.annotations().as_ref().unwrap();
        let short = |(key, value): (&String, &String)| {
            let key = key.strip_prefix("containerd.io/snapshot/").unwrap();
            assert!(
                key.len() + value.len() <= 4096 - 23,
                "containerd takes no longer labels"
            );
            (key.to_owned(), value.clone())
        };
        all.iter().map(short).collect()
    }
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match bytes.starts_with(&[0x1f, 0x8b]) {
        true => drop(
            flate2::read::GzDecoder::new(bytes)
                .read_to_end(&mut out)
                .unwrap(),
        ),
        false => out.extend(bytes),
    }
    out
}

fn entries(layer: &[u8]) -> BTreeMap<String, (Entry, u32)> {
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(layer).entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!(
            header.mtime().unwrap() + header.uid().unwrap() + header.gid().unwrap(),
            0
        );
        assert_eq!(entry.size(), 0, "a Nix layer has no bytes");
        let kind = match header.entry_type() {
            EntryType::Directory => Entry::Directory,
            EntryType::Regular => Entry::File,
            EntryType::Symlink => Entry::Link(
                String::from_utf8(entry.link_name_bytes().unwrap().into_owned()).unwrap(),
            ),
            other => panic!("{other:?}"),
        };
        let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let path = path.trim_end_matches('/').to_owned();
        found.insert(path, (kind, header.mode().unwrap()));
    }
    found
}

/// A tar: `dir/`, `link -> target`, and files that hold their own names.
pub fn tar_of(lines: &[&str]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for line in lines {
        let mut header = Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(0);
        header.set_mtime(1_600_000_000);
        match (line.split_once(" -> "), line.ends_with('/')) {
            (Some((path, target)), _) => {
                header.set_entry_type(EntryType::Symlink);
                tar.append_link(&mut header, path, target).unwrap();
            }
            (None, true) => {
                header.set_entry_type(EntryType::Directory);
                tar.append_data(&mut header, line, &[][..]).unwrap();
            }
            (None, false) => {
                header.set_size(line.len() as u64);
                tar.append_data(&mut header, line, line.as_bytes()).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

/// Gzipped, as most layers are.
pub fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// Files of an OCI archive with an ordinary image in it.
pub struct Base {
    pub files: BTreeMap<String, Vec<u8>>,
    pub manifests: Vec<Value>,
}

impl Base {
    pub fn new() -> Self {
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
        Self {
            files: BTreeMap::from([("oci-layout".to_owned(), layout)]),
            manifests: Vec::new(),
        }
    }

    fn blob(&mut self, kind: &str, bytes: Vec<u8>) -> Value {
        let (digest, size) = (digest(&bytes), bytes.len());
        self.files
            .insert(format!("blobs/{}", digest.replace(':', "/")), bytes);
        json!({"mediaType": kind, "digest": digest, "size": size})
    }

    /// Adds an image for an architecture: its configuration but for the layers, the layers as
    /// tars, and whether Docker's names for the media types are used.
    pub fn image(
        mut self,
        architecture: &str,
        mut config: Value,
        layers: &[Vec<u8>],
        docker: bool,
    ) -> Self {
        let kinds = match docker {
            false => [
                "application/vnd.oci.image.layer.v1.tar+gzip",
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.manifest.v1+json",
            ],
            true => [
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.distribution.manifest.v2+json",
            ],
        };
        config["os"] = json!("linux");
        config["architecture"] = json!(architecture);
        let ids: Vec<_> = layers.iter().map(|tar| digest(tar)).collect();
        config["rootfs"] = json!({"type": "layers", "diff_ids": ids});
        let layers: Vec<_> = layers
            .iter()
            .map(|tar| self.blob(kinds[0], gzipped(tar)))
            .collect();
        let config = self.blob(kinds[1], config.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kinds[2], "config": config, "layers": layers,
        });
        let mut descriptor = self.blob(kinds[2], manifest.to_string().into_bytes());
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        self.manifests.push(descriptor);
        self
    }

    /// The archive.
    pub fn bytes(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        let mut files = self.files.clone();
        files.insert("index.json".into(), index.to_string().into_bytes());
        for (name, bytes) in files {
            let mut header = Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, &bytes[..]).unwrap();
        }
        tar.into_inner().unwrap()
    }
}
