//! `docs/configuration.md` says what the program does: every key with its default, variable and
//! flag, every setting of Nix that is imported, and examples that work.

use std::{fs, path::Path, process::Command};

use narfs::config::{KEYS, parse_file};

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md")).unwrap()
}

/// The rows of the table whose head is `head`, as cells.
fn table(page: &str, head: &str) -> Vec<Vec<String>> {
    let rows = page
        .lines()
        .skip_while(|line| !line.starts_with(head))
        .skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        row.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_string())
            .collect()
    })
    .collect()
}

fn code_blocks(page: &str, language: &str) -> Vec<String> {
    let opening = format!("```{language}\n");
    page.split(&opening)
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap_or_default().to_string())
        .collect()
}

#[test]
fn every_key_is_there_with_default_variable_and_flag() {
    let page = page();
    let rows = table(&page, "| key |");
    assert_eq!(
        rows.len(),
        KEYS.len(),
        "keys in the page and in the program"
    );
    for (spec, row) in KEYS.iter().zip(rows) {
        let [key, default, variable, flag] = &row[..] else {
            panic!("{row:?}")
        };
        assert!(
            key.starts_with(&format!("[`{}`](#", spec.name)),
            "{key} is not {}",
            spec.name
        );
        assert_eq!(variable, &format!("`{}`", spec.env));
        assert_eq!(flag, &format!("`--{}`", spec.flag));
        let default = default.replace('`', "");
        let matches = match spec.name {
            "state-dir" => spec.default_text().starts_with(&default),
            _ => spec.default_text() == default,
        };
        assert!(
            matches,
            "{}: {default} is not {}",
            spec.name,
            spec.default_text()
        );
    }
}

#[test]
fn every_link_to_a_section_leads_to_one() {
    let page = page();
    let anchor = |line: &str| {
        line.trim_start_matches('#')
            .trim()
            .to_lowercase()
            .replace(' ', "-")
    };
    let anchors: Vec<_> = page
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(anchor)
        .collect();
    for target in page
        .split("](#")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
    {
        assert!(
            anchors.iter().any(|anchor| anchor == target),
            "#{target} leads nowhere"
        );
    }
}

#[test]
fn the_examples_are_configurations() {
    let blocks = code_blocks(&page(), "toml");
    assert!(blocks.len() >= 2);
    for block in blocks {
        parse_file(&block).unwrap_or_else(|error| panic!("{error}\n{block}"));
    }
}

/// A `narfs config` that sees nothing of this machine's configuration.
fn narfs_config(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_narfs"));
    command
        .env_clear()
        .env("HOME", dir)
        .env("NARFS_STATE_DIR", dir)
        .arg("config");
    command.args(["--config", "/dev/null"]);
    command
}

#[test]
fn the_imported_settings_of_nix_are_all_named() {
    let dir = tempfile::tempdir().unwrap();
    let rows = table(&page(), "| in `nix.conf` |");
    assert!(rows.len() >= 12);
    for row in rows {
        let setting = row[0].replace('`', "");
        let key = row[1].replace("adds to ", "");
        let key = key.split('`').nth(1).unwrap();
        let value = match setting.as_str() {
            "netrc-file" => "/etc/nix/netrc",
            "require-sigs" => "false",
            name if name.ends_with("substituters") => "https://cache.example.org",
            name if name.ends_with("keys") => "x:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            _ => "77",
        };
        let file = dir.path().join("nix.conf");
        fs::write(&file, format!("{setting} = {value}\n")).unwrap();
        let output = narfs_config(dir.path())
            .arg("--json")
            .arg("--nix-conf")
            .arg(&file)
            .output()
            .unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            json[key]["source"], "nix.conf",
            "{setting} does not set {key}"
        );
        let before = json[key]["value"].as_array().map_or(0, Vec::len);
        assert_eq!(
            before == 2,
            row[1].starts_with("adds to"),
            "{setting}: {json}"
        );
    }
}

#[test]
fn the_first_example_prints_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let output = narfs_config(dir.path())
        .env("NARFS_TRIES", "3")
        .args(["--quota", "10GiB"])
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let block = code_blocks(&page(), "console").remove(0);
    for line in block.lines().skip(1).filter(|line| *line != "…") {
        assert!(
            printed.lines().any(|have| have == line),
            "{line}\nis not in\n{printed}"
        );
    }
}

#[test]
fn mistakes_end_with_status_2_and_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    fs::write(&file, "\nconections = 3\n").unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_narfs"));
        let output = command
            .env_clear()
            .env("HOME", dir.path())
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let path = file.to_str().unwrap();
    let (status, out, err) = run(&["config", "--config", path]);
    assert_eq!((status, out.as_str()), (Some(2), ""));
    let want = format!(
        "narfs: {path}:2: \"conections\" is not a key of narfs\n  hint: did you mean \"connections\"?\n"
    );
    assert_eq!(err, want);

    let (status, _, err) = run(&["config", "--log", "narfs=loud"]);
    assert_eq!(status, Some(2));
    assert!(err.contains("--log: \"narfs=loud\" is no filter"), "{err}");
    assert_eq!(run(&["config", "--no-such-flag"]).0, Some(2));
    assert_eq!(run(&["config", "--verify", "never"]).0, Some(2));
    assert_eq!(run(&["--version"]).0, Some(0));

    let url = "https://me:secret@cache.example.org";
    let (status, out, err) = run(&["config", "--cache", url, "--log", "trace"]);
    assert_eq!(status, Some(0));
    assert!(out.contains("https://***@cache.example.org/"), "{out}");
    assert!(
        !out.contains("secret") && !err.contains("secret"),
        "{out}{err}"
    );
}
