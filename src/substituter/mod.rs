//! Where bytes come from: binary caches reached by http, https, file and s3 URLs.
//!
//! A [`Substituter`] is one cache. It answers five questions (what are you, have you this path,
//! what is in it, give me its NAR, give me the NAR's end) and knows nothing of what the answers
//! mean. All substituters share one [`Transport`]: one pool of connections, one `netrc`.
//!
//! Always true here:
//! - every call has a [`Deadline`] for its answer, every body a stall time-out; nothing waits
//!   without end;
//! - opening requests are repeated where that may help, bodies never: their reader knows better
//!   what it still needs, and asks another cache or for the rest;
//! - files with secrets are read again when a cache says 401, so that they can be exchanged;
//! - credentials go with every kind of request to the cache's own address and not across a
//!   redirect to another; no name, error, log line or `Debug` shows one;
//! - a body is whole or an error; a range is the one asked for, or [`NarBody::start`] says what
//!   came instead.
//!
//! Each call is independent of all others, but for one lock: the calls of a bucket whose machine
//! may have keys wait for the one that finds out.

mod body;
mod config;
mod counters;
mod credentials;
mod error;
mod file;
mod health;
mod http;
mod location;
mod metrics;
pub mod netrc;
mod pace;
mod put;
mod range;
mod retry;
mod s3;
mod secret;
mod source;
mod transport;

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};

use crate::nix::StorePathHash;

pub use self::{
    body::NarBody,
    config::SubstituterConfig,
    counters::Counters,
    error::{FetchError, FetchFailure, SubstituterError},
    health::{Health, LastFailure},
    metrics::METRICS,
    put::{Label, Upload},
    retry::{RetryPolicy, jitter},
    secret::Secret,
    transport::{HttpOptions, Transport},
};
use self::{
    credentials::{Credentials, SecretFiles},
    http::{Answer, Ask, Getter},
    location::Location,
    pace::{Pace, Turn},
    range::Wanted,
    source::Source,
};

/// Largest narinfo, in bytes: one with 10,000 references has half of that.
const MAX_NARINFO: u64 = 1 << 20;

/// Largest listing as it comes, in bytes. A path with a million files has about 100 MB of JSON.
const MAX_LISTING: u64 = 256 << 20;

/// Largest chunk index, in bytes: that of a NAR of 100 GB in chunks of 64 KiB.
const MAX_CHUNK_INDEX: u64 = 64 << 20;

/// Least speed at which a file is written, in bytes a second; slower counts as a failure.
const LEAST_UPLOAD: u64 = 16 << 10;

/// Largest `nix-cache-info`, in bytes; real ones have 100.
const MAX_CACHE_INFO: u64 = 64 << 10;

/// How long a cache that rests may take to say that it is back.
const LOOK_AGAIN_PATIENCE: Duration = Duration::from_secs(15);

/// Bytes are wanted as they stand in the cache.
const AS_IT_IS: &str = "identity";

/// Listings are JSON, a tenth in size when packed; the codec layer reads these.
const PACKED: &str = "zstd, br, gzip";

/// When a call must have answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// At this time.
    pub fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// So much later than now.
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// The time itself.
    pub fn instant(self) -> Instant {
        self.0
    }
}

/// A small file of a cache, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The bytes, still encoded.
    pub bytes: Vec<u8>,
    /// Their `Content-Encoding`, in lower case, if the server named one.
    pub encoding: Option<String>,
}

/// One binary cache. Clones are cheap and share connections and counters.
#[derive(Clone)]
pub struct Substituter(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    priority: Option<u32>,
    trusted: bool,
    source: Source,
    getter: Getter,
    /// Places for small requests; NAR bodies are the fetch lanes' to bound.
    small: Semaphore,
    pace: Pace,
}

/// Which kind of small file, with what that implies.
struct Small {
    file: String,
    limit: u64,
    accept_encoding: &'static str,
    /// Whether what comes is plain text, in which HTML can be told by its first byte.
    text: bool,
    /// Whether it is the cache's `nix-cache-info`, that every cache should have.
    introduces: bool,
}

impl Small {
    fn cache_info() -> Self {
        Self {
            file: "nix-cache-info".into(),
            limit: MAX_CACHE_INFO,
            accept_encoding: AS_IT_IS,
            text: true,
            introduces: true,
        }
    }

    fn ask(&self) -> Ask {
        Ask {
            wanted: Wanted::Whole,
            validator: None,
            accept_encoding: self.accept_encoding,
        }
    }
}

