//! What is answered to clients, with a store at hand: the same in a daemon and, where none runs,
//! in the process of the command itself.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};

use super::{
    protocol::{Collected, CollectedNar, Pin, ProfileInfo, Reply, Request},
    serve::store_failure,
};
use crate::{
    cli::{Exit, Failure, output::human},
    content::{EvictGoal, Limits},
    nix::StorePath,
    profile::Profile,
    store::{Condition, Lane, Path, Store, StoreError},
};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// How often the end of a fetch is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// NARs that one prefetch has fetched at once: enough to keep a link busy over the round trips of
/// small ones, few enough that each comes to its end soon.
const PREFETCH_AT_ONCE: usize = 12;

type Say<'a> = &'a mut dyn FnMut(Reply) -> io::Result<()>;
type Answer = io::Result<Result<Reply, Failure>>;

/// Answers one request. Called on a thread that may block.
///
/// # Errors
/// When the client can't be told; what goes wrong in the store is told to it.
pub(super) fn handle(store: &Store, request: Request, say: Say<'_>) -> io::Result<()> {
    let outcome = match request {
        Request::Status { paths } => status(store, &paths),
        Request::Admit { path } => admit(store, &path),
        Request::Prefetch { paths, closure } => prefetch(store, &paths, closure, say)?,
        Request::Check { paths, repair } => check(store, &paths, repair, say)?,
        Request::Gc {
            to,
            limits,
            partial,
            dry_run,
        } => collect(store, to, &limits, partial, dry_run),
        Request::Pin { paths } => pin(store, &paths),
        Request::Unpin { paths } => unpin(store, &paths),
        Request::Pins => pins(store),
        Request::Profiles => profiles(store),
        Request::Profile { path } => profile(store, &path),
        Request::KeepProfile { text } => keep_profile(store, &text),
        Request::ForgetProfiles { paths } => forget_profiles(store, &paths),
        Request::Info | Request::Attach | Request::Stop => Ok(Reply::Refused {
            message: "no daemon runs for this state directory".into(),
        }),
    };
    say(outcome.unwrap_or_else(|failure| Reply::from(&failure)))
}

fn parse(paths: &[String]) -> Result<Vec<StorePath>, Failure> {
    paths
        .iter()
        .map(|p| StorePath::parse(p).map_err(|e| Failure::from_error(Exit::Usage, &e)))
        .collect()
}

fn status(store: &Store, paths: &[String]) -> Result<Reply, Failure> {
    let wanted: Vec<String> = parse(paths)?.iter().map(StorePath::absolute).collect();
    let (summary, mut all) = store.whole_status();
    if !wanted.is_empty() {
        all.retain(|s| wanted.contains(&s.store_path));
    }
    Ok(Reply::Status {
        summary: Box::new(summary),
        paths: all,
    })
}

fn admit(store: &Store, path: &str) -> Result<Reply, Failure> {
    let path = parse(&[path.to_owned()])?.remove(0);
    let admitted = store
        .runtime()
        .block_on(store.admit(&path))
        .map_err(|e| store_failure(&e))?;
    // Its program is run next: what it needs comes while its mount is made.
    store.touch(&admitted);
    Ok(Reply::Done)
}

