//! The Nix layer: a mountpoint for every store path, links in the root directory, and annotations
//! that tell the snapshotter which store paths to bring.
//!
//! The format is that of nix-snapshotter. Every entry is root's, with the time 0, in the order of
//! the names' bytes, so that the same closure makes the same bytes.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
    os::unix::ffi::OsStrExt,
};

use flate2::{Compression, GzBuilder};
use oci_spec::image::{Descriptor, MediaType};
use tar::{EntryType, Header};

use super::{
    Digest, ImageError, blob,
    root::{RootEntries, RootEntry},
};
use crate::nix::StorePath;

const MARK: &str = "containerd.io/snapshot/nix-layer";
const PATH_PREFIX: &str = "containerd.io/snapshot/nix-store-path.";
const CLOSURE: &str = "containerd.io/snapshot/nix-closure";

/// No operating system in particular (RFC 1952, 2.3.1).
const GZIP_OS: u8 = 255;

/// Where a store path comes to stand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mountpoint {
    /// The store path.
    pub path: StorePath,
    /// Whether it is a directory, or a link to one; a file otherwise. nix-snapshotter mounts over
    /// it, and the kernel wants the same kind on both sides.
    pub directory: bool,
}

/// How the layer tells which store paths it brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheme {
    /// An annotation for each.
    pub store_paths: bool,
    /// An annotation with a store path whose references they are.
    pub closure: Option<StorePath>,
}

/// The layer, ready to be written.
pub(super) struct Layer {
    /// What the image's manifest says of it.
    pub descriptor: Descriptor,
    /// SHA-256 of the packed bytes.
    pub digest: Digest,
    /// SHA-256 of the tar.
    pub diff_id: Digest,
    /// A gzipped tar.
    pub bytes: Vec<u8>,
}

/// Makes the layer.
pub(super) fn layer(
    mountpoints: &[Mountpoint],
    scheme: &Scheme,
    root: &RootEntries,
) -> Result<Layer, ImageError> {
    let tar = tar_of(mountpoints, root).map_err(ImageError::Write)?;
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .operating_system(GZIP_OS)
        .write(Vec::new(), Compression::best());
    let packed = gzip.write_all(&tar).and_then(|()| gzip.finish());
    let bytes = packed.map_err(ImageError::Write)?;
    let digest = Digest::of(&bytes);
    let size = bytes.len() as u64;
    let mut descriptor = blob::descriptor(MediaType::ImageLayerGzip, digest, size)?;
    descriptor.set_annotations(Some(annotations(mountpoints, scheme)));
    Ok(Layer {
        descriptor,
        digest,
        diff_id: Digest::of(&tar),
        bytes,
    })
}

fn annotations(mountpoints: &[Mountpoint], scheme: &Scheme) -> HashMap<String, String> {
    let mut all = HashMap::from([(MARK.to_owned(), "true".to_owned())]);
    if scheme.store_paths {
        for (number, mountpoint) in mountpoints.iter().enumerate() {
            all.insert(format!("{PATH_PREFIX}{number}"), mountpoint.path.absolute());
        }
    }
    if let Some(path) = &scheme.closure {
        all.insert(CLOSURE.to_owned(), path.absolute());
    }
    all
}

