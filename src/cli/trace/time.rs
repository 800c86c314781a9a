//! Where the time went: every moment of a run belongs to one of six things.
//!
//! A moment belongs to the request of the kernel that has waited longest at it, if one waits:
//!
//! - it wants a name, attributes or a directory, or bytes of a path whose narinfo or listing is
//!   being fetched: *names*;
//! - it wants bytes, and a request for that NAR is on its way: *streams* once a byte of a body has
//!   come, *first byte* before;
//! - it wants bytes, and none is on its way: *unpack* (decompressing, hashing, writing, handing out).
//!
//! If nothing waits: before the first request of the kernel it is *names* while a narinfo or listing is
//! on its way, and *mount* else; after it, it is the *program*'s own.

use std::collections::{BTreeSet, HashMap};

/// What a moment is spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spent {
    /// Starting, entering the namespace, mounting.
    Mount,
    /// Waiting for names.
    Names,
    /// Waiting for a cache to begin.
    FirstByte,
    /// Waiting while bytes come.
    Streams,
    /// Waiting while nothing comes.
    Unpack,
    /// Nobody waits.
    Program,
}

impl Spent {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 6] = [
        Self::Mount,
        Self::Names,
        Self::FirstByte,
        Self::Streams,
        Self::Unpack,
        Self::Program,
    ];

    /// Its name in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Names => "names",
            Self::FirstByte => "first-byte",
            Self::Streams => "streams",
            Self::Unpack => "unpack",
            Self::Program => "program",
        }
    }

    /// What people read.
    pub fn explained(self) -> &'static str {
        match self {
            Self::Mount => "starting and mounting, until the kernel first asked",
            Self::Names => "waiting for narinfos, listings and what is made of them",
            Self::FirstByte => "waiting for bytes of which none has come yet",
            Self::Streams => "waiting while bytes came",
            Self::Unpack => {
                "waiting while nothing was under way: decompressing, hashing, handing out"
            }
            Self::Program => "nobody waited: the program's own work, and what was here already",
        }
    }
}

/// A request of the kernel that waited.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub from: u64,
    pub to: u64,
    /// Of a read: the NAR whose bytes it wants.
    pub nar: Option<usize>,
}

/// A request to a cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub from: u64,
    pub first_byte: Option<u64>,
    pub to: u64,
    /// Whether it is for a narinfo or a listing.
    pub names: bool,
    /// The NAR that it is for, where that is known.
    pub nar: Option<usize>,
}

#[derive(Clone, Copy)]
enum Step {
    Mounted,
    Wait(usize),
    Waited(usize),
    Sent(usize),
    Flows(usize),
    Over(usize),
}

#[derive(Default)]
struct Now {
    mounted: bool,
    waiting: BTreeSet<(u64, usize)>,
    all_names: usize,
    /// Requests by NAR: for names, before their first byte, after it.
    requests: HashMap<usize, [usize; 3]>,
}

impl Now {
    fn spent(&self, waits: &[Wait]) -> Spent {
        let Some((_, oldest)) = self.waiting.first() else {
            return match (self.mounted, self.all_names) {
                (true, _) => Spent::Program,
                (false, 0) => Spent::Mount,
                (false, _) => Spent::Names,
            };
        };
        let Some(nar) = waits[*oldest].nar else {
            return Spent::Names;
        };
        let [names, sent, flowing] = self.requests.get(&nar).copied().unwrap_or_default();
        match (flowing > 0, sent > 0, names > 0) {
            (true, ..) => Spent::Streams,
            (false, true, _) => Spent::FirstByte,
            (false, false, true) => Spent::Names,
            (false, false, false) => Spent::Unpack,
        }
    }

    fn take(&mut self, step: Step, waits: &[Wait], spans: &[Span]) {
        let mut count = |span: &Span, stage: usize, add: bool| {
            if span.names {
                self.all_names = match add {
                    true => self.all_names + 1,
                    false => self.all_names.saturating_sub(1),
                };
            }
            if let Some(nar) = span.nar {
                let stages = self.requests.entry(nar).or_default();
                stages[stage] = match add {
                    true => stages[stage] + 1,
                    false => stages[stage].saturating_sub(1),
                };
            }
        };
        let stage = |span: &Span, flows: bool| match (span.names, flows) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => 2,
        };
        match step {
            Step::Mounted => self.mounted = true,
            Step::Wait(at) => drop(self.waiting.insert((waits[at].from, at))),
            Step::Waited(at) => drop(self.waiting.remove(&(waits[at].from, at))),
            Step::Sent(at) => count(&spans[at], stage(&spans[at], false), true),
            Step::Flows(at) if spans[at].names => {}
            Step::Flows(at) => {
                count(&spans[at], 1, false);
                count(&spans[at], 2, true);
            }
            Step::Over(at) => {
                let flows = spans[at].first_byte.is_some();
                count(&spans[at], stage(&spans[at], flows), false);
            }
        }
    }
}

