//! The one HTTP client that all substituters share: connections, TLS, proxies, time-outs.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Once, OnceLock},
    time::Duration,
};

use reqwest::{Certificate, Client, ClientBuilder, redirect};

use super::{
    error::{FetchFailure, SubstituterError},
    netrc::Netrc,
    retry::RetryPolicy,
};

/// Bytes in flight for one HTTP/2 stream: 200 Mbit/s at a round trip of 80 ms.
const STREAM_WINDOW: u32 = 2 << 20;

/// Settings of the client, in the words and with the defaults of nix.conf where it has them.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Longest wait for a connection (`connect-timeout`; 15 s as in Nix).
    pub connect_timeout: Duration,
    /// Longest wait for bytes. Nix's `stalled-download-timeout` is 300 s; 30 s, because here a
    /// program waits and not an installation.
    pub stall_timeout: Duration,
    /// How opening requests are repeated (`download-attempts`).
    pub retry: RetryPolicy,
    /// Requests under way at once for each substituter, NAR bodies not counted
    /// (`http-connections`; 25 as in Nix).
    pub connections: usize,
    /// `netrc-file`. A file that does not exist is no error.
    pub netrc: Option<PathBuf>,
    /// `ssl-cert-file`: PEM file of the only certificates to trust. Without it `NIX_SSL_CERT_FILE`
    /// names them, else `SSL_CERT_FILE` and `SSL_CERT_DIR` (beside the system's own).
    pub ssl_cert_file: Option<PathBuf>,
    /// The `User-Agent`.
    pub user_agent: String,
    /// Whether `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` count.
    pub proxy_from_environment: bool,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(30),
            retry: RetryPolicy::default(),
            connections: 25,
            netrc: None,
            ssl_cert_file: None,
            user_agent: concat!("narfs/", env!("CARGO_PKG_VERSION")).into(),
            proxy_from_environment: true,
        }
    }
}

/// The pooled client and what every substituter needs beside it. Clones share everything.
#[derive(Debug, Clone)]
pub struct Transport(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// For requests that need no certificate.
    plain: Client,
    /// For https; `Err`: why no certificate can be trusted. Made when it is first needed: the
    /// system's certificates are hundreds of files, and to read them from a cold disk takes longer
    /// than all else that a start does.
    secure: OnceLock<Result<Client, String>>,
    options: HttpOptions,
    netrc: Arc<Netrc>,
}

impl Transport {
    /// Makes the client; reads the `netrc` file, and the file of certificates if one is named, once.
    pub fn new(options: HttpOptions) -> Result<Self, SubstituterError> {
        install_crypto();
        let netrc = match &options.netrc {
            Some(path) => read_netrc(path)?,
            None => Netrc::default(),
        };
        let none: [Certificate; 0] = [];
        let plain = builder(&options).tls_certs_only(none).build();
        let secure = match named_certificates(&options)? {
            Some(certificates) => {
                let client = builder(&options).tls_certs_only(certificates).build();
                OnceLock::from(Ok(client.map_err(unusable)?))
            }
            None => OnceLock::new(),
        };
        Ok(Self(Arc::new(Inner {
            plain: plain.map_err(unusable)?,
            secure,
            options,
            netrc: Arc::new(netrc),
        })))
    }

    /// The settings it was made with.
    pub fn options(&self) -> &HttpOptions {
        &self.0.options
    }

    pub(super) fn netrc(&self) -> &Arc<Netrc> {
        &self.0.netrc
    }

    /// Begins to read the system's certificates, so that the first request need not wait for them.
    pub(super) fn expect(&self, scheme: &str) {
        if scheme == "https" && self.0.secure.get().is_none() {
            let inner = self.0.clone();
            std::thread::spawn(move || drop(inner.secure()));
        }
    }

    /// The client for an address of this scheme. https is refused where nothing could be verified.
    pub(super) async fn client(&self, scheme: &str) -> Result<Client, FetchFailure> {
        if scheme != "https" && !self.0.options.meets_tls_proxies() {
            return Ok(self.0.plain.clone());
        }
        let secure = match self.0.secure.get() {
            Some(made) => made.clone(),
            None => {
                let inner = self.0.clone();
                let made = tokio::task::spawn_blocking(move || inner.secure()).await;
                made.map_err(|error| FetchFailure::Tls(error.to_string()))?
            }
        };
        match secure {
            // A proxy without verification is no proxy, but plain http may not need one.
            Err(_) if scheme != "https" => Ok(self.0.plain.clone()),
            made => made.map_err(FetchFailure::Tls),
        }
    }
}

