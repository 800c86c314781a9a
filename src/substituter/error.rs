//! What can go wrong between a cache and us, and what a person can do about it.

use std::{fmt, io, sync::Arc, time::Duration};

/// A fetch that failed: which substituter, which address (without secrets), and how.
///
/// Cheap to clone, because every reader that waited for one fetch gets the same error.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{address}{}: {failure}", Whose(.substituter, .address))]
pub struct FetchError {
    substituter: Arc<str>,
    address: Arc<str>,
    failure: FetchFailure,
}

/// How a fetch failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchFailure {
    /// 401, or a 403 for something a narinfo promised, or an S3 error code about the key.
    #[error("access denied ({0}); check the netrc entry, token or S3 credentials for this cache")]
    Denied(String),
    /// 407: the proxy, not the cache, wants credentials.
    #[error("the proxy refuses us (407); put its user and password into the proxy variable")]
    ProxyDenied,
    /// HTML, or something else that no binary cache sends, with a success status.
    #[error("{0}: this is no Nix binary cache; check the URL, or log in to the network")]
    NotACache(&'static str),
    /// A NAR that the narinfo names is not there (404, 410, no such file).
    #[error("the file that the narinfo names is gone; the cache lost it or is being collected")]
    Missing,
    /// A narinfo, listing or nix-cache-info above its limit.
    #[error("larger than the {limit} bytes that such a file may have")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// No bytes, or too few of them, for the whole stall window.
    #[error("stalled: {bytes} bytes in {} s (stall-timeout)", window.as_secs_f32())]
    Stalled {
        /// What came within the window.
        bytes: u64,
        /// How long we waited for bytes.
        window: Duration,
    },
    /// The caller's deadline came before any answer.
    #[error("no answer before the deadline")]
    Deadline,
    /// No connection: refused, unreachable, timed out.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The host's name has no address.
    #[error("cannot resolve the host name: {0}; check the URL and the network")]
    Dns(String),
    /// The TLS handshake failed, mostly for want of a trusted certificate.
    #[error("TLS: {0}; SSL_CERT_FILE or NIX_SSL_CERT_FILE names the certificates to trust")]
    Tls(String),
    /// Any other HTTP status.
    #[error("HTTP status {status}{}", Wait(.retry_after))]
    Status {
        /// The status code.
        status: u16,
        /// What the server asked for in `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// An answer that breaks the protocol: wrong range, nonsense in a header.
    #[error("the server breaks the protocol: {0}")]
    Protocol(String),
    /// The server cannot give part of this file; stream it from the front instead.
    #[error("the server does not serve ranges of this file")]
    NoRanges,
    /// The range begins behind the end of the file.
    #[error("the range lies outside the file{}", Total(.total))]
    OutOfRange {
        /// The file's size, if the server said it.
        total: Option<u64>,
    },
    /// The file is not the one an earlier answer came from: start again from its front.
    #[error("the file changed since the first part of it was fetched")]
    Changed,
    /// The connection ended, orderly or not, before all announced bytes came.
    #[error("cut off after {got} bytes: {detail}")]
    Truncated {
        /// Bytes that came.
        got: u64,
        /// What the connection said.
        detail: String,
    },
    /// The connection broke before an answer came.
    #[error("the connection broke: {0}")]
    Lost(String),
    /// A redirect to an address already visited, or too many of them.
    #[error("redirected in a circle or more than {limit} times, last to {to}")]
    RedirectLoop {
        /// Redirects that are followed for one request.
        limit: usize,
        /// Where the last one led, without secrets.
        to: String,
    },
    /// From https to http.
    #[error("leads to {0} without encryption; refused")]
    Downgrade(String),
    /// An address in a narinfo or a redirect that cannot be used.
    #[error("unusable address: {0}")]
    BadAddress(String),
    /// A file of a `file://` cache that is there but cannot be read.
    #[error("{message}")]
    Io {
        /// What the system says.
        kind: io::ErrorKind,
        /// The same for people.
        message: String,
    },
    /// The service that hands out S3 keys did not.
    #[error("S3 credentials: {0}")]
    Credentials(String),
}

/// Whose file it is, where its address does not say so.
struct Whose<'a>(&'a str, &'a str);

impl fmt::Display for Whose<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1.starts_with(self.0) {
            true => Ok(()),
            false => write!(f, " (of substituter {})", self.0),
        }
    }
}

/// A status' wish for patience, for its message.
struct Wait<'a>(&'a Option<Duration>);

impl fmt::Display for Wait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(wait) => write!(f, ", asks to come back in {} s", wait.as_secs()),
            None => Ok(()),
        }
    }
}

/// A file's size where it is known, for a message.
struct Total<'a>(&'a Option<u64>);

impl fmt::Display for Total<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(total) => write!(f, ", which has {total} bytes"),
            None => Ok(()),
        }
    }
}

