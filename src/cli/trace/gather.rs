//! From what was recorded to the document: numbers become names.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    document::{
        CacheRow, Counters, Document, Ended, FORMAT, FileRow, LaneRow, PathRow, RequestRow, Share,
        Totals, UpcallRow, VERSION,
    },
    time::{self, Span, Spent, Wait},
};
use crate::{
    fuse::Upcalls,
    store::{Node, NodeId, Path, Store},
    trace::{Outcome, Recorded, Request, Upcall},
    tree::{self, EntryIndex, Node as TreeNode},
};

/// Files that are listed one by one, those that were touched first, then those of which most was fetched.
const MOST_FILES: usize = 20_000;
/// A node of the store that no store path is around.
const NO_SLOT: u32 = 0;

/// What is known of the run besides the events.
pub(super) struct Run {
    pub command: Vec<String>,
    pub began: std::time::SystemTime,
    pub cold: bool,
    /// Microseconds until the program's end.
    pub took: u64,
    pub ended: Ended,
}

/// The document of a run.
pub(super) fn gather(run: Run, recorded: &Recorded, store: &Store, upcalls: &Upcalls) -> Document {
    let mut paths = store.loaded_paths();
    paths.sort_by(|a, b| a.store_path.cmp(&b.store_path));
    let names = Names::of(&paths);
    let (files, files_left_out) = files(recorded, &paths, &names);
    let store_paths = store_paths(recorded, &paths, &files.all);
    let mut requests: Vec<_> = recorded.requests.iter().map(request_row).collect();
    requests.sort_by(|a, b| a.at.total_cmp(&b.at));
    let mut rows: Vec<_> = recorded
        .upcalls
        .iter()
        .map(|u| upcall_row(u, store, &names))
        .collect();
    rows.sort_by(|a, b| a.at.total_cmp(&b.at));
    let counted = recorded.counted.values();
    let received: u64 = recorded.requests.iter().map(|request| request.bytes).sum();
    let totals = Totals {
        upcalls: counted.clone().map(|counted| counted.all).sum(),
        upcalls_that_waited: counted.map(|counted| counted.waited).sum(),
        upcalls_left_out: recorded.upcalls_dropped,
        requests: recorded.requests.len() as u64 + recorded.requests_dropped.0,
        requests_left_out: recorded.requests_dropped.0,
        bytes_received: received + recorded.requests_dropped.1,
        bytes_unpacked: recorded.arrived.values().map(|ranges| ranges.len()).sum(),
        bytes_touched: files.all.iter().map(|file| file.touched).sum(),
        files_touched: files.all.iter().filter(|file| file.reads > 0).count() as u64,
        files_left_out,
        store_paths_touched: touched_paths(recorded, &names),
    };
    let shares = shares(run.took, recorded, &names);
    Document {
        format: FORMAT.into(),
        version: VERSION,
        narfs: env!("CARGO_PKG_VERSION").into(),
        command: run.command,
        began: run.began.into(),
        cold: run.cold,
        milliseconds: millis(run.took),
        ended: run.ended,
        time: shares,
        totals,
        counters: counters(store, upcalls),
        store_paths,
        files: files.listed(),
        requests,
        upcalls: rows,
    }
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// Where in the list of store paths what is.
struct Names<'a> {
    by_slot: HashMap<u32, &'a Path>,
    by_name: HashMap<String, &'a Path>,
    /// A number for each NAR, which several store paths may have.
    nars: HashMap<[u8; 32], usize>,
}

impl<'a> Names<'a> {
    fn of(paths: &'a [std::sync::Arc<Path>]) -> Self {
        let mut nars = HashMap::new();
        for path in paths {
            let next = nars.len();
            nars.entry(*path.nar_hash.as_bytes()).or_insert(next);
        }
        Self {
            by_slot: paths.iter().map(|path| (path.slot.0, &**path)).collect(),
            by_name: paths
                .iter()
                .map(|path| (path.store_path.to_string(), &**path))
                .collect(),
            nars,
        }
    }

    fn entry(&self, node: u64) -> Option<(&'a Path, EntryIndex)> {
        match NodeId(node).node()? {
            Node::Entry { slot, entry, .. } => Some((self.by_slot.get(&slot.0)?, entry)),
            _ => None,
        }
    }

    fn nar(&self, path: &Path) -> Option<usize> {
        self.nars.get(path.nar_hash.as_bytes()).copied()
    }
}

