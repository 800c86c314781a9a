//! The status directory as a container has it.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde_json::Value;

use crate::{containerd::Container, mounted::read_json};

/// What python prints inside of a container: the root directory, the names of the status
/// documents, and the summary.
pub const LOOK: &str = "import json, os; \
    print(json.dumps([sorted(os.listdir('/')), sorted(os.listdir('/.nix-snapshotter')), \
    json.load(open('/.nix-snapshotter/summary.json'))]))";

/// The status directory of a container, however it was read.
#[derive(Debug)]
pub struct Status {
    root: Vec<String>,
    names: BTreeSet<String>,
    pub summary: Value,
}

impl Status {
    /// Of what [`LOOK`] printed last.
    pub fn parse(printed: &str) -> Self {
        let line = printed.lines().last().unwrap_or_default();
        let (root, names, summary) = serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("{error}: what was printed is\n{printed}"));
        Self {
            root,
            names,
            summary,
        }
    }

    /// Read through a running container's root.
    pub fn of(container: &Container<'_>) -> Self {
        let names = |path: &str| -> Vec<String> {
            let path = container.at(path);
            let entries = fs::read_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let names = entries.map(|entry| entry.expect("readable").file_name());
            names
                .map(|name| name.into_string().expect("ASCII"))
                .collect()
        };
        let summary = container.at("/.nix-snapshotter/summary.json");
        Self {
            root: names("/"),
            names: names("/.nix-snapshotter").into_iter().collect(),
            summary: read_json(&summary),
        }
    }

    /// It is hidden, and lists exactly these store paths.
    pub fn assert_shows(&self, closure: &[PathBuf]) {
        let hidden = !self.root.iter().any(|name| name == ".nix-snapshotter");
        assert!(hidden, "the status directory is listed: {:?}", self.root);
        let documents = closure.iter().map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy();
            format!("{name}.json")
        });
        let mut wanted: BTreeSet<String> = documents.collect();
        wanted.insert("summary.json".to_owned());
        assert_eq!(self.names, wanted);
        assert_eq!(self.summary["paths"]["total"], closure.len());
    }

    /// It is hidden, and lists these store paths, others perhaps too.
    pub fn assert_shows_at_least(&self, paths: &[PathBuf]) {
        for path in paths {
            let name = path.file_name().expect("a name").to_string_lossy();
            let document = format!("{name}.json");
            assert!(
                self.names.contains(&document),
                "no {document}: {:?}",
                self.names
            );
        }
        assert!(
            !self.root.iter().any(|name| name == ".nix-snapshotter"),
            "{:?}",
            self.root
        );
    }

    /// Percent of the closure's bytes that are here.
    pub fn fetched_percent(&self) -> f64 {
        let percent = &self.summary["fetchedPercent"];
        percent
            .as_f64()
            .unwrap_or_else(|| panic!("{}", self.summary))
    }
}
