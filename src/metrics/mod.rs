//! What is measured: declarations, cells to count in, and the text that Prometheus reads.
//!
//! Every metric is declared once, as a constant [`Metric`] in the module that counts it; the page
//! `docs/metrics.md` is compared with these declarations. Who counts keeps cells ([`Counter`],
//! [`Gauge`], [`Histogram`]: atomics, no locks) and implements [`Source`]: nothing is put together
//! before somebody asks.
//!
//! No label without a bound: [`Label::bound`] says what limits its values. Store paths are never
//! labels.

mod cells;
mod text;

pub use cells::{Counter, Gauge, Histogram, LATENCY};
pub use text::{CONTENT_TYPE, text};

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from the start of the process on.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How long something took, in buckets.
    Histogram,
}

/// What a metric counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things, by number; no unit in the name.
    None,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

/// Whether somebody may build on a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stability {
    /// Name, labels and meaning stay; a change is a breaking one.
    Stable,
    /// May change with any version.
    Experimental,
}

/// A label, and what keeps the number of its values small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Which values it has.
    pub bound: &'static str,
}

/// One metric, declared.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name without unit and `_total`.
    pub stem: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its unit.
    pub unit: Unit,
    /// Whether it stays.
    pub stability: Stability,
    /// What it counts, a sentence without full stop.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [Label],
}

impl Metric {
    const fn new(kind: Kind, stem: &'static str, unit: Unit, help: &'static str) -> Self {
        Self {
            stem,
            kind,
            unit,
            stability: Stability::Stable,
            help,
            labels: &[],
        }
    }

    /// A counter.
    pub const fn counter(stem: &'static str, unit: Unit, help: &'static str) -> Self {
        Self::new(Kind::Counter, stem, unit, help)
    }

    /// A gauge.
    pub const fn gauge(stem: &'static str, unit: Unit, help: &'static str) -> Self {
        Self::new(Kind::Gauge, stem, unit, help)
    }

    /// A histogram of times.
    pub const fn times(stem: &'static str, help: &'static str) -> Self {
        Self::new(Kind::Histogram, stem, Unit::Seconds, help)
    }

    /// With these labels.
    pub const fn labels(mut self, labels: &'static [Label]) -> Self {
        self.labels = labels;
        self
    }

    /// One that may still change.
    pub const fn experimental(mut self) -> Self {
        self.stability = Stability::Experimental;
        self
    }

    /// Its name as Prometheus shows it; of a histogram, without the suffixes of its series.
    pub fn name(&self) -> String {
        let unit = match self.unit {
            Unit::None => "",
            Unit::Bytes => "_bytes",
            Unit::Seconds => "_seconds",
        };
        let total = match self.kind {
            Kind::Counter => "_total",
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("{}{unit}{total}", self.stem)
    }
}

/// A number, or the buckets of a histogram.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Whole(u64),
    Signed(i64),
    Real(f64),
    Buckets {
        /// Sum of all that was observed.
        sum: f64,
        /// Upper bound of each bucket, and how many fell into it alone.
        buckets: Vec<(f64, u64)>,
    },
}

/// One series of a metric.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub labels: Vec<(&'static str, String)>,
    pub value: Value,
}

/// Somebody who counts.
pub trait Source {
    /// Adds what it has counted so far. From memory alone, and without waiting for anybody.
    fn collect(&self, into: &mut Scrape);
}

/// Everything at one moment, in the order in which it was added.
#[derive(Debug, Default)]
pub struct Scrape {
    families: Vec<(&'static Metric, Vec<Sample>)>,
}

impl Scrape {
    /// What all these have.
    pub fn of(sources: &[&dyn Source]) -> Self {
        let mut scrape = Self::default();
        sources
            .iter()
            .for_each(|source| source.collect(&mut scrape));
        scrape
    }

    /// A count.
    pub fn count(&mut self, metric: &'static Metric, labels: &[&str], value: u64) {
        self.add(metric, labels, Value::Whole(value));
    }

    /// A gauge's value.
    pub fn level(&mut self, metric: &'static Metric, labels: &[&str], value: i64) {
        self.add(metric, labels, Value::Signed(value));
    }

    /// A value that is no whole number.
    pub fn real(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        self.add(metric, labels, Value::Real(value));
    }

    /// A histogram.
    pub fn times(&mut self, metric: &'static Metric, labels: &[&str], value: &Histogram) {
        self.add(metric, labels, value.value());
    }

    fn add(&mut self, metric: &'static Metric, labels: &[&str], value: Value) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.stem);
        let labels = metric.labels.iter().zip(labels);
        let sample = Sample {
            labels: labels.map(|(l, v)| (l.name, (*v).to_owned())).collect(),
            value,
        };
        match self.families.iter_mut().find(|(m, _)| *m == metric) {
            Some((_, samples)) => samples.push(sample),
            None => self.families.push((metric, vec![sample])),
        }
    }

    /// The metrics that have a value.
    pub fn metrics(&self) -> impl Iterator<Item = &'static Metric> {
        self.families.iter().map(|(metric, _)| *metric)
    }

    pub(crate) fn families(&self) -> &[(&'static Metric, Vec<Sample>)] {
        &self.families
    }
}
