//! Caches in a directory (`file://`): what `nix copy --to file:///…` writes.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use futures_util::stream;
use tokio::task::spawn_blocking;

use super::{body::Pieces, error::FetchFailure, range::Wanted};

/// Bytes read at once: large enough that the change of threads does not count.
const PIECE: u64 = 256 << 10;

/// An opened file of a cache.
pub(super) struct Opened {
    pub(super) pieces: Pieces,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) total: u64,
    pub(super) validator: String,
}

/// Where a file of the cache is. An address from a narinfo must stay inside the directory.
pub(super) fn inside(root: &Path, file: &str) -> Result<PathBuf, FetchFailure> {
    // A query says something to web servers; there is no such file.
    let file = file
        .split('?')
        .next()
        .unwrap_or_default()
        .trim_start_matches('/');
    let relative = Path::new(file);
    let plain = relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if file.is_empty() || file.contains('\0') || file.contains("://") || !plain {
        return Err(FetchFailure::BadAddress(
            "it leads out of the cache's directory".into(),
        ));
    }
    Ok(root.join(relative))
}

/// Opens a file; `None` if the cache does not have it.
pub(super) async fn open(
    root: PathBuf,
    path: PathBuf,
    wanted: Wanted,
    validator: Option<String>,
) -> Result<Option<Opened>, FetchFailure> {
    let opened = spawn_blocking(move || open_now(&root, &path, &wanted, validator.as_deref()));
    match opened.await {
        Ok(opened) => opened,
        Err(_) => Err(FetchFailure::Deadline),
    }
}

fn open_now(
    root: &Path,
    path: &Path,
    wanted: &Wanted,
    validator: Option<&str>,
) -> Result<Option<Opened>, FetchFailure> {
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A cache that is not mounted has nothing, but must not count as one without paths.
            return match std::fs::metadata(root) {
                Ok(_) => Ok(None),
                Err(error) => Err(FetchFailure::Io {
                    kind: error.kind(),
                    message: format!("the cache's directory: {error}"),
                }),
            };
        }
        Err(error) => return Err(error.into()),
    };
    if !metadata.is_file() {
        let message = "no regular file".to_owned();
        return Err(FetchFailure::Io {
            kind: io::ErrorKind::InvalidInput,
            message,
        });
    }
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let total = metadata.len();
    let age = metadata
        .modified()?
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let now = format!("\"{total:x}-{:x}\"", age.as_nanos());
    if validator.is_some_and(|validator| validator != now) {
        return Err(FetchFailure::Changed);
    }
    let range = wanted
        .within(total)
        .ok_or(FetchFailure::OutOfRange { total: Some(total) })?;
    file.seek(SeekFrom::Start(range.start))?;
    Ok(Some(Opened {
        pieces: pieces(file, range.end - range.start),
        start: range.start,
        end: range.end,
        total,
        validator: now,
    }))
}

fn pieces(file: File, left: u64) -> Pieces {
    Box::pin(stream::try_unfold(
        (file, left),
        |(mut file, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let read = spawn_blocking(move || -> io::Result<_> {
                let mut piece = Vec::with_capacity(left.min(PIECE) as usize);
                (&mut file).take(left.min(PIECE)).read_to_end(&mut piece)?;
                Ok((file, piece))
            });
            match read.await {
                Ok(Ok((_, piece))) if piece.is_empty() => Ok(None),
                Ok(Ok((file, piece))) => {
                    let left = left - piece.len() as u64;
                    Ok(Some((Bytes::from(piece), (file, left))))
                }
                Ok(Err(error)) => Err(error.into()),
                // The runtime is being shut down.
                Err(_) => Err(FetchFailure::Lost("narfs is stopping".into())),
            }
        },
    ))
}
