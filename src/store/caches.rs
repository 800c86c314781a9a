//! In which order the caches are asked: lower priority first, otherwise as configured.
//!
//! A priority from the configuration beats the one in the cache's `nix-cache-info`. That file is
//! asked for only where it can matter, which is with two or more caches without a configured
//! priority; by the first lookup that needs the network, once a week, and never at a start with
//! everything here. A cache that does not answer takes the place of one that says nothing.
//!
//! Locks: `order` is a leaf, held for moments. `asking` is held by the one that asks, across its
//! requests; whoever needs the first answer waits for it, later ones use the order that there is.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use super::{Core, unix_now};
use crate::{
    content::Db,
    nix::{CacheInfo, store_path::STORE_DIR},
    substituter::{Deadline, Substituter},
};

/// Priority of a cache that does not state one, and of one that did not answer: behind
/// cache.nixos.org (40) and what people put in front of it.
const DEFAULT_PRIORITY: u32 = 50;
/// How long an answer counts; Nix keeps it as long (`narinfo-cache-meta-ttl`).
const LASTS: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a cache has to answer: a lookup waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// When caches that did not answer are asked again, in the background.
const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// A cache and its place.
#[derive(Debug, Clone)]
pub(super) struct Ranked {
    pub substituter: Substituter,
    /// Lower is asked first.
    pub priority: u32,
    /// The store that its paths belong to, if that is another one: then it is not asked.
    pub foreign: Option<String>,
}

#[derive(Clone)]
struct Order {
    /// All caches, in order.
    caches: Arc<[Ranked]>,
    /// Until when nobody has to be asked; `None` if somebody has to be before the first lookup.
    settled: Option<Instant>,
}

/// The caches, in order.
pub(super) struct Caches {
    configured: Vec<Substituter>,
    order: RwLock<Order>,
    asking: tokio::sync::Mutex<()>,
}

/// What is known of one cache's `nix-cache-info`.
struct Known {
    info: Option<CacheInfo>,
    /// For how long it still counts.
    left: Option<Duration>,
}

impl Caches {
    /// As configured, with what an earlier run learned.
    pub fn new(configured: Vec<Substituter>, db: &Db) -> Self {
        let caches = Self {
            order: RwLock::new(Order {
                caches: Arc::new([]),
                settled: None,
            }),
            asking: tokio::sync::Mutex::default(),
            configured,
        };
        let known: Vec<Known> = caches.configured.iter().map(|s| kept(s, db)).collect();
        let left = match caches.matters() {
            true => caches.unranked().map(|n| known[n].left).min().flatten(),
            false => Some(LASTS),
        };
        caches.arrange(&known, left.map(|left| Instant::now() + left));
        caches
    }

    /// All caches, in the order that is known now.
    pub fn all(&self) -> Arc<[Ranked]> {
        self.order().caches
    }

    /// Those that are asked for paths, in the order that is known now, those that failed lately
    /// behind the others.
    pub fn usable(&self) -> Vec<Substituter> {
        let all = self.all();
        let usable = all.iter().filter(|c| c.foreign.is_none());
        last_those_that_rest(usable.map(|c| c.substituter.clone()).collect(), |s| s)
    }

