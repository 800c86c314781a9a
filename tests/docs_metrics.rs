//! `docs/metrics.md` has every metric that is declared, as it is declared, and no other.

use std::{fs, path::Path};

use narfs::{
    daemon, fuse,
    metrics::{Kind, Metric, Stability, Unit},
    snapshotter, store, substituter,
};

fn declared() -> Vec<&'static Metric> {
    let all = [
        store::METRICS,
        substituter::METRICS,
        fuse::METRICS,
        daemon::METRICS,
        snapshotter::METRICS,
    ];
    all.into_iter().flatten().copied().collect()
}

/// The table as it has to stand in the page.
fn table() -> String {
    let mut table =
        "| metric | type | unit | labels | what | |\n|---|---|---|---|---|---|\n".to_owned();
    for metric in declared() {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let unit = match metric.unit {
            Unit::None => "-",
            Unit::Bytes => "bytes",
            Unit::Seconds => "seconds",
        };
        let labels: Vec<_> = metric
            .labels
            .iter()
            .map(|label| format!("`{}`: {}", label.name, label.bound))
            .collect();
        let labels = match labels.is_empty() {
            true => "-".to_owned(),
            false => labels.join("; "),
        };
        let stability = match metric.stability {
            Stability::Stable => "stable",
            Stability::Experimental => "experimental",
        };
        let (name, help) = (metric.name(), metric.help);
        table += &format!("| `{name}` | {kind} | {unit} | {labels} | {help} | {stability} |\n");
    }
    table
}

#[test]
fn the_page_has_the_metrics_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = fs::read_to_string(&path).unwrap();
    let table = table();
    if page.contains(&table) {
        return;
    }
    let begin = page
        .find("| metric | type")
        .expect("the page has the table");
    let end = begin + page[begin..].find("\n\n").expect("and it ends") + 1;
    if std::env::var_os("NARFS_UPDATE_DOCS").is_some() {
        fs::write(&path, [&page[..begin], &table, &page[end..]].concat()).unwrap();
        return;
    }
    for (have, want) in page[begin..end].lines().zip(table.lines()) {
        assert_eq!(have, want, "NARFS_UPDATE_DOCS=1 writes the table anew");
    }
    panic!(
        "the page has fewer or more metrics than the code; NARFS_UPDATE_DOCS=1 writes the table anew"
    );
}

#[test]
fn declarations_follow_the_rules() {
    let mut names = std::collections::BTreeSet::new();
    for metric in declared() {
        let name = metric.name();
        assert!(
            name.starts_with("narfs_") || name.starts_with("process_"),
            "{name}"
        );
        assert!(!metric.stem.ends_with("_total"), "{name}");
        assert!(
            !metric.help.ends_with('.') && !metric.help.contains('|'),
            "{name}"
        );
        for label in metric.labels {
            assert!(
                !label.bound.is_empty() && !label.bound.contains('|'),
                "{name}"
            );
            assert!(
                !["path", "store_path", "pid", "le"].contains(&label.name),
                "{name}"
            );
        }
        assert!(names.insert(name.clone()), "{name} twice");
    }
    assert!(names.len() > 30);
}
