//! Buckets (`s3://`): where `object_store` finds keys and signs addresses, and the one HTTP client
//! fetches them.
//!
//! A signed address is valid for any range of its object, so ranges, retries, stall rules and
//! counters are the same as for any other cache; there is no second way of the bytes.

mod settings;

use std::{sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, RetryConfig, StaticCredentialProvider,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential},
    path::Path,
    signer::Signer,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use url::Url;

use self::settings::{Keys, Settings, Surroundings, settle};
use super::{
    error::{FetchFailure, SubstituterError},
    location::S3Place,
};

/// How long a signed address works. Long, so that a clock that is a little off does no harm.
const VALID: Duration = Duration::from_secs(3600);

/// Patience for keys. An instance's metadata service answers in milliseconds or not at all.
const KEYS_TIME: Duration = Duration::from_secs(3);

/// How long a machine without keys is believed to have none.
const NO_KEYS_TIME: Duration = Duration::from_secs(300);

/// What SigV4 leaves as it is in a path, besides letters and digits.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// One bucket.
pub(super) struct Bucket {
    store: AmazonS3,
    base: Url,
    prefix: String,
    signing: Signing,
}

/// Whether addresses get signed.
enum Signing {
    Always,
    Never,
    /// If the machine has keys; it was found to have none until this time.
    Perhaps(Mutex<Option<Instant>>),
}

impl Bucket {
    /// Reads the environment and the files in `~/.aws`; no request is made.
    pub(super) fn new(place: &S3Place, name: &str) -> Result<Self, SubstituterError> {
        let wrong = |reason| SubstituterError::Url {
            url: name.to_owned(),
            reason,
        };
        let variable = |name: &str| std::env::var(name).ok();
        let file = |overriding: &str, usual: &str| {
            let path = std::env::var_os(overriding)
                .map(Into::into)
                .or_else(|| Some(std::path::Path::new(&std::env::var_os("HOME")?).join(usual)));
            path.and_then(|path| std::fs::read_to_string(path).ok())
                .unwrap_or_default()
        };
        let around = Surroundings {
            variable: &variable,
            credentials: &file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
            config: &file("AWS_CONFIG_FILE", ".aws/config"),
        };
        let settings = settle(place, &around).map_err(wrong)?;
        let store = store(&settings, &place.bucket).map_err(|error| wrong(error.to_string()))?;
        let signing = match settings.keys {
            Keys::Given { .. } | Keys::Service => Signing::Always,
            Keys::Anonymous => Signing::Never,
            Keys::PerhapsInstance => Signing::Perhaps(Mutex::new(None)),
        };
        Ok(Self {
            store,
            base: settings.base,
            prefix: place.prefix.clone(),
            signing,
        })
    }

    /// `https` or `http`.
    pub(super) fn scheme(&self) -> &str {
        self.base.scheme()
    }

    /// The address of a file, as messages may show it.
    pub(super) fn plain(&self, file: &str) -> Result<Url, FetchFailure> {
        let key = self.key(file)?;
        let path: Vec<_> = key
            .split('/')
            .map(|s| utf8_percent_encode(s, SEGMENT).to_string())
            .collect();
        let text = format!(
            "{}/{}",
            self.base.as_str().trim_end_matches('/'),
            path.join("/")
        );
        Url::parse(&text).map_err(|error| FetchFailure::BadAddress(error.to_string()))
    }

    /// The address to fetch a file from. Never to be shown.
    pub(super) async fn address(&self, file: &str) -> Result<Url, FetchFailure> {
        match &self.signing {
            Signing::Never => self.plain(file),
            Signing::Always => self.signed(Method::GET, file).await,
            Signing::Perhaps(none_until) => {
                // Held while the machine is asked, so that a burst of requests asks it once.
                let mut none_until = none_until.lock().await;
                if none_until.is_some_and(|until| Instant::now() < until) {
                    return self.plain(file);
                }
                match self.signed(Method::GET, file).await {
                    Err(FetchFailure::Credentials(reason)) => {
                        tracing::debug!(%reason, "no S3 keys: requests go unsigned");
                        *none_until = Some(Instant::now() + NO_KEYS_TIME);
                        self.plain(file)
                    }
                    other => other,
                }
            }
        }
    }

    /// The address to write a file to, which always takes keys. Never to be shown.
    pub(super) async fn address_to_write(&self, file: &str) -> Result<Url, FetchFailure> {
        match &self.signing {
            Signing::Never => self.plain(file),
            Signing::Always | Signing::Perhaps(_) => self.signed(Method::PUT, file).await,
        }
    }

    /// Whether requests go unsigned for want of keys.
    pub(super) async fn unsigned(&self) -> bool {
        match &self.signing {
            Signing::Always => false,
            Signing::Never => true,
            Signing::Perhaps(none_until) => none_until.lock().await.is_some(),
        }
    }

    async fn signed(&self, method: Method, file: &str) -> Result<Url, FetchFailure> {
        let key = Path::parse(self.key(file)?)
            .map_err(|error| FetchFailure::BadAddress(error.to_string()))?;
        match timeout(KEYS_TIME, self.store.signed_url(method, &key, VALID)).await {
            Ok(Ok(url)) => Ok(url),
            Ok(Err(error)) => Err(FetchFailure::Credentials(error.to_string())),
            Err(_) => Err(FetchFailure::Credentials(
                "the service that has them is silent".into(),
            )),
        }
    }

    fn key(&self, file: &str) -> Result<String, FetchFailure> {
        let file = file.trim_start_matches('/');
        let plain = file.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if file.contains("://") || file.chars().any(char::is_control) || !plain {
            return Err(FetchFailure::BadAddress("no key of a bucket".into()));
        }
        Ok(match self.prefix.as_str() {
            "" => file.to_owned(),
            prefix => format!("{prefix}/{file}"),
        })
    }
}

fn store(settings: &Settings, bucket: &str) -> Result<AmazonS3, object_store::Error> {
    let retry = RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 0,
        retry_timeout: KEYS_TIME,
    };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_region(&settings.region)
        .with_virtual_hosted_style_request(settings.virtual_hosted)
        .with_retry(retry);
    if let Some(endpoint) = &settings.endpoint {
        // The second is what a variable may have set, and would win.
        builder = builder
            .with_endpoint(endpoint.as_str())
            .with_config(AmazonS3ConfigKey::S3Endpoint, endpoint.as_str());
    }
    if let Keys::Given {
        id,
        secret,
        session,
    } = &settings.keys
    {
        // As a whole, so that no session token from the environment stays with a profile's keys.
        let provider = StaticCredentialProvider::new(AwsCredential {
            key_id: id.clone(),
            secret_key: secret.expose().to_owned(),
            token: session.as_ref().map(|session| session.expose().to_owned()),
        });
        builder = builder.with_credentials(Arc::new(provider));
    }
    builder.build()
}