fn tar_of(mountpoints: &[Mountpoint], root: &RootEntries) -> io::Result<Vec<u8>> {
    let directory = |path: &str| (path.as_bytes().to_vec(), RootEntry::Directory);
    let mut all: BTreeMap<Vec<u8>, RootEntry> = root.clone();
    all.extend(["nix", "nix/store"].map(directory));
    for Mountpoint { path, directory } in mountpoints {
        let entry = match directory {
            true => RootEntry::Directory,
            false => RootEntry::Mountpoint,
        };
        all.insert(path.absolute().as_bytes()[1..].to_vec(), entry);
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (path, entry) in &all {
        append(&mut tar, path, entry)?;
    }
    tar.into_inner()
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &[u8], entry: &RootEntry) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    let at = |bytes: &[u8]| std::path::PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
    match entry {
        RootEntry::Directory => {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            tar.append_data(&mut header, at(&[path, b"/"].concat()), io::empty())
        }
        RootEntry::Mountpoint => {
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o555);
            tar.append_data(&mut header, at(path), io::empty())
        }
        RootEntry::Link(target) => {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            tar.append_link(&mut header, at(path), at(target))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn mountpoint(n: usize, name: &str, directory: bool) -> Mountpoint {
        let path = StorePath::parse(&format!("{n:032}-{name}")).unwrap();
        Mountpoint { path, directory }
    }

    fn made(root: &RootEntries) -> (Layer, Vec<Mountpoint>) {
        let long = "x".repeat(crate::nix::store_path::MAX_NAME);
        let all = vec![
            mountpoint(1, "dir", true),
            mountpoint(2, "file.sh", false),
            mountpoint(3, &long, true),
        ];
        let scheme = Scheme {
            store_paths: true,
            closure: None,
        };
        (layer(&all, &scheme, root).unwrap(), all)
    }

    #[test]
    fn every_entry_is_roots_empty_and_of_no_time() {
        let link = RootEntry::Link(b"/nix/store/x/bin/\xffsh".to_vec());
        let root = RootEntries::from([
            (b"bin".to_vec(), RootEntry::Directory),
            (b"bin/\xffsh".to_vec(), link),
        ]);
        let (layer, all) = made(&root);
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&layer.bytes[..])
            .read_to_end(&mut tar)
            .unwrap();
        assert_eq!(Digest::of(&tar), layer.diff_id);
        let mut archive = tar::Archive::new(&tar[..]);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            let facts = (header.uid(), header.gid(), header.mtime(), entry.size());
            assert_eq!(
                facts.0.unwrap() + facts.1.unwrap() + facts.2.unwrap() + facts.3,
                0
            );
            let (kind, mode) = (header.entry_type(), header.mode().unwrap());
            seen.push((
                entry.path_bytes().into_owned(),
                kind,
                mode,
                entry.link_name_bytes().map(|l| l.into_owned()),
            ));
        }
        let dir = |path: &str| (path.as_bytes().to_vec(), EntryType::Directory, 0o755, None);
        let in_store = |n: usize| all[n].path.absolute()[1..].to_owned();
        let want = [
            dir("bin/"),
            (
                b"bin/\xffsh".to_vec(),
                EntryType::Symlink,
                0o777,
                Some(b"/nix/store/x/bin/\xffsh".to_vec()),
            ),
            dir("nix/"),
            dir("nix/store/"),
            dir(&format!("{}/", in_store(0))),
            (in_store(1).into_bytes(), EntryType::Regular, 0o555, None),
            dir(&format!("{}/", in_store(2))),
        ];
        assert_eq!(seen, want);
    }

    #[test]
    fn the_header_of_gzip_says_nothing_of_this_machine() {
        let (layer, _) = made(&RootEntries::new());
        let header = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, GZIP_OS];
        assert_eq!(layer.bytes[..10], header);
        assert_eq!(layer.bytes, made(&RootEntries::new()).0.bytes);
    }

    #[test]
    fn each_scheme_has_its_annotations() {
        let (_, all) = made(&RootEntries::new());
        let info = StorePath::parse(&format!("{}-closure-info", "9".repeat(32))).unwrap();
        let keys = |store_paths, closure| {
            let mut keys: Vec<_> = annotations(
                &all,
                &Scheme {
                    store_paths,
                    closure,
                },
            )
            .into_iter()
            .map(|(key, value)| {
                format!(
                    "{}={value}",
                    key.strip_prefix("containerd.io/snapshot/").unwrap()
                )
            })
            .collect();
            keys.sort();
            keys
        };
        let path = |n: usize| format!("nix-store-path.{n}={}", all[n].path.absolute());
        let closure = format!("nix-closure={}", info.absolute());
        let mark = "nix-layer=true".to_owned();
        assert_eq!(keys(true, None), [mark.clone(), path(0), path(1), path(2)]);
        assert_eq!(
            keys(false, Some(info.clone())),
            [closure.clone(), mark.clone()]
        );
        assert_eq!(
            keys(true, Some(info)),
            [closure, mark, path(0), path(1), path(2)]
        );
    }
}