/// How much of the time until `total` was spent on what, in the order of [`Spent::ALL`]; the sum is
/// `total`. `mounted` is when the kernel first asked.
pub(super) fn shares(
    total: u64,
    mounted: Option<u64>,
    waits: &[Wait],
    spans: &[Span],
) -> [u64; Spent::ALL.len()] {
    let mut steps: Vec<(u64, Step)> = mounted.map(|at| (at, Step::Mounted)).into_iter().collect();
    for (at, wait) in waits.iter().enumerate() {
        steps.push((wait.from, Step::Wait(at)));
        steps.push((wait.to.max(wait.from), Step::Waited(at)));
    }
    for (at, span) in spans.iter().enumerate() {
        steps.push((span.from, Step::Sent(at)));
        if let Some(first) = span.first_byte {
            steps.push((first, Step::Flows(at)));
        }
        steps.push((
            span.to.max(span.first_byte.unwrap_or(span.from)),
            Step::Over(at),
        ));
    }
    // Stable: what begins and ends at one moment begins first.
    steps.sort_by_key(|(at, _)| *at);
    let (mut now, mut shares, mut at) = (Now::default(), [0; Spent::ALL.len()], 0);
    for (next, step) in steps {
        let next = next.min(total);
        shares[now.spent(waits) as usize] += next.saturating_sub(at);
        at = at.max(next);
        now.take(step, waits, spans);
    }
    shares[now.spent(waits) as usize] += total.saturating_sub(at);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: u64, first_byte: u64, to: u64, names: bool, nar: Option<usize>) -> Span {
        Span {
            from,
            first_byte: Some(first_byte),
            to,
            names,
            nar,
        }
    }

    #[test]
    fn every_moment_belongs_to_one_thing() {
        let waits = [
            // A lookup, then a read that waits through all of a fetch.
            Wait {
                from: 100,
                to: 150,
                nar: None,
            },
            Wait {
                from: 200,
                to: 300,
                nar: Some(1),
            },
            // Younger than the one before: only what it waits longer counts.
            Wait {
                from: 210,
                to: 310,
                nar: Some(2),
            },
        ];
        let spans = [
            span(10, 15, 20, true, Some(1)),
            span(110, 140, 149, true, Some(1)),
            span(205, 230, 280, false, Some(1)),
            // Of another NAR, for which nobody waits.
            span(400, 410, 450, false, Some(3)),
        ];
        let shares = shares(500, Some(90), &waits, &spans);
        let of = |spent: Spent| shares[spent as usize];
        assert_eq!(of(Spent::Mount), 80);
        assert_eq!(of(Spent::Names), 10 + 50);
        assert_eq!(of(Spent::FirstByte), 25);
        assert_eq!(of(Spent::Streams), 50);
        assert_eq!(of(Spent::Unpack), 5 + 20 + 10);
        assert_eq!(of(Spent::Program), 10 + 50 + 190);
        assert_eq!(shares.iter().sum::<u64>(), 500);
    }

    #[test]
    fn the_sum_is_the_whole_whatever_overlaps() {
        let mut seed = 3u64;
        let mut any = |most: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % most
        };
        for _ in 0..200 {
            let mut waits = Vec::new();
            let mut spans = Vec::new();
            for _ in 0..any(20) {
                let from = any(1000);
                let nar = Some(any(3) as usize).filter(|nar| *nar > 0);
                waits.push(Wait {
                    from,
                    to: from + any(300),
                    nar,
                });
                let from = any(1000);
                let first_byte = Some(from + any(100)).filter(|at| at % 3 > 0);
                let to = first_byte.unwrap_or(from) + any(200);
                spans.push(Span {
                    from,
                    first_byte,
                    to,
                    names: any(2) == 0,
                    nar,
                });
            }
            let total = 200 + any(1200);
            assert_eq!(
                shares(total, Some(any(900)), &waits, &spans)
                    .iter()
                    .sum::<u64>(),
                total
            );
        }
        assert_eq!(shares(7, None, &[], &[]), [7, 0, 0, 0, 0, 0]);
    }
}