fn prefetch(store: &Store, paths: &[String], closure: bool, say: Say<'_>) -> Answer {
    let roots = match parse(paths) {
        Ok(roots) => roots,
        Err(failure) => return Ok(Err(failure)),
    };
    let mut failed = Vec::new();
    let admitted = store
        .runtime()
        .block_on(admit_all(store, &roots, closure, &mut failed));
    // What can be had is fetched also if something else can't be.
    let (fetching, wanted) = (store.clone(), admitted.clone());
    let fetch = store.runtime().spawn(async move {
        let one = |path: Arc<Path>| {
            let store = fetching.clone();
            async move { store.prefetch(&path, Lane::ReadAhead).await.err() }
        };
        let outcomes = stream::iter(wanted)
            .map(one)
            .buffer_unordered(PREFETCH_AT_ONCE);
        outcomes
            .filter_map(std::future::ready)
            .map(Arc::new)
            .collect::<Vec<_>>()
            .await
    });
    let mut told: Option<Instant> = None;
    loop {
        let running = !fetch.is_finished();
        if !running || told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            told = Some(Instant::now());
            say(Reply::Progress {
                paths: admitted.iter().map(|p| store.path_status(p)).collect(),
            })?;
        }
        if !running {
            break;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let stopped = |_| vec![Arc::new(StoreError::Stopping)];
    failed.extend(store.runtime().block_on(fetch).unwrap_or_else(stopped));
    Ok(outcome_of_prefetch(store, &admitted, &failed))
}

async fn admit_all(
    store: &Store,
    roots: &[StorePath],
    closure: bool,
    failed: &mut Vec<Arc<StoreError>>,
) -> Vec<Arc<Path>> {
    if closure {
        let report = store.admit_closure(roots, Lane::Demand).await;
        failed.extend(report.failed.into_iter().map(|(_, error)| error));
        return report
            .admitted
            .iter()
            .filter_map(|p| store.known(p))
            .collect();
    }
    let mut admitted = Vec::new();
    for path in roots {
        match store.admit(path).await {
            Ok(known) => admitted.push(known),
            Err(error) => failed.push(Arc::new(error)),
        }
    }
    admitted
}

fn outcome_of_prefetch(
    store: &Store,
    admitted: &[Arc<Path>],
    failed: &[Arc<StoreError>],
) -> Result<Reply, Failure> {
    if let Some((first, others)) = failed.split_first() {
        let mut failure = store_failure(first);
        if !others.is_empty() {
            let others = human::count(others.len() as u64, "other path");
            failure
                .causes
                .push(format!("{others} failed too; the rest is here"));
        }
        return Err(failure);
    }
    // A quota that is too small evicted the first while the last came.
    let gone = admitted
        .iter()
        .filter(|path| !store.path_status(path).verified)
        .count() as u64;
    match gone {
        0 => Ok(Reply::Done),
        _ => {
            let what = format!(
                "{} of {} went again to keep the quota",
                human::count(gone, "path"),
                admitted.len()
            );
            Err(Failure::new(Exit::Failure, what).hint("set a greater --quota, or fetch less"))
        }
    }
}

fn check(store: &Store, paths: &[String], repair: bool, say: Say<'_>) -> Answer {
    let wanted = match parse(paths) {
        Ok(wanted) => wanted,
        Err(failure) => return Ok(Err(failure)),
    };
    if let Some(unknown) = unknown(store, &wanted) {
        let what = format!("{} is not known here", unknown.absolute());
        return Ok(Err(
            Failure::new(Exit::NotFound, what).hint("`narfs status` shows what is")
        ));
    }
    let mut told = Instant::now();
    let mut lost = None;
    let report = store.check(&wanted, |done, total| {
        if told.elapsed() >= TELL_EVERY && lost.is_none() {
            told = Instant::now();
            lost = say(Reply::Checking { done, total }).err();
        }
    });
    if let Some(error) = lost {
        return Err(error);
    }
    let mut report = match report {
        Ok(report) => report,
        Err(error) => return Ok(Err(store_failure(&error))),
    };
    let mut unrepaired = None;
    if repair && report.of(Condition::Damaged).next().is_some() {
        let repaired = store.runtime().block_on(store.repair(&mut report));
        unrepaired = repaired
            .err()
            .map(|error| store_failure(&error).exit.code());
    }
    Ok(Ok(Reply::Checked { report, unrepaired }))
}

/// The first of these that the state directory does not know.
fn unknown<'a>(store: &Store, paths: &'a [StorePath]) -> Option<&'a StorePath> {
    if paths.is_empty() {
        return None;
    }
    let by_nar = store.paths_by_nar();
    paths
        .iter()
        .find(|path| !by_nar.values().flatten().any(|known| known == *path))
}

fn pin(store: &Store, paths: &[String]) -> Result<Reply, Failure> {
    let paths = parse(paths)?;
    // What they refer to has to be known: it is kept as well.
    let report = store
        .runtime()
        .block_on(store.admit_closure(&paths, Lane::Demand));
    if let Some((_, error)) = report.failed.first() {
        return Err(store_failure(error));
    }
    store.pin(&paths).map_err(|e| store_failure(&e))?;
    Ok(Reply::Done)
}