impl Substituter {
    /// Reads the configuration (and the token file); no request is made.
    pub fn new(
        config: &SubstituterConfig,
        transport: &Transport,
    ) -> Result<Self, SubstituterError> {
        let location = Location::parse(&config.url)?;
        let token = config.read_token(&location.name)?;
        let netrc = transport.netrc().clone();
        let credentials = |base| {
            let files = SecretFiles {
                token: config.token_file.clone(),
                netrc: transport.options().netrc.clone(),
            };
            Credentials::new(base, token, location.login, netrc, files)
        };
        let source = Source::new(location.place, &location.name, credentials)?;
        if let Some(scheme) = source.scheme() {
            transport.expect(scheme);
        }
        let name: Arc<str> = location.name.into();
        let getter = Getter {
            transport: transport.clone(),
            substituter: name.clone(),
            counters: Arc::new(Counters::new(name.clone())),
        };
        Ok(Self(Arc::new(Inner {
            name,
            priority: config.priority.or(location.priority),
            trusted: config.trusted || location.trusted,
            source,
            small: Semaphore::new(transport.options().connections.max(1)),
            pace: Pace::new(),
            getter,
        })))
    }

    /// Its URL without credentials and secrets: safe to show, and stable.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The priority that the user gave it, if any.
    pub fn priority(&self) -> Option<u32> {
        self.0.priority
    }

    /// Whether the user trusts it without signatures.
    pub fn trusted(&self) -> bool {
        self.0.trusted
    }

    /// What it cost so far.
    pub fn counters(&self) -> &Counters {
        &self.0.getter.counters
    }

    /// Whether it can be reached.
    pub fn health(&self) -> &Health {
        &self.0.getter.counters.health
    }

    /// `nix-cache-info`; `None` if the cache has none.
    pub async fn cache_info_text(&self, deadline: Deadline) -> Result<Option<Vec<u8>>, FetchError> {
        Ok(self
            .small(Small::cache_info(), deadline)
            .await?
            .map(|document| document.bytes))
    }

    /// The narinfo of a path; `None` if the cache does not have the path (404, 410, and 403 as S3
    /// says it for absent objects).
    pub async fn narinfo(
        &self,
        path: &StorePathHash,
        deadline: Deadline,
    ) -> Result<Option<Document>, FetchError> {
        let small = Small {
            file: format!("{path}.narinfo"),
            limit: MAX_NARINFO,
            accept_encoding: AS_IT_IS,
            text: true,
            introduces: false,
        };
        self.small(small, deadline).await
    }

    /// The listing of a path; `None` if the cache has none.
    pub async fn listing(
        &self,
        path: &StorePathHash,
        deadline: Deadline,
    ) -> Result<Option<Document>, FetchError> {
        let small = Small {
            file: format!("{path}.ls"),
            limit: MAX_LISTING,
            accept_encoding: PACKED,
            text: false,
            introduces: false,
        };
        self.small(small, deadline).await
    }

    /// Opens the NAR that a narinfo names by `url` (relative to the cache, or complete), or the
    /// bytes `range` of it; an end of `u64::MAX` means up to the end.
    ///
    /// `validator` is that of the body whose rest is wanted: a file that changed since is
    /// [`FetchFailure::Changed`]. The deadline is for the opening; the body has its own time-outs.
    pub async fn nar(
        &self,
        url: &str,
        range: Option<Range<u64>>,
        validator: Option<&str>,
        deadline: Deadline,
    ) -> Result<NarBody, FetchError> {
        let wanted = match range {
            Some(range) if range.start >= range.end => {
                let failure = FetchFailure::OutOfRange { total: None };
                return Err(self.fail(failure, url));
            }
            Some(range) => Wanted::Part(range),
            None => Wanted::Whole,
        };
        let ask = Ask {
            wanted,
            validator: validator.map(Into::into),
            accept_encoding: AS_IT_IS,
        };
        self.open_nar(url, &ask, deadline).await
    }

    /// The error for a file that ended too early although its server says it was whole.
    pub fn cut_off(&self, url: &str, got: u64, wanted: u64) -> FetchError {
        let detail = format!("{wanted} bytes were asked for");
        self.fail(FetchFailure::Truncated { got, detail }, url)
    }