fn slot_of(node: u64) -> u32 {
    match NodeId(node).node() {
        Some(Node::Entry { slot, .. }) => slot.0,
        _ => NO_SLOT,
    }
}

fn touched_paths(recorded: &Recorded, names: &Names) -> u64 {
    let read = recorded.reads.keys().map(|node| slot_of(*node));
    let asked = recorded.upcalls.iter().map(|upcall| slot_of(upcall.node));
    let slots: BTreeSet<u32> = read.chain(asked).collect();
    slots
        .iter()
        .filter(|slot| names.by_slot.contains_key(slot))
        .count() as u64
}

struct Files {
    /// Every file that was touched, and of which something came; the latter first.
    all: Vec<FileRow>,
    listed: usize,
}

impl Files {
    fn listed(mut self) -> Vec<FileRow> {
        self.all.truncate(self.listed);
        self.all
            .sort_by(|a, b| (&a.store_path, &a.file).cmp(&(&b.store_path, &b.file)));
        self.all
    }
}

fn files(recorded: &Recorded, paths: &[std::sync::Arc<Path>], names: &Names) -> (Files, u64) {
    let mut all = Vec::new();
    let mut touched: BTreeMap<(u32, u32), &crate::trace::Read> = BTreeMap::new();
    for (node, read) in &recorded.reads {
        if let Some((path, entry)) = names.entry(*node) {
            touched.insert((path.slot.0, entry.0), read);
        }
    }
    for path in paths {
        let arrived = recorded.arrived.get(path.nar_hash.as_bytes());
        for entry in (0..path.tree.len()).map(EntryIndex) {
            let Some(TreeNode::Regular { size, offset, .. }) = path.tree.node(entry) else {
                continue;
            };
            let read = touched.get(&(path.slot.0, entry.0));
            let fetched = arrived.map_or(0, |ranges| ranges.len_within(offset..offset + size));
            if read.is_none() && fetched == 0 {
                continue;
            }
            all.push(FileRow {
                store_path: path.store_path.to_string(),
                file: tree::shown(&path.tree.path_of(entry)),
                size,
                // The kernel asks beyond the end, in whole pages.
                touched: read.map_or(0, |read| read.touched.len_within(0..size)),
                fetched,
                reads: read.map_or(0, |read| read.reads),
                waited_milliseconds: millis(read.map_or(0, |read| read.waited)),
            });
        }
    }
    all.sort_by_key(|file| (file.reads == 0, std::cmp::Reverse(file.fetched)));
    let listed = all.len().min(MOST_FILES);
    let left_out = (all.len() - listed) as u64;
    (Files { all, listed }, left_out)
}

fn store_paths(
    recorded: &Recorded,
    paths: &[std::sync::Arc<Path>],
    files: &[FileRow],
) -> Vec<PathRow> {
    let mut requested: HashMap<&str, (u64, u64)> = HashMap::new();
    for request in &recorded.requests {
        if let Some(path) = &request.store_path {
            let sums = requested.entry(path).or_default();
            *sums = (sums.0 + 1, sums.1 + request.bytes);
        }
    }
    let mut read: HashMap<&str, (u64, u64, f64)> = HashMap::new();
    for file in files {
        let sums = read.entry(&file.store_path).or_default();
        let touched = u64::from(file.reads > 0);
        *sums = (
            sums.0 + file.touched,
            sums.1 + touched,
            sums.2 + file.waited_milliseconds,
        );
    }
    let row = |path: &std::sync::Arc<Path>| {
        let name = path.store_path.to_string();
        let (requests, bytes_received) = requested.get(&*name).copied().unwrap_or_default();
        let (bytes_touched, files_touched, waited) = read.get(&*name).copied().unwrap_or_default();
        let arrived = recorded.arrived.get(path.nar_hash.as_bytes());
        PathRow {
            nar_size: path.nar_size,
            requests,
            bytes_received,
            bytes_unpacked: arrived.map_or(0, |ranges| ranges.len()),
            bytes_touched,
            files_touched,
            waited_milliseconds: waited,
            store_path: name,
        }
    };
    let rows = paths.iter().map(row);
    rows.filter(|row| row.requests > 0 || row.files_touched > 0)
        .collect()
}

