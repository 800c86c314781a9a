//! What an image says about running it: `config` of the OCI image configuration.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Platform;

/// Parts of a base's configuration that are true of what is built on it. Not among them: when and
/// by what it was made, and what Docker once noted of the container that it was made from.
const KEPT: [&str; 4] = ["config", "history", "rootfs", "os.version"];

/// What is said of running the image. Empty means: as the base has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments behind it that a user may replace.
    pub cmd: Vec<String>,
    /// Variables.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub workdir: Option<String>,
    /// User, by number or name, with or without a group.
    pub user: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// The configuration without its layers, over that of a base.
pub(super) fn config(base: Option<&Value>, settings: &Settings, platform: &Platform) -> Value {
    let mut all = Map::new();
    for key in KEPT {
        if let Some(value) = base.and_then(|base| base.get(key)) {
            all.insert(key.into(), value.clone());
        }
    }
    all.insert("architecture".into(), json!(platform.architecture));
    all.insert("os".into(), json!("linux"));
    if let Some(variant) = &platform.variant {
        all.insert("variant".into(), json!(variant));
    }
    let before = all.get("config").and_then(Value::as_object);
    let mut run = before.cloned().unwrap_or_default();
    // A new program does not want the old one's arguments.
    if !settings.entrypoint.is_empty() {
        run.insert("Entrypoint".into(), json!(settings.entrypoint));
        run.remove("Cmd");
    }
    if !settings.cmd.is_empty() {
        run.insert("Cmd".into(), json!(settings.cmd));
    }
    if !settings.env.is_empty() {
        let env = env(run.get("Env"), &settings.env);
        run.insert("Env".into(), json!(env));
    }
    for (key, value) in [("WorkingDir", &settings.workdir), ("User", &settings.user)] {
        if let Some(value) = value {
            run.insert(key.into(), json!(value));
        }
    }
    if !settings.labels.is_empty() {
        let labels = run.get("Labels").and_then(Value::as_object);
        let mut labels = labels.cloned().unwrap_or_default();
        labels.extend(settings.labels.iter().map(|(k, v)| (k.clone(), json!(v))));
        run.insert("Labels".into(), Value::Object(labels));
    }
    all.insert("config".into(), Value::Object(run));
    // Where there is a history, it has an entry for each layer.
    if let Some(Value::Array(history)) = all.get_mut("history") {
        history.push(json!({"created_by": "narfs image build"}));
    }
    Value::Object(all)
}

/// The variables of the base with those given in their places or behind them.
fn env(base: Option<&Value>, given: &[(String, String)]) -> Vec<String> {
    let base = base.and_then(Value::as_array).into_iter().flatten();
    let mut all: Vec<String> = base.filter_map(|v| v.as_str().map(str::to_owned)).collect();
    for (key, value) in given {
        let line = format!("{key}={value}");
        let there = all
            .iter_mut()
            .find(|old| old.split('=').next() == Some(key));
        match there {
            Some(old) => *old = line,
            None => all.push(line),
        }
    }
    all
}

/// What a configuration runs: its program, and the variable `PATH`.
pub(super) fn program(config: &Value) -> (Option<&str>, bool) {
    let run = &config["config"];
    let words = |key: &str| run[key].as_array().into_iter().flatten();
    let first = words("Entrypoint").chain(words("Cmd")).next();
    let path = words("Env").any(|v| v.as_str().is_some_and(|v| v.starts_with("PATH=")));
    (first.and_then(Value::as_str), path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    fn platform() -> Platform {
        Platform::parse("linux/arm64/v8").unwrap()
    }

    #[test]
    fn what_is_said_goes_over_what_the_base_says() {
        let base = json!({
            "created": "2024-01-01T00:00:00Z", "author": "x", "container": "y",
            "architecture": "amd64", "os": "linux",
            "config": {
                "Env": ["PATH=/bin", "A=1", "B=2"], "Entrypoint": ["/e"], "Cmd": ["/c"],
                "Labels": {"a": "1", "b": "2"}, "User": "7", "StopSignal": "SIGINT",
            },
            "history": [{"created_by": "x"}],
            "rootfs": {"type": "layers", "diff_ids": ["sha256:0"]},
        });
        let settings = Settings {
            entrypoint: strings(&["/nix/store/p"]),
            env: [("B", "3"), ("C", "4=5")]
                .map(|(k, v)| (k.into(), v.into()))
                .into(),
            workdir: Some("/w".into()),
            labels: [("b", "3"), ("c", "")]
                .map(|(k, v)| (k.into(), v.into()))
                .into(),
            ..Settings::default()
        };
        let want = json!({
            "architecture": "arm64", "variant": "v8", "os": "linux",
            "config": {
                "Env": ["PATH=/bin", "A=1", "B=3", "C=4=5"], "Entrypoint": ["/nix/store/p"],
                "Labels": {"a": "1", "b": "3", "c": ""}, "User": "7", "StopSignal": "SIGINT",
                "WorkingDir": "/w",
            },
            "history": [{"created_by": "x"}, {"created_by": "narfs image build"}],
            "rootfs": {"type": "layers", "diff_ids": ["sha256:0"]},
        });
        assert_eq!(config(Some(&base), &settings, &platform()), want);
        let only_cmd = Settings {
            cmd: strings(&["x", "-y"]),
            ..Settings::default()
        };
        let made = config(Some(&base), &only_cmd, &platform());
        assert_eq!(made["config"]["Entrypoint"], json!(["/e"]));
        assert_eq!(made["config"]["Cmd"], json!(["x", "-y"]));
        assert_eq!(program(&made), (Some("/e"), true));
    }

    #[test]
    fn nothing_said_is_nothing_written() {
        let bare = config(None, &Settings::default(), &platform());
        assert_eq!(
            bare,
            json!({"architecture": "arm64", "variant": "v8", "os": "linux", "config": {}})
        );
        assert_eq!(program(&bare), (None, false));
    }
}
