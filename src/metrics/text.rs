//! A scrape as Prometheus reads it: its text format, version 0.0.4.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::{self, Registry},
};

use super::{Kind, Metric, Sample, Scrape, Unit, Value};

/// Type of the text, for the head of an HTTP response.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The scrape as text.
///
/// # Errors
/// None that memory does not have; the type is the formatter's.
pub fn text(scrape: Scrape) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (metric, samples) in self.families() {
            let unit = match metric.unit {
                Unit::None => None,
                Unit::Bytes => Some(registry::Unit::Bytes),
                Unit::Seconds => Some(registry::Unit::Seconds),
            };
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut encoder =
                encoder.encode_descriptor(metric.stem, metric.help, unit.as_ref(), kind)?;
            for sample in samples {
                one(metric, sample, encoder.encode_family(&&sample.labels[..])?)?;
            }
        }
        Ok(())
    }
}

fn one(metric: &Metric, sample: &Sample, mut encoder: MetricEncoder<'_>) -> fmt::Result {
    const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;
    match (&sample.value, metric.kind) {
        (Value::Buckets { sum, buckets }, _) => {
            let count = buckets.iter().map(|(_, n)| n).sum();
            encoder.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
        (Value::Whole(n), Kind::Counter) => encoder.encode_counter(n, NO_EXEMPLAR),
        (Value::Real(n), Kind::Counter) => encoder.encode_counter(n, NO_EXEMPLAR),
        (Value::Whole(n), _) => encoder.encode_gauge(n),
        (Value::Real(n), _) => encoder.encode_gauge(n),
        (Value::Signed(n), _) => encoder.encode_gauge(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Histogram, Label};

    const READS: Metric = Metric::counter("t_reads", Unit::None, "Reads").labels(&[Label {
        name: "result",
        bound: "hit, miss",
    }]);
    const SIZE: Metric = Metric::gauge("t_size", Unit::Bytes, "Size");
    const TIME: Metric = Metric::times("t_time", "Time");

    #[test]
    fn it_is_what_prometheus_reads() {
        static READS: Metric = self::READS;
        static SIZE: Metric = self::SIZE;
        static TIME: Metric = self::TIME;
        let mut scrape = Scrape::default();
        scrape.count(&READS, &["hit"], 3);
        scrape.level(&SIZE, &[], -1);
        scrape.count(&READS, &["a\"b\\"], 1);
        let times = Histogram::default();
        times.observe(std::time::Duration::from_millis(1));
        times.observe(std::time::Duration::from_secs(1000));
        scrape.times(&TIME, &[], &times);
        let text = text(scrape).unwrap();
        for line in [
            "# TYPE t_reads_total counter",
            "t_reads_total{result=\"hit\"} 3",
            "t_reads_total{result=\"a\\\"b\\\\\"} 1",
            "t_size_bytes -1",
            "# TYPE t_time_seconds histogram",
            "t_time_seconds_bucket{le=\"0.001\"} 1",
            "t_time_seconds_bucket{le=\"+Inf\"} 2",
            "t_time_seconds_count 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert_eq!(text.matches("# TYPE t_reads_total").count(), 1, "{text}");
    }
}
