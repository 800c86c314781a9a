//! All paths side by side: dependencies first, and no narinfo before those that it names.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use super::{
    PublishError, Settings, Supplier, Target,
    cut::cut,
    pack::pack,
    source::Item,
    target::{Ready, Standing, nar_file},
};
use crate::{
    chunks::{ChunkDigest, ChunkIndex},
    nix::{Compression, NarHash, StorePath, StorePathHash},
    profile::Profile,
    tree,
};

/// How far a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its turn has not come.
    Waiting,
    /// It is fetched and packed.
    Working,
    /// It is written, or was there.
    Done,
    /// It could not be published.
    Failed,
}

/// How far a path is, for those who watch.
#[derive(Debug, Clone)]
pub struct Progress {
    /// The path.
    pub path: StorePath,
    /// Hash of its NAR.
    pub nar_hash: NarHash,
    /// Bytes of its NAR.
    pub nar_size: u64,
    /// Bytes that were fetched or packed, whichever is going on.
    pub done: u64,
    /// Its state.
    pub state: State,
}

/// What became of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was there.
    Present,
    /// It was written; or would have been, in a dry run.
    Written {
        /// Bytes of the packed NAR.
        file_size: u64,
        /// Its chunks.
        chunks: u64,
        /// Packed bytes of chunks that whoever has the others has too: equal to chunks of paths
        /// before it, or of the earlier version.
        shared: u64,
    },
}

/// A path and what became of it.
#[derive(Debug)]
pub struct PathReport {
    /// The path.
    pub path: StorePath,
    /// Bytes of its NAR.
    pub nar_size: u64,
    /// What became of it.
    pub outcome: Result<Outcome, PublishError>,
}

/// What became of all of them, dependencies first.
pub type Report = Vec<PathReport>;

/// One path under way.
struct Job {
    item: Item,
    /// Whether its narinfo is there; `None` as long as that is open.
    settled: watch::Sender<Option<bool>>,
    done: Arc<AtomicU64>,
    state: Mutex<State>,
}

struct Shared {
    target: Target,
    settings: Settings,
    scratch: std::path::PathBuf,
    jobs: HashMap<StorePathHash, Job>,
    /// Chunks that were met.
    met: Mutex<HashSet<ChunkDigest>>,
}

/// What is to be published, from where to where.
pub struct Request<'a> {
    /// Where the paths are.
    pub from: &'a Supplier,
    /// The paths, which bring everything they refer to.
    pub roots: &'a [StorePath],
    /// Paths of the cache that its readers have already: chunks of their closures count as shared.
    pub earlier: &'a [StorePath],
    /// What starts of some of the paths read: to lie beside their narinfos.
    pub profiles: &'a [Profile],
    /// The cache.
    pub target: Target,
    /// Its priority, if it is made now.
    pub priority: u32,
    /// How.
    pub settings: Settings,
    /// A directory for NARs on their way, up to [`Settings::jobs`] of them at a time.
    pub scratch: &'a Path,
}

