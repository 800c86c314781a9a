//! The scrub: what is kept is looked through at a chosen rate, so that what the disk changes is found
//! and fetched again before somebody needs it without the network.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Core, Event, Lane, Store, StoreError, WeakStore};
use crate::{
    content::{Damage, DamageKind, Kept},
    nix::{NarHash, StorePath},
};

/// Rest between two passes over everything that is kept, and of a pass that found nothing to read.
const BETWEEN_PASSES: Duration = Duration::from_secs(60);
/// Shortest wait: for a reader whose bytes come.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
/// How often somebody who waits looks whether the store is still there.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Store {
    /// Looks through what is kept from now on, as long as the store lives, if its settings say so.
    ///
    /// One thread, at the rate of the settings; it stands still while a reader waits for a fetch.
    pub fn scrub(&self) {
        let rate = self.0.settings.scrub_rate;
        if rate == 0 {
            return;
        }
        let store = self.downgrade();
        let thread = std::thread::Builder::new().name("narfs-scrub".into());
        if let Err(error) = thread.spawn(move || while pass(&store, rate) {}) {
            tracing::warn!(%error, "what is kept is not looked through");
        }
    }
}

/// Looks through everything once; whether the store is still there.
fn pass(weak: &WeakStore, rate: u64) -> bool {
    let Some(store) = weak.upgrade() else {
        return false;
    };
    let (all, names) = match store.0.content.list() {
        Ok(all) => (all, store.paths_by_nar()),
        Err(error) => {
            tracing::warn!(%error, "what is kept can't be looked through");
            Default::default()
        }
    };
    drop(store);
    for kept in &all {
        let Some(store) = weak.upgrade() else {
            return false;
        };
        let core = &store.0;
        let mut due = Instant::now();
        let found = core.content.scrub(kept, |bytes| {
            core.counters.scrubbed.add(bytes);
            due += Duration::from_secs_f64(bytes as f64 / rate as f64);
            // Once nobody else has the store, it is not kept alive for this.
            while Instant::now() < due || core.lanes.demand_flows() {
                if Arc::strong_count(core) == 1 {
                    return false;
                }
                let left = due.saturating_duration_since(Instant::now());
                std::thread::sleep(left.clamp(SHORTEST_WAIT, LOOK_EVERY));
            }
            Arc::strong_count(core) > 1
        });
        match found {
            Ok(None) => {}
            Ok(Some(damage)) => core.mend(kept, &damage, &names),
            Err(error) => tracing::warn!(nar = %kept.hash, %error, "not looked through"),
        }
    }
    wait(weak, BETWEEN_PASSES)
}

/// Waits; whether the store is still there.
fn wait(weak: &WeakStore, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if weak.0.strong_count() == 0 {
            return false;
        }
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(LOOK_EVERY));
    }
}

impl Core {
    /// Drops what the disk changed; what was whole is fetched again.
    fn mend(
        self: &Arc<Self>,
        kept: &Kept,
        damage: &Damage,
        names: &HashMap<NarHash, Vec<StorePath>>,
    ) {
        let paths = names.get(&kept.hash).map_or(&[][..], Vec::as_slice);
        let shown = paths.first().map(ToString::to_string);
        tracing::warn!(nar = %kept.hash, path = shown, damage = %damage.kind, "found by the scrub");
        let dropped = self.content.repair(damage);
        self.counters.scrub_damages.add(1);
        if let Err(error) = dropped {
            tracing::error!(nar = %kept.hash, %error, "damaged content could not be dropped");
            return;
        }
        if !matches!(damage.kind, DamageKind::Blocks(_)) {
            self.emit(Event::ContentDropped(kept.hash));
        }
        let (true, Some(path)) = (kept.nar_size == Some(kept.valid), paths.first().cloned()) else {
            return;
        };
        let store = Store(self.clone());
        self.runtime.spawn(async move {
            let fetched: Result<(), StoreError> = async {
                let known = store.admit(&path).await?;
                store.prefetch(&known, Lane::Background).await
            }
            .await;
            match fetched {
                Ok(()) => tracing::info!(%path, "what the disk changed was fetched again"),
                Err(error) => tracing::warn!(%path, %error, "what the disk changed is fetched when it is read"),
            }
        });
    }
}
