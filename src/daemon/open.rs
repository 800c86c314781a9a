//! From the configuration to a store.

use std::{path::Path, time::Duration};

use tokio::runtime::{Builder, Runtime};

use crate::{
    config::{self, CacheConfig, Config},
    content::{ContentError, ContentStore, Limits, OpenOptions},
    failure::{Exit, Failure},
    nix::TrustedKeys,
    store::{Profiles, Settings, Store, Verify},
    substituter::{
        HttpOptions, RetryPolicy, Substituter, SubstituterConfig, SubstituterError, Transport,
    },
};

/// Stack of a runtime thread, in bytes: deep enough for TLS handshakes in debug builds.
const STACK: usize = 2 << 20;
/// Most threads that decode blocks, compile trees or touch the disk at a time. Streams have their own.
const BLOCKING_THREADS: usize = 128;
/// How long an idle thread of those is kept: a burst of reads comes in seconds.
const KEEP_THREADS: Duration = Duration::from_secs(5);

/// The runtime that a store's tasks run on.
///
/// # Errors
/// When the system gives no threads.
pub fn runtime() -> Result<Runtime, Failure> {
    Builder::new_multi_thread()
        .thread_name("narfs-io")
        .thread_stack_size(STACK)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(KEEP_THREADS)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::System, "the runtime can't be started").because(&e))
}

/// The store of the configured state directory, which this process holds from now on.
///
/// # Errors
/// With what to do: another process holds it, it can't be written, a cache's URL is wrong.
pub fn open_store(config: &Config, runtime: &Runtime) -> Result<Store, Failure> {
    open_store_in(config, &config.state_dir, runtime)
}

/// As [`open_store`], in another directory.
///
/// # Errors
/// As [`open_store`].
pub fn open_store_in(config: &Config, dir: &Path, runtime: &Runtime) -> Result<Store, Failure> {
    let settings = settings(config)?;
    let substituters = substituters(config)?;
    let content = ContentStore::open(dir, OpenOptions::default()).map_err(|e| {
        let exit = match e {
            ContentError::InUse { .. } => Exit::Unavailable,
            _ => Exit::System,
        };
        Failure::from_error(exit, &e)
    })?;
    Store::new(
        content,
        substituters,
        settings,
        config.tries,
        runtime.handle().clone(),
    )
    .map_err(|e| Failure::from_error(Exit::Failure, &e))
}

fn settings(config: &Config) -> Result<Settings, Failure> {
    let keys = TrustedKeys::parse(&config.trusted_keys.0).map_err(|e| {
        let origin = config.origin("trusted-keys");
        Failure::from_error(Exit::Usage, &e)
            .hint(format!("the key comes from {origin}; write NAME:BASE64"))
    })?;
    let default = Settings::default();
    Ok(Settings {
        keys,
        require_signatures: config.require_signatures,
        verify: match config.verify {
            config::Verify::Stream => Verify::Stream,
            config::Verify::BeforeRead => Verify::BeforeRead,
        },
        lookup_timeout: capped(config.lookup_timeout),
        index_timeout: capped(default.index_timeout),
        read_timeout: capped(config.read_timeout),
        request_cap: capped(default.request_cap),
        positive_ttl: config.narinfo_ttl_positive.0,
        negative_ttl: config.narinfo_ttl_negative.0,
        connections: config.connections as usize,
        hedge_after: default.hedge_after,
        read_ahead: config.read_ahead.0,
        profiles: match config.profiles {
            config::Profiles::On => Profiles::On,
            config::Profiles::Local => Profiles::Local,
            config::Profiles::Off => Profiles::Off,
        },
        limits: limits(config),
        scrub_rate: config.scrub_rate.0,
    })
}

/// How much may be kept.
pub(crate) fn limits(config: &Config) -> Limits {
    Limits {
        quota: config.quota.amount(),
        keep_free: config.keep_free.amount(),
    }
}

/// At most half of the time after which the kernel would abort the whole mount.
fn capped(timeout: Duration) -> Duration {
    let limit = std::fs::read_to_string("/proc/sys/fs/fuse/max_request_timeout");
    match limit.ok().and_then(|text| text.trim().parse().ok()) {
        Some(seconds @ 1..) => timeout.min(Duration::from_secs(seconds) / 2),
        _ => timeout,
    }
}

/// A cache that is not among the configured ones, reached as those are.
///
/// # Errors
/// When its URL or a file with secrets is wrong.
pub fn substituter_at(config: &Config, cache: &CacheConfig) -> Result<Substituter, Failure> {
    let transport = transport(config)?;
    Substituter::new(&of(cache), &transport).map_err(wrong)
}

fn wrong(error: SubstituterError) -> Failure {
    Failure::from_error(Exit::Usage, &error)
}

fn transport(config: &Config) -> Result<Transport, Failure> {
    let options = HttpOptions {
        connect_timeout: config.connect_timeout,
        stall_timeout: config.stall_timeout,
        retry: RetryPolicy {
            tries: config.tries,
            ..RetryPolicy::default()
        },
        connections: config.connections as usize,
        netrc: config.netrc_file.clone(),
        ..HttpOptions::default()
    };
    Transport::new(options).map_err(wrong)
}

fn substituters(config: &Config) -> Result<Vec<Substituter>, Failure> {
    let transport = transport(config)?;
    config
        .caches
        .iter()
        .map(|cache| Substituter::new(&of(cache), &transport).map_err(wrong))
        .collect()
}

fn of(cache: &CacheConfig) -> SubstituterConfig {
    SubstituterConfig {
        url: cache.url.to_string(),
        priority: cache.priority,
        trusted: cache.trusted,
        token: None,
        token_file: cache.token_file.clone(),
    }
}
