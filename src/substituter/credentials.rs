//! Which request carries which credentials.
//!
//! A cache's own credentials (token, user in its URL, `netrc`) go with every request to its own
//! scheme, host and port, and nowhere else. A narinfo may send us to another host by a complete
//! URL: that host gets what `netrc` names for exactly it, never the `default` entry and never over
//! a weaker scheme. A redirect to another scheme, host or port gets nothing.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::header::HeaderValue;
use url::{Origin, Url};

use super::{
    netrc::{Login, Netrc},
    secret::Secret,
};

/// How a request came to its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// Named by the configuration or by a narinfo.
    Directly,
    /// Named by a redirect.
    ByRedirect,
}

/// The credentials of one HTTP cache.
#[derive(Debug)]
pub(super) struct Credentials {
    home: Url,
    login: Option<(String, Option<Secret>)>,
    files: SecretFiles,
    /// What the files held when they were last read.
    read: RwLock<Read>,
}

/// Where the secrets that may change stand.
#[derive(Debug, Clone, Default)]
pub(super) struct SecretFiles {
    pub(super) token: Option<PathBuf>,
    pub(super) netrc: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Read {
    /// How often they were found changed.
    generation: u64,
    token: Option<Secret>,
    netrc: Arc<Netrc>,
}

impl Credentials {
    pub(super) fn new(
        home: Url,
        token: Option<Secret>,
        login: Option<(String, Option<Secret>)>,
        netrc: Arc<Netrc>,
        files: SecretFiles,
    ) -> Self {
        Self {
            home,
            login,
            files,
            read: RwLock::new(Read {
                generation: 0,
                token,
                netrc,
            }),
        }
    }

    /// Which secrets are in use, to be told to [`Credentials::refresh`] if they were refused.
    pub(super) fn generation(&self) -> u64 {
        self.read().generation
    }

    /// Reads the files again, after the cache said 401: tokens on long-running machines are
    /// exchanged now and then. Whether there is anything newer than what was `refused`; a file
    /// that is gone changes nothing.
    pub(super) async fn refresh(&self, refused: u64) -> bool {
        let mut fresh = self.read().clone();
        if let Some(path) = &self.files.token
            && let Ok(text) = tokio::fs::read_to_string(path).await
        {
            let token = Secret::new(text.trim());
            fresh.token = bearer(&token).is_some().then_some(token).or(fresh.token);
        }
        if let Some(path) = &self.files.netrc
            && let Ok(bytes) = tokio::fs::read(path).await
        {
            fresh.netrc = Arc::new(Netrc::parse(&bytes));
        }
        let mut read = self.read.write().unwrap_or_else(PoisonError::into_inner);
        fresh.generation = read.generation;
        if *read != fresh {
            fresh.generation += 1;
            *read = fresh;
        }
        read.generation != refused
    }

    /// Nothing that can panic runs under the lock, and what is in it is always whole.
    fn read(&self) -> RwLockReadGuard<'_, Read> {
        self.read.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The `Authorization` for a request to this address.
    pub(super) fn header(&self, url: &Url, reached: Reached) -> Option<HeaderValue> {
        let host = url.host_str()?;
        let Read { token, netrc, .. } = &*self.read();
        if same_origin(&self.home, url) {
            if let Some(token) = token {
                return bearer(token);
            }
            let user = self.login.as_ref().map(|(user, _)| user.as_str());
            return match &self.login {
                Some((user, Some(password))) => basic(user, password.expose()),
                // A user without a password: the password may stand in the netrc.
                Some((user, None)) => match netrc.machine_or_default(host, Some(user)) {
                    Some(login) => of_netrc(login),
                    None => basic(user, ""),
                },
                None => netrc.machine_or_default(host, user).and_then(of_netrc),
            };
        }
        let weaker = self.home.scheme() == "https" && url.scheme() != "https";
        if reached == Reached::ByRedirect || weaker {
            return None;
        }
        netrc.machine(host, None).and_then(of_netrc)
    }
}

/// Whether two addresses have the same scheme, host and port.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    matches!(a.origin(), Origin::Tuple(..)) && a.origin() == b.origin()
}

fn of_netrc(login: &Login) -> Option<HeaderValue> {
    basic(&login.user, login.password.expose())
}

fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    sensitive(format!(
        "Basic {}",
        STANDARD.encode(format!("{user}:{password}"))
    ))
}

/// The header for a token; `None` if it holds what no header may.
pub(super) fn bearer(token: &Secret) -> Option<HeaderValue> {
    sensitive(format!("Bearer {}", token.expose()))
}

fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETRC: &[u8] = b"machine h login u password p machine other login o password q \
                           default login any password x";

    fn sent(credentials: &Credentials, url: &str, reached: Reached) -> Option<String> {
        let header = credentials.header(&Url::parse(url).unwrap(), reached)?;
        let text = header.to_str().unwrap().to_owned();
        match text.strip_prefix("Basic ") {
            Some(code) => Some(String::from_utf8(STANDARD.decode(code).unwrap()).unwrap()),
            None => Some(text),
        }
    }

    fn cache(home: &str, token: Option<&str>, login: Option<(&str, Option<&str>)>) -> Credentials {
        Credentials::new(
            Url::parse(home).unwrap(),
            token.map(Secret::new),
            login.map(|(u, p)| (u.to_owned(), p.map(Secret::new))),
            Arc::new(Netrc::parse(NETRC)),
            SecretFiles::default(),
        )
    }

    #[test]
    fn the_caches_own_address_gets_them() {
        use Reached::{ByRedirect, Directly};
        let own = |c: &Credentials| sent(c, "https://h/x", Directly);
        assert_eq!(
            own(&cache("https://h/", None, None)).as_deref(),
            Some("u:p")
        );
        assert_eq!(
            own(&cache("https://h/", Some("T"), None)).as_deref(),
            Some("Bearer T")
        );
        assert_eq!(
            own(&cache("https://h/", None, Some(("a", Some("b"))))).as_deref(),
            Some("a:b")
        );
        assert_eq!(
            own(&cache("https://h/", None, Some(("u", None)))).as_deref(),
            Some("u:p")
        );
        assert_eq!(
            own(&cache("https://h/", None, Some(("z", None)))).as_deref(),
            Some("z:")
        );
        let unlisted = cache("https://unlisted/", None, None);
        assert_eq!(
            sent(&unlisted, "https://unlisted/", ByRedirect).as_deref(),
            Some("any:x")
        );
    }

    #[test]
    fn other_addresses_get_only_what_netrc_names_for_them() {
        use Reached::{ByRedirect, Directly};
        let cache = cache("https://h/", Some("T"), None);
        for elsewhere in [
            "http://h/",
            "https://h:8443/",
            "https://evil/",
            "https://h.evil/",
        ] {
            assert_eq!(sent(&cache, elsewhere, ByRedirect), None, "{elsewhere}");
        }
        assert_eq!(sent(&cache, "https://evil/", Directly), None);
        assert_eq!(
            sent(&cache, "https://other/", Directly).as_deref(),
            Some("o:q")
        );
        assert_eq!(sent(&cache, "http://other/", Directly), None);
        assert_eq!(sent(&cache, "https://other/", ByRedirect), None);
    }
}
