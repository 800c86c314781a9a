//! `docs/status-files.md` names every field and state, and its documents are what narfs writes.

use std::{fs, path::Path};

use narfs_state_schema::{
    PathState, PathStatus, Summary, path_status_schema, percent, summary_schema,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/status-files.md"))
        .unwrap()
}

/// The document in the page, which has to be written as narfs writes it, to the character.
fn document<T: DeserializeOwned + Serialize>(name: &str) -> T {
    let page = page();
    let opening = format!("```json {name}\n");
    let text = page
        .split(&opening)
        .nth(1)
        .and_then(|rest| rest.split("\n```").next())
        .unwrap();
    let read: T = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string_pretty(&read).unwrap(), text);
    read
}

#[test]
fn the_documents_are_what_narfs_writes() {
    let path: PathStatus = document("path");
    assert_eq!(path.fetched_percent, percent(path.fetched_size, path.size));
    let summary: Summary = document("summary");
    assert_eq!(
        summary.fetched_percent,
        percent(summary.fetched_size, summary.size)
    );
    let counted: u64 = PathState::ALL
        .iter()
        .map(|state| summary.paths.of(*state))
        .sum();
    assert_eq!(counted, summary.paths.total);
}

fn fields(schema: &Value, into: &mut Vec<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        into.extend(properties.keys().cloned());
    }
    for definition in schema["$defs"]
        .as_object()
        .into_iter()
        .flat_map(|definitions| definitions.values())
    {
        fields(definition, into);
    }
}

#[test]
fn every_field_and_state_is_explained() {
    let page = page();
    let mut names: Vec<String> = PathState::ALL
        .iter()
        .map(|state| state.as_str().to_string())
        .collect();
    for schema in [path_status_schema(), summary_schema()] {
        fields(&serde_json::from_str(&schema).unwrap(), &mut names);
    }
    assert!(names.len() > 30, "{names:?}");
    // States are the fields of `paths` too; those are explained as states.
    for name in names {
        assert!(
            page.contains(&format!("`{name}`")),
            "{name} is not explained"
        );
    }
}

#[test]
fn every_field_of_the_schemas_has_a_description() {
    for schema in [path_status_schema(), summary_schema()] {
        let schema: Value = serde_json::from_str(&schema).unwrap();
        let definitions = schema["$defs"].as_object().unwrap().values();
        for object in definitions.chain([&schema]) {
            for (name, property) in object["properties"].as_object().into_iter().flatten() {
                assert!(
                    property["description"].is_string(),
                    "{name} has no description"
                );
            }
        }
    }
}