/// Publishes; `tell` is called now and then.
///
/// # Errors
/// What keeps all of it from being published. What keeps a path is in the report.
pub async fn publish(
    request: Request<'_>,
    mut tell: impl FnMut(&[Progress]),
) -> Result<Report, PublishError> {
    let Request {
        from,
        roots,
        earlier,
        profiles,
        target,
        priority,
        settings,
        scratch,
    } = request;
    target.prepare(priority, settings.dry_run).await?;
    let items = from.closure(roots, |_, _| {}).await?;
    let order = in_order(&items)?;
    let met = known_chunks(&target, earlier).await;
    let job = |item: Item| Job {
        item,
        settled: watch::Sender::new(None),
        done: Arc::default(),
        state: Mutex::new(State::Waiting),
    };
    let places = Arc::new(Semaphore::new(settings.jobs.max(1)));
    let shared = Arc::new(Shared {
        target,
        settings,
        scratch: scratch.into(),
        jobs: items
            .into_iter()
            .map(|item| (item.info.store_path.hash(), job(item)))
            .collect(),
        met: Mutex::new(met),
    });
    let mut running = JoinSet::new();
    let mut left = order.iter();
    let mut outcomes = HashMap::new();
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
    while left.len() > 0 || !running.is_empty() {
        tokio::select! {
            // Never closed, so that there is always one. Dependencies go first: whatever ends this, all that
            // can be is published whole.
            Ok(place) = places.clone().acquire_owned(), if left.len() > 0 => {
                let Some(path) = left.next().cloned() else { continue };
                let shared = shared.clone();
                running.spawn(async move { (path.hash(), shared.run(&path, place).await) });
            }
            // One that died is told below.
            Some(ended) = running.join_next() => if let Ok((path, outcome)) = ended {
                outcomes.insert(path, outcome);
            },
            _ = tick.tick() => tell(&shared.progress(&order)),
        }
    }
    tell(&shared.progress(&order));
    // Only beside what is there.
    let there = profiles
        .iter()
        .filter(|profile| matches!(outcomes.get(&profile.root.hash()), Some(Ok(_))));
    for profile in there.filter(|_| !shared.settings.dry_run) {
        shared.target.put_profile(profile).await?;
    }
    let report = |path: StorePath| {
        let died = || Err(PublishError::Died { path: path.clone() });
        PathReport {
            nar_size: shared
                .jobs
                .get(&path.hash())
                .map_or(0, |job| job.item.info.nar_size),
            outcome: outcomes.remove(&path.hash()).unwrap_or_else(died),
            path,
        }
    };
    Ok(order.into_iter().map(report).collect())
}

/// The paths so that each comes after what it refers to.
fn in_order(items: &[Item]) -> Result<Vec<StorePath>, PublishError> {
    let mut left: HashMap<StorePathHash, usize> = HashMap::new();
    let mut referrers: HashMap<StorePathHash, Vec<&Item>> = HashMap::new();
    for item in items {
        let own = item.info.store_path.hash();
        let others = item.info.references.iter().filter(|r| r.hash() != own);
        left.insert(own, others.clone().count());
        for reference in others {
            referrers.entry(reference.hash()).or_default().push(item);
        }
    }
    let mut ready: Vec<&Item> = items
        .iter()
        .filter(|i| left[&i.info.store_path.hash()] == 0)
        .collect();
    // Ends with the smallest: `pop` takes the last.
    ready.sort_by(|a, b| b.info.store_path.cmp(&a.info.store_path));
    let mut order = Vec::new();
    while let Some(item) = ready.pop() {
        order.push(item.info.store_path.clone());
        for referrer in referrers
            .get(&item.info.store_path.hash())
            .into_iter()
            .flatten()
        {
            if let Some(n) = left.get_mut(&referrer.info.store_path.hash()) {
                *n -= 1;
                if *n == 0 {
                    ready.push(referrer);
                }
            }
        }
    }
    match items.iter().find(|i| left[&i.info.store_path.hash()] > 0) {
        None => Ok(order),
        Some(item) => Err(PublishError::Circle {
            path: item.info.store_path.clone(),
        }),
    }
}

/// The chunks of what was published earlier.
async fn known_chunks(target: &Target, roots: &[StorePath]) -> HashSet<ChunkDigest> {
    let mut met = HashSet::new();
    let mut seen = HashSet::new();
    let mut left = roots.to_vec();
    while let Some(path) = left.pop() {
        if !seen.insert(path.hash()) {
            continue;
        }
        if let Some((info, index)) = target.index_of(&path).await {
            met.extend(index.chunks.iter().map(|chunk| chunk.digest));
            left.extend(info.references);
        }
    }
    met
}

impl Shared {
    fn progress(&self, order: &[StorePath]) -> Vec<Progress> {
        let one = |path: &StorePath| {
            let job = self.jobs.get(&path.hash())?;
            let state = *job.state.lock().unwrap_or_else(PoisonError::into_inner);
            let nar_size = job.item.info.nar_size;
            Some(Progress {
                path: path.clone(),
                nar_hash: job.item.info.nar_hash,
                nar_size,
                done: match state {
                    State::Done => nar_size,
                    _ => job.done.load(Relaxed).min(nar_size),
                },
                state,
            })
        };
        order.iter().filter_map(one).collect()
    }

