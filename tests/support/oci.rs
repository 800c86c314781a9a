//! Images made entry by entry, as OCI archives: what no tool would put into a layer too.
#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::{collections::BTreeMap, fs, io::Read, path::Path};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// Modification time of every entry that does not say otherwise, in seconds.
pub const MTIME: u64 = 1_600_000_000;

/// One layer.
#[derive(Default)]
pub struct Layer {
    tar: Option<tar::Builder<Vec<u8>>>,
    annotations: BTreeMap<String, String>,
    /// Of another image, as it is: its descriptor, its bytes, and the digest of its tar.
    taken: Option<(Value, Vec<u8>, Value)>,
}

/// Owner and permissions of an entry.
#[derive(Debug, Clone, Copy)]
pub struct Owned {
    pub mode: u32,
    pub user: u64,
    pub group: u64,
    pub mtime: u64,
}

impl Owned {
    /// root's, with these permissions.
    pub const fn root(mode: u32) -> Self {
        Self {
            mode,
            user: 0,
            group: 0,
            mtime: MTIME,
        }
    }
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    /// The uppermost layer of the image in an archive, as it is there.
    pub fn last_of(archive: &Path) -> Self {
        let archive = Archive::read(archive);
        let (layers, ids) = (archive.layers(), archive.diff_ids());
        let (layer, id) = (
            layers.last().expect("a layer"),
            ids.last().expect("a layer"),
        );
        let bytes = archive.blob(&layer["digest"]).to_vec();
        Self {
            taken: Some((layer.clone(), bytes, json!(id))),
            ..Self::default()
        }
    }

    /// An annotation of the layer's descriptor.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Extended attributes of the next entry.
    pub fn xattrs(mut self, attributes: &[(&str, &[u8])]) -> Self {
        let keys: Vec<_> = attributes
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value))
            .collect();
        let pairs = keys.iter().map(|(key, value)| (key.as_str(), *value));
        self.builder()
            .append_pax_extensions(pairs)
            .expect("in memory");
        self
    }

    pub fn directory(self, path: &str, owned: Owned) -> Self {
        self.entry(path, EntryType::Directory, owned, &[], None, (0, 0))
    }

    pub fn file(self, path: &str, owned: Owned, bytes: &[u8]) -> Self {
        self.entry(path, EntryType::Regular, owned, bytes, None, (0, 0))
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        let owned = Owned::root(0o777);
        self.entry(path, EntryType::Symlink, owned, &[], Some(target), (0, 0))
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        let owned = Owned::root(0o644);
        self.entry(path, EntryType::Link, owned, &[], Some(target), (0, 0))
    }

    pub fn device(self, path: &str, kind: EntryType, owned: Owned, number: (u32, u32)) -> Self {
        self.entry(path, kind, owned, &[], None, number)
    }

    pub fn fifo(self, path: &str, owned: Owned) -> Self {
        self.entry(path, EntryType::Fifo, owned, &[], None, (0, 0))
    }

    /// What takes away an entry of the layers below.
    pub fn whiteout(self, path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let slash = if parent.is_empty() { "" } else { "/" };
        self.file(
            &format!("{parent}{slash}.wh.{name}"),
            Owned::root(0o644),
            b"",
        )
    }

    /// What takes away everything that the layers below have in a directory.
    pub fn opaque(self, path: &str) -> Self {
        self.file(&format!("{path}/.wh..wh..opq"), Owned::root(0o644), b"")
    }

    fn builder(&mut self) -> &mut tar::Builder<Vec<u8>> {
        self.tar
            .get_or_insert_with(|| tar::Builder::new(Vec::new()))
    }

    fn entry(
        mut self,
        path: &str,
        kind: EntryType,
        owned: Owned,
        bytes: &[u8],
        target: Option<&str>,
        device: (u32, u32),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(owned.mode);
        header.set_uid(owned.user);
        header.set_gid(owned.group);
        header.set_mtime(owned.mtime);
        header.set_size(bytes.len() as u64);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header
                .set_device_major(device.0)
                .expect("it is of GNU's kind");
            header
                .set_device_minor(device.1)
                .expect("it is of GNU's kind");
        }
        let builder = self.builder();
        match target {
            Some(target) => builder.append_link(&mut header, path, target),
            None => builder.append_data(&mut header, path, bytes),
        }
        .expect("in memory");
        self
    }

    fn finish(self) -> (Vec<u8>, BTreeMap<String, String>) {
        let tar = self.tar.unwrap_or_else(|| tar::Builder::new(Vec::new()));
        (tar.into_inner().expect("in memory"), self.annotations)
    }
}