    /// The size of a NAR's file and its last `n` bytes (or all of them, if it has fewer).
    pub async fn nar_tail(
        &self,
        url: &str,
        n: u64,
        deadline: Deadline,
    ) -> Result<(u64, Vec<u8>), FetchError> {
        let ask = Ask {
            wanted: Wanted::Tail(n),
            validator: None,
            accept_encoding: AS_IT_IS,
        };
        let ask = &ask;
        let tail = self
            .retrying(deadline, || self.tail_once(url, n, ask))
            .await;
        tail.map_err(|failure| self.fail(failure, url))
    }

    /// A file that may lie beside the narinfos, of at most `limit` bytes; `None` if it does not.
    pub async fn file_beside(
        &self,
        file: String,
        limit: u64,
        deadline: Deadline,
    ) -> Result<Option<Vec<u8>>, FetchError> {
        let small = Small {
            file,
            limit,
            accept_encoding: AS_IT_IS,
            text: false,
            introduces: false,
        };
        let document = self.small(small, deadline).await?;
        Ok(document.map(|document| document.bytes))
    }

    /// The chunk index at `file`; `None` if the cache has none.
    pub async fn chunk_index(
        &self,
        file: &str,
        deadline: Deadline,
    ) -> Result<Option<Vec<u8>>, FetchError> {
        let small = Small {
            file: file.into(),
            limit: MAX_CHUNK_INDEX,
            accept_encoding: AS_IT_IS,
            text: false,
            introduces: false,
        };
        Ok(self
            .small(small, deadline)
            .await?
            .map(|document| document.bytes))
    }

    /// Makes ready for [`Substituter::put`]: the directory, if it is one.
    pub async fn prepare_to_write(&self) -> Result<(), FetchError> {
        let prepared = self.0.source.prepare();
        prepared.map_err(|failure| self.fail(failure, ""))
    }

    /// Whether it keeps a file's `Content-Encoding`.
    pub fn keeps_encoding(&self) -> bool {
        self.0.source.keeps_encoding()
    }