fn unpin(store: &Store, paths: &[String]) -> Result<Reply, Failure> {
    let mut missing = None;
    for path in parse(paths)? {
        if !store.unpin(&path).map_err(|e| store_failure(&e))? {
            missing.get_or_insert(path);
        }
    }
    match missing {
        None => Ok(Reply::Done),
        Some(path) => {
            let what = format!("{} is not pinned", path.absolute());
            Err(Failure::new(Exit::NotFound, what).hint("`narfs pin` lists what is"))
        }
    }
}

fn pins(store: &Store) -> Result<Reply, Failure> {
    let failure = |e: StoreError| store_failure(&e);
    let pin = |path: StorePath| {
        let (closure, kept) = store.closure_usage(&path).map_err(failure)?;
        Ok(Pin {
            store_path: path.absolute(),
            closure,
            kept,
        })
    };
    let pins = store.pins().map_err(failure)?.into_iter().map(pin);
    Ok(Reply::Pins {
        pins: pins.collect::<Result<_, Failure>>()?,
    })
}

fn profiles(store: &Store) -> Result<Reply, Failure> {
    let info = |profile: Profile| {
        let (paths, parts, bytes) = profile.extent();
        ProfileInfo {
            store_path: profile.root.absolute(),
            paths,
            parts,
            bytes,
        }
    };
    let profiles = store.profiles().map_err(|e| store_failure(&e))?;
    Ok(Reply::Profiles {
        profiles: profiles.into_iter().map(info).collect(),
    })
}

fn profile(store: &Store, path: &str) -> Result<Reply, Failure> {
    let path = parse(&[path.to_owned()])?.remove(0);
    match store.profile(&path.hash()).map_err(|e| store_failure(&e))? {
        Some(profile) => Ok(Reply::Profile {
            text: profile.text(),
        }),
        None => Err(no_profile(&path)),
    }
}

fn no_profile(path: &StorePath) -> Failure {
    let what = format!("{}: no access profile is kept", path.absolute());
    Failure::new(Exit::NotFound, what)
        .hint("one is recorded when its program is started and nothing of it was here before")
}

fn keep_profile(store: &Store, text: &str) -> Result<Reply, Failure> {
    let profile =
        Profile::parse(text.as_bytes()).map_err(|e| Failure::from_error(Exit::Usage, &e))?;
    store
        .keep_profile(&profile)
        .map_err(|e| store_failure(&e))?;
    Ok(Reply::Done)
}

fn forget_profiles(store: &Store, paths: &[String]) -> Result<Reply, Failure> {
    let mut missing = None;
    for path in parse(paths)? {
        if !store.forget_profile(&path).map_err(|e| store_failure(&e))? {
            missing.get_or_insert(path);
        }
    }
    match missing {
        None => Ok(Reply::Done),
        Some(path) => Err(no_profile(&path)),
    }
}

fn collect(
    store: &Store,
    to: Option<u64>,
    limits: &Limits,
    partial: bool,
    dry_run: bool,
) -> Result<Reply, Failure> {
    let failure = |e: StoreError| store_failure(&e);
    let to = match to {
        None => store.most_kept(limits).map_err(failure)?,
        to => to,
    };
    let goal = to.map_or(EvictGoal::Unrooted, EvictGoal::AtMost);
    let plan = store.plan_gc(goal, partial).map_err(failure)?;
    let names = store.paths_by_nar();
    let nars = plan.victims.iter().map(|victim| CollectedNar {
        nar: victim.hash.to_string(),
        paths: names
            .get(&victim.hash)
            .into_iter()
            .flatten()
            .map(StorePath::absolute)
            .collect(),
        bytes: victim.bytes,
        partly: !victim.ranges.is_empty(),
    });
    let mut collected = Collected {
        nars: nars.collect(),
        freed: plan.freed,
        before: plan.usage,
        spared: 0,
        goal: to,
        enough: plan.enough,
    };
    if !dry_run {
        let gone = store.carry_out_gc(&plan).map_err(failure)?;
        (collected.freed, collected.spared) = (gone.bytes, gone.spared);
        collected.enough &=
            gone.spared == 0 || to.is_none_or(|to| plan.usage.saturating_sub(gone.bytes) <= to);
    }
    Ok(Reply::Collected(collected))
}