/// The files of an OCI archive with one image.
pub struct Archive {
    files: BTreeMap<String, Vec<u8>>,
}

impl Archive {
    pub fn read(file: &Path) -> Self {
        let mut files = BTreeMap::new();
        let opened = fs::File::open(file).expect("an archive");
        for entry in tar::Archive::new(opened).entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a name").display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("read");
            files.insert(name, bytes);
        }
        Self { files }
    }

    fn blob(&self, digest: &Value) -> &[u8] {
        let digest = digest.as_str().expect("a digest").replace(':', "/");
        &self.files[&format!("blobs/{digest}")]
    }

    fn json(&self, digest: &Value) -> Value {
        serde_json::from_slice(self.blob(digest)).expect("JSON")
    }

    fn manifest(&self) -> Value {
        let index: Value = serde_json::from_slice(&self.files["index.json"]).expect("JSON");
        self.json(&index["manifests"][0]["digest"])
    }

    /// Descriptors of the layers, the lowest first.
    pub fn layers(&self) -> Vec<Value> {
        self.manifest()["layers"]
            .as_array()
            .expect("layers")
            .clone()
    }

    /// Digests of the layers' tars, the lowest first.
    pub fn diff_ids(&self) -> Vec<String> {
        let config = self.json(&self.manifest()["config"]["digest"]);
        let ids = config["rootfs"]["diff_ids"]
            .as_array()
            .expect("layers")
            .iter();
        ids.map(|id| id.as_str().expect("a digest").to_owned())
            .collect()
    }

    /// The key of the snapshot with all layers.
    pub fn chain_id(&self) -> String {
        let ids = self.diff_ids().into_iter();
        let chain = ids.reduce(|below, id| {
            let pair = format!("{below} {id}");
            format!("sha256:{:x}", Sha256::digest(pair))
        });
        chain.expect("a layer")
    }
}

/// An image.
pub struct Image {
    name: String,
    config: Value,
    layers: Vec<Layer>,
}

impl Image {
    /// `name` as in `docker.io/library/NAME:TAG`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            config: json!({}),
            layers: Vec::new(),
        }
    }

    /// The program that a container of it runs.
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.config["Entrypoint"] = json!(words);
        self
    }

    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// The name of the image.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes the archive.
    pub fn write(self, file: &Path) {
        let mut blobs = BTreeMap::new();
        let mut put = |bytes: Vec<u8>| {
            let digest = format!("{:x}", Sha256::digest(&bytes));
            let size = bytes.len();
            blobs.insert(digest.clone(), bytes);
            (format!("sha256:{digest}"), size)
        };
        let (mut layers, mut ids) = (Vec::new(), Vec::new());
        for layer in self.layers {
            if let Some((descriptor, bytes, id)) = layer.taken {
                put(bytes);
                layers.push(descriptor);
                ids.push(id);
                continue;
            }
            let (tar, annotations) = layer.finish();
            let (digest, size) = put(tar);
            ids.push(json!(digest));
            layers.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest, "size": size, "annotations": annotations,
            }));
        }
        let platform = json!({"os": "linux", "architecture": crate::containerd::architecture()});
        let config = json!({
            "os": platform["os"], "architecture": platform["architecture"],
            "config": self.config, "rootfs": {"type": "layers", "diff_ids": ids},
        });
        let (digest, size) = put(config.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest, "size": size,
            },
            "layers": layers,
        });
        let (digest, size) = put(manifest.to_string().into_bytes());
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest, "size": size, "platform": platform,
                "annotations": {"io.containerd.image.name": self.name},
            }],
        });
        let mut archive = Layer::new()
            .file(
                "oci-layout",
                Owned::root(0o644),
                br#"{"imageLayoutVersion":"1.0.0"}"#,
            )
            .file(
                "index.json",
                Owned::root(0o644),
                index.to_string().as_bytes(),
            );
        for (digest, bytes) in blobs {
            let name = format!("blobs/sha256/{digest}");
            archive = archive.file(&name, Owned::root(0o644), &bytes);
        }
        fs::write(file, archive.finish().0).expect("written");
    }
}
