//! Where the archive goes: whole to its place, or not at all; or to standard output.

use std::{
    fs::{self, File, Permissions},
    io::{self, BufWriter, IsTerminal, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::super::{Exit, Failure};

/// Bytes that are written at a time.
const PIECE: usize = 1 << 18;

/// The place of an archive.
pub(super) enum Output {
    Stdout,
    /// Something that can't be replaced: a pipe, a device.
    Stream(PathBuf),
    /// A file, which is there whole or as it was before.
    File(PathBuf),
}

impl Output {
    /// Looks at the place, before anything is fetched for it.
    ///
    /// # Errors
    /// When it can't be written to.
    pub fn at(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return match io::stdout().is_terminal() {
                true => Err(
                    Failure::new(Exit::Usage, "the image is not written to a terminal")
                        .hint("name a file with --output, or pipe it into `ctr images import -`"),
                ),
                false => Ok(Self::Stdout),
            };
        }
        // The file that a link leads to is replaced, not the link.
        let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match fs::metadata(&place) {
            Ok(meta) if meta.is_dir() => {
                let what = format!("{} is a directory", path.display());
                Err(Failure::new(Exit::Usage, what).hint("name a file in it"))
            }
            Ok(meta) if !meta.is_file() => Ok(Self::Stream(place)),
            Ok(_) => Ok(Self::File(place)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let parent = parent(&place);
                match parent.is_dir() {
                    true => Ok(Self::File(place)),
                    false => {
                        let what = format!("there is no directory {}", parent.display());
                        Err(Failure::new(Exit::Usage, what))
                    }
                }
            }
            Err(e) => Err(cannot_write(path).because(&e)),
        }
    }

    /// Has `write` write it.
    ///
    /// # Errors
    /// What `write` says; that it can't be put into its place.
    pub fn write<T>(
        &self,
        write: impl FnOnce(&mut dyn Write) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match self {
            Self::Stdout => write(&mut BufWriter::with_capacity(PIECE, io::stdout().lock())),
            Self::Stream(path) => {
                let file = File::options().write(true).open(path);
                let file = file.map_err(|e| cannot_write(path).because(&e))?;
                write(&mut BufWriter::with_capacity(PIECE, file))
            }
            Self::File(path) => {
                let failed = |e: io::Error| cannot_write(path).because(&e);
                let file = tempfile::Builder::new()
                    .prefix(".narfs-image-")
                    .permissions(Permissions::from_mode(0o666))
                    .tempfile_in(parent(path))
                    .map_err(failed)?;
                self.write_beside(file, path, write)
            }
        }
    }

    fn write_beside<T>(
        &self,
        mut file: NamedTempFile,
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let failed = |e: io::Error| cannot_write(path).because(&e);
        let mut out = BufWriter::with_capacity(PIECE, file.as_file_mut());
        let written = write(&mut out)?;
        out.flush().map_err(failed)?;
        drop(out);
        file.as_file().sync_all().map_err(failed)?;
        file.persist(path).map_err(|e| failed(e.error))?;
        Ok(written)
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn cannot_write(path: &Path) -> Failure {
    Failure::new(
        Exit::Failure,
        format!("{} cannot be written", path.display()),
    )
}
