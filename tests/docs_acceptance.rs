//! `docs/acceptance.md` names tests that exist and run, and every case.

use std::{collections::BTreeSet, fs, path::Path};

/// The numbers of the project's list of cases.
const CASES: [u32; 19] = [
    1, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 23, 24, 25, 28,
];

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The rows of all tables: their cells.
fn rows(page: &str) -> Vec<Vec<String>> {
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let cells = |row: &str| {
        let cells = row.trim_matches('|').split('|').map(str::trim);
        cells.map(str::to_owned).collect::<Vec<_>>()
    };
    rows.map(cells)
        .filter(|cells| !cells[0].starts_with("---") && !["case", "what"].contains(&&*cells[0]))
        .collect()
}

/// What is wrong with a test that the page names, `file::function`.
fn fault(named: &str) -> Option<String> {
    let Some((file, function)) = named.split_once("::") else {
        return Some(format!("{named}: not of the form file::function"));
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let Ok(source) = fs::read_to_string(path) else {
        return Some(format!("{named}: there is no such file"));
    };
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let declaration = format!("fn {function}(");
    let Some(at) = lines.iter().position(|line| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.starts_with(&declaration)
    }) else {
        return Some(format!("{named}: there is no such function"));
    };
    let attributes: Vec<_> = lines[..at]
        .iter()
        .rev()
        .take_while(|line| !line.is_empty() && !line.starts_with('}'))
        .collect();
    let has = |prefix: &str| attributes.iter().any(|line| line.starts_with(prefix));
    match (has("#[test]") || has("#[tokio::test"), has("#[ignore")) {
        (false, _) => Some(format!("{named}: not a test")),
        (_, true) => Some(format!("{named}: ignored, so it proves nothing")),
        _ => None,
    }
}

#[test]
fn every_case_is_there_and_every_test_exists() {
    let page = read("docs/acceptance.md");
    let mut faults = Vec::new();
    let mut cases = BTreeSet::new();
    for cells in rows(&page) {
        let (case, tests) = (&cells[0], &cells[cells.len() - 1]);
        if let Some(number) = case.strip_prefix('R').and_then(|n| n.parse().ok()) {
            assert!(cases.insert(number), "{case} is there twice");
        }
        let tests: Vec<_> = tests
            .split(", ")
            .map(|test| test.trim_matches('`'))
            .collect();
        assert!(!tests[0].is_empty(), "{case}: no test");
        faults.extend(tests.into_iter().filter_map(fault));
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert_eq!(cases, BTreeSet::from(CASES), "the cases");
    let unused: Vec<_> = (1..=28)
        .filter(|n| !CASES.contains(n))
        .map(|n| format!("R{n}"))
        .collect();
    let (last, others) = unused.split_last().expect("some are not used");
    let text: String = page.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = format!("{} and {last} are not used", others.join(", "));
    assert!(text.contains(&said), "it does not say: {said}");
}

#[test]
fn what_is_no_test_is_found() {
    for wrong in [
        "tests/docs_acceptance.rs",
        "tests/not_there.rs::x",
        "tests/docs_acceptance.rs::not_there",
        "tests/docs_acceptance.rs::rows",
    ] {
        assert!(fault(wrong).is_some(), "{wrong} passes");
    }
}
