//! The effective configuration, for `narfs config`.

use std::fmt::Write as _;

use super::{Config, KEYS, Origin};

/// Whether credentials in URLs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrets {
    /// As `***`: for everything that people see.
    Masked,
    /// As they are: for handing a configuration to another process of the same user.
    Shown,
}

impl Config {
    /// For people: a line for each key with its value and where that came from.
    pub fn to_text(&self) -> String {
        let rows: Vec<_> = KEYS.iter().flat_map(|spec| self.rows(spec.name)).collect();
        let widest = |column: fn(&[String; 3]) -> &str| {
            rows.iter().map(|row| column(row).chars().count()).max()
        };
        let key = widest(|row| &row[0]).unwrap_or(0);
        // Keys of caches are long; beyond this, origins are not lined up with them.
        let value = widest(|row| &row[1]).unwrap_or(0).min(60);
        let mut text = String::new();
        for [name, shown, origin] in &rows {
            let line = format!("{name:key$}  {shown:value$}  {origin}");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// The lines of one key: lists have one for each item.
    fn rows(&self, key: &'static str) -> Vec<[String; 3]> {
        let origin = self.origin(key).to_string();
        let items = match self.value(key, Secrets::Masked) {
            Some(toml::Value::Array(items)) if !items.is_empty() => items,
            Some(value) => vec![value],
            None => Vec::new(),
        };
        let row = |(index, item): (usize, &toml::Value)| {
            let name = if index == 0 { key } else { "" };
            [
                name.to_string(),
                plain(item),
                if index == 0 {
                    origin.clone()
                } else {
                    String::new()
                },
            ]
        };
        items.iter().enumerate().map(row).collect()
    }

    /// As a configuration file, each key with a comment that says where its value came from.
    /// With [`Secrets::Shown`] it can be read again to the same effect.
    pub fn to_toml(&self, secrets: Secrets) -> String {
        let mut text = String::new();
        for spec in KEYS {
            let Some(value) = self.value(spec.name, secrets) else {
                continue;
            };
            // What a nix.conf says stands in the keys it sets; reading it again would only need
            // the file to be there.
            let commented = if spec.name == "nix-conf" { "# " } else { "" };
            let value = value.to_string();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "# {}\n{commented}{} = {value}\n",
                self.origin(spec.name),
                spec.name
            );
        }
        text.pop();
        text
    }

    /// As one JSON object: for each key an object with `value`, `origin` (text), `source`
    /// (`default`, `file`, `nix.conf`, `environment` or `flag`).
    pub fn to_json(&self) -> serde_json::Value {
        let entry = |name: &str| {
            let origin = self.origin(name);
            let source = match origin {
                Origin::Default => "default",
                Origin::File { .. } => "file",
                Origin::NixConf { .. } => "nix.conf",
                Origin::Environment(_) => "environment",
                Origin::Flag(_) => "flag",
            };
            // An optional path that is not set.
            let unset = |value: &toml::Value| value.as_str() == Some("");
            let value = self
                .value(name, Secrets::Masked)
                .filter(|value| !unset(value));
            serde_json::json!({ "value": value, "origin": origin.to_string(), "source": source })
        };
        KEYS.iter()
            .map(|spec| (spec.name.to_string(), entry(spec.name)))
            .collect()
    }
}

/// A value without quotes; a cache as its URL and what else is said of it.
fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) if text.is_empty() => "none".into(),
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) if items.is_empty() => "none".into(),
        toml::Value::Table(table) => {
            let mut text = table.get("url").map(plain).unwrap_or_default();
            for (key, value) in table.iter().filter(|(key, _)| *key != "url") {
                let _ = write!(text, " {key}={}", plain(value));
            }
            text
        }
        other => other.to_string(),
    }
}