    fn order(&self) -> Order {
        self.order
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Places in `configured` of the caches without a priority.
    fn unranked(&self) -> impl Iterator<Item = usize> {
        (0..self.configured.len()).filter(|n| self.configured[*n].priority().is_none())
    }

    fn matters(&self) -> bool {
        self.unranked().nth(1).is_some()
    }

    fn arrange(&self, known: &[Known], settled: Option<Instant>) {
        let ranked = |(substituter, known): (&Substituter, &Known)| Ranked {
            substituter: substituter.clone(),
            priority: substituter
                .priority()
                .or(known.info.as_ref().and_then(|info| info.priority))
                .unwrap_or(DEFAULT_PRIORITY),
            foreign: known
                .info
                .as_ref()
                .map(|i| &i.store_dir)
                .filter(|dir| *dir != STORE_DIR)
                .cloned(),
        };
        let mut caches: Vec<Ranked> = self.configured.iter().zip(known).map(ranked).collect();
        caches.sort_by_key(|cache| cache.priority);
        for cache in caches.iter().filter(|cache| cache.foreign.is_some()) {
            tracing::error!(
                substituter = cache.substituter.name(),
                "{}",
                wrong_store(cache.foreign.as_deref().unwrap_or_default())
            );
        }
        *self.order.write().unwrap_or_else(PoisonError::into_inner) = Order {
            caches: caches.into(),
            settled,
        };
    }
}

/// Those whose cache rests go behind the others, which are asked in its place; whether it is back is
/// looked after meanwhile. So a failure is met once, and not by every reader anew.
pub(super) fn last_those_that_rest<T>(
    mut all: Vec<T>,
    cache: impl Fn(&T) -> &Substituter,
) -> Vec<T> {
    if all.iter().all(|one| cache(one).rests()) {
        return all;
    }
    all.sort_by_key(|one| cache(one).rests());
    all.iter().for_each(|one| cache(one).look_again());
    all
}

/// What is wrong with a cache of another store, and what to do.
pub(super) fn wrong_store(store_dir: &str) -> String {
    format!(
        "it is a cache of {store_dir} and not of {STORE_DIR}, and is not used; remove it from the configuration"
    )
}

fn kept(substituter: &Substituter, db: &Db) -> Known {
    let found = db.cache_info(substituter.name()).unwrap_or_else(|error| {
        tracing::debug!(%error, "what is known of a cache can't be read");
        None
    });
    let Some((at, text)) = found else {
        return Known {
            info: None,
            left: None,
        };
    };
    // A clock that was set back makes it new.
    let age = Duration::from_secs(unix_now().saturating_sub(at));
    Known {
        info: CacheInfo::parse(&text).ok(),
        left: LASTS.checked_sub(age).filter(|left| !left.is_zero()),
    }
}

impl Core {
    /// The caches to ask for paths, in order; asks them for their priorities first if that has to be.
    pub(super) async fn ordered_caches(self: &Arc<Self>) -> Vec<Substituter> {
        match self.caches.order().settled {
            Some(until) if until > Instant::now() => {}
            Some(_) => {
                let core = self.clone();
                self.runtime.spawn(async move { core.ask_caches().await });
            }
            None => self.ask_caches().await,
        }
        self.caches.usable()
    }

    async fn ask_caches(&self) {
        let _one = self.caches.asking.lock().await;
        if self
            .caches
            .order()
            .settled
            .is_some_and(|until| until > Instant::now())
        {
            return;
        }
        let known = join_all(self.caches.configured.iter().map(|s| self.cache_info(s))).await;
        let wait = self
            .caches
            .unranked()
            .map(|n| known[n].left.unwrap_or(AGAIN_AFTER))
            .min();
        self.caches
            .arrange(&known, Some(Instant::now() + wait.unwrap_or(LASTS)));
    }

    /// What a cache says of itself, kept or asked for.
    async fn cache_info(&self, substituter: &Substituter) -> Known {
        let old = kept(substituter, self.content.db());
        if old.left.is_some() || substituter.priority().is_some() {
            return old;
        }
        let text = match substituter.cache_info_text(Deadline::after(PATIENCE)).await {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "a cache's priority is not known");
                return old;
            }
        };
        match CacheInfo::parse(&text) {
            Ok(info) => {
                // Not awaited: lost in a crash, it is asked for again.
                drop(
                    self.content
                        .db()
                        .put_cache_info(substituter.name(), text, unix_now()),
                );
                Known {
                    info: Some(info),
                    left: Some(LASTS),
                }
            }
            Err(error) => {
                tracing::warn!(substituter = substituter.name(), %error, "a cache's priority is not known");
                old
            }
        }
    }
}
