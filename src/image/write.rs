//! Writing the archive: the same image, the same bytes.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use tar::{EntryType, Header};

use super::{Base, Digest, ImageError, Reference, base};

/// What a file of the archive holds.
pub(super) enum Piece {
    Bytes(Vec<u8>),
    /// A layer of the base, by its number.
    Layer(usize),
}

/// An image, ready to be written.
pub struct Image {
    /// Its name.
    pub name: Reference,
    /// SHA-256 of its manifest: what registries and containerd name it by.
    pub digest: Digest,
    /// SHA-256 of its configuration: what Docker and Kubernetes call the image's ID.
    pub config: Digest,
    files: BTreeMap<String, Piece>,
    base: Option<Base>,
}

impl Image {
    pub(super) fn new(name: Reference, digest: Digest, config: Digest) -> Self {
        Self {
            name,
            digest,
            config,
            files: BTreeMap::new(),
            base: None,
        }
    }

    pub(super) fn add(&mut self, name: &str, piece: Piece) {
        self.files.insert(name.to_owned(), piece);
    }

    pub(super) fn add_base(&mut self, base: Base) {
        for (number, layer) in base.layers.iter().enumerate() {
            let name = layer.digest.file();
            self.files.entry(name).or_insert(Piece::Layer(number));
        }
        self.base = Some(base);
    }

    /// Writes the archive, and says how many bytes it has.
    ///
    /// # Errors
    /// When it can't be written, a layer of the base can't be read or is damaged, or `stop` is set
    /// meanwhile.
    pub fn write(&self, out: impl Write, stop: &AtomicBool) -> Result<u64, ImageError> {
        let mut out = Counted { out, bytes: 0 };
        let mut directories = vec!["blobs/", "blobs/sha256/"];
        directories.reverse();
        for (name, piece) in &self.files {
            while let Some(directory) = directories.pop_if(|d| *d < name.as_str()) {
                header(&mut out, directory, EntryType::Directory, 0o755, 0)?;
            }
            match piece {
                Piece::Bytes(bytes) => {
                    header(
                        &mut out,
                        name,
                        EntryType::Regular,
                        0o444,
                        bytes.len() as u64,
                    )?;
                    out.write_all(bytes).map_err(ImageError::Write)?;
                    pad(&mut out, bytes.len() as u64)?;
                }
                Piece::Layer(number) => self.write_layer(&mut out, name, *number, stop)?,
            }
        }
        // The end of a tar.
        out.write_all(&[0; 1024]).map_err(ImageError::Write)?;
        out.flush().map_err(ImageError::Write)?;
        Ok(out.bytes)
    }

    fn write_layer(
        &self,
        out: &mut impl Write,
        name: &str,
        number: usize,
        stop: &AtomicBool,
    ) -> Result<(), ImageError> {
        let layer = |base: &Base| base.layers.get(number).map(|layer| layer.bytes.len());
        let (Some(base), Some(size)) = (&self.base, self.base.as_ref().and_then(layer)) else {
            return Ok(());
        };
        header(out, name, EntryType::Regular, 0o444, size)?;
        base::copy(base, &base.layers[number], |piece| {
            match stop.load(Relaxed) {
                true => Err(ImageError::Stopped),
                false => out.write_all(piece).map_err(ImageError::Write),
            }
        })?;
        pad(out, size)
    }
}

/// No name here is longer than a header's field: `blobs/sha256/` and 64 digits.
fn header(
    out: &mut impl Write,
    name: &str,
    kind: EntryType,
    mode: u32,
    size: u64,
) -> Result<(), ImageError> {
    let mut header = Header::new_ustar();
    let path = header.set_path(name);
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    path.and_then(|()| out.write_all(header.as_bytes()))
        .map_err(ImageError::Write)
}

fn pad(out: &mut impl Write, size: u64) -> Result<(), ImageError> {
    let zeros = size.next_multiple_of(512) - size;
    out.write_all(&[0; 512][..zeros as usize])
        .map_err(ImageError::Write)
}

struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