    async fn run(
        &self,
        path: &StorePath,
        place: OwnedSemaphorePermit,
    ) -> Result<Outcome, PublishError> {
        let Some(job) = self.jobs.get(&path.hash()) else {
            return Err(PublishError::Died { path: path.clone() });
        };
        let set = |state| *job.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        let outcome = self.publish_one(job, place, &set).await;
        set(match outcome {
            Ok(_) => State::Done,
            Err(_) => State::Failed,
        });
        if let Err(error) = &outcome {
            tracing::warn!(%path, %error, "not published");
        }
        job.settled.send_replace(Some(outcome.is_ok()));
        outcome
    }

    /// Publishes a path, in a place among those that work at a time.
    async fn publish_one(
        &self,
        job: &Job,
        place: OwnedSemaphorePermit,
        set: &impl Fn(State),
    ) -> Result<Outcome, PublishError> {
        let item = &job.item;
        let path = &item.info.store_path;
        set(State::Working);
        let dry = self.settings.dry_run;
        match self.target.standing(&item.info).await {
            Ok(Standing::Published) => return Ok(Outcome::Present),
            Ok(Standing::Other(_) | Standing::Absent) => {}
            // A directory that would be made has nothing.
            Err(PublishError::Target { .. }) if dry => {}
            Err(error) => return Err(error),
        }
        let [spooled, packed] =
            ["nar", "packed"].map(|kind| self.scratch.join(format!("{path}.{kind}")));
        let removed = Remove([&spooled, &packed]);
        let (nar, tree) = item.spool(&spooled, self.settings.tries, &job.done).await?;
        let (size, level) = (self.settings.size, self.settings.level);
        let (out, done, its_tree) = (packed.clone(), job.done.clone(), tree.clone());
        let packing = tokio::task::spawn_blocking(move || {
            let ends = cut(&its_tree, size);
            let structure = tree::structure(&its_tree);
            let packed = pack(&nar, &ends, level, &out, |n| done.store(n, Relaxed))?;
            Ok((packed, structure))
        });
        let (made, structure) = packing
            .await
            .map_err(|_| PublishError::Died { path: path.clone() })?
            .map_err(PublishError::file(path, "pack into", &packed))?;
        let index = ChunkIndex {
            nar_hash: item.info.nar_hash,
            nar_size: item.info.nar_size,
            file_hash: made.file_hash,
            file_size: made.file_size,
            structure,
            chunks: made.chunks,
        };
        let outcome = self.outcome(&index);
        if dry {
            return Ok(outcome);
        }
        let mut info = item.info.clone();
        info.url = nar_file(&index);
        info.compression = Compression::Zstd;
        info.file_hash = Some(index.file_hash);
        info.file_size = Some(index.file_size);
        let ready = Ready {
            info,
            tree: &tree,
            index,
            packed: &packed,
        };
        let put = self.target.put_files(&ready).await;
        put.map_err(|error| PublishError::Target {
            path: path.clone(),
            error,
        })?;
        drop(removed);
        drop(place);
        self.references_are_there(item).await?;
        self.target.put_narinfo(ready.info).await?;
        Ok(outcome)
    }

    /// Waits until everything that a path refers to was published.
    async fn references_are_there(&self, item: &Item) -> Result<(), PublishError> {
        let path = &item.info.store_path;
        for reference in item.info.references.iter().filter(|r| *r != path) {
            let there = match self.jobs.get(&reference.hash()) {
                Some(job) => {
                    let mut settled = job.settled.subscribe();
                    settled
                        .wait_for(Option::is_some)
                        .await
                        .is_ok_and(|s| *s == Some(true))
                }
                None => false,
            };
            if !there {
                return Err(PublishError::HeldBack {
                    path: path.clone(),
                    reference: reference.clone(),
                });
            }
        }
        Ok(())
    }

    fn outcome(&self, index: &ChunkIndex) -> Outcome {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        let again = index
            .chunks
            .iter()
            .filter(|chunk| !met.insert(chunk.digest));
        Outcome::Written {
            file_size: index.file_size,
            chunks: index.chunks.len() as u64,
            shared: again
                .map(|chunk| chunk.packed.end - chunk.packed.start)
                .sum(),
        }
    }
}

/// Files that go when this does.
struct Remove<'a>([&'a std::path::PathBuf; 2]);

impl Drop for Remove<'_> {
    fn drop(&mut self) {
        for file in self.0 {
            // What was never made needs no removing, and the directory goes in the end.
            let _ = std::fs::remove_file(file);
        }
    }
}