    /// The size of a file, in bytes; `None` if it is not there, or the cache does not tell.
    pub async fn size_of(&self, file: &str, deadline: Deadline) -> Result<Option<u64>, FetchError> {
        match self.nar_tail(file, 1, deadline).await {
            Ok((size, _)) => Ok(Some(size)),
            Err(error) => match error.failure() {
                FetchFailure::Missing | FetchFailure::NoRanges => Ok(None),
                // As S3 says it of what is not there.
                FetchFailure::Denied(code) if code == "403" => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Writes a file: all of it or, when this fails, nothing that has its name. `tries` at most,
    /// and for as long as its size allows.
    pub async fn put(&self, file: &str, body: &Upload, label: Label) -> Result<(), FetchError> {
        let patience = self.0.getter.transport.options().stall_timeout;
        let deadline = Deadline::after(patience + Duration::from_secs(body.size() / LEAST_UPLOAD));
        let once = || self.0.source.put(&self.0.getter, file, body, label);
        let put = self.retrying(deadline, once).await;
        put.map_err(|failure| self.fail(failure, file))
    }

    async fn tail_once(
        &self,
        url: &str,
        n: u64,
        ask: &Ask,
    ) -> Result<(u64, Vec<u8>), FetchFailure> {
        let body = self.open(url, ask).await?.promised()?;
        let total = body.total.ok_or(FetchFailure::NoRanges)?;
        Ok((total, body.collect(n).await?))
    }

    async fn open_nar(
        &self,
        url: &str,
        ask: &Ask,
        deadline: Deadline,
    ) -> Result<NarBody, FetchError> {
        let opened = self.retrying(deadline, || self.open(url, ask)).await;
        match opened.and_then(Answer::promised) {
            Ok(body) => Ok(body),
            Err(failure) => Err(self.fail(failure, url)),
        }
    }

    async fn small(
        &self,
        small: Small,
        deadline: Deadline,
    ) -> Result<Option<Document>, FetchError> {
        let (small, ask) = (&small, &small.ask());
        let got = self
            .retrying(deadline, || self.small_once(small, ask))
            .await;
        got.map_err(|failure| self.fail(failure, &small.file))
    }

    async fn small_once(&self, small: &Small, ask: &Ask) -> Result<Option<Document>, FetchFailure> {
        // Never closed, so that the only error cannot happen.
        let _place = self
            .0
            .small
            .acquire()
            .await
            .map_err(|_| FetchFailure::Deadline)?;
        let body = match self.open(&small.file, ask).await? {
            // Every bucket looks empty to who may not look into it. Say so once, at the first question.
            Answer::Absent(403) if small.introduces && self.0.source.unsigned().await => {
                let reason = "403, and there are no S3 keys here".into();
                return Err(FetchFailure::Denied(reason));
            }
            Answer::Absent(_) => return Ok(None),
            Answer::Found(body) => body,
        };
        let encoding = body.encoding.clone();
        let bytes = body.collect(small.limit).await?;
        if small.text && encoding.is_none() && bytes.trim_ascii_start().starts_with(b"<") {
            return Err(FetchFailure::NotACache("it answers with HTML or XML"));
        }
        Ok(Some(Document { bytes, encoding }))
    }

    /// Tries until it works, must not be tried again, or the deadline is near.
    async fn retrying<T, F>(
        &self,
        deadline: Deadline,
        mut call: impl FnMut() -> F,
    ) -> Result<T, FetchFailure>
    where
        F: Future<Output = Result<T, FetchFailure>>,
    {
        let policy = self.policy();
        let (health, begun) = (self.health(), health::now());
        // Its own requests: what others were told says nothing of how often this one was tried.
        let mut tried = 0;
        let last = loop {
            let (failure, mine) = match self.0.pace.turn(policy, deadline.instant()).await {
                Turn::TooLate(failure) => break failure,
                Turn::Failed(failure) => (failure, false),
                Turn::Mine(number) => match self.one_try(number, deadline, call()).await {
                    Ok(value) => {
                        health.heard();
                        return Ok(value);
                    }
                    Err(failure) => (failure, true),
                },
            };
            if failure.is_of_the_cache() && self.0.pace.is_gone() {
                break failure;
            }
            if !mine {
                continue;
            }
            tried += 1;
            let Some(wait) = policy.wait(tried, &failure, retry::jitter()) else {
                break failure;
            };
            // No use to wait for a try that cannot begin in time.
            if Instant::now() + wait >= deadline.instant() {
                break failure;
            }
            tracing::debug!(substituter = %self.0.name, slug = failure.slug(), tried, ?wait, "will try again");
            sleep(wait).await;
        };
        match last.is_of_the_cache() {
            true => health.failed(&last, begun),
            // It answered, if not with what was asked for.
            false => health.heard(),
        }
        Err(last)
    }

    /// One try, of which the pace of all learns.
    async fn one_try<T>(
        &self,
        number: u64,
        deadline: Deadline,
        call: impl Future<Output = Result<T, FetchFailure>>,
    ) -> Result<T, FetchFailure> {
        let outcome = timeout_at(deadline.instant(), call)
            .await
            .unwrap_or(Err(FetchFailure::Deadline));
        let failure = outcome.as_ref().err();
        self.0.pace.note(number, failure, self.policy());
        outcome
    }

    fn policy(&self) -> &RetryPolicy {
        &self.0.getter.transport.options().retry
    }

    /// Whether it failed lately and did not answer since: others are asked before it.
    pub fn rests(&self) -> bool {
        self.0.pace.rests()
    }

    /// Somebody goes past it because it rests: it is asked for its `nix-cache-info`, if it is time,
    /// so that it is known when it is back.
    pub fn look_again(&self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let Some(number) = self.0.pace.turn_now(self.policy()) else {
            return;
        };
        let this = self.clone();
        runtime.spawn(async move {
            let small = Small::cache_info();
            let deadline = Deadline::after(LOOK_AGAIN_PATIENCE);
            let ask = small.ask();
            let call = this.small_once(&small, &ask);
            match this.one_try(number, deadline, call).await {
                Err(failure) if failure.is_of_the_cache() => {
                    tracing::debug!(substituter = %this.0.name, %failure, "rests on");
                }
                _ => this.health().heard(),
            }
        });
    }

    /// One request.
    async fn open(&self, file: &str, ask: &Ask) -> Result<Answer, FetchFailure> {
        self.0.source.open(&self.0.getter, file, ask).await
    }

    fn fail(&self, failure: FetchFailure, file: &str) -> FetchError {
        self.counters().failure(&failure);
        failure.at(&self.0.name, self.0.source.address(&self.0.name, file))
    }
}

impl fmt::Debug for Substituter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Substituter")
            .field("name", &self.0.name)
            .field("priority", &self.0.priority)
            .field("trusted", &self.0.trusted)
            .finish_non_exhaustive()
    }
}