impl Inner {
    /// With the system's certificates, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`
    /// (rustls-native-certs). Blocks the first time.
    fn secure(&self) -> Result<Client, String> {
        let made = self.secure.get_or_init(|| {
            // A bare container has none. Plain http and file caches must still work there.
            let made = builder(&self.options).build();
            made.map_err(|error| format!("{}; install ca-certificates", innermost(&error)))
        });
        made.clone()
    }
}

impl HttpOptions {
    /// Whether a proxy may be reached through TLS, even for plain http.
    fn meets_tls_proxies(&self) -> bool {
        let named = |name: &&str| {
            std::env::var(name).is_ok_and(|proxy| proxy.to_ascii_lowercase().starts_with("https:"))
        };
        self.proxy_from_environment
            && ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]
                .iter()
                .any(named)
    }
}

/// rustls wants one cryptography for the process; another part may have chosen already.
fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

fn read_netrc(path: &Path) -> Result<Netrc, SubstituterError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Netrc::parse(&bytes)),
        // nix.conf names /etc/nix/netrc by default, and mostly there is none.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::debug!(path = %path.display(), "no netrc file");
            Ok(Netrc::default())
        }
        Err(source) => Err(SubstituterError::Secrets {
            what: "netrc file",
            path: path.display().to_string(),
            source,
        }),
    }
}

/// The certificates that are named, by the options or in Nix's way; `None`: the system's count.
fn named_certificates(options: &HttpOptions) -> Result<Option<Vec<Certificate>>, SubstituterError> {
    let given = options.ssl_cert_file.clone();
    let of_nix = || std::env::var_os("NIX_SSL_CERT_FILE").filter(|path| !path.is_empty());
    given
        .or_else(|| of_nix().map(Into::into))
        .map(|path| certificates(&path))
        .transpose()
}

fn builder(options: &HttpOptions) -> ClientBuilder {
    let streams = u32::try_from(options.connections)
        .unwrap_or(u32::MAX)
        .saturating_add(8);
    let builder = Client::builder()
        .user_agent(&options.user_agent)
        // Redirects are followed by hand, so that credentials stay at home.
        .redirect(redirect::Policy::none())
        .referer(false)
        // Every request on the wire is one of ours: counted, with a deadline.
        .retry(reqwest::retry::never())
        .connect_timeout(options.connect_timeout)
        .pool_max_idle_per_host(options.connections)
        // Shorter than what servers allow (nginx: 75 s), so that we are the one who closes.
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_keepalive(Duration::from_secs(30))
        // After a suspend or behind a forgetful router a kept connection swallows requests.
        .tcp_user_timeout(Duration::from_secs(10))
        .tcp_nodelay(true)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        // Room for every stream at once: a NAR whose reader waits must not hold back the others
        // on its connection. 2^31-1 is the protocol's limit.
        .http2_initial_connection_window_size(
            STREAM_WINDOW.saturating_mul(streams).min(i32::MAX as u32),
        )
        .http2_keep_alive_interval(Duration::from_secs(20))
        .http2_keep_alive_timeout(Duration::from_secs(10));
    if options.proxy_from_environment {
        builder
    } else {
        builder.no_proxy()
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, SubstituterError> {
    let wrong = |reason| SubstituterError::Certificates {
        path: path.display().to_string(),
        reason,
    };
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let certificates =
        Certificate::from_pem_bundle(&pem).map_err(|error| wrong(innermost(&error)))?;
    if certificates.is_empty() {
        return Err(wrong("there is none in it".into()));
    }
    Ok(certificates)
}

fn unusable(error: reqwest::Error) -> SubstituterError {
    SubstituterError::Client(innermost(&error))
}

/// The last cause of an error: what the system or the library really said.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// What a failed request was.
pub(super) fn classify(error: reqwest::Error) -> FetchFailure {
    // The address may hold a signature; the caller names it without.
    let error = error.without_url();
    let mut said = Vec::new();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = next {
        if let Some(tls) = tls_error(cause) {
            return FetchFailure::Tls(tls);
        }
        said.push(cause.to_string());
        next = cause.source();
    }
    let last = said.last().cloned().unwrap_or_default();
    if said
        .iter()
        .any(|text| text.contains("proxy authorization required"))
    {
        FetchFailure::ProxyDenied
    } else if said.iter().any(|text| text.contains("dns error")) {
        FetchFailure::Dns(last)
    } else if error.is_connect() {
        FetchFailure::Connect(last)
    } else {
        FetchFailure::Lost(last)
    }
}

/// A certificate or protocol error of rustls, wherever an I/O error hides it.
fn tls_error(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<rustls::Error>() {
        return Some(error.to_string());
    }
    let inner = cause.downcast_ref::<std::io::Error>()?.get_ref()?;
    tls_error(inner)
}