/// What a request is for, by the file that it asks for.
fn kind(request: &Request) -> &'static str {
    let file = request.address.split(['?', '#']).next().unwrap_or_default();
    match file.rsplit('/').next().unwrap_or_default() {
        "nix-cache-info" => "cache-info",
        name if name.ends_with(".narinfo") => "narinfo",
        name if name.ends_with(".ls") => "listing",
        name if name.ends_with(".chunks") => "index",
        name if name.ends_with(".profile") => "profile",
        _ if request.range.is_some() => "range",
        _ => "nar",
    }
}

fn is_for_names(request: &Request) -> bool {
    matches!(kind(request), "cache-info" | "narinfo" | "listing")
}

fn outcome(outcome: Outcome) -> String {
    match outcome {
        Outcome::Done => "done".into(),
        Outcome::Absent => "absent".into(),
        Outcome::CutOff => "cut-off".into(),
        Outcome::Failed(kind) => format!("failed: {kind}"),
    }
}

fn request_row(request: &Request) -> RequestRow {
    let lane = |(at, lane): &(u64, &'static str)| LaneRow {
        at: millis(*at),
        lane: (*lane).into(),
    };
    RequestRow {
        at: millis(request.at),
        answered: request.answered.map(millis),
        first_byte: request.first_byte.map(millis),
        end: millis(request.end),
        kind: kind(request).into(),
        cache: request.cache.to_string(),
        address: request.address.to_string(),
        range: request.range.clone(),
        store_path: request.store_path.as_ref().map(ToString::to_string),
        lanes: request.lanes.iter().map(lane).collect(),
        status: request.status,
        bytes: request.bytes,
        outcome: outcome(request.outcome),
    }
}

fn upcall_row(upcall: &Upcall, store: &Store, names: &Names) -> UpcallRow {
    let entry = names.entry(upcall.node);
    let mut path = match entry {
        Some((path, entry)) if entry.0 > 0 && entry.0 < path.tree.len() => {
            let inside = tree::shown(&path.tree.path_of(entry));
            format!("{}/{inside}", path.store_path.absolute())
        }
        _ => store.name_of(NodeId(upcall.node)),
    };
    let mut store_path = entry.map(|(path, _)| path.store_path.to_string());
    if let Some(name) = &upcall.name {
        let name = tree::shown(name);
        if store_path.is_none() && names.by_name.contains_key(&name) {
            store_path = Some(name.clone());
        }
        path = format!("{path}/{name}");
    }
    UpcallRow {
        at: millis(upcall.at),
        end: millis(upcall.end),
        what: upcall.opcode.into(),
        pid: upcall.pid,
        path,
        store_path,
        offset: upcall.range.map(|(offset, _)| offset),
        size: upcall.range.map(|(_, size)| size),
        waited: upcall.waited,
        outcome: outcome(upcall.outcome),
    }
}

fn shares(took: u64, recorded: &Recorded, names: &Names) -> Vec<Share> {
    let wait = |upcall: &Upcall| Wait {
        from: upcall.at,
        to: upcall.end,
        nar: match upcall.opcode {
            "read" => names
                .entry(upcall.node)
                .and_then(|(path, _)| names.nar(path)),
            _ => None,
        },
    };
    let waits: Vec<_> = recorded
        .upcalls
        .iter()
        .filter(|u| u.waited)
        .map(wait)
        .collect();
    let span = |request: &Request| Span {
        from: request.at,
        first_byte: request.first_byte,
        to: request.end,
        names: is_for_names(request),
        nar: request
            .store_path
            .as_deref()
            .and_then(|name| names.by_name.get(name))
            .and_then(|path| names.nar(path)),
    };
    let spans: Vec<_> = recorded.requests.iter().map(span).collect();
    let mounted = recorded.upcalls.iter().map(|upcall| upcall.at).min();
    let shares = time::shares(took, mounted, &waits, &spans);
    let share = |(spent, micros): (Spent, u64)| Share {
        what: spent.as_str().into(),
        milliseconds: millis(micros),
    };
    Spent::ALL.into_iter().zip(shares).map(share).collect()
}

fn counters(store: &Store, upcalls: &Upcalls) -> Counters {
    let asked = upcalls.requests().filter(|(_, count)| *count > 0);
    let caches = store.substituters().into_iter().map(|cache| CacheRow {
        name: cache.name().to_owned(),
        requests: cache.counters().requests(),
        bytes_received: cache.counters().bytes_received(),
    });
    Counters {
        upcalls: asked
            .map(|(opcode, count)| (opcode.as_str().to_owned(), count))
            .collect(),
        caches: caches.collect(),
    }
}
