//! What is answered to clients, with a store at hand: the same in a daemon and, where none runs,
//! in the process of the command itself.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    protocol::{Collected, CollectedNar, Reply, Request},
    serve::store_failure,
};
use crate::{
    cli::{Exit, Failure},
    content::EvictGoal,
    nix::StorePath,
    store::{Lane, Store, StoreError},
};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(200);

type Say<'a> = &'a mut dyn FnMut(Reply) -> io::Result<()>;

/// Answers one request. Called on a thread that may block.
///
/// # Errors
/// When the client can't be told; what goes wrong in the store is told to it.
pub(super) fn handle(store: &Store, request: Request, say: Say<'_>) -> io::Result<()> {
    let outcome = match request {
        Request::Status { paths } => status(store, &paths),
        Request::Admit { path } => admit(store, &path),
        Request::Prefetch { paths, closure } => match prefetch(store, &paths, closure, say)? {
            Ok(reply) => Ok(reply),
            Err(failure) => Err(failure),
        },
        Request::Check { paths, repair } => check(store, &paths, repair, say)?,
        Request::Gc { to, dry_run } => collect(store, to, dry_run),
        Request::Info | Request::Attach | Request::Stop => {
            Ok(Reply::Refused { message: "no daemon runs for this state directory".into() })
        }
    };
    say(outcome.unwrap_or_else(|failure| failed(&failure)))
}

fn failed(failure: &Failure) -> Reply {
    let mut message = failure.what.clone();
    for cause in &failure.causes {
        message.push_str(": ");
        message.push_str(cause);
    }
    Reply::Failed { exit: failure.exit.code(), message }
}

fn parse(paths: &[String]) -> Result<Vec<StorePath>, Failure> {
    paths.iter().map(|p| StorePath::parse(p).map_err(|e| Failure::from_error(Exit::Usage, &e))).collect()
}

fn status(store: &Store, paths: &[String]) -> Result<Reply, Failure> {
    let wanted = parse(paths)?;
    store.runtime().block_on(store.load_known());
    let mut all = store.all_status();
    if !wanted.is_empty() {
        all.retain(|s| wanted.iter().any(|w| w.absolute() == s.store_path));
    }
    Ok(Reply::Status { summary: Box::new(store.summary()), paths: all })
}

fn admit(store: &Store, path: &str) -> Result<Reply, Failure> {
    let path = parse(&[path.to_owned()])?.remove(0);
    store.runtime().block_on(store.admit(&path)).map_err(|e| store_failure(&e))?;
    Ok(Reply::Done)
}

fn prefetch(
    store: &Store,
    paths: &[String],
    closure: bool,
    say: Say<'_>,
) -> io::Result<Result<Reply, Failure>> {
    let roots = match parse(paths) {
        Ok(roots) => roots,
        Err(failure) => return Ok(Err(failure)),
    };
    let admitted = store.runtime().block_on(async {
        if closure {
            let report = store.admit_closure(&roots, Lane::Demand).await;
            if let Some((path, error)) = report.failed.into_iter().next() {
                return Err(Failure::new(Exit::Unavailable, format!("{path}: {error}")));
            }
            return Ok(report.admitted.iter().filter_map(|p| store.known(p)).collect::<Vec<_>>());
        }
        let mut admitted = Vec::new();
        for path in &roots {
            admitted.push(store.admit(path).await.map_err(|e| store_failure(&e))?);
        }
        Ok(admitted)
    });
    let admitted = match admitted {
        Ok(admitted) => admitted,
        Err(failure) => return Ok(Err(failure)),
    };
    let fetches: Vec<_> = admitted
        .iter()
        .cloned()
        .map(|path| {
            let store = store.clone();
            store.runtime().clone().spawn(async move { store.prefetch(&path, Lane::ReadAhead).await })
        })
        .collect();
    let mut told = Instant::now();
    loop {
        let running = fetches.iter().any(|f| !f.is_finished());
        if !running || told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            say(Reply::Progress { paths: admitted.iter().map(|p| store.path_status(p)).collect() })?;
        }
        if !running {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for fetch in fetches {
        let outcome = store.runtime().block_on(fetch).unwrap_or(Err(StoreError::Stopping));
        if let Err(error) = outcome {
            return Ok(Err(store_failure(&error)));
        }
    }
    Ok(Ok(Reply::Done))
}

fn check(store: &Store, paths: &[String], repair: bool, say: Say<'_>) -> io::Result<Result<Reply, Failure>> {
    let wanted = match parse(paths) {
        Ok(wanted) => wanted,
        Err(failure) => return Ok(Err(failure)),
    };
    let mut told = Instant::now();
    let mut lost = None;
    let report = store.check(&wanted, repair, |done, total| {
        if told.elapsed() >= TELL_EVERY && lost.is_none() {
            told = Instant::now();
            lost = say(Reply::Checking { done, total }).err();
        }
    });
    if let Some(error) = lost {
        return Err(error);
    }
    Ok(report.map(Reply::Checked).map_err(|e| store_failure(&e)))
}

fn collect(store: &Store, to: Option<u64>, dry_run: bool) -> Result<Reply, Failure> {
    let failure = |e: StoreError| store_failure(&e);
    store.runtime().block_on(store.load_known());
    let plan = store.plan_gc(to.map_or(EvictGoal::Unrooted, EvictGoal::AtMost)).map_err(failure)?;
    let names = store.paths_by_nar();
    let nars = plan.victims.iter().map(|victim| CollectedNar {
        nar: victim.hash.to_string(),
        paths: names.get(&victim.hash).into_iter().flatten().map(StorePath::absolute).collect(),
        bytes: victim.bytes,
    });
    let mut collected = Collected {
        nars: nars.collect(),
        freed: plan.freed,
        before: plan.usage,
        enough: plan.enough,
    };
    if !dry_run {
        let gone = store.carry_out_gc(&plan).map_err(failure)?;
        collected.freed = gone.bytes;
    }
    Ok(Reply::Collected(collected))
}
