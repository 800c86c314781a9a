//! One try to open one file of a cache, whatever kind of cache it is.

use std::{path::PathBuf, sync::Arc};

use url::Url;

use super::{
    body::{Names, NarBody},
    credentials::Credentials,
    error::{FetchFailure, SubstituterError},
    file,
    http::{Answer, Ask, Getter, allowed},
    location::{Place, join, shown},
    s3::Bucket,
};
use crate::trace::Flight;

/// How a cache's files are reached.
pub(super) enum Source {
    /// A web server.
    Http {
        /// The cache's own address.
        base: Url,
        /// Who we are there.
        credentials: Box<Credentials>,
    },
    /// A directory.
    Directory(PathBuf),
    /// A bucket.
    Bucket(Box<Bucket>),
}

impl Source {
    /// From what the URL says; `credentials` are made only for web servers.
    pub(super) fn new(
        place: Place,
        name: &str,
        credentials: impl FnOnce(Url) -> Credentials,
    ) -> Result<Self, SubstituterError> {
        Ok(match place {
            Place::Http(base) => {
                let credentials = Box::new(credentials(base.clone()));
                Self::Http { base, credentials }
            }
            Place::Directory(path) => Self::Directory(path),
            Place::S3(place) => Self::Bucket(Box::new(Bucket::new(&place, name)?)),
        })
    }

    /// How its servers are spoken to; `None` for a directory.
    pub(super) fn scheme(&self) -> Option<&str> {
        match self {
            Self::Http { base, .. } => Some(base.scheme()),
            Self::Directory(_) => None,
            Self::Bucket(bucket) => Some(bucket.scheme()),
        }
    }

    /// One try, without retries.
    pub(super) async fn open(
        &self,
        getter: &Getter,
        file: &str,
        ask: &Ask,
    ) -> Result<Answer, FetchFailure> {
        match self {
            Self::Http { base, credentials } => {
                let url = join(base, file).map_err(FetchFailure::BadAddress)?;
                allowed(base, &url)?;
                let used = credentials.generation();
                match getter.get(&url, Some(credentials), ask).await {
                    Err(FetchFailure::Denied(_)) if credentials.refresh(used).await => {
                        getter.get(&url, Some(credentials), ask).await
                    }
                    other => other,
                }
            }
            Self::Directory(root) => open_file(getter, root.clone(), file, ask).await,
            Self::Bucket(bucket) => {
                let url = bucket.address(file).await?;
                match getter.get(&url, None, ask).await {
                    // S3 redirects without saying where to.
                    Err(FetchFailure::Status { status: 301, .. }) => {
                        let reason = "the bucket is in another region; name it with ?region=";
                        Err(FetchFailure::BadAddress(reason.into()))
                    }
                    other => other,
                }
            }
        }
    }

    /// Whether this is a bucket read without keys.
    pub(super) async fn unsigned(&self) -> bool {
        match self {
            Self::Bucket(bucket) => bucket.unsigned().await,
            Self::Http { .. } | Self::Directory(_) => false,
        }
    }

    /// A file's address for messages; the cache's own if the file has none.
    pub(super) fn address(&self, name: &Arc<str>, file: &str) -> Arc<str> {
        let address = match self {
            Self::Http { base, .. } => join(base, file).ok().map(|url| shown(&url)),
            Self::Directory(root) => file::inside(root, file)
                .ok()
                .map(|path| path.display().to_string()),
            Self::Bucket(bucket) => bucket.plain(file).ok().map(|url| shown(&url)),
        };
        address.map_or_else(|| name.clone(), Into::into)
    }
}

async fn open_file(
    getter: &Getter,
    root: PathBuf,
    file: &str,
    ask: &Ask,
) -> Result<Answer, FetchFailure> {
    let path = file::inside(&root, file)?;
    let names = Names {
        substituter: getter.substituter.clone(),
        address: path.display().to_string().into(),
        counters: getter.counters.clone(),
    };
    names.counters.request();
    let (address, range) = (|| names.address.clone(), || ask.wanted.header());
    let mut flight = Flight::of(&names.substituter, address, range);
    let opened = file::open(root, path, ask.wanted.clone(), ask.validator.clone()).await;
    let opened = match opened.inspect_err(|failure| flight.failed(failure.slug()))? {
        Some(opened) => opened,
        None => {
            flight.answered(404);
            return Ok(Answer::Absent(404));
        }
    };
    flight.answered(200);
    let stall = getter.transport.options().stall_timeout;
    let mut body = NarBody::new(opened.pieces, opened.start, Some(opened.end), stall, names);
    body.flight = flight;
    body.total = Some(opened.total);
    body.validator = Some(opened.validator);
    Ok(Answer::Found(Box::new(body)))
}
