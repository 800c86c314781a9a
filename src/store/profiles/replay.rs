//! Fetching what a profile names, in its order, as fast as the link allows.
//!
//! A profile is somebody else's text. Only paths of its program's closure are fetched, as the narinfos
//! have it; so a path that it names waits until another one refers to it. What can't be fetched yet
//! is left for later: the first part in order whose path is known comes next.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

use tokio::task::JoinSet;

use super::guide::Guide;
use crate::{
    nix::StorePath,
    profile::Profile,
    store::{Core, Lane, Path, Slot, fetch::Nar, fetch::Want},
};

/// How many bytes of NARs are asked for at a time, over what keeps the link busy: they are packed when
/// they come. More would be in front of what becomes known meanwhile, and comes earlier.
const PACKED: u64 = 2;
/// Most that one profile has fetched, in bytes of NARs.
const MOST: u64 = 1 << 30;
/// Parts are put together up to so many bytes.
const TOGETHER: u64 = 1 << 20;
/// How far it is looked for parts to put together.
const LOOK_AHEAD: usize = 64;

/// A part that is to be fetched.
struct Part {
    /// Which path, by its place.
    path: usize,
    range: Range<u64>,
}

impl Core {
    /// Fetches what `profile` names of its root's closure.
    pub(super) async fn replay(self: &Arc<Self>, profile: Profile, root: Arc<Path>) {
        let (names, parts) = by_place(profile);
        let mut parts: Vec<Option<Part>> = parts.into_iter().map(Some).collect();
        let mut nars: Vec<Option<(Slot, Arc<Nar>)>> = names.iter().map(|_| None).collect();
        let guide = Arc::new(Guide::default());
        let place: HashMap<&StorePath, usize> =
            names.iter().enumerate().map(|(n, p)| (p, n)).collect();
        let mut in_closure: HashSet<StorePath> = HashSet::new();
        let mut admissions: JoinSet<Option<(Arc<Path>, Arc<Nar>)>> = JoinSet::new();
        let mut fetches: JoinSet<u64> = JoinSet::new();
        let admit = |admissions: &mut JoinSet<_>, path: StorePath| {
            let core = self.clone();
            admissions.spawn(async move {
                let path = core.known_or_admitted(&path).await?;
                let nar = core.nar_of(&path).ok()?;
                core.read_index(&nar).await;
                Some((path, nar))
            });
        };
        in_closure.insert(root.store_path.clone());
        admit(&mut admissions, root.store_path.clone());
        let (mut asked, mut first, mut left) = (0, 0, MOST);
        loop {
            // What is under way goes on by itself.
            if guide.is_left() {
                tracing::debug!(path = %root.store_path, "its profile is of another start");
                return fetches.detach_all();
            }
            while asked < PACKED * self.lanes.window() {
                while parts.get(first).is_some_and(Option::is_none) {
                    first += 1;
                }
                let Some((slot, nar, range)) = next(&mut parts[first..], &nars) else {
                    break;
                };
                let bytes = range.end - range.start;
                let missing = nar.file.missing(range.clone());
                let brought: u64 = missing.iter().map(|part| part.end - part.start).sum();
                if brought > left {
                    tracing::debug!(path = %root.store_path, "its profile is longer than is followed");
                    return fetches.detach_all();
                }
                left -= brought;
                self.counters.profile_fetched.add(brought);
                for part in missing {
                    self.recordings.note_fetched(root.slot, slot, part);
                }
                asked += bytes;
                let core = self.clone();
                fetches.spawn(async move {
                    let want = Want::Bytes(range);
                    if let Err(error) = core.ensure(&nar, want, Lane::ReadAhead).await {
                        // Who really needs it will be told.
                        tracing::debug!(path = %nar.path, %error, "not fetched by the profile");
                    }
                    bytes
                });
            }
            tokio::select! {
                Some(admitted) = admissions.join_next() => {
                    let Ok(Some((path, nar))) = admitted else { continue };
                    for reference in &path.references {
                        // The closure is admitted anyway; what matters is when a path is there.
                        if in_closure.insert(reference.clone()) {
                            admit(&mut admissions, reference.clone());
                        }
                    }
                    let Some(place) = place.get(&path.store_path) else { continue };
                    let of_path = parts.iter().flatten().filter(|part| part.path == *place);
                    let ranges: Vec<_> = of_path.map(|part| part.range.clone()).collect();
                    self.guides.add(path.slot, &guide, &ranges);
                    nars[*place] = Some((path.slot, nar));
                }
                Some(done) = fetches.join_next() => asked -= done.unwrap_or_default().min(asked),
                else => break,
            }
        }
        tracing::debug!(path = %root.store_path, "fetched by its profile");
    }
}

