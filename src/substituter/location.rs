//! A substituter's URL taken apart: what kind of cache, what to call it, what its parameters say.
//! Pure.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use url::Url;

use super::{error::SubstituterError, secret::Secret};

/// Where a cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Web server; no user, no query, path without a slash at its end.
    Http(Url),
    /// Directory.
    Directory(PathBuf),
    /// Bucket.
    S3(S3Place),
}

/// What an `s3://` URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct S3Place {
    pub(super) bucket: String,
    /// Put before every key, without slashes at its ends; mostly empty.
    pub(super) prefix: String,
    pub(super) region: Option<String>,
    /// Scheme, host and port of a server other than Amazon's.
    pub(super) endpoint: Option<Url>,
    pub(super) profile: Option<String>,
}

/// A substituter's URL, read.
#[derive(Debug, Clone)]
pub(super) struct Location {
    pub(super) place: Place,
    /// Safe to show: no user, no password, no unknown parameters.
    pub(super) name: String,
    /// User and password from the URL.
    pub(super) login: Option<(String, Option<Secret>)>,
    /// `?priority=`, which beats what the cache says of itself.
    pub(super) priority: Option<u32>,
    /// `?trusted=true`.
    pub(super) trusted: bool,
}

impl Location {
    pub(super) fn parse(text: &str) -> Result<Self, SubstituterError> {
        let text = text.trim();
        if text.starts_with('/') {
            return Ok(Self::directory(PathBuf::from(text), None));
        }
        let url = Url::parse(text).map_err(|error| SubstituterError::Url {
            url: masked(text),
            reason: format!("{error}; give an http, https, file or s3 URL, or an absolute path"),
        })?;
        match url.scheme() {
            "http" | "https" => Ok(Self::http(url)),
            "file" => {
                let path = url.to_file_path().map_err(|()| SubstituterError::Url {
                    url: shown(&url),
                    reason: "a file URL needs an absolute path and no host".into(),
                })?;
                Ok(Self::directory(path, Some(&url)))
            }
            "s3" => Self::s3(&url),
            other => Err(SubstituterError::Url {
                url: shown(&url),
                reason: format!("{other}:// is not supported; http, https, file and s3 are"),
            }),
        }
    }

    fn directory(path: PathBuf, url: Option<&Url>) -> Self {
        let name = match Url::from_file_path(&path) {
            Ok(url) => url.as_str().trim_end_matches('/').to_owned(),
            Err(()) => format!("file://{}", path.display()),
        };
        Self {
            name,
            place: Place::Directory(path),
            login: None,
            priority: url.and_then(priority),
            trusted: url.is_some_and(trusted),
        }
    }

    fn http(mut url: Url) -> Self {
        let login = login(&url);
        let (priority, trusted) = (priority(&url), trusted(&url));
        // A store URL's parameters are settings for us and never sent (as in Nix).
        url.set_query(None);
        url.set_fragment(None);
        strip_login(&mut url);
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Self {
            name: shown(&url),
            place: Place::Http(url),
            login,
            priority,
            trusted,
        }
    }

    fn s3(url: &Url) -> Result<Self, SubstituterError> {
        let wrong = |reason: String| SubstituterError::Url {
            url: shown(url),
            reason,
        };
        let bucket = url.host_str().filter(|b| !b.is_empty());
        let bucket = bucket
            .ok_or_else(|| wrong("names no bucket".into()))?
            .to_owned();
        let get = |key| parameter(url, key).filter(|value| !value.is_empty());
        let scheme = get("scheme").unwrap_or_else(|| "https".into());
        let endpoint = match get("endpoint") {
            Some(text) => {
                let text = if text.contains("://") {
                    text
                } else {
                    format!("{scheme}://{text}")
                };
                let endpoint = Url::parse(&text)
                    .ok()
                    .filter(|e| matches!(e.scheme(), "http" | "https") && e.has_host())
                    .ok_or_else(|| wrong("endpoint= is no host and no http URL".into()))?;
                Some(endpoint)
            }
            None => None,
        };
        let prefix = percent_decode_str(url.path().trim_matches('/')).decode_utf8_lossy();
        let place = S3Place {
            bucket,
            prefix: prefix.into_owned(),
            region: get("region"),
            profile: get("profile"),
            endpoint: endpoint.map(|mut e| {
                strip_login(&mut e);
                e.set_query(None);
                e.set_fragment(None);
                e
            }),
        };
        let mut name = format!("s3://{}{}", place.bucket, url.path().trim_end_matches('/'));
        let parts = [
            place
                .region
                .as_ref()
                .map(|region| format!("region={region}")),
            place
                .endpoint
                .as_ref()
                .map(|e| format!("endpoint={}", e.as_str().trim_end_matches('/'))),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        if !parts.is_empty() {
            name = format!("{name}?{}", parts.join("&"));
        }
        Ok(Self {
            place: Place::S3(place),
            name,
            login: None,
            priority: priority(url),
            trusted: trusted(url),
        })
    }
}

fn parameter(url: &Url, key: &str) -> Option<String> {
    url.query_pairs()
        .find(|(k, _)| k == key)
        .map(|(_, value)| value.into_owned())
}

fn priority(url: &Url) -> Option<u32> {
    parameter(url, "priority")?.parse().ok()
}

fn trusted(url: &Url) -> bool {
    matches!(
        parameter(url, "trusted").as_deref(),
        Some("1" | "true" | "yes")
    )
}

fn login(url: &Url) -> Option<(String, Option<Secret>)> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    Some((
        decode(url.username()),
        url.password().map(|p| Secret::new(decode(p))),
    ))
}

