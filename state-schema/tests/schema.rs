//! The checked-in JSON Schemas are what the types say. `NARFS_BLESS=1` writes them.

use std::{fs, path::Path};

#[test]
fn schemas_have_not_drifted() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    for (name, want) in [
        (
            "path-status.schema.json",
            narfs_state_schema::path_status_schema(),
        ),
        ("summary.schema.json", narfs_state_schema::summary_schema()),
    ] {
        let file = directory.join(name);
        if std::env::var_os("NARFS_BLESS").is_some() {
            fs::create_dir_all(&directory).unwrap();
            fs::write(&file, &want).unwrap();
        }
        let have = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            have == want,
            "{} is out of date: run this test with NARFS_BLESS=1",
            file.display()
        );
    }
}

#[test]
fn nothing_is_ever_null() {
    for schema in [
        narfs_state_schema::path_status_schema(),
        narfs_state_schema::summary_schema(),
    ] {
        assert!(!schema.contains("\"null\""), "{schema}");
    }
}
