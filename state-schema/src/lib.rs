//! Types of the status files of narfs, and nothing else, so that other programs can depend on it.
//!
//! A mount, and every view, has a directory `.nix-snapshotter` at its root, found by name and
//! never listed. In it lie one [`PathStatus`] for each store path, as `<hash>-<name>.json`, and a
//! [`Summary`] as `summary.json`. Fields that tools for eStargz read keep the names they have
//! there: `digest`, `size`, `fetchedSize`, `fetchedPercent`, `error`.
//!
//! The JSON Schemas in `schema/` are generated from these types (`cargo test -p
//! narfs-state-schema` fails when they differ; with `NARFS_BLESS=1` it writes them).
//!
//! Fields may be added; none changes its meaning or goes away within a major version. Readers
//! should skip fields they do not know.

use serde_json::Value;

mod padded;
mod path;
mod summary;
mod time;

pub use padded::{Document, render_padded};
pub use path::{LastError, PathState, PathStatus, percent};
pub use summary::{DaemonStatus, StateCounts, SubstituterStatus, Summary};
pub use time::Timestamp;

/// Name of the status directory at the root of a mount and of a view.
pub const STATUS_DIRECTORY: &str = ".nix-snapshotter";

/// Name of the [`Summary`] in the status directory.
pub const SUMMARY_FILE: &str = "summary.json";

/// The JSON Schema of [`PathStatus`], as checked in at `schema/path-status.schema.json`.
pub fn path_status_schema() -> String {
    rendered::<PathStatus>()
}

/// The JSON Schema of [`Summary`], as checked in at `schema/summary.schema.json`.
pub fn summary_schema() -> String {
    rendered::<Summary>()
}

fn rendered<T: schemars::JsonSchema>() -> String {
    let generator = schemars::generate::SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    format!("{schema:#}\n")
}

/// Says what narfs writes more exactly than the types can: nothing is ever null, since what is
/// unknown is absent. Line ends of comments become spaces.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Object(object) => {
            object.values_mut().for_each(tidy);
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = &types[..] {
                    let only = only.clone();
                    object.insert("type".into(), only);
                }
            }
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|choice| choice["type"] != "null");
                if let [Value::Object(only)] = &choices[..] {
                    let only = only.clone();
                    object.remove("anyOf");
                    object.extend(only);
                }
            }
        }
        _ => {}
    }
}