/// The address without user and password.
pub(super) fn strip_login(url: &mut Url) {
    // Both only fail for URLs that cannot have a login in the first place.
    let _ = url.set_username("");
    let _ = url.set_password(None);
}

/// An address as messages show it: no user, no password, of a query only that there is one.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    strip_login(&mut url);
    url.set_fragment(None);
    let query = url.query().is_some();
    url.set_query(None);
    let text = match url.path() {
        "/" => url.as_str().trim_end_matches('/'),
        _ => url.as_str(),
    };
    format!("{text}{}", if query { "?…" } else { "" })
}

/// What a user wrote as a URL, as it may be shown.
pub(super) fn display(text: &str) -> String {
    Location::parse(text).map_or_else(|_| masked(text), |location| location.name)
}

/// A text that may be a URL with a password in it, but did not parse as one.
fn masked(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    match text.rsplit_once('@') {
        Some((_, behind)) => format!("…@{behind}"),
        None => text.to_owned(),
    }
}

/// The address of a file of an HTTP cache. Nix writes `<cache>/<path>` (so a path in the cache's
/// URL is kept), and takes a complete URL as it is.
pub(super) fn join(base: &Url, file: &str) -> Result<Url, String> {
    if file.bytes().any(|c| c.is_ascii_control() || c == b' ') {
        return Err("it holds spaces or control characters".into());
    }
    let complete = file.get(..8).unwrap_or(file).to_ascii_lowercase();
    let joined = if complete.starts_with("http://") || complete.starts_with("https://") {
        Url::parse(file)
    } else if file
        .split_once("://")
        .is_some_and(|(scheme, _)| !scheme.contains(['/', '?']))
    {
        return Err("only http and https lead anywhere".into());
    } else {
        Url::parse(&format!(
            "{}/{}",
            base.as_str().trim_end_matches('/'),
            file.trim_start_matches('/')
        ))
    };
    let mut url = joined.map_err(|error| error.to_string())?;
    url.set_fragment(None);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> String {
        Location::parse(text).unwrap().name
    }

    #[test]
    fn names_hold_no_secrets() {
        assert_eq!(name("https://cache.nixos.org/"), "https://cache.nixos.org");
        assert_eq!(
            name("https://u:hunter2@h.org:8443/a/b/?priority=3&k=hunter2#x"),
            "https://h.org:8443/a/b"
        );
        assert_eq!(name("/srv/cache/"), "file:///srv/cache");
        assert_eq!(name("file:///srv/my%20cache"), "file:///srv/my%20cache");
        assert_eq!(
            name("s3://b/p?region=r&endpoint=u:hunter2@h:9000&scheme=http&secret-key=hunter2"),
            "s3://b/p?region=r&endpoint=http://h:9000"
        );
        let location = Location::parse("https://u:hunter2@h.org/?trusted=1&priority=7").unwrap();
        assert!(location.trusted && location.priority == Some(7));
        assert!(!format!("{location:?}").contains("hunter2"));
        for bad in [
            "nonsense",
            "ftp://u:hunter2@h/",
            "http://u:hunter2@",
            "s3://?x=hunter2",
            "//",
            "file://h/x",
        ] {
            if let Err(error) = Location::parse(bad) {
                assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
            } else {
                assert_eq!(bad, "//");
            }
        }
    }

    #[test]
    fn files_are_found_below_the_caches_path() {
        let base = Url::parse("https://h/a/b").unwrap();
        let joined = |file| join(&base, file).map(|url| url.to_string());
        assert_eq!(
            joined("nar/x.nar.xz").as_deref(),
            Ok("https://h/a/b/nar/x.nar.xz")
        );
        assert_eq!(
            joined("/nar/x.nar").as_deref(),
            Ok("https://h/a/b/nar/x.nar")
        );
        assert_eq!(
            joined("nar/x.nar?hash=1&t=2").as_deref(),
            Ok("https://h/a/b/nar/x.nar?hash=1&t=2")
        );
        assert_eq!(
            joined("nar/x?to=http://e/").as_deref(),
            Ok("https://h/a/b/nar/x?to=http://e/")
        );
        assert_eq!(joined("HTTPS://other/x").as_deref(), Ok("https://other/x"));
        assert!(joined("file:///etc/passwd").is_err());
        assert!(joined("nar/x y").is_err());
        assert!(joined("nar/x\r\nHost: e").is_err());
    }

    #[test]
    fn reads_s3() {
        let s3 = |text: &str| match Location::parse(text).unwrap().place {
            Place::S3(place) => place,
            other => panic!("{other:?}"),
        };
        let place = s3("s3://bucket?region=eu-west-1&profile=ci");
        assert_eq!(
            (place.region.as_deref(), place.profile.as_deref()),
            (Some("eu-west-1"), Some("ci"))
        );
        assert_eq!(place.endpoint, None);
        let place = s3("s3://bucket/pre/fix/?endpoint=localhost:9000&scheme=http");
        assert_eq!(place.prefix, "pre/fix");
        assert_eq!(place.endpoint.unwrap().as_str(), "http://localhost:9000/");
    }
}
