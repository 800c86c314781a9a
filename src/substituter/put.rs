//! Writing into a cache: one file at a time, whole or not at all.
//!
//! In a directory a file gets its name when it is complete and on the disk; web servers and buckets
//! are sent a PUT, and promise as much. What a killed writer left in a directory has a name that no
//! cache asks for, and the next writer removes it once it is old.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use reqwest::{
    StatusCode,
    header::{
        AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue,
    },
};
use tokio::task::spawn_blocking;
use url::Url;

use super::{
    credentials::{Credentials, Reached},
    error::FetchFailure,
    file,
    http::Getter,
    location::join,
    source::Source,
    transport::classify,
};

/// How a file that is not complete begins and ends.
const UNFINISHED: (&str, &str) = (".narfs-", ".part");
/// Age from which on such a file has no writer any more: every piece that is written makes it young.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Most bytes that a bucket takes in one request (Amazon's limit for PUT).
const LARGEST_OBJECT: u64 = 5 << 30;

/// What to write.
#[derive(Debug, Clone)]
pub enum Upload {
    /// These bytes.
    Bytes(Bytes),
    /// The content of a file of this machine.
    File {
        /// Where it is.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
}

impl Upload {
    /// How many bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }
}

/// What web servers and buckets are told about a file.
#[derive(Debug, Clone, Copy)]
pub struct Label {
    /// Its media type, as Nix says it.
    pub kind: &'static str,
    /// What is still to be undone with it. A directory has no place to say this.
    pub encoding: Option<&'static str>,
}

impl Source {
    /// Makes the place that files go to, where that is ours to do.
    pub(super) fn prepare(&self) -> Result<(), FetchFailure> {
        let Self::Directory(root) = self else {
            return Ok(());
        };
        fs::create_dir_all(root)?;
        for directory in [root.clone(), root.join("nar")] {
            sweep(&directory);
        }
        Ok(())
    }

    /// Whether a file's `Content-Encoding` is kept with it.
    pub(super) fn keeps_encoding(&self) -> bool {
        matches!(self, Self::Bucket(_))
    }

    /// Writes one file, in one try.
    pub(super) async fn put(
        &self,
        getter: &Getter,
        name: &str,
        body: &Upload,
        label: Label,
    ) -> Result<(), FetchFailure> {
        match self {
            Self::Http { base, credentials } => {
                let url = join(base, name).map_err(FetchFailure::BadAddress)?;
                let used = credentials.generation();
                match send(getter, &url, Some(credentials), body, label).await {
                    Err(FetchFailure::Denied(_)) if credentials.refresh(used).await => {
                        send(getter, &url, Some(credentials), body, label).await
                    }
                    other => other,
                }
            }
            Self::Directory(root) => {
                getter.counters.request();
                let path = file::inside(root, name)?;
                let body = body.clone();
                match spawn_blocking(move || write(&path, &body)).await {
                    Ok(written) => Ok(written?),
                    Err(_) => Err(FetchFailure::Lost("narfs is stopping".into())),
                }
            }
            Self::Bucket(bucket) => {
                if body.size() > LARGEST_OBJECT {
                    let reason = "a bucket takes at most 5 GiB in one object; write to a directory and copy it";
                    return Err(FetchFailure::BadAddress(reason.into()));
                }
                let url = bucket.address_to_write(name).await?;
                send(getter, &url, None, body, label).await
            }
        }
    }
}

async fn send(
    getter: &Getter,
    url: &Url,
    credentials: Option<&Credentials>,
    body: &Upload,
    label: Label,
) -> Result<(), FetchFailure> {
    let client = getter.transport.client(url.scheme()).await?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(label.kind));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.size()));
    if let Some(encoding) = label.encoding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    if let Some(value) = credentials.and_then(|c| c.header(url, Reached::Directly)) {
        headers.insert(AUTHORIZATION, value);
    }
    let content = match body {
        Upload::Bytes(bytes) => reqwest::Body::from(bytes.clone()),
        Upload::File { path, .. } => tokio::fs::File::open(path).await?.into(),
    };
    getter.counters.request();
    let sent = client
        .put(url.clone())
        .headers(headers)
        .body(content)
        .send()
        .await;
    let response = sent.map_err(classify)?;
    let status = response.status();
    match status {
        _ if status.is_success() => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(FetchFailure::Denied(format!(
            "{} for a PUT",
            status.as_u16()
        ))),
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => Err(FetchFailure::ProxyDenied),
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_FOUND | StatusCode::CONFLICT => {
            let what = format!(
                "answers a PUT with {status}; the server has to allow PUT, and to make directories for it"
            );
            Err(FetchFailure::Protocol(what))
        }
        _ => Err(FetchFailure::Status {
            status: status.as_u16(),
            retry_after: None,
        }),
    }
}

/// Writes a file so that its name leads to all of it or to what was there before.
fn write(path: &Path, body: &Upload) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let mut unfinished = tempfile::Builder::new()
        .prefix(UNFINISHED.0)
        .suffix(UNFINISHED.1)
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(directory)?;
    match body {
        Upload::Bytes(bytes) => unfinished.write_all(bytes)?,
        Upload::File { path, size } => {
            let copied = io::copy(&mut File::open(path)?, unfinished.as_file_mut())?;
            if copied != *size {
                let what = format!("{} changed while it was copied", path.display());
                return Err(io::Error::other(what));
            }
        }
    }
    unfinished.as_file().sync_all()?;
    unfinished.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

/// Removes what killed writers left in a directory, as far as possible.
fn sweep(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let ours = name
            .to_str()
            .is_some_and(|name| name.starts_with(UNFINISHED.0) && name.ends_with(UNFINISHED.1));
        let age = entry
            .metadata()
            .and_then(|m| m.modified())
            .ok()
            .and_then(|then| SystemTime::now().duration_since(then).ok());
        if ours && age.is_some_and(|age| age > ABANDONED) {
            let removed = fs::remove_file(entry.path());
            tracing::debug!(path = %entry.path().display(), ?removed, "left behind by a killed writer");
        }
    }
}