/// The store paths of a profile, and its parts with their paths' places.
fn by_place(profile: Profile) -> (Vec<StorePath>, Vec<Part>) {
    let (mut names, mut parts) = (Vec::new(), Vec::new());
    let mut places: HashMap<StorePath, usize> = HashMap::new();
    for read in profile.reads {
        let path = *places.entry(read.path.clone()).or_insert_with(|| {
            names.push(read.path.clone());
            names.len() - 1
        });
        parts.extend(read.ranges.into_iter().map(|range| Part { path, range }));
    }
    (names, parts)
}

/// Takes out the first part whose NAR is known, with those after it that touch it.
fn next(
    parts: &mut [Option<Part>],
    nars: &[Option<(Slot, Arc<Nar>)>],
) -> Option<(Slot, Arc<Nar>, Range<u64>)> {
    let is_known = |part: &Option<Part>| part.as_ref().is_some_and(|p| nars[p.path].is_some());
    let at = parts.iter().position(is_known)?;
    let (path, mut range) = together(&mut parts[at..])?;
    let (slot, nar) = nars[path].clone()?;
    // A NAR of another source may be shorter.
    range.end = range.end.min(nar.size);
    range.start = range.start.min(range.end);
    Some((slot, nar, range))
}

/// Takes out the first part and those after it that it touches.
fn together(parts: &mut [Option<Part>]) -> Option<(usize, Range<u64>)> {
    let Part { path, mut range } = parts.first_mut()?.take()?;
    let look_ahead = parts.len().min(LOOK_AHEAD);
    for other in &mut parts[..look_ahead] {
        let joined = other
            .as_ref()
            .filter(|part| part.path == path)
            .map(|part| range.start.min(part.range.start)..range.end.max(part.range.end));
        let lengths = |a: &Range<u64>| a.end - a.start;
        if let (Some(joined), Some(part)) = (joined, other.as_ref())
            && lengths(&joined) <= TOGETHER
            && lengths(&joined) <= lengths(&range) + lengths(&part.range)
        {
            range = joined;
            *other = None;
        }
    }
    Some((path, range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_touch_come_together_and_others_in_order() {
        let part = |path: usize, range: Range<u64>| Some(Part { path, range });
        let mut parts = [
            part(0, 100..200),
            part(1, 0..50),
            part(0, 200..300),
            part(0, 500..600),
            part(0, 0..100),
            part(0, 300..300 + TOGETHER),
        ];
        assert_eq!(together(&mut parts), Some((0, 0..300)));
        let left: Vec<_> = parts
            .iter()
            .flatten()
            .map(|p| (p.path, p.range.start))
            .collect();
        assert_eq!(left, [(1, 0), (0, 500), (0, 300)]);
        assert!(together(&mut parts).is_none(), "taken");
        assert_eq!(together(&mut parts[1..]), Some((1, 0..50)));
    }

    #[test]
    fn a_path_has_one_place_however_often_it_is_read() {
        let path = |n: u8| StorePath::parse(&format!("{:032}-x", n)).unwrap();
        let mut profile = Profile {
            root: path(1),
            reads: Vec::new(),
        };
        for (n, start) in [(1, 0), (2, 0), (1, 64)] {
            profile.add(&path(n), start..start + 1);
        }
        let (names, parts) = by_place(profile);
        assert_eq!(names, [path(1), path(2)]);
        let places: Vec<_> = parts.iter().map(|part| part.path).collect();
        assert_eq!(places, [0, 1, 0]);
    }
}