impl FetchFailure {
    /// Whether the same request may well succeed a little later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Stalled { .. }
            | Self::Deadline
            | Self::Connect(_)
            | Self::Dns(_)
            | Self::Credentials(_)
            | Self::Truncated { .. }
            | Self::Lost(_) => true,
            // 501, 505 and 511 say that it will never work (so does Nix's filetransfer.cc).
            Self::Status { status, .. } => {
                matches!(status, 408 | 429 | 500..=599) && !matches!(status, 501 | 505 | 511)
            }
            Self::Io { kind, .. } => matches!(
                kind,
                io::ErrorKind::Interrupted | io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
            ),
            Self::Denied(_)
            | Self::ProxyDenied
            | Self::NotACache(_)
            | Self::Missing
            | Self::TooLarge { .. }
            | Self::Tls(_)
            | Self::Protocol(_)
            | Self::NoRanges
            | Self::OutOfRange { .. }
            | Self::Changed
            | Self::RedirectLoop { .. }
            | Self::Downgrade(_)
            | Self::BadAddress(_) => false,
        }
    }

    /// Every word that [`FetchFailure::slug`] gives.
    pub const SLUGS: [&'static str; 22] = [
        "bad-address",
        "changed",
        "connect",
        "credentials",
        "deadline",
        "denied",
        "dns",
        "downgrade",
        "io",
        "lost",
        "missing",
        "no-ranges",
        "not-a-cache",
        "out-of-range",
        "protocol",
        "proxy-denied",
        "redirect-loop",
        "stalled",
        "status",
        "tls",
        "too-large",
        "truncated",
    ];

    /// Whether the cache as a whole can't be reached, rather than this one file.
    pub fn is_of_the_cache(&self) -> bool {
        match self {
            Self::ProxyDenied
            | Self::NotACache(_)
            | Self::Stalled { .. }
            | Self::Deadline
            | Self::Connect(_)
            | Self::Dns(_)
            | Self::Tls(_)
            | Self::Lost(_)
            | Self::Credentials(_) => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            Self::Io { .. }
            | Self::Denied(_)
            | Self::Missing
            | Self::TooLarge { .. }
            | Self::Protocol(_)
            | Self::NoRanges
            | Self::OutOfRange { .. }
            | Self::Changed
            | Self::Truncated { .. }
            | Self::RedirectLoop { .. }
            | Self::Downgrade(_)
            | Self::BadAddress(_) => false,
        }
    }

    /// A short stable word for status files, logs and metrics, one of [`FetchFailure::SLUGS`].
    pub fn slug(&self) -> &'static str {
        match self {
            Self::Denied(_) => "denied",
            Self::ProxyDenied => "proxy-denied",
            Self::NotACache(_) => "not-a-cache",
            Self::Missing => "missing",
            Self::TooLarge { .. } => "too-large",
            Self::Stalled { .. } => "stalled",
            Self::Deadline => "deadline",
            Self::Connect(_) => "connect",
            Self::Dns(_) => "dns",
            Self::Tls(_) => "tls",
            Self::Status { .. } => "status",
            Self::Protocol(_) => "protocol",
            Self::NoRanges => "no-ranges",
            Self::OutOfRange { .. } => "out-of-range",
            Self::Changed => "changed",
            Self::Truncated { .. } => "truncated",
            Self::Lost(_) => "lost",
            Self::RedirectLoop { .. } => "redirect-loop",
            Self::Downgrade(_) => "downgrade",
            Self::BadAddress(_) => "bad-address",
            Self::Io { .. } => "io",
            Self::Credentials(_) => "credentials",
        }
    }

    /// Puts the names to it that every message carries.
    pub(super) fn at(self, substituter: &Arc<str>, address: impl Into<Arc<str>>) -> FetchError {
        FetchError {
            substituter: substituter.clone(),
            address: address.into(),
            failure: self,
        }
    }
}

impl From<io::Error> for FetchFailure {
    fn from(error: io::Error) -> Self {
        Self::Io {
            kind: error.kind(),
            message: error.to_string(),
        }
    }
}

impl FetchError {
    /// How it failed.
    pub fn failure(&self) -> &FetchFailure {
        &self.failure
    }

    /// The substituter's name, safe to show.
    pub fn substituter(&self) -> &str {
        &self.substituter
    }

    /// The address that was asked for, without user, password and query.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether the same request may well succeed a little later.
    pub fn retryable(&self) -> bool {
        self.failure.retryable()
    }

    /// A short stable word for status files, logs and metrics.
    pub fn slug(&self) -> &'static str {
        self.failure.slug()
    }
}

/// A substituter or the transport that cannot be set up as configured.
#[derive(Debug, thiserror::Error)]
pub enum SubstituterError {
    /// A URL that is none, or of a scheme that no cache is reached by.
    #[error("substituter {url}: {reason}")]
    Url {
        /// The URL without secrets.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file with secrets that is there but cannot be read.
    #[error("cannot read {what} {path}: {source}")]
    Secrets {
        /// `netrc file`, `token file`, …
        what: &'static str,
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A token that cannot stand in a header.
    #[error("substituter {0}: the token holds characters that no HTTP header may have")]
    Token(String),
    /// The file that `NIX_SSL_CERT_FILE` names is unusable.
    #[error("certificates in {path}: {reason}")]
    Certificates {
        /// Its path.
        path: String,
        /// Why.
        reason: String,
    },
    /// The HTTP client could not be made.
    #[error("cannot set up the HTTP client: {0}")]
    Client(String),
}
