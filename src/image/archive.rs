//! Reading an archive: a tar as a table of files, each read where it lies.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use flate2::read::MultiGzDecoder;

use super::{Digest, ImageError, blob::Hasher, root::split};

/// Bytes read at a time.
const PIECE: usize = 1 << 16;
/// Longest document that is read into memory, in bytes: a manifest of thousands of layers.
const MAX_DOCUMENT: u64 = 64 << 20;
/// Most links from one name of an archive to another (`docker save` once wrote one for each layer
/// that it had already).
const MAX_LINKS: usize = 8;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// How something is packed, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// Not at all.
    None,
    Gzip,
    Zstd,
}

impl Packing {
    fn of(head: &[u8]) -> Self {
        match head {
            head if head.starts_with(GZIP) => Self::Gzip,
            head if head.starts_with(ZSTD) => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// A part of a file, read without moving anybody's place in it.
#[derive(Debug, Clone)]
pub struct Part {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Part {
    /// Its bytes.
    pub fn len(&self) -> u64 {
        self.end - self.at
    }

    pub(super) fn packing(&self) -> io::Result<Packing> {
        let mut head = Vec::new();
        self.clone()
            .take(ZSTD.len() as u64)
            .read_to_end(&mut head)?;
        Ok(Packing::of(&head))
    }

    /// Its bytes, unpacked.
    pub(super) fn unpacked(&self) -> io::Result<Box<dyn Read>> {
        let packing = self.packing()?;
        let packed = BufReader::with_capacity(PIECE, self.clone());
        Ok(match packing {
            Packing::None => Box::new(packed),
            Packing::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Packing::Zstd => Box::new(zstd::Decoder::with_buffer(packed)?),
        })
    }

    pub(super) fn digest(&self) -> io::Result<Digest> {
        let mut hasher = Hasher::default();
        io::copy(
            &mut BufReader::with_capacity(PIECE, self.clone()),
            &mut hasher,
        )?;
        Ok(hasher.finish())
    }
}

impl Read for Part {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len()).unwrap_or(usize::MAX);
        let room = out.len().min(left);
        let n = self.file.read_at(&mut out[..room], self.at)?;
        if n == 0 && room > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

enum Stored {
    File(Part),
    Link(String),
}

/// The files of a tar.
pub(super) struct Archive {
    path: PathBuf,
    files: HashMap<String, Stored>,
}

impl Archive {
    /// Looks through the archive; one that is packed is unpacked into a file without a name first.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Read {
            file: path.into(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let base = |why: &str| ImageError::Base {
            file: path.into(),
            why: why.into(),
        };
        if meta.is_dir() {
            let why = format!(
                "it is a directory; pack it first: tar -C {} -cf base.tar .",
                path.display()
            );
            return Err(base(&why));
        }
        if !meta.is_file() {
            return Err(base("it is no regular file, and is read more than once"));
        }
        let whole = Part {
            file: Arc::new(file),
            at: 0,
            end: meta.len(),
        };
        let whole = match whole.packing().map_err(failed)? {
            Packing::None => whole,
            _ => unpack(&whole).map_err(failed)?,
        };
        let files = table(&whole).map_err(|error| match error.kind() {
            // What the tar crate says of bytes that are none.
            io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                base(&format!(
                    "it is no tar archive, or only the beginning of one ({error})"
                ))
            }
            _ => failed(error),
        })?;
        Ok(Self {
            path: path.into(),
            files,
        })
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of it, by its name or that of a link to it.
    pub fn get(&self, name: &str) -> Option<&Part> {
        let mut name = clean(name);
        for _ in 0..MAX_LINKS {
            match self.files.get(&name)? {
                Stored::File(part) => return Some(part),
                Stored::Link(target) => {
                    let parent = split(name.as_bytes()).0.len();
                    name = clean(&format!("{}/{target}", &name[..parent]));
                }
            }
        }
        None
    }

    /// All bytes of a document.
    pub fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(part) = self.get(name) else {
            return Ok(None);
        };
        if part.len() > MAX_DOCUMENT {
            return Err(self.unfit(format!("its {name} has {} bytes", part.len())));
        }
        let mut bytes = Vec::new();
        part.clone()
            .read_to_end(&mut bytes)
            .map_err(|e| self.failed(e))?;
        Ok(Some(bytes))
    }

    pub fn failed(&self, source: io::Error) -> ImageError {
        ImageError::Read {
            file: self.path.clone(),
            source,
        }
    }

    pub fn unfit(&self, why: impl Into<String>) -> ImageError {
        ImageError::Base {
            file: self.path.clone(),
            why: why.into(),
        }
    }
}

fn unpack(packed: &Part) -> io::Result<Part> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut packed.unpacked()?, &mut file)?;
    let end = file.stream_position()?;
    Ok(Part {
        file: Arc::new(file),
        at: 0,
        end,
    })
}

fn table(whole: &Part) -> io::Result<HashMap<String, Stored>> {
    let mut file = &*whole.file;
    file.seek(SeekFrom::Start(0))?;
    let mut tar = tar::Archive::new(file);
    let mut files = HashMap::new();
    for entry in tar.entries_with_seek()? {
        let entry = entry?;
        let name = clean(&String::from_utf8_lossy(&entry.path_bytes()));
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default();
            let target = String::from_utf8_lossy(&target).into_owned();
            // Hard links name their target from the root of the archive.
            let up = name.matches('/').count();
            let target = match kind.is_hard_link() {
                true => "../".repeat(up) + &target,
                false => target,
            };
            files.insert(name, Stored::Link(target));
        } else if kind.is_file() || kind.is_contiguous() {
            let at = entry.raw_file_position();
            let end = at + entry.size();
            if end > whole.end {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let part = Part {
                file: whole.file.clone(),
                at,
                end,
            };
            files.insert(name, Stored::File(part));
        }
    }
    Ok(files)
}

/// A name as it stands in the table: without `.`, `..` and slashes at the ends.
fn clean(name: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(names.pop()),
            part => names.push(part),
        }
    }
    names.join("/")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn packed() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind, bytes: &[u8], target: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(bytes.len() as u64);
            match target {
                "" => tar.append_data(&mut header, name, bytes),
                target => tar.append_link(&mut header, name, target),
            }
            .unwrap();
        };
        add("./a/layer.tar", tar::EntryType::Regular, b"hello", "");
        add(
            "b/layer.tar",
            tar::EntryType::Symlink,
            b"",
            "../a/layer.tar",
        );
        add("c/layer.tar", tar::EntryType::Link, b"", "a/layer.tar");
        add("loop", tar::EntryType::Symlink, b"", "loop");
        tar.into_inner().unwrap()
    }

    fn opened(bytes: &[u8]) -> Result<Archive, ImageError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Archive::open(file.path())
    }

    #[test]
    fn files_are_found_by_every_name_and_however_it_is_packed() {
        let tar = packed();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        for bytes in [
            tar.clone(),
            gzip.finish().unwrap(),
            zstd::encode_all(&tar[..], 1).unwrap(),
        ] {
            let archive = opened(&bytes).unwrap();
            for name in [
                "a/layer.tar",
                "b/layer.tar",
                "c/layer.tar",
                "./b/../a//layer.tar",
            ] {
                assert_eq!(archive.document(name).unwrap().unwrap(), b"hello", "{name}");
            }
            assert!(archive.get("loop").is_none() && archive.get("d").is_none());
            assert_eq!(
                archive.get("a/layer.tar").unwrap().digest().unwrap(),
                Digest::of(b"hello")
            );
        }
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let tar = packed();
        for bytes in [&b"just text"[..], &tar[..514], &b"x".repeat(4096)] {
            let error = opened(bytes).err().unwrap().to_string();
            assert!(error.contains("no tar archive"), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let error = Archive::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("tar -C"), "{error}");
        assert!(matches!(
            Archive::open(&dir.path().join("x")),
            Err(ImageError::Read { .. })
        ));
        assert!(matches!(
            Archive::open(Path::new("/dev/null")),
            Err(ImageError::Base { .. })
        ));
    }
}
