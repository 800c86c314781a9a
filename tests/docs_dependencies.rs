//! `docs/dependencies.md` names every direct dependency, and none that is not there.

use std::{collections::BTreeSet, fs, path::Path};

/// Names of the dependencies in a table of a manifest; those of this repository are left out.
fn declared(manifest: &str, table: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(manifest)).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    let entries = manifest[table].as_table().unwrap().iter();
    entries
        .filter(|(_, how)| how.get("path").is_none())
        .map(|(name, _)| name.clone())
        .collect()
}

/// First cells of the table under a heading of the page, each named once, and no cell empty.
fn documented(heading: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dependencies.md");
    let page = fs::read_to_string(path).unwrap();
    let lines = page.lines().skip_while(|line| *line != heading).skip(1);
    let rows = lines
        .take_while(|line| !line.starts_with('#'))
        .filter(|line| line.starts_with("| `"));
    let mut names = BTreeSet::new();
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert!(
            cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty()),
            "{row}"
        );
        let name = cells[0].trim_matches('`').to_owned();
        assert!(names.insert(name), "twice: {row}");
    }
    names
}

#[test]
fn the_tables_and_the_manifests_agree() {
    for (heading, manifest, table) in [
        ("## narfs", "Cargo.toml", "dependencies"),
        ("## narfs, to build it", "Cargo.toml", "build-dependencies"),
        (
            "## narfs, for tests and benchmarks",
            "Cargo.toml",
            "dev-dependencies",
        ),
        ("## narfs-mount", "mount-helper/Cargo.toml", "dependencies"),
        (
            "## narfs-mount, for tests",
            "mount-helper/Cargo.toml",
            "dev-dependencies",
        ),
        (
            "## narfs-state-schema",
            "state-schema/Cargo.toml",
            "dependencies",
        ),
    ] {
        assert_eq!(documented(heading), declared(manifest, table), "{heading}");
    }
}
